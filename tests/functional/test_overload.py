"""More is asked of real processes than they can do: equal shares, high work first, refusals that say until when."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

import pytest

from orchestrator import Client, Orchestrator, errors
from tests.support.acceptance import SOON_S, await_under_way, pools
from tests.support.waiting import wait_until

SLOTS, MAX_QUEUE = 4, 60


@pytest.fixture(scope="module")
def orchestrator() -> Iterator[Orchestrator]:
    general = {"size": 1, "slots": SLOTS, "max_queue": MAX_QUEUE}
    with Orchestrator(pools=pools(general)) as orchestrator:
        yield orchestrator


def keep_asking(client: Client, at_once: int, sleep_s: float, until: float) -> int:
    """Keep so many calls under way until a time; return how many were served. What is refused is asked again."""
    served = 0
    under_way: deque[Future[Any]] = deque()
    while time.monotonic() < until:
        while len(under_way) < at_once:
            under_way.append(client.submit("sleep", {"seconds": sleep_s}))
        try:
            under_way.popleft().result(SOON_S)
            served += 1
        except errors.Overloaded:
            wait(under_way, 0.005, FIRST_COMPLETED)  # less than it was told
    for future in under_way:
        future.cancel()
    return served


def await_queued(client: Client, least: int) -> None:
    """Wait until so many rows are queued."""
    wait_until(lambda: client.stats()["pools"]["general"]["queued"] >= least, SOON_S, f"{least} queued rows")


def test_a_greedy_principal_gets_no_more_than_its_share(orchestrator: Orchestrator) -> None:
    clients = [orchestrator.client(principal=name) for name in ("greedy", "greedy", "greedy", "second", "third")]
    try:
        until = time.monotonic() + 2.0
        with ThreadPoolExecutor(len(clients)) as threads:
            asked = [60, 60, 60, 16, 16]  # the greedy one alone fills the queue three times over
            runs = [
                threads.submit(keep_asking, client, n, 0.01, until) for client, n in zip(clients, asked, strict=True)
            ]
            served = [run.result(SOON_S) for run in runs]
        await_under_way(clients[0], 0)
    finally:
        for client in clients:
            client.close()
    shares = {"greedy": sum(served[:3]), "second": served[3], "third": served[4]}
    fair = sum(served) / 3
    assert fair > 5 * SLOTS, shares  # each had many turns
    for principal, rows in shares.items():
        assert 0.8 * fair <= rows <= 1.2 * fair, (principal, shares)


def latencies(client: Client, priority: str, calls: int) -> list[float]:
    found = []
    for _ in range(calls):
        began = time.monotonic()
        client.execute("sleep", {"seconds": 0.05}, priority=priority)
        found.append(time.monotonic() - began)
    return found


def test_high_work_does_not_wait_behind_normal(orchestrator: Orchestrator) -> None:
    with orchestrator.client() as client, orchestrator.client() as other:
        unloaded = latencies(client, "high", 5)
        with ThreadPoolExecutor(1) as threads:
            load = threads.submit(keep_asking, other, 50, 0.05, time.monotonic() + 2.0)
            await_queued(client, 30)
            [normal] = latencies(client, "normal", 1)
            high = latencies(client, "high", 10)
            load.result(SOON_S)
        await_under_way(client, 0)
    assert normal > 0.3  # some thirty wait before it
    # Of single calls the machine decides; of most, who is served first.
    assert statistics.median(high) < 2.0 * statistics.median(unloaded)
    assert statistics.median(high) < normal / 2


def test_a_full_queue_is_refused_at_once_and_says_when_to_come_again(orchestrator: Orchestrator) -> None:
    with orchestrator.client() as client, orchestrator.client() as other:
        futures = [one.submit("sleep", {"seconds": 0.1}) for _ in range(60) for one in (client, other)]
        for one in (client, other):
            one.stats()  # answered after all that was sent before it has been looked at
        at_once = [type(future.exception(0)) for future in futures if future.done()].count(errors.Overloaded)
        outcomes = [future.exception(SOON_S) for future in futures]
        refusals = [error for error in outcomes if isinstance(error, errors.Overloaded)]
        assert len(refusals) + outcomes.count(None) == len(futures)
        assert at_once == len(refusals) > 0
        assert all(0.0 < (error.retry_after_s or 0.0) <= 5.0 and error.retryable for error in refusals)
        assert client.stats()["pools"]["general"]["queued"] == 0


def test_high_work_is_accepted_where_the_queue_is_full_of_low(orchestrator: Orchestrator) -> None:
    with orchestrator.client() as client, orchestrator.client() as other:
        before = client.stats()["requests"]["shed"]
        # Long enough for the queue to be full until high work comes.
        low = [one.submit("sleep", {"seconds": 1.0}, priority="low") for _ in range(60) for one in (client, other)]
        await_queued(client, MAX_QUEUE)
        high = [client.submit("sleep", {"seconds": 0.02}, priority="high") for _ in range(20)]
        assert [future.exception(SOON_S) for future in high] == [None] * 20
        refused = [future for future in low if future.done() and isinstance(future.exception(0), errors.Overloaded)]
        shed = client.stats()["requests"]["shed"] - before
        assert 1 <= shed <= len(refused)
