"""Type checkers see the fields: one run of mypy over `tests/support/typing_sample.py`, judged line by line."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SAMPLE = ROOT / "tests" / "support" / "typing_sample.py"
REPORTED = re.compile(r"^[^:]+:(?P<line>\d+): (?P<kind>error|note): (?P<text>.*?)(?:  \[(?P<code>[a-z-]+)\])?$")
# Names come with their modules, and `list` as builtins.list.
MODULES = re.compile(r"\b(?:[a-z_]+\.)+(?=[A-Za-z_])")

Marks = dict[int, str]


@pytest.fixture(scope="module")
def reported() -> tuple[dict[int, set[str]], Marks]:
    """Return the codes of the errors and the revealed types, by line."""
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--no-error-summary", str(SAMPLE)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert ran.returncode == 1, ran.stderr
    errors: dict[int, set[str]] = defaultdict(set)
    revealed: Marks = {}
    for line in ran.stdout.splitlines():
        found = REPORTED.match(line)
        assert found is not None, line
        assert "typing_sample.py" in line, line
        if found["kind"] == "error":
            errors[int(found["line"])].add(found["code"])
        elif found["text"].startswith("Revealed type is "):
            revealed[int(found["line"])] = MODULES.sub("", found["text"].removeprefix("Revealed type is ").strip('"'))
    return errors, revealed


def marked(mark: str) -> Marks:
    lines = enumerate(SAMPLE.read_text(encoding="utf-8").splitlines(), 1)
    found = {number: line.partition(f"# {mark}: ")[2] for number, line in lines if f"  # {mark}: " in line}
    assert found
    return found


def test_mistakes_are_refused_and_nothing_else_is(reported: tuple[dict[int, set[str]], Marks]) -> None:
    errors, _ = reported
    assert {line: " ".join(sorted(codes)) for line, codes in errors.items()} == marked("error")


def test_attributes_have_their_types(reported: tuple[dict[int, set[str]], Marks]) -> None:
    _, revealed = reported
    assert revealed == marked("reveals")
