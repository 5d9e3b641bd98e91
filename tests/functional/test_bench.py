from __future__ import annotations

import functools
import json
import os
import queue
import signal
import sys
import time
from collections.abc import Iterator
from multiprocessing.pool import ThreadPool
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from orchestrator import Orchestrator
from orchestrator.bench import Report, bereaved, run
from orchestrator.bench.figures import Figure, quantile
from orchestrator.bench.lives import LivesReport, memory_mb, run_lives
from orchestrator.bench.native import Compared, Memory, NativeReport, run_native
from orchestrator.bench.recovery import LMS, Kill, LightLoad, kill_workers, told_at
from orchestrator.bench.report import Contestant
from orchestrator.bench.run import REFERENCES, Driver
from orchestrator.cli.app import app
from orchestrator.cli.failure import Exit
from orchestrator.errors import Cancelled, DspoolError
from pools.worker_id import place_of
from tests.support.census import Census
from tests.support.waiting import wait_until


def test_references_answer_every_row(tmp_path: Path) -> None:
    report = run(seconds=0.02, rounds=2, contenders=REFERENCES)
    report.write_json(tmp_path / "report.json")
    found = json.loads((tmp_path / "report.json").read_text())
    assert {name: each["note"] for name, each in found["contenders"].items()} == dict.fromkeys(REFERENCES)
    rows = {"start_s", "p50_us", "p99_us", "flood_100", "flood_1000", "map", "big", "array"}
    for name, each in found["contenders"].items():
        assert set(each["rows"]) == (rows - {"map", "array"} if name == "zmq.proxy" else rows)
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


@pytest.fixture(scope="module")
def orchestrator() -> Iterator[Orchestrator]:
    pools = {"general": {"size": 2}, "optimizer": {"size": 0}, "neural": {"size": 0}}
    with Orchestrator(lms=LMS, pools=pools, limits={"poison_deaths": 0}) as started:
        yield started


def test_a_kill_is_measured_to_the_first_answer_of_the_replacement(orchestrator: Orchestrator) -> None:
    with orchestrator.client() as client:
        kills = list(kill_workers(client, 3))
        dead = {row["id"]: row["exit"]["signal"] for row in client.workers() if row["state"] == "exited"}
        requests = {row["id"]: row["requests"] for row in client.workers() if row["state"] != "exited"}
        wait_until(lambda: client.stats()["requests"]["in_flight"] == 0, 5, "nothing to be held any more")
    assert [kill.victim for kill in kills] == ["general-1.1", "general-2.1", "general-1.2"]
    assert [kill.replacement for kill in kills] == ["general-1.2", "general-2.2", "general-1.3"]
    assert dead == {kill.victim: signal.SIGKILL for kill in kills}
    assert all(requests[kill.replacement] > 0 for kill in kills[1:])
    assert all(0 < kill.told_ms < 5_000 for kill in kills)
    assert all(0 < kill.answered_ms < 30_000 for kill in kills)


def test_a_load_that_cannot_be_sent_says_why_at_once(orchestrator: Orchestrator) -> None:
    client = orchestrator.client()
    client.close()
    began = time.monotonic()
    with pytest.raises(Cancelled, match="closed"), LightLoad(client) as load:
        load.await_answers("general-1.1", 1)
    assert time.monotonic() - began < 5


def test_a_caller_that_is_never_told_is_an_error_of_the_run() -> None:
    with pytest.raises(DspoolError, match=r"waited 0.01 s for the caller of the killed general-1.1"):
        told_at("general-1.1", queue.SimpleQueue(), timeout_s=0.01)


def test_memory_is_told_by_share() -> None:
    found = memory_mb(os.getpid())
    assert 1 < found["Pss"] <= found["Rss"] < 10_000


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        ([3.0, 1.0, 2.0], 0.5, 2.0),
        ([4.0, 1.0, 2.0, 3.0], 0.5, 2.0),
        ([float(number) for number in range(1, 101)], 0.99, 99.0),
        ([float(number) for number in range(1, 101)], 0.07, 7.0),
        ([float(number) for number in range(1, 102)], 0.99, 100.0),
        ([3.0, 1.0, 2.0], 1.0, 3.0),
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
    broken = {"told": "BrokenProcessPool", "told_ms": 12.3, "answered_ms": 400.0}
    silent = {"told": None, "told_ms": None, "answered_ms": 400.0}
    assert LivesReport({}, {}, [kept], [kill], {}).passed
    report = LivesReport(
        {}, {}, [kept, missed], [kill], {"a pool": silent, "another": {"error": "it is absent"}, "executor": broken}
    )
    assert not report.passed
    assert report.as_json()["kills"][0]["replacement"] == "general-1.2"
    report.print(Console(file=sys.stdout))
    printed = capsys.readouterr().out
    assert "BROKEN" in printed
    assert "the caller was told nothing" in printed
    assert "another: it is absent" in printed
    assert "executor: the caller got BrokenProcessPool after 12 ms" in printed


def test_what_the_caller_of_a_standard_pool_is_told_has_its_time(capsys: pytest.CaptureFixture[str]) -> None:
    began = time.monotonic()
    with ThreadPool(1) as pool:
        told = bereaved.told_of(bereaved.held_call(pool, functools.partial(int, "x")), began)
    assert told["told"] == "ValueError"
    assert 0 < told["told_ms"] < 5_000
    assert bereaved.told_of(queue.SimpleQueue(), began - bereaved.WAIT_S) == {"told": None, "told_ms": None}
    LivesReport({}, {}, [], [], {"a pool": {**told, "answered_ms": 400.0}}).print(Console(file=sys.stdout))
    assert "the caller got ValueError after" in capsys.readouterr().out


@pytest.mark.parametrize(
    "asked",
    [
        ("--native", "--lives"),
        ("--lives", "--peers"),
        ("--lives", "--pool=neural"),
        ("--lives", "--embed=offline/hash"),
    ],
)
def test_what_lives_is_not_asked_together_with(asked: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    found = CliRunner().invoke(app, ["bench", *asked])
    assert found.exit_code == Exit.USAGE
    assert "--lives" in found.output + capsys.readouterr().err


@pytest.mark.slow
def test_lives_are_measured_beside_the_standard_librarys_pools() -> None:
    report = run_lives(starts=1, kills=4)
    assert {figure.unit for figure in report.figures} == {"s", "ms", "MB"}
    assert all(value > 0 for figure in report.figures if "later" not in figure.name for value in figure.runs)
    assert all(place_of(kill.replacement) == place_of(kill.victim) for kill in report.kills)
    assert report.references["multiprocessing.Pool"]["told"] is None
    assert report.references["ProcessPoolExecutor"]["told"] == "BrokenProcessPool"
    assert all(found["answered_ms"] > 0 for found in report.references.values())
