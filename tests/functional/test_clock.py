"""The wall clock jumps by an hour while everybody is at work: nobody is early, nobody is late, nobody dies.

A library preloaded into every process of the fleet, and into a client, adds to their wall clock what a file says.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator import Client, Orchestrator
from tests.support.acceptance import ROOT, SOON_S, Script, await_under_way, pools

SOURCE = ROOT / "tests/support/shifted_clock.c"
CLOCK = f"{ROOT}/tests/support/programs/clock.py:Clock"
HOUR_S = 3600
LIMIT_S = 2.0  # of a worker's silence
_CLIENT = """
import json, sys, time
from orchestrator import connect, errors
with connect(sys.argv[1]) as client:
    long = client.submit("sleep", {"seconds": 3.0}, deadline_s=30.0)
    short = client.submit("fault.hang", {"seconds": 4.0}, deadline_s=2.0)
    long.add_done_callback(lambda _: None)
    began = time.monotonic()
    print(json.dumps(client.stats()["requests"]["accepted"]), flush=True)
    error = short.exception(20)
    took_s = time.monotonic() - began
    print(json.dumps([type(error).__name__, took_s, long.result(20), time.time()]), flush=True)
"""


class WallClock:
    """The wall clock of every process that was started with it."""

    def __init__(self, folder: Path) -> None:
        self._library, self._shift = folder / "shifted_clock.so", folder / "shift"
        command = ["cc", "-O1", "-shared", "-fPIC", "-o", str(self._library), str(SOURCE), "-ldl"]
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        self.jump(0)
        self.environ = {"LD_PRELOAD": str(self._library), "SHIFTED_CLOCK": str(self._shift)}

    def jump(self, seconds: int) -> None:
        """Set how far the clock is ahead of this process's."""
        with open(self._shift, "r+b" if self._shift.exists() else "w+b") as file:
            file.write(struct.pack("q", seconds))


@pytest.fixture
def clock(tmp_path: Path) -> WallClock:
    if shutil.which("cc") is None:
        pytest.skip("no C compiler for the library that shifts the clock")
    return WallClock(tmp_path)


@pytest.fixture
def orchestrator(clock: WallClock, monkeypatch: pytest.MonkeyPatch, run_dirs: Callable[[], Path]) -> Iterator[Any]:
    general = {"size": 1, "heartbeat_interval_s": 0.2, "heartbeat_limit_s": LIMIT_S, "grace_s": 30.0}
    with monkeypatch.context() as patch:
        for name, value in clock.environ.items():
            patch.setenv(name, value)
        orchestrator = Orchestrator(pools=pools(general), faults=True, run_dir=run_dirs() / "r").start()
    yield orchestrator
    orchestrator.stop()


def wall_s(client: Client) -> float:
    return float(client.execute("clock").wall_s)


@pytest.mark.parametrize(
    "jump_s", [pytest.param(HOUR_S, id="ahead"), pytest.param(-HOUR_S, id="back", marks=pytest.mark.slow)]
)
def test_a_jump_of_the_wall_clock_changes_nothing(clock: WallClock, orchestrator: Orchestrator, jump_s: int) -> None:
    with orchestrator.client() as client, Script(_CLIENT, orchestrator.endpoint, **clock.environ) as other:
        client.deploy("clock", CLOCK)
        assert abs(wall_s(client) - time.time()) < 60.0
        worker = client.ping()["worker"]
        before = client.stats()
        other.said()
        await_under_way(client, 2)

        clock.jump(jump_s)
        assert abs(wall_s(client) - time.time() - jump_s) < 60.0  # it did jump, in the worker
        kind, took_s, slept, wall = other.said()
        assert abs(wall - time.time() - jump_s) < 60.0  # and in the client
        assert slept == {"seconds": 3.0}  # within a deadline of 30 s
        assert kind == "DeadlineExceeded"
        assert 1.8 <= took_s <= 3.0  # of 2 s
        clock.jump(0)
        assert other.process.wait(SOON_S) == 0

        after = client.stats()
        assert client.ping()["worker"] == worker  # nobody was taken to be silent
        assert after["pools"]["general"]["restarts"] == 0
        assert LIMIT_S < after["uptime_s"] - before["uptime_s"] < 30.0
        last = client.submit("sleep", {"seconds": 1.0})
        await_under_way(client, 1)
        clock.jump(jump_s)
        began = time.monotonic()
        orchestrator.stop()
        assert 0.5 <= time.monotonic() - began < 5.0  # a drain ends neither early nor late
        assert last.exception(0) is None
