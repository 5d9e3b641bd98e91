"""What programs and sessions cost is measured in full, and what misses a limit fails. How fast they are is no test."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from orchestrator.bench.bare_fleet import BareFleet
from orchestrator.bench.control import run_control
from orchestrator.bench.figures import Figure, FiguresReport, p50_and_p99
from orchestrator.cli.app import app
from orchestrator.cli.failure import Exit

SESSIONS, PROGRAMS = 30, 3


@pytest.mark.slow
def test_what_programs_and_sessions_cost_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said: list[str] = []
    folder = tmp_path / "stores"
    folder.mkdir()
    report = run_control(seconds=0.02, rounds=2, sessions=SESSIONS, programs=PROGRAMS, folder=folder, say=said.append)
    assert not list(folder.iterdir())
    report.write_json(tmp_path / "report.json")
    found = json.loads((tmp_path / "report.json").read_text())
    figures = {figure["name"]: figure for figure in found["figures"]}
    assert len(figures) == len(found["figures"])
    assert {name: figure["limit"] for name, figure in figures.items() if figure["limit"] is not None} == {
        "the fleet's decisions: an echo, full / empty": 1.1,
        "echo, 100 in flight, full / empty: each call": 1.1,
        "echo, 100 in flight, full / empty: CPU of the coordinator": 1.1,
        "store: the change of a session: p99": 5.0,
        "store: a version and its alias: p99": 5.0,
    }
    assert found["settings"] == {"seconds": 0.02, "rounds": 2, "sessions": SESSIONS, "programs": PROGRAMS}
    for name, figure in figures.items():
        once = any(word in name for word in ("RSS", "one after the other", "begun", "the first of"))
        assert len(figure["runs"]) == (1 if once else 2), name
        assert all(value > 0 for value in figure["runs"] if "RSS more" not in name and "follower" not in name), name
    for name, figure in figures.items():
        if name.endswith(": p50"):
            assert figure["value"] <= figures[name.removesuffix("p50") + "p99"]["value"]
    assert f"{SESSIONS} sessions begun, each by a call" in figures
    assert f"{PROGRAMS} programs deployed, one after the other" in figures
    assert "commits: round 2 of 2" in said
    report.print(Console(file=sys.stdout))
    assert ("FAIL" in capsys.readouterr().out) == (not report.passed)


def test_a_fleet_without_a_shell_answers_all_that_it_is_asked() -> None:
    fleet = BareFleet(sessions=7, programs=2)
    assert fleet.echoes(250) > 0
    assert fleet.calls(250) > 0  # of each session some wait for others


def test_what_misses_a_limit_fails() -> None:
    kept, missed = p50_and_p99("x", "ms", [[1.0, 6.0], [1.0, 4.0], [1.0, 7.0]], 5.0)
    assert (kept.value, missed.value) == (1.0, 6.0)
    assert FiguresReport({}, {}, [kept]).passed
    assert not FiguresReport({}, {}, [kept, missed, Figure("y", "", 1.1, [1.0])]).passed


@pytest.mark.parametrize("other", ["--services", "--lives", "--peers", "--pool=neural"])
def test_what_control_is_not_asked_together_with(other: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = CliRunner().invoke(app, ["bench", "--control", other])
    assert found.exit_code == Exit.USAGE
    assert "--control" in found.output + capsys.readouterr().err
