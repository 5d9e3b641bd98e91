"""Peers that live and say nothing: a line that carries nothing any more or is cut, a process that is stopped.

The wire is local: a line goes silent only because a process at its end has stopped, and the death of a process is told
by its pidfd, not by the line. What is promised holds all the same behind a line that really is silent, or cut.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from orchestrator import Client, Orchestrator, connect, errors
from tests.support.acceptance import (
    GONE_S,
    MARKER,
    SOON_S,
    Script,
    await_full,
    await_under_way,
    mark,
    marks,
    pools,
    under_way,
)
from tests.support.link import Link
from tests.support.waiting import wait_until

BEAT_S, LIMIT_S = 0.1, 1.0
# A client whose coordinator says nothing ends a call by itself, so much after its deadline at most.
GUARD_S = 0.5
# Both ends of a line that is cut know it so soon.
CUT_S = 2.0
# A coordinator that stood still for so long kills nobody for having been silent meanwhile.
STALL_S = 2.3
LATE_S = 0.5  # of what is promised at a moment
SLOTS = 8
SILENCES = {"to the coordinator": {"down": False}, "from it": {"up": False}, "both ways": {}}


def fleet() -> dict[str, Any]:
    general = {"size": 1, "heartbeat_interval_s": BEAT_S, "heartbeat_limit_s": LIMIT_S, "grace_s": 0.2}
    return {"pools": pools(general), "faults": True}


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Stop a process for the length of a block."""
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED, SOON_S, "the stop")
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.fixture(scope="module")
def orchestrator() -> Iterator[Orchestrator]:
    with Orchestrator(**fleet()) as orchestrator:
        with orchestrator.client() as client:
            client.deploy("marker", MARKER)
        yield orchestrator


@pytest.fixture
def client(orchestrator: Orchestrator) -> Iterator[Client]:
    with orchestrator.client() as client:
        yield client
        await_full(client, "general")


def link_to(orchestrator: Orchestrator, folder: Path) -> Link:
    """Return a line to a coordinator's frontend."""
    return Link(folder / "link.sock", Path(orchestrator.endpoint.removeprefix("ipc://")))


# --- between a client and its coordinator -------------------------------------------------------------


@pytest.mark.parametrize(
    "silence",
    [
        pytest.param(silence, id=name, marks=[] if name == "both ways" else pytest.mark.slow)
        for name, silence in SILENCES.items()
    ],
)
def test_a_client_behind_a_silent_line_keeps_its_deadlines_and_gets_each_answer_once(
    orchestrator: Orchestrator, client: Client, run_dirs: Callable[[], Path], tmp_path: Path, silence: dict[str, bool]
) -> None:
    evidence = tmp_path / "marks"
    with link_to(orchestrator, run_dirs()) as link, connect(link.endpoint) as far:
        assert far.execute("echo", 1) == 1
        link.silence(**silence)
        outcomes: list[Any] = []
        short = far.submit("marker", mark(evidence, 1), deadline_s=0.3)
        open_ended = far.submit("marker", mark(evidence, 2))
        for future in (short, open_ended):
            future.add_done_callback(outcomes.append)
        began = time.monotonic()
        assert isinstance(short.exception(SOON_S), errors.DeadlineExceeded)
        assert time.monotonic() - began <= 0.3 + GUARD_S + LATE_S
        with pytest.raises(TimeoutError):
            open_ended.result(0.1)
        assert client.execute("echo", 2) == 2  # others notice nothing
        link.speak()
        assert open_ended.result(SOON_S).number == 2
        assert far.execute("echo", 3) == 3
        assert isinstance(short.exception(0), errors.DeadlineExceeded)  # what came late changes no outcome
    assert len(outcomes) == 2
    assert sorted(set(marks(evidence))) == sorted(marks(evidence))


def test_a_client_whose_line_is_cut_is_told_and_costs_others_nothing(
    orchestrator: Orchestrator, client: Client, run_dirs: Callable[[], Path], tmp_path: Path
) -> None:
    evidence = tmp_path / "marks"
    with link_to(orchestrator, run_dirs()) as link, connect(link.endpoint) as far:
        answered = far.submit("echo", 1)
        assert answered.result(SOON_S) == 1
        # More than the worker takes at once, without a deadline: some run, some stand by, some are queued.
        futures = [far.submit("marker", mark(evidence, number, 0.3)) for number in range(20)]
        await_under_way(client, 20)
        wait_until(lambda: len(marks(evidence)) == SLOTS, SOON_S, "every slot at work")
        link.cut()
        cut_at = time.monotonic()
        for future in futures:
            assert isinstance(future.exception(SOON_S), errors.Unavailable)
        assert time.monotonic() - cut_at <= CUT_S
        with pytest.raises(errors.Unavailable):
            far.execute("echo", 2)
        assert answered.result(0) == 1
        # The coordinator knows at once: what had not begun does not run.
        await_under_way(client, 0)
        assert client.execute("echo", 3) == 3
        ran = marks(evidence)
        assert len(ran) == len(set(ran)) <= 2 * SLOTS


def test_the_work_of_a_client_whose_line_is_cut_is_cancelled_although_its_process_lives(
    orchestrator: Orchestrator, client: Client, run_dirs: Callable[[], Path]
) -> None:
    with link_to(orchestrator, run_dirs()) as link, connect(link.endpoint) as far:
        for _ in range(3 * SLOTS):
            far.submit("sleep", {"seconds": 600.0})
        await_under_way(client, 3 * SLOTS)
        link.cut()
        await_under_way(client, 0)
        assert client.execute("echo", 1) == 1


def test_the_death_of_the_coordinator_is_noticed_through_a_silent_line(run_dirs: Callable[[], Path]) -> None:
    with (
        Orchestrator(**fleet()) as orchestrator, link_to(orchestrator, run_dirs()) as link,
        connect(link.endpoint) as far,
    ):  # fmt: skip
        future = far.submit("sleep", {"seconds": 60.0})
        await_under_way(far, 1)
        link.silence()
        killed_at = time.monotonic()
        os.kill(orchestrator.pid, signal.SIGKILL)
        assert isinstance(future.exception(SOON_S), errors.Unavailable)
        assert time.monotonic() - killed_at <= GONE_S


# --- between a worker and its coordinator -------------------------------------------------------------


@contextmanager
def line_to_workers(orchestrator: Orchestrator) -> Iterator[Link]:
    """Put a line in front of the backend: workers that are born from now on connect through it."""
    path = orchestrator.run_dir / "backend.sock"
    real = path.rename(path.with_name("real.sock"))
    with Link(path, real) as link:
        yield link


def test_a_worker_behind_a_silent_line_is_replaced_and_what_it_says_late_is_not_delivered(tmp_path: Path) -> None:
    evidence = tmp_path / "marks"
    with (
        Orchestrator(**fleet()) as orchestrator,
        orchestrator.client() as client,
        line_to_workers(orchestrator) as link,
    ):
        client.deploy("marker", MARKER)
        (first,) = client.workers()
        os.kill(first["pid"], signal.SIGKILL)
        wait_until(lambda: client.ping(deadline_s=SOON_S)["worker"] == "general-1.2", SOON_S, "the next worker")
        outcomes: list[Any] = []
        futures = [client.submit("marker", mark(evidence, number, 0.2)) for number in range(4)]
        for future in futures:
            future.add_done_callback(outcomes.append)
        wait_until(lambda: len(marks(evidence)) == 4, SOON_S, "the calls at work")
        link.silence(down=False)
        silent_at = time.monotonic()
        found = [future.exception(SOON_S) for future in futures]
        assert time.monotonic() - silent_at <= LIMIT_S + 1.0 + LATE_S
        assert [type(error) for error in found] == [errors.WorkerLost] * 4
        assert {(error.worker, error.executed) for error in found} == {("general-1.2", "maybe")}  # type: ignore[union-attr]
        (dead,) = [row for row in client.workers() if row["id"] == "general-1.2"]
        assert "heartbeat" in dead["exit"]["cause"] or "heard" in dead["exit"]["cause"], dead["exit"]
        assert link.held_bytes > 0  # its replies, among others: they come now
        link.speak()
        wait_until(lambda: client.ping(deadline_s=SOON_S)["worker"] == "general-1.3", SOON_S, "the next worker")
        assert [type(future.exception(0)) for future in futures] == [errors.WorkerLost] * 4
        assert client.execute("marker", mark(evidence, 9)).number == 9
        assert under_way(client) == 0
    assert len(outcomes) == 4
    assert sorted(marks(evidence)) == [0, 1, 2, 3, 9]  # each once


@pytest.mark.slow
def test_a_worker_whose_line_is_cut_is_replaced(tmp_path: Path) -> None:
    evidence = tmp_path / "marks"
    with (
        Orchestrator(**fleet()) as orchestrator,
        orchestrator.client() as client,
        line_to_workers(orchestrator) as link,
    ):
        client.deploy("marker", MARKER)
        (first,) = client.workers()
        os.kill(first["pid"], signal.SIGKILL)
        wait_until(lambda: client.ping(deadline_s=SOON_S)["worker"] == "general-1.2", SOON_S, "the next worker")
        running = client.submit("marker", mark(evidence, 1, 60.0))
        wait_until(lambda: marks(evidence) == [1], SOON_S, "the call at work")
        link.cut()
        cut_at = time.monotonic()
        error = running.exception(SOON_S)
        assert time.monotonic() - cut_at <= LIMIT_S + 1.0 + LATE_S
        assert isinstance(error, errors.WorkerLost)
        assert (error.worker, error.executed) == ("general-1.2", "maybe")
        assert client.execute("marker", mark(evidence, 2)).number == 2
        assert marks(evidence) == [1, 2]


# --- processes that are stopped -----------------------------------------------------------------------


def test_a_stopped_coordinator_costs_its_clients_no_more_than_their_deadlines(
    orchestrator: Orchestrator, client: Client, tmp_path: Path
) -> None:
    evidence = tmp_path / "marks"
    worker = client.ping()
    before = client.stats()["pools"]["general"]["restarts"]
    outcomes: list[Any] = []
    running = client.submit("sleep", {"seconds": 0.2})
    await_under_way(client, 1)
    with stopped(orchestrator.pid):
        stopped_at = time.monotonic()
        short = client.submit("marker", mark(evidence, 1), deadline_s=0.3)
        open_ended = client.submit("marker", mark(evidence, 2))
        for future in (running, short, open_ended):
            future.add_done_callback(outcomes.append)
        assert isinstance(short.exception(SOON_S), errors.DeadlineExceeded)
        assert time.monotonic() - stopped_at <= 0.3 + GUARD_S + LATE_S
        # Longer than a worker may be silent: whose silence it was is known afterwards.
        threading.Event().wait(max(stopped_at + STALL_S - time.monotonic(), 0.0))
    assert running.result(SOON_S) == {"seconds": 0.2}
    assert open_ended.result(SOON_S).number == 2
    assert client.ping()["worker"] == worker["worker"]
    assert client.stats()["pools"]["general"]["restarts"] == before
    assert len(outcomes) == 3
    assert sorted(marks(evidence)) in ([2], [1, 2])


def test_a_stopped_client_costs_nobody_else_anything(
    orchestrator: Orchestrator, client: Client, run_dirs: Callable[[], Path]
) -> None:
    code = """
import json, sys
from orchestrator import connect
with connect(sys.argv[1]) as client:
    futures = [client.submit("echo", bytes(1000)) for _ in range(4000)]
    print(json.dumps("sent"), flush=True)
    print(json.dumps(sum(len(future.result(60)) for future in futures)), flush=True)
"""
    with Script(code, orchestrator.endpoint) as other:
        assert other.said() == "sent"
        with stopped(other.process.pid):
            assert [client.execute("echo", number) for number in range(100)] == list(range(100))
            wait_until(lambda: under_way(client) == 0, SOON_S, "the end of what it had asked for")
        assert other.said() == 4_000_000  # nothing was lost
        assert other.process.wait(SOON_S) == 0
