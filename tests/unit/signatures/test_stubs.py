"""Stub files: their text, and what a type checker makes of them."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from signatures.stubs import stubs
from signatures.text.parser import read

ROOT = Path(__file__).resolve().parents[3]


class Invoice:
    """A class of a program's own."""


def annotation(type_text: str, *, side: str = "output") -> str:
    """Return what one field of this type is annotated with."""
    text = f"x: {type_text} -> y" if side == "input" else f"x -> y: {type_text}"
    made = stubs({"one": read(text, types={"Invoice": Invoice})})
    pattern = r"__call__\(self, \*, x: (.*)\) ->" if side == "input" else r"^    y: (.*)$"
    found = re.search(pattern, made, re.MULTILINE)
    assert found is not None, made
    return found[1]


@pytest.mark.parametrize(
    ("type_text", "shown"),
    [
        ("str", "str"),
        ("int[0..9]", "int"),
        ("None | int", "None | int"),
        ("Optional[list[str[..5]]]", "list[str] | None"),
        ("list", "list[Any]"),
        ("dict", "dict[Any, Any]"),
        ("tuple", "tuple[Any, ...]"),
        ("tuple[int, ...]", "tuple[int, ...]"),
        ("tuple[int, str]", "tuple[int, str]"),
        ("Mapping[str, Any]", "Mapping[str, Any]"),
        ("Literal['a', 2, None]", 'Literal["a", 2, None]'),
        ("Literal['a', 0.5]", 'Literal["a"] | float'),
        ("Annotated[int, 'a note']", "int"),
        ("date", "_datetime.date"),
        ("Decimal", "_decimal.Decimal"),
        ("UUID", "_uuid.UUID"),
        ("dspy.Image", "Any"),
        ("Invoice", "Any"),
        ("list[Invoice]", "list[Any]"),
    ],
)
@pytest.mark.parametrize("side", ["input", "output"])
def test_types_as_annotations(type_text: str, shown: str, side: str) -> None:
    assert annotation(type_text, side=side) == shown


def test_records_become_typed_dicts() -> None:
    made = stubs({"qa": read("docs: list[{title: str, n: int = 1}] -> found: {title: str, n: int = 1}")})
    assert "class QaDocs(TypedDict):\n    title: str\n    n: NotRequired[int]\n" in made
    assert "class QaFound(TypedDict):\n    title: str\n    n: int\n" in made
    assert "docs: list[QaDocs]" in made
    assert "    found: QaFound\n" in made


def test_names_of_classes_are_distinct_and_free() -> None:
    programs = ["a-b", "a_b", "client", "3d", "any", "_", "a.b-prediction"]
    made = stubs(dict.fromkeys(programs))
    classes = re.findall(r"^class (\w+)\(Protocol\)", made, re.MULTILINE)
    assert sorted(classes) == sorted(
        {"AB", "AB2", "ProgramClient", "Program3d", "ProgramAny", "Program", "ABPrediction2"}
    )


def test_programs_called_as_keywords_are() -> None:
    text = stubs({name: read("a -> b") for name in ("true", "false", "none", "class", "日本", "--", "1st", "any")})
    compile(text, "programs.pyi", "exec")
    assert "class ProgramTrue(Protocol):" in text


def test_the_text_depends_on_the_programs_alone() -> None:
    one, other = read("question -> answer: str"), read("n: int, when: date -> m: Decimal")
    assert stubs({"a": one, "b": other, "c": None}) == stubs({"c": None, "b": other, "a": one})


PROGRAMS = {
    "qa": "question, k: int = 3, docs: list[{title, n: int = 1}] -> answer, score: float[0..1], keys: list",
    # Names that mean something else where annotations stand.
    "odd": "cls: int, bool: str = '', Any: list[bool] -> str: int, int: str, list: list[Any], Literal: Literal['a'], "
    "datetime: datetime, values: dict[str, int]",
    "triage-2": '"Route it: quickly": ticket "what was\\nwritten" -> team: Literal["billing", "tech"] "who takes it"',
    "wholly": "-> items: set[int]",
}

USE = """\
from __future__ import annotations

from typing import TYPE_CHECKING, cast

from orchestrator import connect

if TYPE_CHECKING:
    from programs import Client, OddPrediction, QaPrediction

client = cast("Client", connect())
found: QaPrediction = client.program("qa", pool="general")(question="?", docs=[{"title": "a"}])
text: str = found.answer
reveal_type(found.score)
odd: OddPrediction = client.program("odd")(cls=1, Any=[True])
reveal_type(odd.str)
reveal_type(odd.datetime)
reveal_type(client.program("triage-2")(ticket="…").team)
client.program("unknown")(whatever=1)
client.program("free")(whatever=1)
client.execute("echo", 1)
client.program("qa")(qestion="?", docs=[])  # wrong: call-arg
client.program("qa")(question="?", k="3", docs=[])  # wrong: arg-type
client.program("qa")(question="?", docs=[{"titel": "a"}])  # wrong: typeddict-unknown-key
client.program("qa")("?")  # wrong: call-arg
number: int = found.answer  # wrong: assignment
client.program("triage-2", pol="x")(ticket="…")  # wrong: call-overload
"""


def test_mypy_accepts_the_stubs_and_finds_wrong_uses(tmp_path: Path) -> None:
    text = stubs({**{name: read(one) for name, one in PROGRAMS.items()}, "free": None})
    ast.parse(text)
    (tmp_path / "programs.pyi").write_text(text, encoding="utf-8")
    (tmp_path / "use.py").write_text(USE, encoding="utf-8")
    files = [str(tmp_path / "use.py"), str(tmp_path / "programs.pyi")]
    cache = str(ROOT / ".mypy_cache" / "tests")
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--cache-dir", cache]
    done = subprocess.run(
        [*command, *files],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "MYPYPATH": f"{ROOT}:{tmp_path}"},
    )
    assert done.stderr == ""
    out = done.stdout
    errors = {int(line): kind for line, kind in re.findall(r"use\.py:(\d+): error: .*\[([\w-]+)\]", out)}
    wanted = {
        number: line.rpartition("# wrong: ")[2] for number, line in enumerate(USE.splitlines(), 1) if "# wrong" in line
    }
    assert errors == wanted, out
    assert re.findall(r"programs\.pyi:.*error.*", out) == []
    revealed = re.findall(r'Revealed type is "(.*)"', out)
    assert [one.replace("builtins.", "") for one in revealed] == [
        "float", "int", "datetime.datetime", "Literal['billing'] | Literal['tech']",
    ]  # fmt: skip
