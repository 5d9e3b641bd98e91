from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import pytest
from rich.console import Console

from orchestrator.bench import Report, run
from orchestrator.bench.native import Compared, Memory, NativeReport, run_native
from orchestrator.bench.report import Contestant
from orchestrator.bench.run import REFERENCES, Driver
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
