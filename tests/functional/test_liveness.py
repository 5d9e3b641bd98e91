"""Workers that hang: their callers are told in time, their stacks are kept, and they are killed whether they can be
seen or not. The times of each case are printed (`pytest -s`).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from bridge.worker.stacks import DUMP_SIGNAL, STACKS_BYTES, STACKS_OFFSET
from orchestrator import Client, Orchestrator, errors
from orchestrator.client.future import Future
from orchestrator.coordinator.births import STACK_LINES
from orchestrator.coordinator.oom import find_counter
from orchestrator.rundir import process_ticks
from tests.support.acceptance import MARKER, ROOT, SOON_S, await_full, mark, marks, pools
from tests.support.waiting import wait_until

DEADLINE_S, GRACE_S, LIMIT_S = 0.3, 0.2, 1.2
DUMP_S, CHECK_S = 0.2, 1.0  # what a dump is given, and how often silence is looked for
LATE_S = 0.5  # a machine that has other things to do
LONG = {"seconds": 60.0}

PROGRAMS = """
import ctypes, os, signal, dspy
from bridge.worker.stacks import DUMP_SIGNAL

class Spin(dspy.Module):
    def forward(self):
        while True:
            pass

class Deaf(dspy.Module):
    "Ignores the signal, as C code can from any thread."
    def forward(self):
        ctypes.CDLL(None).signal(int(DUMP_SIGNAL), 1)
        while True:
            pass

class Fork(dspy.Module):
    "A child that dies of its own fault."
    def forward(self):
        child = os.fork()
        if not child:
            os.kill(os.getpid(), signal.SIGSEGV)
        return dspy.Prediction(status=os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


class End(NamedTuple):
    """How a call and its worker ended. told_s, freed_s: until its caller knew, until its process was gone."""

    error: BaseException | None
    told_s: float
    freed_s: float
    exit: dict[str, Any]


@pytest.fixture(scope="module")
def orchestrator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orchestrator]:
    file = tmp_path_factory.mktemp("programs") / "hanging.py"
    file.write_text(PROGRAMS, encoding="utf-8")
    beats = {"heartbeat_interval_s": 0.1, "heartbeat_limit_s": LIMIT_S}
    general = {"size": 1, "grace_s": GRACE_S, **beats, "breaker": None}
    # What holds workers up here is the same, test after test.
    with Orchestrator(pools=pools(general), faults=True, limits={"poison_deaths": 0}) as orchestrator:
        with orchestrator.client() as client:
            for name in ("Spin", "Deaf", "Fork"):
                client.deploy(name.lower(), f"{file}:{name}")
            client.deploy("marker", MARKER)
        yield orchestrator


@pytest.fixture
def client(orchestrator: Orchestrator) -> Iterator[Client]:
    with orchestrator.client() as client:
        await_full(client, "general")
        yield client


def worker_of(client: Client) -> dict[str, Any]:
    """Return the one worker."""
    (row,) = [row for row in client.workers() if row["state"] in ("ready", "busy")]
    return row


def exit_of(client: Client, worker_id: str) -> dict[str, Any]:
    """Return what is remembered of a worker's end, when it has come."""

    def found() -> Any:
        return next(row["exit"] for row in client.workers() if row["id"] == worker_id)

    end: dict[str, Any] = wait_until(found, SOON_S, f"the end of {worker_id}")
    return end


def await_end(client: Client, worker: dict[str, Any], future: Future, began: float, what: str) -> End:
    error = future.exception(SOON_S)
    told_s = time.monotonic() - began
    wait_until(lambda: process_ticks(worker["pid"]) is None, SOON_S, f"the end of {worker}")
    freed_s = time.monotonic() - began
    end = End(error, told_s, freed_s, exit_of(client, worker["id"]))
    print(f"\n{what}: told after {told_s:.3f} s, freed after {freed_s:.3f} s, {len(end.exit['stacks'])} stack lines")
    return end


def shows(end: End, function: str) -> bool:
    """Whether the stacks show a thread in a function."""
    return any(line.startswith("  File ") and line.endswith(f" in {function}") for line in end.exit["stacks"])


# --- calls that outlive their deadline ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("operation", "args", "function"),
    [("fault.hang", LONG, "_hang"), ("fault.hold_gil", LONG, "_hold_gil"), ("spin", {}, "forward")],
)
def test_a_call_that_hangs_ends_at_its_deadline_and_its_worker_after_the_grace_period(
    client: Client, operation: str, args: dict[str, Any], function: str
) -> None:
    worker, began = worker_of(client), time.monotonic()
    end = await_end(client, worker, client.submit(operation, args, deadline_s=DEADLINE_S), began, operation)
    assert isinstance(end.error, errors.DeadlineExceeded)
    assert DEADLINE_S <= end.told_s <= DEADLINE_S + LATE_S
    assert end.told_s <= end.freed_s <= DEADLINE_S + GRACE_S + DUMP_S + LATE_S
    assert end.exit["cause"] == f"{operation} did not stop within {GRACE_S:g} s of being asked"
    assert (end.exit["signal"], end.exit["code"]) == (signal.SIGKILL, None)
    assert shows(end, function), end.exit["stacks"]
    assert shows(end, "_turn")  # the io thread: all threads are there


def test_a_worker_that_does_not_hear_the_signal_is_killed_all_the_same(client: Client) -> None:
    worker, began = worker_of(client), time.monotonic()
    end = await_end(client, worker, client.submit("deaf", {}, deadline_s=DEADLINE_S), began, "deaf")
    assert isinstance(end.error, errors.DeadlineExceeded)
    assert end.freed_s <= DEADLINE_S + GRACE_S + DUMP_S + LATE_S
    assert (end.exit["signal"], end.exit["stacks"]) == (signal.SIGKILL, [])


def test_a_stopped_process_is_killed_after_the_deadline_of_its_call(client: Client, tmp_path: Path) -> None:
    evidence = tmp_path / "marks"
    worker, began = worker_of(client), time.monotonic()
    future = client.submit("marker", mark(evidence, 1, 60.0), deadline_s=DEADLINE_S)
    wait_until(lambda: marks(evidence), SOON_S, "the call's start")
    os.kill(worker["pid"], signal.SIGSTOP)
    end = await_end(client, worker, future, began, "SIGSTOP, with a deadline")
    assert isinstance(end.error, errors.DeadlineExceeded)
    assert end.told_s <= DEADLINE_S + LATE_S
    assert end.freed_s <= DEADLINE_S + GRACE_S + DUMP_S + LATE_S
    assert (end.exit["signal"], end.exit["stacks"]) == (signal.SIGKILL, [])


# --- workers that are not heard -----------------------------------------------------------------------


def test_a_worker_whose_lock_is_held_is_killed_at_the_heartbeat_limit_with_its_stacks(client: Client) -> None:
    worker, began = worker_of(client), time.monotonic()
    end = await_end(client, worker, client.submit("fault.hold_gil", LONG), began, "lock held, no deadline")
    assert isinstance(end.error, errors.WorkerLost)
    assert end.freed_s <= LIMIT_S + CHECK_S + DUMP_S + LATE_S
    assert end.exit["cause"] == end.error.cause == f"no heartbeat for {LIMIT_S:g} s"
    assert shows(end, "_hold_gil"), end.exit["stacks"]


def test_a_stopped_process_is_killed_at_the_heartbeat_limit(client: Client, tmp_path: Path) -> None:
    evidence = tmp_path / "marks"
    worker = worker_of(client)
    future = client.submit("marker", mark(evidence, 1, 60.0))
    wait_until(lambda: marks(evidence), SOON_S, "the call's start")
    began = time.monotonic()
    os.kill(worker["pid"], signal.SIGSTOP)
    end = await_end(client, worker, future, began, "SIGSTOP, no deadline")
    assert isinstance(end.error, errors.WorkerLost)
    assert end.freed_s <= LIMIT_S + CHECK_S + DUMP_S + LATE_S
    assert end.exit["cause"] == f"no heartbeat for {LIMIT_S:g} s"
    assert end.exit["stacks"] == []


# --- what else writes stacks, and what does not -------------------------------------------------------


def test_a_fatal_error_leaves_its_stacks(client: Client) -> None:
    worker, began = worker_of(client), time.monotonic()
    end = await_end(client, worker, client.submit("fault.segv"), began, "segmentation fault")
    assert isinstance(end.error, errors.WorkerLost)
    assert end.exit["cause"] == "signal 11"
    assert end.exit["stacks"][0] == "Fatal Python error: Segmentation fault"
    assert shows(end, "_segv")
    lines = end.exit["stacks"]
    current = next(number for number, line in enumerate(lines) if line.startswith("Current thread"))
    assert lines[current + 1].endswith(" in string_at")


def test_a_fatal_error_while_booting_is_told_with_its_stacks(tmp_path: Path) -> None:
    (tmp_path / "dspy.py").write_text("import ctypes\nctypes.string_at(0)\n", encoding="utf-8")
    with pytest.raises(errors.Unavailable) as caught:
        # A process of its own: it finds the file before the package.
        Orchestrator(pools=pools({"size": 1, "launcher": "spawn"}), python_path=[str(tmp_path)]).start()
    assert "signal 11" in caught.value.message
    assert "Fatal Python error: Segmentation fault" in caught.value.message
    assert f'File "{tmp_path}/dspy.py", line 2 in <module>' in caught.value.message


def test_a_process_that_a_program_forks_writes_no_stacks_of_the_worker(client: Client) -> None:
    worker = worker_of(client)
    assert client.execute("fork").status == -signal.SIGSEGV
    wait_until(
        lambda: "Fatal Python error: Segmentation fault" in client.logs(worker["id"]), SOON_S, "the child's own report"
    )
    os.kill(worker["pid"], signal.SIGKILL)
    end = exit_of(client, worker["id"])
    assert (end["cause"], end["stacks"]) == ("signal 9", [])


def stacks_end(pid: int) -> int:
    """Return where the next stacks of a worker will be written."""
    offsets = []
    for fd in list(Path(f"/proc/{pid}/fd").iterdir()):
        # Others come and go while they are looked at.
        if os.path.exists(fd) and os.readlink(fd).startswith("/memfd:slots-"):
            offsets.append(int(Path(f"/proc/{pid}/fdinfo/{fd.name}").read_text().split()[1]))
    return max(offsets)


def wrote_after(pid: int, offset: int) -> bool:
    return stacks_end(pid) > offset


@pytest.mark.slow  # even between calls a heartbeat may meet one of the many dumps
def test_a_worker_that_is_asked_often_lives_and_keeps_what_there_is_room_for(client: Client) -> None:
    """Asked between calls: CPython's handler reads frames that other threads may change, which can end a busy worker
    (bridge.worker.stacks). That ends nobody too soon in use, where whoever is asked is killed 0.2 s later.
    """
    worker = worker_of(client)
    full = STACKS_OFFSET + STACKS_BYTES
    assert stacks_end(worker["pid"]) == STACKS_OFFSET
    for _ in range(1000):
        before = stacks_end(worker["pid"])
        if before > full - 200:  # a line that has no room is left out
            break
        os.kill(worker["pid"], DUMP_SIGNAL)
        wait_until(partial(wrote_after, worker["pid"], before), SOON_S, "stacks")
    assert client.execute("echo", 7) == 7
    assert full - 200 < stacks_end(worker["pid"]) <= full
    assert worker_of(client)["id"] == worker["id"]
    os.kill(worker["pid"], signal.SIGKILL)
    lines = exit_of(client, worker["id"])["stacks"]
    assert len(lines) == STACK_LINES
    assert lines[-1].endswith(" lines more]")


# --- what is told of the dead --------------------------------------------------------------------------


def test_the_command_line_shows_how_a_worker_ended(orchestrator: Orchestrator, client: Client) -> None:
    worker = worker_of(client)
    error = client.submit("fault.hang", LONG, deadline_s=DEADLINE_S).exception(SOON_S)
    assert isinstance(error, errors.DeadlineExceeded)
    end = exit_of(client, worker["id"])
    assert end["peak_rss_bytes"] > 1 << 20

    def dspool(*words: str) -> str:
        command = [sys.executable, "-m", "orchestrator.cli", *words]
        environ = {**os.environ, "DSPOOL_ENDPOINT": orchestrator.endpoint}
        done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=SOON_S)
        assert done.returncode == 0, done
        return done.stdout

    told = dspool("logs", worker["id"]).splitlines()
    first = told.index(f"--- {worker['id']} ended: {end['cause']}")
    assert told[first + 1].startswith("--- by signal 9, after ")
    assert f"peak RSS {end['peak_rss_bytes'] / 2**20:,.0f} MiB" in told[first + 1]
    assert told[first + 2 :] == ["--- stacks of its threads", *end["stacks"]]
    (row,) = [line for line in dspool("status").splitlines() if worker["id"] in line and end["cause"] in line]
    assert "signal 9" in row
    assert f" {len(end['stacks'])} " in row
    (document,) = [row for row in json.loads(dspool("status", "--json"))["workers"] if row["id"] == worker["id"]]
    assert document["exit"] == end


# --- memory -------------------------------------------------------------------------------------------

# Runs where a file of its own lies over the kernel's count: provoking the real kill could hit anybody.
_OOM = """
import json, os, signal, subprocess, sys, time
from orchestrator import Orchestrator
from tests.support.acceptance import SOON_S, await_full, pools
from tests.support.waiting import wait_until
counter, count = sys.argv[1], sys.argv[2]
subprocess.run(["mount", "--bind", count, counter], check=True)

def end_of_worker(*, counted=None, hangs=False):
    await_full(client, "general")
    (worker,) = [row for row in client.workers() if row["exit"] is None]
    if counted is not None:
        with open(count, "w") as file:
            file.write(f"oom_kill_disable 0\\nunder_oom 0\\noom_kill {counted}\\n")
    if hangs:
        assert client.submit("fault.hang", {"seconds": 60}, deadline_s=0.2).exception(SOON_S) is not None
    else:
        os.kill(worker["pid"], signal.SIGKILL)
    end = wait_until(
        lambda: next(row["exit"] for row in client.workers() if row["id"] == worker["id"]), SOON_S, "its end"
    )
    print(json.dumps([end["cause"], end["signal"], end["kind"]]), flush=True)

general = {"size": 1, "grace_s": 0.1}
with Orchestrator(pools=pools(general), faults=True) as orchestrator, orchestrator.client() as client:
    end_of_worker()
    end_of_worker(counted=4)
    end_of_worker()
    end_of_worker(counted=5, hangs=True)
"""


@pytest.mark.skipif(
    find_counter() is None or subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode != 0,
    reason="needs a memory cgroup and the right to mount",
)
def test_a_kill_for_memory_is_told_as_one_and_no_other_is(tmp_path: Path) -> None:
    count = tmp_path / "count"
    count.write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n", encoding="ascii")
    command = ["unshare", "-m", sys.executable, "-c", _OOM, str(find_counter()), str(count)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert told == [
        ["signal 9", 9, "signalled"],
        ["out of memory", 9, "signalled"],
        ["signal 9", 9, "signalled"],  # that kill has been told of
        # Killed here, whatever the kernel counts meanwhile.
        ["fault.hang did not stop within 0.1 s of being asked", 9, "signalled"],
    ]
