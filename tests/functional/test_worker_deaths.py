"""What a caller is promised when a worker dies: who is told what, how soon, and what is executed how often."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from orchestrator import Client, Orchestrator, errors
from orchestrator.client.future import Future
from orchestrator.rundir import process_ticks
from tests.support.acceptance import MARKER, SOON_S, await_full, mark, marks, pools
from tests.support.waiting import wait_until

TOLD_S = 0.5
SLOTS, PREFETCH = 2, 4


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    general = {"size": 2, "slots": SLOTS, "prefetch": PREFETCH}
    with Orchestrator(pools=pools(general), faults=True) as orchestrator, orchestrator.client() as client:
        client.deploy("marker", MARKER)
        yield client


@pytest.fixture(autouse=True)
def _full(client: Client) -> Iterator[None]:
    yield
    await_full(client, "general")


def living(client: Client) -> dict[str, dict[str, Any]]:
    """Return the general workers that are ready, by id."""
    return {row["id"]: row for row in client.workers() if row["state"] in ("ready", "busy")}


def settled_at(futures: list[Future]) -> dict[int, float]:
    """Return when each future settles (monotonic), by request id, filled in as it happens."""
    times: dict[int, float] = {}
    for future in futures:
        future.add_done_callback(partial(_note_time, times, future.request_id))
    return times


def _note_time(times: dict[int, float], name: int, _: object) -> None:
    times[name] = time.monotonic()


def test_a_worker_killed_in_mid_call_costs_only_what_it_was_running(client: Client, tmp_path: Path) -> None:
    evidence = tmp_path / "marks"
    futures = [client.submit("marker", mark(evidence, number, 0.4)) for number in range(16)]
    times = settled_at(futures)
    wait_until(lambda: len(marks(evidence)) == 2 * SLOTS, SOON_S, "every slot at work")
    running = set(marks(evidence))
    victim = min(living(client).values(), key=lambda row: str(row["id"]))
    assert victim["in_flight"] == SLOTS + PREFETCH

    killed_at = time.monotonic()
    os.kill(victim["pid"], signal.SIGKILL)
    wait_until(lambda: len(times) == len(futures), SOON_S, "every call's end")

    lost = {number: future for number, future in enumerate(futures) if future.exception(0) is not None}
    assert len(lost) == SLOTS
    assert lost.keys() <= running
    for future in lost.values():
        error = future.exception(0)
        assert isinstance(error, errors.WorkerLost)
        assert (error.signal, error.worker, error.executed) == (signal.SIGKILL, victim["id"], "maybe")
        assert times[future.request_id] - killed_at <= TOLD_S
    for number, future in enumerate(futures):
        if number not in lost:
            assert future.result(0).number == number
    # The victim's other four had not started: handed to others without a word.
    assert sorted(marks(evidence)) == list(range(16))  # each exactly once


@pytest.mark.parametrize(
    ("operation", "args", "number", "cause"),
    [
        ("fault.kill", {}, signal.SIGKILL, "signal 9"),
        ("fault.segv", {}, signal.SIGSEGV, "signal 11"),
        ("fault.exit", {"code": 3}, None, "exit code 3"),
    ],
)
def test_the_caller_is_told_how_its_worker_ended(
    client: Client, operation: str, args: dict[str, Any], number: int | None, cause: str
) -> None:
    pids = {name: row["pid"] for name, row in living(client).items()}
    future = client.submit(operation, args)
    error = future.exception(SOON_S)
    assert isinstance(error, errors.WorkerLost)
    assert (error.signal, error.executed) == (number, "maybe")
    assert error.cause == cause
    assert error.worker in pids
    assert error.worker in str(error)
    assert process_ticks(pids[error.worker]) is None
    await_full(client, "general")
    heirs = living(client)
    place, _, incarnation = error.worker.rpartition(".")
    assert f"{place}.{int(incarnation) + 1}" in heirs
    assert client.execute("echo", 1) == 1


def test_a_dead_worker_stays_listed_with_its_cause_and_its_last_words(client: Client, tmp_path: Path) -> None:
    evidence = tmp_path / "marks"
    future = client.submit("marker", mark(evidence, 4711, 60.0))
    wait_until(lambda: marks(evidence), SOON_S, "the call's start")
    (victim,) = [row for row in living(client).values() if row["in_flight"]]
    wait_until(lambda: "marked 4711" in client.logs(victim["id"]), SOON_S, "its output")
    assert client.logs(victim["id"], lines=1) == ["marked 4711"]
    before = client.stats()["pools"]["general"]["restarts"]
    os.kill(victim["pid"], signal.SIGKILL)
    assert isinstance(future.exception(SOON_S), errors.WorkerLost)
    await_full(client, "general")

    (dead,) = [row for row in client.workers() if row["id"] == victim["id"]]
    assert (dead["state"], dead["in_flight"], dead["pid"]) == ("exited", 0, victim["pid"])
    assert dead["exit"]["signal"] == signal.SIGKILL
    assert dead["exit"]["cause"] == "signal 9"
    assert dead["exit"]["log_tail"][-1] == "marked 4711"
    assert "marked 4711" in client.logs(victim["id"])
    assert dead["exit"]["peak_rss_bytes"] > 1 << 20
    assert client.stats()["pools"]["general"]["restarts"] == before + 1
    with pytest.raises(errors.NotFound, match=r"general-9\.9"):
        client.logs("general-9.9")


def test_rows_of_a_map_are_lost_with_their_worker_and_the_others_come(client: Client, tmp_path: Path) -> None:
    evidence = tmp_path / "marks"
    rows = [mark(evidence, number, 0.3) for number in range(12)]
    found = client.map("marker", rows, chunk=1, on_error="yield", window=12)
    first = next(found)
    wait_until(lambda: len(marks(evidence)) >= 4 * SLOTS, SOON_S, "every slot at its second row")
    (victim, *_) = [row for row in living(client).values() if row["in_flight"]]
    os.kill(victim["pid"], signal.SIGKILL)
    outcomes = [first, *found]
    lost = [outcome for outcome in outcomes if isinstance(outcome, errors.WorkerLost)]
    assert 1 <= len(lost) <= SLOTS
    assert {error.worker for error in lost} == {victim["id"]}
    others = {number: outcome for number, outcome in enumerate(outcomes) if outcome not in lost}
    assert all(outcome.number == number for number, outcome in others.items())
    assert sorted(marks(evidence)) == list(range(12))
