"""What ends early, wherever it stands: work that is said not to run never does, and the answer says what became of it.

One worker with one slot: of calls in a row the first runs, the next two stand by in the worker, the rest is queued.
Each call leaves its number in a file when it runs.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from orchestrator import AsyncClient, Client, Orchestrator, errors
from orchestrator.client.future import Future
from tests.support.acceptance import (
    LISTENER,
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
from tests.support.waiting import wait_until

PREFETCH = 2
# Of what is promised at a moment.
LATE_S = 0.5


@pytest.fixture(scope="module")
def orchestrator() -> Iterator[Orchestrator]:
    settings = {"size": 1, "slots": 1, "prefetch": PREFETCH, "grace_s": 0.2, "restart": {"max_restarts": 100}}
    with Orchestrator(pools=pools(settings)) as orchestrator:
        with orchestrator.client() as client:
            client.deploy("marker", MARKER)
            client.deploy("listener", LISTENER)
        yield orchestrator


@pytest.fixture
def client(orchestrator: Orchestrator) -> Iterator[Client]:
    with orchestrator.client() as client:
        yield client
        wait_until(lambda: under_way(client) == 0, SOON_S, "the end of what the test began")
        await_full(client, "general")


@pytest.fixture
def evidence(tmp_path: Path) -> Path:
    return tmp_path / "marks"


def in_a_row(client: Client, evidence: Path, first: str, count: int = 5, **options: Any) -> list[Future]:
    """Return futures of calls, numbered from 0: the first one runs, two stand by, the others are queued.

    options: of all but the first.
    """
    futures = [client.submit(first, mark(evidence, 0, 60.0))]
    wait_until(lambda: marks(evidence) == [0], SOON_S, "the first one's start")
    futures += [client.submit("marker", mark(evidence, number), **options) for number in range(1, count)]
    await_held(client, count)
    return futures


def await_held(client: Client, count: int) -> dict[str, Any]:
    """Wait until of `count` calls the worker has as many as it takes; return the worker."""
    held = min(count, 1 + PREFETCH)

    def worker() -> dict[str, Any] | None:
        living = [row for row in client.workers() if row["state"] in ("ready", "busy")]
        return next((row for row in living if row["in_flight"] == held), None)

    worker_row = wait_until(worker, SOON_S, f"{held} calls with the worker")
    assert worker_row is not None
    return worker_row


def _ran(evidence: Path, numbers: list[int]) -> bool:
    return marks(evidence) == numbers


def assert_ran(client: Client, evidence: Path, *numbers: int) -> None:
    """Assert that exactly these calls ran, once each, now that one that came after all of them has run."""
    assert client.execute("marker", mark(evidence, 99)).number == 99
    assert marks(evidence) == [*numbers, 99]


# --- one request --------------------------------------------------------------------------------------


def test_by_its_id_a_request_is_cancelled_wherever_it_is(client: Client, evidence: Path) -> None:
    first, *others = in_a_row(client, evidence, "listener")
    for future in others:
        outcome = client.cancel(future.request_id).outcome(SOON_S)
        assert (outcome.stage, outcome.how, bool(outcome)) == ("queued", "dequeued", True)
        assert isinstance(future.exception(SOON_S), errors.Cancelled)
    for known in (("running", "cooperative", True), ("finished", "none", False)):
        outcome = client.cancel(first.request_id).outcome(SOON_S)
        assert (outcome.stage, outcome.how, bool(outcome)) == known
        assert isinstance(first.exception(SOON_S), errors.Cancelled)
    assert_ran(client, evidence, 0)


def test_an_awaited_client_cancels_by_id_too(orchestrator: Orchestrator, client: Client, evidence: Path) -> None:
    async def scenario() -> list[tuple[str, str, bool]]:
        async with AsyncClient(orchestrator.endpoint) as awaited:
            futures = [await awaited.submit("listener", mark(evidence, 0, 60.0))]
            futures += [await awaited.submit("marker", mark(evidence, number)) for number in range(1, 5)]
            await asyncio.to_thread(wait_until, lambda: marks(evidence) == [0], SOON_S, "the first one's start")
            await asyncio.to_thread(await_held, client, 5)
            found = []
            for future in reversed(futures):
                outcome = await (await awaited.cancel(future.request_id)).outcome(SOON_S)
                found.append((outcome.stage, outcome.how, bool(outcome)))
                with pytest.raises(errors.Cancelled):
                    await future
            return found

    assert asyncio.run(scenario()) == [("queued", "dequeued", True)] * 4 + [("running", "cooperative", True)]
    assert_ran(client, evidence, 0)


def test_force_costs_the_worker_and_nobody_who_had_not_begun(client: Client, evidence: Path) -> None:
    first, *others = in_a_row(client, evidence, "marker")
    outcome = client.cancel(first.request_id, force=True).outcome(SOON_S)
    assert (outcome.stage, outcome.how, bool(outcome)) == ("running", "killed", True)
    assert isinstance(first.exception(SOON_S), errors.Cancelled)
    assert [future.result(SOON_S).number for future in others] == [1, 2, 3, 4]
    # What never began was not tried: of the worker that it stood by in its caller hears nothing.
    assert [future.meta.attempt for future in others if future.meta] == [1] * 4
    assert_ran(client, evidence, 0, 1, 2, 3, 4)


# --- a whole client -----------------------------------------------------------------------------------

_LEAVER = """
import json, os, signal, sys
from orchestrator import connect
client = connect(sys.argv[1])
for number in range(6):
    args = {"path": sys.argv[2], "number": number, "seconds": 0.0 if number else 60.0}
    client.submit("marker" if number else "listener", args)
print(json.dumps("submitted"), flush=True)
sys.stdin.readline()
"""
LEAVES = {
    "close": "client.close(); sys.stdin.readline()",
    "exit": "sys.exit()",
    "exit without a word": "os._exit(0)",
    "SIGKILL": "os.kill(os.getpid(), signal.SIGKILL)",
}


@pytest.mark.parametrize("leave", LEAVES)
def test_of_a_client_that_leaves_nothing_more_runs(
    orchestrator: Orchestrator, client: Client, evidence: Path, leave: str
) -> None:
    with Script(_LEAVER + LEAVES[leave], orchestrator.endpoint, str(evidence)) as leaver:
        assert leaver.said() == "submitted"
        await_under_way(client, 6)
        wait_until(lambda: marks(evidence) == [0], SOON_S, "the first one's start")
        worker = await_held(client, 6)["id"]
        left_at = time.monotonic()
        leaver.tell()
        await_under_way(client, 0)
        # The first one had a minute to go, and its worker lives: it was asked to stop, and did.
        assert time.monotonic() - left_at < SOON_S
        assert client.ping()["worker"] == worker
        assert_ran(client, evidence, 0)


# --- deadlines, and workers that die ------------------------------------------------------------------


def test_work_out_of_time_before_it_began_never_runs(client: Client, evidence: Path) -> None:
    first, *others = in_a_row(client, evidence, "listener", deadline_s=0.5)
    began = time.monotonic()
    for future in others:  # with the worker or not: it had not begun
        error = future.exception(SOON_S)
        assert isinstance(error, errors.DeadlineExceeded)
        assert error.stage == "queued"
    assert time.monotonic() - began < 0.5 + LATE_S
    await_held(client, 1)  # what stood by was called back
    assert not first.done()
    assert first.cancel().outcome(SOON_S).how == "cooperative"
    assert_ran(client, evidence, 0)


def test_whether_it_began_is_known_of_all_that_died_with_a_worker(client: Client, evidence: Path) -> None:
    futures = [client.submit("marker", mark(evidence, number, 60.0)) for number in range(3)]
    for future, begun in ((futures[0], [0]), (futures[1], [0, 1])):
        wait_until(partial(_ran, evidence, begun), SOON_S, f"the start of {begun}")
        os.kill(await_held(client, 4 - len(begun))["pid"], signal.SIGKILL)
        error = future.exception(SOON_S)
        assert isinstance(error, errors.WorkerLost)
        assert (error.executed, error.signal) == ("maybe", signal.SIGKILL)
    # The third died unstarted with two workers: that it never ran is certain, and it is not handed to a third one.
    error = futures[2].exception(SOON_S)
    assert isinstance(error, errors.WorkerLost)
    assert error.executed == "no"
    assert_ran(client, evidence, 0, 1)
