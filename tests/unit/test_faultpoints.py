"""Fault points: inert until armed, exact once they are, and each of them stands somewhere in the code."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import timeit
from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge import faultpoints
from bridge.faultpoints import ACTIONS, POINTS, Fault, FaultInjected, Fired

ROOT = Path(__file__).resolve().parents[2]
POINT = "worker.before_run"
HIT = re.compile(r"\b_?hit\(\"([\w.]+)\"\)")


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    faultpoints.arm("")


def armed(folder: Path, *faults: Fault) -> None:
    faultpoints.arm(faultpoints.schedule(str(folder), faults))
    faultpoints.begin(str(folder))


def hits_until_raised(most: int) -> int:
    for number in range(1, most + 1):
        try:
            faultpoints.hit(POINT)
        except FaultInjected:
            return number
    return 0


def test_nothing_happens_until_it_is_armed_and_begun(tmp_path: Path) -> None:
    assert hits_until_raised(10) == 0
    faultpoints.arm(faultpoints.schedule(str(tmp_path), [Fault(POINT, 1, "raise")]))
    assert hits_until_raised(10) == 0
    faultpoints.begin(str(tmp_path))
    assert hits_until_raised(10) == 1


def test_the_nth_hit_of_that_point_fails_and_no_other(tmp_path: Path) -> None:
    armed(tmp_path, Fault(POINT, 3, "raise"), Fault(POINT, 5, "raise"))
    faultpoints.hit("worker.after_run")
    assert [hits_until_raised(10) for _ in range(3)] == [3, 2, 0]
    pid = os.getpid()
    assert faultpoints.fired(str(tmp_path)) == [Fired(POINT, 3, "raise", pid), Fired(POINT, 5, "raise", pid)]


def test_a_delay_takes_its_time(tmp_path: Path) -> None:
    armed(tmp_path, Fault(POINT, 1, "delay"))
    began = time.monotonic()
    faultpoints.hit(POINT)
    assert time.monotonic() - began >= faultpoints.DELAY_S


def test_an_empty_schedule_disarms(tmp_path: Path) -> None:
    armed(tmp_path, Fault(POINT, 1, "raise"))
    faultpoints.arm_by({})
    assert hits_until_raised(3) == 0


@pytest.mark.parametrize(
    "fault", [Fault("worker.before_nothing", 1, "kill"), Fault(POINT, 1, "explode"), Fault(POINT, 0, "kill")]
)
def test_a_schedule_of_what_there_is_not_is_refused(tmp_path: Path, fault: Fault) -> None:
    with pytest.raises(ValueError, match="no such fault"):
        faultpoints.schedule(str(tmp_path), [fault])


@pytest.mark.parametrize(
    "text",
    ["garbage", "1", "[]", "{}", '{"folder": 1, "faults": []}', '{"folder": "/", "faults": [["a"]]}', "[" * 100_000]
    + [json.dumps({"folder": "/", "faults": [fault]}) for fault in ([POINT, "1", "kill"], ["nowhere", 1, "kill"])],
    ids=["text", "number", "list", "empty", "no-folder", "no-fault", "deep", "no-number", "no-point"],
)
def test_what_is_no_schedule_arms_nothing(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no schedule of faults|no such fault"):
        faultpoints.arm(text)
    assert hits_until_raised(3) == 0


def process(schedule: str) -> subprocess.Popen[bytes]:
    """Start a process that passes the point five times and ends with 0."""
    code = (
        f"import os\nfrom bridge import faultpoints as it\nit.arm_by(os.environ)\nfor _ in range(5): it.hit({POINT!r})"
    )
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env={**os.environ, faultpoints.VARIABLE: schedule})


@pytest.mark.parametrize(("action", "code"), [("exit", faultpoints.EXIT_CODE), ("kill", -signal.SIGKILL), ("raise", 1)])
def test_hits_are_counted_over_all_processes(tmp_path: Path, action: str, code: int) -> None:
    schedule = faultpoints.schedule(str(tmp_path), [Fault(POINT, 12, action)])
    faultpoints.begin(str(tmp_path))
    assert [process(schedule).wait(10) for _ in range(4)] == [0, 0, code, 0]
    assert [each.nth for each in faultpoints.fired(str(tmp_path))] == [12]


@pytest.mark.parametrize("action", ["stop", "hang"])
def test_who_stands_still_can_be_ended(tmp_path: Path, action: str) -> None:
    schedule = faultpoints.schedule(str(tmp_path), [Fault(POINT, 2, action)])
    faultpoints.begin(str(tmp_path))
    with process(schedule) as still:
        if action == "stop":
            _, status = os.waitpid(still.pid, os.WUNTRACED)
            assert os.WIFSTOPPED(status)
            still.send_signal(signal.SIGCONT)
            assert still.wait(10) == 0
        else:
            with pytest.raises(subprocess.TimeoutExpired):
                still.wait(0.5)
            still.kill()
            assert still.wait(10) == -signal.SIGKILL


def test_the_file_runs_alone(tmp_path: Path) -> None:
    """The nanny loads it by its path, without site packages."""
    path = ROOT / "bridge" / "faultpoints.py"
    code = f"import runpy; print(len(runpy.run_path({str(path)!r})['POINTS']))"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == (f"{len(POINTS)}\n", "")


def test_every_point_stands_in_the_code() -> None:
    folders = ("bridge", "pools", "orchestrator")
    found = [
        name for folder in folders for file in (ROOT / folder).rglob("*.py") for name in HIT.findall(file.read_text())
    ]
    assert set(found) == set(POINTS)


def test_a_schedule_is_plain_text(tmp_path: Path) -> None:
    text = faultpoints.schedule(str(tmp_path), [Fault(point, 1, action) for point in POINTS for action in ACTIONS])
    assert len(json.loads(text)["faults"]) == len(POINTS) * len(ACTIONS)


def test_a_point_that_is_not_armed_costs_next_to_nothing() -> None:
    number = 100_000
    names = {"hit": faultpoints.hit, "point": POINT}
    took_s = min(timeit.repeat("hit(point)", globals=names, number=number, repeat=20))
    assert took_s / number < 300e-9  # some 20 ns on an idle machine
