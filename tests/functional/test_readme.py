"""The fenced blocks of the README do what they say: those marked `run`, in order, in one folder like a checkout."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TIMEOUT_S = 100.0


class Block(NamedTuple):
    """One fenced block: its language, what it is marked with, its line in the README, its text."""

    language: str
    mark: str
    line: int
    text: str


def blocks() -> list[Block]:
    found = re.finditer(r"^```(\w+)(?: +(\S+))?\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    return [Block(m[1], m[2] or "", README.count("\n", 0, m.start()) + 2, m[3]) for m in found]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder like a fresh checkout with dspool installed."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "dspool"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m orchestrator.cli "$@"\n', encoding="utf-8")
    command.chmod(0o755)
    for block in blocks():
        if block.mark.startswith("file="):
            (tmp_path / block.mark.removeprefix("file=")).write_text(block.text, encoding="utf-8")
    return tmp_path


def _run(command: list[str], folder: Path) -> str:
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": f"{folder}/bin{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        command, cwd=folder, env=environ, capture_output=True, text=True, timeout=TIMEOUT_S, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def test_the_commands_do_what_the_readme_says(folder: Path) -> None:
    script = "".join(block.text for block in blocks() if (block.language, block.mark) == ("bash", "run"))
    # Whatever fails, no coordinator is left.
    out = _run(
        ["bash", "-euo", "pipefail", "-c", f"trap 'dspool down --force >/dev/null 2>&1 || true' EXIT\n{script}"], folder
    )
    for part in ("general-1.1 is ready", "amount: 129.5", '"value"', "tickets version 2", "team: ", "0 processes left"):
        assert part in out


PYTHON = [block for block in blocks() if (block.language, block.mark) == ("python", "run")]


@pytest.mark.parametrize("block", PYTHON[1:], ids=lambda block: f"line-{block.line}")
def test_the_python_does_what_the_readme_says(folder: Path, block: Block) -> None:
    assert _run([sys.executable, "-c", block.text], folder)


def test_the_first_python_shows_what_it_claims(folder: Path) -> None:
    first = _run([sys.executable, "-c", PYTHON[0].text], folder).splitlines()
    assert first[0].startswith("129.5 general-")
    assert str(sum(range(100))) in first


def test_the_configuration_is_valid(folder: Path) -> None:
    (block,) = (block for block in blocks() if block.mark == "config")
    (folder / "dspool.yaml").write_text(block.text, encoding="utf-8")
    assert "is valid" in _run(["dspool", "config", "check"], folder)


def test_every_link_leads_somewhere() -> None:
    places = [place for place in re.findall(r"\]\(([^)#]+)", README) if "://" not in place]
    places += re.findall(r"^\| `([\w./]+)` \|", README, re.MULTILINE)
    places += re.findall(r"`((?:docs|scripts|examples)/[\w./]+)`", README)
    missing = [place for place in places if "/" in place and not (ROOT / place).exists()]
    assert not missing


def test_the_errors_are_all_there_is() -> None:
    from orchestrator import errors

    named = set(re.findall(r"^\| `([A-Z]\w+)` \|", README, re.MULTILINE)) | {"ConfigError", "DspoolError"}
    exist = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.DspoolError)
    }
    assert named == exist
