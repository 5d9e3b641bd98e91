from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from orchestrator import Orchestrator
from orchestrator.bench import Report, run
from orchestrator.bench.figures import Figure, quantile
from orchestrator.bench.lives import LivesReport, memory_mb, run_lives
from orchestrator.bench.native import Compared, Memory, NativeReport, run_native
from orchestrator.bench.recovery import LMS, Kill, kill_workers, place_of
from orchestrator.bench.report import Contestant
from orchestrator.bench.run import REFERENCES, Driver
from orchestrator.cli.app import app
from orchestrator.cli.failure import Exit
from tests.support.census import Census
from tests.support.waiting import wait_until


def test_references_answer_every_row(tmp_path: Path) -> None:
    report = run(seconds=0.02, rounds=2, contenders=REFERENCES)
    report.write_json(tmp_path / "report.json")
    found = json.loads((tmp_path / "report.json").read_text())
    assert {name: each["note"] for name, each in found["contenders"].items()} == dict.fromkeys(REFERENCES)
    rows = {"start_s", "p50_us", "p99_us", "flood_100", "flood_1000", "map", "big"}
    for name, each in found["contenders"].items():
        assert set(each["rows"]) == (rows - {"map"} if name == "zmq.proxy" else rows)
        assert {len(row["rounds"]) for key, row in each["rows"].items() if key != "start_s"} == {2}
        assert all(0 < row["low"] <= row["median"] <= row["high"] for row in each["rows"].values())


def test_ratios_are_formed_within_each_round(capsys: pytest.CaptureFixture[str]) -> None:
    ours = Contestant("dspool", values={"flood_100": [10.0, 30.0, 80.0], "map": [5.0]})
    theirs = Contestant("zmq.proxy", values={"flood_100": [10.0, 10.0, 40.0], "big": [1.0]})
    report = Report(
        machine={"cores": 2}, settings={}, contestants=[ours, theirs, Contestant("ray", "absent")], subject="dspool"
    )
    assert report.ratios() == {"zmq.proxy": {"flood_100": {"median": 2.0, "low": 1.0, "high": 3.0}}}
    report.print()
    printed = capsys.readouterr().out
    assert "/ zmq.proxy" in printed
    assert "ray: absent" in printed


def test_a_driver_that_dies_is_an_answer_and_leaves_nothing() -> None:
    with Driver("multiprocessing.Pool", "general") as driver:
        assert driver.ask("start", timeout_s=20)["start_s"] > 0
        before_death = Census.take()
        driver_pid = min(each.pid for each in before_death.processes.values() if each.parent == os.getpid())
        os.kill(driver_pid, signal.SIGKILL)
        assert driver.ask("sequential", seconds=0.1, timeout_s=20)["error"] == "its process ended with -9"
        wait_until(lambda: not Census.take().processes, 5, "the pool's workers to follow their driver")


def test_a_contender_that_fails_says_why() -> None:
    with Driver("zmq.proxy", "general") as driver:
        answer = driver.ask("sequential", seconds=0.1, timeout_s=20)  # it was never started
    assert answer == {"error": "AssertionError: "}


def test_native_operations_beside_the_same_through_a_worker(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said: list[str] = []
    report = run_native(seconds=0.02, rounds=2, validations=2_000, say=said.append)
    report.write_json(tmp_path / "report.json")
    found = json.loads((tmp_path / "report.json").read_text())
    assert found["rows"].keys() == {"validate", "template", "metrics.f1"}
    for row in found["rows"].values():
        assert {len(values) for values in row["rounds"].values()} == {2}
        assert 0 < row["native_p50_us"] < row["worker_p50_us"]
        assert row["ratio"] > 1
    assert found["memory"]["validations"] == 2_000
    assert 0 < found["parse_us"]["warm"] < found["parse_us"]["cold"]
    assert "round 2 of 2" in said
    report.print(Console(file=sys.stdout))
    printed = capsys.readouterr().out
    assert "metrics.f1" in printed
    assert ("FAIL" in printed) == (not report.passed)


@pytest.mark.parametrize(
    ("p99_us", "worker_us", "after", "passed"),
    [(49.0, 100.0, 2_000_000, True), (51.0, 100.0, 0, False), (49.0, 99.0, 0, False), (49.0, 100.0, 2_000_001, False)],
)
def test_what_a_native_run_must_show(p99_us: float, worker_us: float, after: int, passed: bool) -> None:
    row = Compared([10.0] * 3, [p99_us, 1.0, 1e9], [worker_us] * 3, [1e9] * 3)
    memory = Memory(validations=1, seconds=1.0, before_bytes=0, after_bytes=after)
    report = NativeReport(machine={}, settings={}, rows={"validate": row}, memory=memory, parse_us={})
    assert report.passed == passed
    assert report.as_json()["passed"] == passed


def test_a_kill_is_measured_to_the_first_answer_of_the_next_life() -> None:
    pools = {"general": {"size": 2}, "optimizer": {"size": 0}, "neural": {"size": 0}}
    with Orchestrator(lms=LMS, pools=pools) as orchestrator, orchestrator.client() as client:
        kills = list(kill_workers(client, 3))
        dead = {row["id"]: row["exit"]["signal"] for row in client.workers() if row["state"] == "exited"}
        requests = {row["id"]: row["requests"] for row in client.workers() if row["state"] != "exited"}
        wait_until(lambda: client.stats()["requests"]["in_flight"] == 0, 5, "nothing to be held any more")
    assert [kill.victim for kill in kills] == ["general-1.1", "general-2.1", "general-1.2"]
    assert [kill.heir for kill in kills] == ["general-1.2", "general-2.2", "general-1.3"]
    assert dead == {kill.victim: signal.SIGKILL for kill in kills}
    assert all(requests[kill.heir] > 0 for kill in kills[1:])
    assert all(0 < kill.told_ms < 5_000 for kill in kills)
    assert all(0 < kill.answered_ms < 30_000 for kill in kills)


def test_memory_is_told_by_share() -> None:
    found = memory_mb(os.getpid())
    assert 1 < found["Pss"] <= found["Rss"] < 10_000


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        ([3.0, 1.0, 2.0], 0.5, 2.0),
        ([4.0, 1.0, 2.0, 3.0], 0.5, 2.5),
        ([1.0] * 99 + [9.0], 0.99, 9.0),
        ([5.0], 0.99, 5.0),
    ],
)
def test_what_a_figure_tells(values: list[float], share: float, expected: float) -> None:
    assert quantile(values, share) == expected
    assert Figure("x", "ms", expected, values, share).holds
    broken = Figure("x", "ms", expected - 0.1, values, share)
    assert (broken.holds, broken.verdict, broken.as_json()["holds"]) == (False, "BROKEN", False)
    assert Figure("x", "ms", None, values, share).holds


def test_a_run_that_misses_one_limit_fails(capsys: pytest.CaptureFixture[str]) -> None:
    kept, missed = Figure("kept", "ms", 2.0, [1.0, 3.0]), Figure("missed", "MB", 24.9, [25.0])
    kill = Kill("general-1.1", "general-1.2", 1.0, 2.0, 0)
    silent = {"told": None, "told_ms": None, "answered_ms": 400.0}
    assert LivesReport({}, {}, [kept], [kill], {}).passed
    report = LivesReport({}, {}, [kept, missed], [kill], {"a pool": silent, "another": {"error": "it is absent"}})
    assert not report.passed
    assert report.as_json()["kills"][0]["heir"] == "general-1.2"
    report.print(Console(file=sys.stdout))
    printed = capsys.readouterr().out
    assert "BROKEN" in printed
    assert "the caller was told nothing" in printed
    assert "another: it is absent" in printed


@pytest.mark.parametrize("asked", [("--native", "--lives"), ("--lives", "--peers"), ("--lives", "--pool=neural")])
def test_what_lives_is_not_asked_together_with(asked: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    found = CliRunner().invoke(app, ["bench", *asked])
    assert found.exit_code == Exit.USAGE
    assert "--lives" in found.output + capsys.readouterr().err


@pytest.mark.slow
def test_lives_are_measured_beside_the_standard_librarys_pools() -> None:
    report = run_lives(starts=1, kills=4)
    assert {figure.unit for figure in report.figures} == {"s", "ms", "MB"}
    assert all(value > 0 for figure in report.figures if "later" not in figure.name for value in figure.runs)
    assert all(place_of(kill.heir)[0] == place_of(kill.victim)[0] for kill in report.kills)
    assert report.references["multiprocessing.Pool"]["told"] is None
    assert report.references["ProcessPoolExecutor"]["told"] == "BrokenProcessPool"
    assert all(found["answered_ms"] > 0 for found in report.references.values())
