"""Whoever writes to the store is killed at every point of a commit and of a migration: nothing lost, nothing twice."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.services.store import Store, store_path
from orchestrator.services.store.migrations import LATEST
from tests.support.acceptance import ROOT
from tests.support.store_writes import draft, event, write, wrong

# The kinds of crashes that need no C compiler.
POINTS = {f"{action} at store.{moment}_commit" for action in ("kill", "exit") for moment in ("before", "after")}
CALLS = {f"kill {moment} a call" for moment in ("before", "half", "after")} if shutil.which("cc") else set()


def crashes(*arguments: str) -> dict[str, Any]:
    """Let the script do it, in a small process: it forks for every crash."""
    command = [sys.executable, "-W", "error", "-m", "tests.support.store_crashes", "--json", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if "SKIPPED" in done.stderr:
        pytest.skip(done.stderr.partition("SKIPPED")[2].strip())
    assert done.stdout, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    assert [run["wrong"] for run in told.values()] == [[] for _ in told], done.stdout
    return told


def test_no_write_is_lost_or_doubled() -> None:
    told = crashes("--writes", "24")["writes"]
    assert told["writes"] == 24
    assert set(told["crashes"]) >= POINTS | CALLS
    assert told["already_there"] > 0, "no crash came between a commit and its return"


def test_a_store_whose_migration_is_killed_is_of_one_version() -> None:
    told = crashes("--migrations", "--version", str(LATEST - 1), "--points")[f"version {LATEST - 1}"]
    assert {kind for kind in told["crashes"]} == {
        "kill at store.in_migration", "kill at store.before_commit", "kill at store.after_commit"
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("arguments", [[], ["--postgres"]], ids=["file", "postgresql"])
def test_no_write_of_a_thousand_is_lost_or_doubled(arguments: list[str]) -> None:
    told = crashes("--writes", "1000", *arguments)["writes"]
    assert set(told["crashes"]) >= POINTS | CALLS
    assert sum(told["crashes"].values()) >= 500


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("arguments", [[], ["--postgres"]], ids=["file", "postgresql"])
def test_migrations_of_every_version_are_killed_at_every_call(arguments: list[str]) -> None:
    told = crashes("--migrations", *arguments)
    assert list(told) == [f"version {version}" for version in range(LATEST)]
    for run in told.values():
        assert set(run["crashes"]) >= {"kill at store.in_migration", *(CALLS - {"kill before a call"})}


def test_the_crashes_would_be_seen(tmp_path: Path) -> None:
    """A store that loses a write, or has one twice, is told."""
    with Store.open(store_path(tmp_path)) as store:
        for number in range(6):
            write(store, number)
        assert wrong(store, 6) == []
        assert wrong(store, 9) != []
        store.programs.add_version(replace(draft(2), note="twice"), "live")
        store.programs.add_version(replace(draft(1), note="twice"), "live")
        assert [line for line in wrong(store, 6) if line.startswith("versions")]
        store.events.append([event(7)])
        assert [line for line in wrong(store, 6) if line.startswith("events")]
        store.sessions.remove([("p", "s1")])
        assert [line for line in wrong(store, 6) if line.startswith("sessions")]
