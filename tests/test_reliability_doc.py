"""docs/reliability.md maps every fault, every defect, every order of dying and every goal to tests that exist."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
DOC = (TESTS.parent / "docs" / "reliability.md").read_text(encoding="utf-8")
REFERENCE = re.compile(r"`([\w/]+\.py)::(\w+)`")
COMMAND = re.compile(r"`(scripts/[^`]+)`")
# What the tables must have a row for.
ROWS = {
    "Faults": {
        "SIGKILL, SIGSEGV of a worker", "OOM", "Hang (Python)", "Interpreter lock held in C", "Slow leak", "Fork bomb",
        "stdout flood", "Exit during a reply", "Poison message", "Pool that cannot boot", "Crash loop",
        "Coordinator SIGKILL", "Owner SIGKILL", "Nanny SIGKILL", "Clock jumps an hour", "Client vanishes",
        "Slow reader", "Work that kills or hangs", "Overload", "Duplicate request id", "Oversize or malformed frame",
        "No right to connect", "Version skew", "SIGKILL of the services process",
        "A kill in the middle of a deployment", "A session's worker dies", "Disk full",
        "Store corrupt, read-only, of a newer version", "Events and a SIGKILL",
        "Silent line, stopped peer", "Coordinator stopped or suspended", "Remote partition",
    },
    "Orders of dying": {"client", "worker", "zygote", "nanny", "coordinator", "owner"},
    "Defects of others": set("abcdefghijklmnopqr"),
    "Goals": {"G1", "G2", "G3", "G4", "G5", "G6", "G7", "G8", "G9", "G10", "G11", "G13", "G14", "G15"},
}  # fmt: skip


def rows(section: str) -> list[list[str]]:
    """Return the cells of a section's table, without its head."""
    (text,) = re.findall(rf"^## {section}$(.*?)(?=^## |\Z)", DOC, re.MULTILINE | re.DOTALL)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


@cache
def functions_in(path: str) -> frozenset[str]:
    """Return the names of a file's test functions; none if there is no such file."""
    file = TESTS / path
    if not file.is_file():
        return frozenset()
    nodes = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
    return frozenset(node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


@pytest.mark.parametrize("section", ROWS)
def test_a_table_has_every_row_and_every_row_a_proof(section: str) -> None:
    table = rows(section)
    assert len({len(row) for row in table}) == 1, "a cell too many or too few"
    assert {row[0] for row in table} == ROWS[section]
    assert len(table) == len(ROWS[section])
    assert [row[0] for row in table if not REFERENCE.search(row[-1])] == []


def test_every_bad_input_has_a_proof() -> None:
    table = rows("Bad inputs")
    assert [int(row[0].partition(" ")[0]) for row in table] == [*range(1, 30), 36, 37, 38, 41, 42]
    assert [row[0] for row in table if not REFERENCE.search(row[-1])] == []


def test_every_test_that_is_named_exists() -> None:
    named = set(REFERENCE.findall(DOC))
    assert len(named) > 50
    missing = sorted(f"{path}::{name}" for path, name in named if name not in functions_in(path))
    assert missing == []


def test_every_command_that_is_named_exists() -> None:
    commands = [command.split() for command in COMMAND.findall(DOC)]
    assert commands
    for command in commands:
        assert (TESTS.parent / command[0]).is_file(), command
        for word in command:
            if word.startswith("tests/"):
                assert (TESTS.parent / word).is_file(), command
