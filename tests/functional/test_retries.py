"""What runs again, what runs once, and what is not run any more, with real workers that die."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator import Client, Orchestrator, errors
from orchestrator.client.future import Future
from tests.support.acceptance import MARKER, SOON_S, await_full, mark, marks, pools
from tests.support.waiting import wait_until

CLIENTS, ASKED = 4, 1000


@pytest.fixture(scope="module")
def orchestrator() -> Iterator[Orchestrator]:
    with Orchestrator(pools=pools({"size": 2, "grace_s": 0.2}), faults=True) as orchestrator:
        with orchestrator.client() as client:
            client.deploy("marker", MARKER)
        yield orchestrator


@pytest.fixture
def client(orchestrator: Orchestrator) -> Iterator[Client]:
    with orchestrator.client() as client:
        await_full(client, "general")
        yield client


def kill_its_worker(client: Client, evidence: Path, runs: int) -> None:
    """Kill the worker of the only call that runs, once its last run has left its mark."""
    wait_until(lambda: len(marks(evidence)) == runs, SOON_S, f"run {runs}")
    [busy] = [row for row in client.workers() if row["state"] == "busy"]
    os.kill(busy["pid"], signal.SIGKILL)


def test_of_1000_calls_with_one_key_one_runs(orchestrator: Orchestrator, client: Client, tmp_path: Path) -> None:
    evidence = tmp_path / "marks"
    before = client.stats()["requests"]
    clients = [orchestrator.client() for _ in range(CLIENTS)]
    try:
        futures: list[Future] = [
            clients[n % CLIENTS].submit("marker", mark(evidence, 7, 0.2), idempotency_key="one") for n in range(ASKED)
        ]
        assert {future.result(SOON_S).number for future in futures} == {7}
        assert len({future.request_id for future in futures}) == ASKED
    finally:
        for one in clients:
            one.close()
    assert client.execute("marker", mark(evidence, 7, 0.2), idempotency_key="one").number == 7  # from memory
    assert marks(evidence) == [7]
    after = client.stats()["requests"]
    assert after["attached"] - before["attached"] == ASKED
    assert after["accepted"] - before["accepted"] == ASKED + 1
    with pytest.raises(errors.InvalidRequest, match="with other arguments") as caught:
        client.execute("marker", mark(evidence, 8), idempotency_key="one")
    assert caught.value.details["conflict"] is True


def test_only_what_may_run_again_does(client: Client, tmp_path: Path) -> None:
    once, again = tmp_path / "once", tmp_path / "again"
    future = client.submit("marker", mark(once, 1, 30.0))
    kill_its_worker(client, once, 1)
    with pytest.raises(errors.WorkerLost) as caught:
        future.result(SOON_S)
    assert caught.value.executed == "maybe"
    await_full(client, "general")
    future = client.submit("marker", mark(again, 2, 1.0), idempotent=True)
    kill_its_worker(client, again, 1)
    assert future.result(SOON_S).number == 2
    assert future.meta is not None
    assert future.meta.attempt == 2
    assert (marks(once), marks(again)) == ([1], [2, 2])
    assert client.stats()["pools"]["general"]["resent"] == 1
    # Its second run ended well: it is like any other, and so it stays.
    assert client.dead_letters() == []


def test_what_two_workers_died_of_is_a_dead_letter(client: Client) -> None:
    bad = {"code": 41}
    with pytest.raises(errors.WorkerLost):
        client.execute("fault.exit", bad)
    with pytest.raises(errors.PoisonRequest, match="exit code 41, exit code 41") as caught:
        client.execute("fault.exit", bad)
    letter = caught.value.details["dead_letter"]
    restarts = client.stats()["pools"]["general"]["restarts"]
    with pytest.raises(errors.PoisonRequest):
        client.execute("fault.exit", bad)  # refused
    [row] = client.dead_letters()
    assert (row["id"], row["operation"], row["deaths"], row["requests"]) == (letter, "fault.exit", 2, 2)
    assert client.dead_letter(letter)["args"] == bad
    stats = client.stats()
    assert (stats["quarantined"], stats["pools"]["general"]["restarts"]) == (1, restarts)
    with pytest.raises(errors.PoisonRequest):
        client.requeue_dead_letter(letter)  # it ran once more
    assert client.dead_letter(letter)["deaths"] == 3
    client.drop_dead_letter(letter)
    assert client.dead_letters() == []
    with pytest.raises(errors.WorkerLost):
        client.execute("fault.exit", bad)
    with pytest.raises(errors.NotFound):
        client.drop_dead_letter(letter)
