"""What is promised of how a coordinator begins, is found, and ends."""

from __future__ import annotations

import concurrent.futures
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator import Orchestrator, connect, errors
from orchestrator.rundir import discover, process_ticks
from tests.support.acceptance import ROOT, SOON_S, Family, Script, await_full, await_under_way, pools
from tests.support.census import Census

CALLERS = 5
DRAIN_S = 5.0

# --- connect ----------------------------------------------------------------------------------------


@pytest.fixture
def own_place(monkeypatch: pytest.MonkeyPatch, run_dirs: Callable[[], Path]) -> Iterator[Path]:
    """Let `connect` look, and start, in a folder of this test's own; end what it has started."""
    folder = run_dirs()
    monkeypatch.setenv("DSPOOL_RUN_DIR", str(folder / "r"))
    monkeypatch.setenv("DSPOOL_DATA_DIR", str(folder / "d"))
    for pool, settings in pools(1).items():
        monkeypatch.setenv(f"DSPOOL_POOLS__{pool.upper()}__SIZE", str(settings["size"]))
    yield folder
    if (info := discover(folder / "r")) is not None:
        os.kill(info.pid, signal.SIGKILL)


def coordinators() -> list[int]:
    """Return the coordinators that run: nobody else tells a starter how it goes."""
    return [each.pid for each in Census.take().processes.values() if " --ready-fd " in f" {each.command} "]


def dspool(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "orchestrator.cli", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


_CALLER = """
import json, sys
print('"here"', flush=True)
sys.stdin.readline()
from orchestrator import connect
with connect() as client:
    print(json.dumps([client.stats()["pid"], client.execute("echo", sys.argv[1])]), flush=True)
"""


def test_of_five_processes_that_connect_at_once_one_starts_what_all_use_and_it_stays(own_place: Path) -> None:
    callers = [Script(_CALLER, str(number)) for number in range(CALLERS)]
    try:
        assert [caller.said() for caller in callers] == ["here"] * CALLERS
        for caller in callers:
            caller.tell()
        said = [caller.said() for caller in callers]
        assert [caller.process.wait(SOON_S) for caller in callers] == [0] * CALLERS
    finally:
        for caller in callers:
            caller.__exit__()
    (pid,) = {pid for pid, _ in said}
    assert [echoed for _, echoed in said] == [str(number) for number in range(CALLERS)]
    assert coordinators() == [pid]  # it outlives whoever started it

    family = Family.of(pid)
    with connect(start=False) as client:
        assert client.stats()["pid"] == pid
    down = dspool("down")
    assert (down.returncode, "0 processes left" in down.stdout) == (0, True), down
    assert family.alive() == []
    assert not [path for path in (own_place / "r").iterdir() if path.is_dir()]
    with pytest.raises(errors.Unavailable, match="dspool up"):
        connect(start=False)


def test_an_endpoint_comes_first_by_argument_then_by_environment(
    own_place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    nowhere = f"ipc://{tmp_path}/nobody.sock"
    with Orchestrator(pools=pools()) as orchestrator:
        monkeypatch.setenv("DSPOOL_ENDPOINT", orchestrator.endpoint)
        with connect() as client, connect(start=False) as other:
            assert {client.stats()["pid"], other.stats()["pid"]} == {orchestrator.pid}
        monkeypatch.setenv("DSPOOL_ENDPOINT", nowhere)
        with connect(orchestrator.endpoint) as client:
            assert client.stats()["pid"] == orchestrator.pid
        for arguments in ({}, {"start": True}, {"endpoint": nowhere}, {"endpoint": "not an endpoint"}):
            began = time.monotonic()
            with pytest.raises(errors.Unavailable, match="dspool up"):
                connect(**arguments)
            assert time.monotonic() - began < 2.0
        assert coordinators() == [orchestrator.pid]  # a wrong endpoint starts nothing


def test_a_private_coordinator_is_not_found_by_connect(own_place: Path) -> None:
    with Orchestrator(pools=pools(), run_dir=str(own_place / "r")), pytest.raises(errors.Unavailable):
        connect(start=False)


# --- Orchestrator -----------------------------------------------------------------------------------


def test_leaving_waits_for_what_ends_in_five_seconds_and_cancels_the_rest() -> None:
    with Orchestrator(pools=pools(), faults=True) as orchestrator:
        client = orchestrator.client()
        family = Family.of(orchestrator.pid)
        short = client.submit("sleep", {"seconds": 2.0})
        long = client.submit("sleep", {"seconds": 60.0})
        deaf = client.submit("fault.hang", {"seconds": 60.0})
        queued = [client.submit("sleep", {"seconds": 60.0}) for _ in range(20)]
        late: list[BaseException | None] = []
        await_under_way(client, 23)
        ends: dict[str, float] = {}
        long.add_done_callback(lambda _: ends.setdefault("long", time.monotonic()))

        def submit_late() -> None:
            short.exception(SOON_S)  # by now intake has stopped
            late.append(client.submit("echo", 1).exception(SOON_S))

        thread = threading.Thread(target=submit_late)
        thread.start()
        left_at = time.monotonic()
    took_s = time.monotonic() - left_at
    thread.join(SOON_S)
    assert short.result(0) == {"seconds": 2.0}
    for future in (long, deaf, *queued):
        with pytest.raises(errors.Cancelled, match="the coordinator shut down before"):
            future.result(0)
    assert "may have run" in str(long.exception(0))
    assert "before this request ran" in str(queued[-1].exception(0))
    assert [type(error) for error in late] == [errors.Unavailable]
    assert DRAIN_S <= ends["long"] - left_at < DRAIN_S + 2.0
    assert DRAIN_S <= took_s < DRAIN_S + 3.0
    assert family.alive() == []


def test_two_side_by_side_do_not_disturb_each_other() -> None:
    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        starts = [threads.submit(Orchestrator(pools=pools(), faults=True).start) for _ in range(2)]
        first, second = (start.result(60) for start in starts)
    try:
        with first.client() as one, second.client() as other:
            assert first.pid != second.pid
            held = other.submit("sleep", {"seconds": 1.0})
            await_under_way(other, 1)
            with pytest.raises(errors.WorkerLost):
                one.execute("fault.kill")
            await_full(one, "general")
            os.kill(first.pid, signal.SIGKILL)
            with pytest.raises(errors.Unavailable):
                one.execute("echo", 1)
            first.stop()
            assert held.result(SOON_S) == {"seconds": 1.0}
            assert other.execute("echo", 2) == 2
            assert other.stats()["pools"]["general"]["restarts"] == 0
    finally:
        first.stop()
        second.stop()


def test_one_coordinator_for_a_data_directory(run_dirs: Callable[[], Path]) -> None:
    data_dir = str(run_dirs() / "d")
    with Orchestrator(pools=pools(), data_dir=data_dir) as first, first.client() as client:
        with (
            pytest.raises(errors.Unavailable, match=rf"in use by the coordinator with pid {first.pid}"),
            Orchestrator(pools=pools(), data_dir=data_dir),
        ):
            pass
        assert client.execute("echo", 1) == 1
    with Orchestrator(pools=pools(), data_dir=data_dir) as third, third.client() as client:
        assert client.execute("echo", 1) == 1


# Ways to end a script that has no `with`: what it started must not outlive it, and it must not hang.
_ENDS = {
    "returns": "",
    "raises": "raise ValueError('no more')",
    "interrupted": "import os, signal; os.kill(os.getpid(), signal.SIGINT)",
}
_SCRIPT = """
import json, sys
from orchestrator import Orchestrator
orc = Orchestrator(**json.loads(sys.argv[1])).start()
client = orc.client()
future = client.submit("sleep", {"seconds": 0.1})
future.add_done_callback(lambda _: None)
print(json.dumps(orc.pid), flush=True)
"""


@pytest.mark.parametrize("way", list(_ENDS))
def test_a_script_without_with_ends_and_takes_its_coordinator_along(way: str) -> None:
    with Script(_SCRIPT + _ENDS[way], json.dumps({"pools": pools()}), PYTHONWARNINGS="error") as script:
        pid = script.said()
        script.process.wait(SOON_S)
        assert process_ticks(pid) is None


def test_it_works_in_a_thread_that_ends_before_it_is_used() -> None:
    orchestrator = Orchestrator(pools=pools())
    thread = threading.Thread(target=orchestrator.start)
    thread.start()
    thread.join()
    found: list[object] = []

    def use() -> None:
        with orchestrator.client() as client:
            found.append(client.execute("echo", 1))

    try:
        use()
        other = threading.Thread(target=use)
        other.start()
        other.join(SOON_S)
    finally:
        ending = threading.Thread(target=orchestrator.stop)
        ending.start()
        ending.join(SOON_S)
    assert found == [1, 1]
