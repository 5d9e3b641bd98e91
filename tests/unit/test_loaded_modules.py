"""Modules in memory: what an edit makes anew, what it leaves alone, and what earlier programs go on to see."""

from __future__ import annotations

import importlib
import itertools
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from bridge.worker import loaded_modules, sources

_numbers = itertools.count(1)

Write = Callable[..., None]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Give the name of a package of its own, which can be imported; forget it in the end."""
    name = f"dspool_test_package_{next(_numbers)}"
    (tmp_path / name).mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    yield name
    for one in [one for one in sys.modules if one.partition(".")[0] in (name, "beside")]:
        del sys.modules[one]


@pytest.fixture
def write(tmp_path: Path, package: str) -> Write:
    """Give a function that writes modules of the package: `write(qa="…")`; `__init__` is empty at first."""

    def written(**texts: str) -> None:
        for name, text in texts.items():
            (tmp_path / package / f"{name}.py").write_text(text.replace("PKG", package))

    written(__init__="")
    return written


def bring(where: str) -> ModuleType:
    return loaded_modules.bring(sources.read(where))


def test_what_is_unchanged_is_the_same_module(package: str, write: Write) -> None:
    write(qa="from .parts import A\n", parts="A = 1\n")
    assert bring(f"{package}.qa") is bring(f"{package}.qa") is sys.modules[f"{package}.qa"]


@pytest.mark.parametrize(
    "uses",
    [
        "from .parts import A\ndef a():\n    return A\n",
        "from . import parts\ndef a():\n    return parts.A\n",
        "import PKG.parts\ndef a():\n    return PKG.parts.A\n",
        "import PKG.parts as other\ndef a():\n    return other.A\n",
        "from PKG.middle import B\ndef a():\n    return B\n",
        "import importlib\nparts = importlib.import_module('PKG.parts')\ndef a():\n    return parts.A\n",
    ],
)
def test_an_edited_module_takes_effect_and_the_former_program_keeps_its_own(
    package: str, write: Write, uses: str
) -> None:
    write(qa=uses, parts="A = 1\n", middle="from .parts import A as B\n", heavy="import PKG\nLOADED = object()\n")
    heavy = importlib.import_module(f"{package}.heavy")
    first = bring(f"{package}.qa")
    assert first.a() == 1
    write(parts="A = 2\n")  # of the same length and, most likely, in the same second
    second = bring(f"{package}.qa")
    assert (first.a(), second.a()) == (1, 2)
    assert sys.modules[f"{package}.qa"] is second
    assert sys.modules[f"{package}.heavy"] is heavy, "what the edit does not touch stays in memory"


def test_a_package_that_is_made_anew_has_the_modules_that_stay(package: str, write: Write) -> None:
    write(qa="import PKG\ndef a():\n    return PKG.N\n", heavy="LOADED = object()\n")
    write(__init__="import PKG.heavy\nN = PKG.heavy.LOADED and 1\n")
    first = bring(f"{package}.qa")
    heavy = sys.modules[f"{package}.heavy"]
    write(__init__="import PKG.heavy\nN = PKG.heavy.LOADED and 2\n")
    second = bring(f"{package}.qa")
    assert (first.a(), second.a()) == (1, 2)
    assert sys.modules[f"{package}.heavy"] is heavy


def test_another_program_that_uses_the_edited_module_is_made_anew_too(package: str, write: Write) -> None:
    write(one="from .parts import A\n", two="from .parts import A\n", parts="A = 1\n")
    bring(f"{package}.one")
    former = bring(f"{package}.two")
    write(parts="A = 2\n")
    assert bring(f"{package}.one").A == 2
    assert (former.A, bring(f"{package}.two").A) == (1, 2)


def test_a_failed_import_leaves_all_as_it_was(package: str, write: Write) -> None:
    write(qa="from .parts import A\n", parts="A = 1\n")
    first = bring(f"{package}.qa")
    before = {name: module for name, module in sys.modules.items() if name.startswith(package)}
    write(parts="A = 2\nraise SystemExit(3)\n")
    with pytest.raises(SystemExit):
        bring(f"{package}.qa")
    assert {name: module for name, module in sys.modules.items() if name.startswith(package)} == before
    write(parts="A = 1\n")
    assert bring(f"{package}.qa") is first


def test_a_preloaded_module_that_was_edited_since(package: str, write: Write) -> None:
    write(qa="from .parts import A\n", parts="A = 1\n")
    importlib.import_module(f"{package}.parts")
    loaded_modules.note()  # as a zygote does
    write(parts="A = 2\n")
    assert bring(f"{package}.qa").A == 2


def test_what_is_seen_for_the_first_time_is_taken_as_it_is(package: str, write: Write) -> None:
    write(qa="from .parts import A\n", parts="A = 1\n")
    parts = importlib.import_module(f"{package}.parts")
    assert bring(f"{package}.qa").A == 1
    assert sys.modules[f"{package}.parts"] is parts


def test_kept_sources_are_what_is_run_whatever_is_on_disk(package: str, write: Write, tmp_path: Path) -> None:
    write(qa="from .parts import A\n", parts="A = 1\n")
    packed = sources.read(f"{package}.qa").pack()
    assert packed is not None
    write(parts="A = 2\n")
    assert bring(f"{package}.qa").A == 2
    assert loaded_modules.bring(sources.unpack(packed)).A == 1
    assert bring(f"{package}.qa").A == 2
    os.remove(tmp_path / package / "parts.py")
    assert loaded_modules.bring(sources.unpack(packed)).A == 1


def test_a_file_with_a_helper_beside_it(package: str, tmp_path: Path) -> None:
    def program(folder: str, value: int) -> str:
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "beside.py").write_text(f"A = {value}\n")
        file = tmp_path / folder / "program.py"
        file.write_text("import beside\ndef a():\n    return beside.A\n")
        return str(file)

    path = list(sys.path)
    first = bring(program("one", 1))
    other = bring(program("two", 2))  # a namesake in another folder
    edited = bring(program("one", 3))
    assert (first.a(), other.a(), edited.a()) == (1, 2, 3)
    assert bring(program("one", 1)) is first
    assert sys.path == path


def test_modules_of_the_library_and_installed_ones_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("A = 1\n")
    (tmp_path / "program.py").write_text("import json\nimport msgspec\n")
    own, installed = sys.modules["json"], importlib.import_module("msgspec")
    assert bring(str(tmp_path / "program.py")).json is own
    assert sys.modules["json"] is own
    assert sys.modules["msgspec"] is installed
    assert bring("msgspec") is installed


def test_modules_that_import_each_other(package: str, write: Write) -> None:
    write(qa="from . import parts\nN = 1\ndef a():\n    return parts.b()\n")
    write(parts="from . import qa\ndef b():\n    return qa.N\n")
    first = bring(f"{package}.qa")
    write(qa="from . import parts\nN = 2\ndef a():\n    return parts.b()\n")
    assert (first.a(), bring(f"{package}.qa").a()) == (1, 2)


def test_a_module_that_is_imported_late_is_known_to_have_changed(package: str, write: Write) -> None:
    write(qa="def a():\n    from .parts import A\n    return A\n", parts="A = 1\n")
    assert bring(f"{package}.qa").a() == 1
    write(parts="A = 2\n")
    assert bring(f"{package}.qa").a() == 2
