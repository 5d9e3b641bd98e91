"""The sources of a program: which files they are, what changes their digest, and their trip into a version and back."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from bridge.worker import sources

Write = Callable[[str, str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def written(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return written


def names(tmp_path: Path, target: str) -> list[str]:
    return [path.relative_to(tmp_path).as_posix() for path in sources.files(target, [tmp_path])]


def test_the_files_of_a_program_of_a_file(write: Write, tmp_path: Path) -> None:
    write("helper.py", "import deeper.still\n")
    write("deeper/still.py", "from . import not_there\n")
    write("unused.py", "")
    file = write("program.py", "def f():\n    import helper\nimport json, msgspec, no_such_module\nfrom . import odd\n")
    assert names(tmp_path, f"{file}:X") == ["deeper/still.py", "helper.py", "program.py"]


def test_the_files_of_a_program_of_a_package_are_all_of_it(write: Write, tmp_path: Path) -> None:
    write("acme/__init__.py", "")
    write("acme/qa.py", "from acme_helper import A\nfrom ..beyond import B\n")
    write("acme/plugins/one.py", "import found_by_nobody\n")  # imported by a name that is made while it runs
    write("acme/data/no-module.py", "")
    write("acme_helper.py", "")
    write("found_by_nobody.py", "")
    expected = ["acme/__init__.py", "acme/plugins/one.py", "acme/qa.py", "acme_helper.py"]
    assert names(tmp_path, "acme.qa:QA") == expected
    assert names(tmp_path, "acme:QA") == expected[:3], "what its target does not import is not followed"


@pytest.mark.parametrize("target", ["no_such_package.qa:QA", {"module": "dspy.Predict", "signature": "a -> b"}, None])
def test_targets_without_files(target: object) -> None:
    assert sources.files(target) == []


def test_a_file_that_is_gone_is_still_its_programs(tmp_path: Path) -> None:
    assert sources.files(f"{tmp_path}/gone.py:X") == [tmp_path / "gone.py"]


def test_the_files_of_a_pickled_program(write: Write, tmp_path: Path) -> None:
    one, other = write("saved/program.pkl", "x"), write("saved/metadata.json", "x")
    assert sources.files({"pickled": str(tmp_path / "saved"), "sha256": "0"}) == [other, one]
    assert sources.files({"pickled": str(one), "sha256": "0"}) == [one]


def test_nothing_is_run(write: Write, tmp_path: Path) -> None:
    write("acme/__init__.py", "raise SystemExit('it was run')\n")
    write("acme/qa.py", "raise SystemExit('it was run')\n")
    assert len(sources.files("acme.qa:QA", [tmp_path])) == 2


def test_the_digest_is_of_all_texts_wherever_they_are(write: Write, tmp_path: Path) -> None:
    digests = []
    for folder, value in (("one", 1), ("two", 1), ("three", 2)):
        write(f"{folder}/helper.py", f"A = {value}\n")
        digests.append(sources.read(str(write(f"{folder}/program.py", "import helper\n"))).sha256)
    assert digests[0] == digests[1] != digests[2]


def test_a_module_without_source_has_none() -> None:
    assert sources.read("sys").modules == sources.read("zlib").modules == {}


def test_an_installed_module_is_its_own_file_and_is_not_kept() -> None:
    found = sources.read("json")
    assert [source.file for source in found.modules.values()] == [json.__file__]
    assert found.pack() is None


def test_packed_and_unpacked(write: Write) -> None:
    write("helper.py", "A = 'ä'\n")
    found = sources.read(str(write("program.py", "import helper\n")))
    packed = found.pack()
    assert packed is not None
    again = sources.unpack(packed)
    assert (again.root, again.modules, again.sha256) == (found.root, found.modules, found.sha256)
    assert again.pack() == packed


def test_sources_that_are_too_large_are_not_kept(write: Write) -> None:
    repeated = "#" * (sources.MAX_KEPT_BYTES + 1)
    assert sources.read(str(write("long.py", repeated))).pack() is None
    noise = random.Random(1).randbytes(sources.MAX_PACKED_BYTES).hex()
    assert sources.read(str(write("noise.py", f"A = '{noise}'"))).pack() is None


@pytest.mark.parametrize("packed", [b"", b"x", b"\x78\x9c\x03\x00\x00\x00\x00\x01"])
def test_what_is_no_pack_is_told(packed: bytes) -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        sources.unpack(packed)


@pytest.mark.parametrize("text", ["def broken(:\n", "\0", "x = " + "(" * 300])
def test_what_is_no_python_is_read_all_the_same(write: Write, text: str) -> None:
    assert len(sources.read(str(write("program.py", text))).modules) == 1


def test_no_more_files_than_the_bound(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(20):
        write(f"acme/m{number:02}.py", "")
    write("acme/__init__.py", "")
    write("acme/qa.py", "from . import m19\n")
    monkeypatch.setattr(sources, "MAX_FILES", 5)
    assert names(tmp_path, "acme.qa:QA") == [
        "acme/__init__.py",
        "acme/m00.py",
        "acme/m01.py",
        "acme/m19.py",
        "acme/qa.py",
    ]


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=os.strerror(2)):
        sources.read(str(tmp_path / "gone.py"))


def test_what_never_ends_is_not_read(tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe.py")
    (tmp_path / "zero.py").symlink_to("/dev/zero")
    for name in ("pipe.py", "zero.py"):
        with pytest.raises(OSError, match="no regular file"):
            sources.read(str(tmp_path / name))
    large = write("large.py", "x = 1\n")
    monkeypatch.setattr(sources, "MAX_FILE_BYTES", 6)
    assert len(sources.read(str(large)).modules) == 1
    monkeypatch.setattr(sources, "MAX_FILE_BYTES", 5)
    with pytest.raises(OSError, match="more than 5 bytes"):
        sources.read(str(large))
