"""A map is not ended by a pool that is full for a while: what is refused waits, and is sent again."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from orchestrator import AsyncClient, Client, Orchestrator, errors
from tests.support.acceptance import pools
from tests.support.waiting import wait_until

SOON_S = 10.0
QUEUED = 3
LONG_S = 0.3
# Far less than the time after which what is refused is sent again: QUEUED long rows.
AT_ONCE_S = 0.3


class Interrupt(BaseException):
    """What the handler raises: nothing that is caught on the way."""


@pytest.fixture(scope="module")
def orc() -> Iterator[Orchestrator]:
    narrow = {"size": 1, "slots": 1, "prefetch": 0, "max_queue": QUEUED}
    with Orchestrator(pools=pools(narrow)) as orchestrator:
        with orchestrator.client() as client:  # the pool learns how long such rows take
            client.execute("sleep", {"seconds": LONG_S})
        yield orchestrator


@pytest.fixture
def client(orc: Orchestrator) -> Iterator[Client]:
    with orc.client() as client:
        yield client


def rejected(client: Client) -> int:
    return int(client.stats()["requests"]["rejected"])


@pytest.fixture
def full(orc: Orchestrator) -> Iterator[None]:
    """Have the pool full of long rows: it tells others to come back when those have run."""
    with orc.client() as other:
        rows = [other.submit("sleep", {"seconds": LONG_S}) for _ in range(QUEUED + 1)]
        wait_until(lambda: other.stats()["pools"]["general"]["queued"] >= QUEUED, SOON_S, "a full queue")
        assert not any(row.done() for row in rows[1:])
        yield


@pytest.mark.parametrize("ordered", [True, False])
def test_callers_of_a_narrow_pool_all_get_all(orc: Orchestrator, client: Client, ordered: bool) -> None:
    before = rejected(client)

    def run(number: int) -> list[Any]:
        with orc.client() as mine:
            rows = [number * 100 + row for row in range(40)]
            return list(mine.map("echo", rows, ordered=ordered, window=16, chunk=1))

    with ThreadPoolExecutor(3) as threads:
        found = list(threads.map(run, range(3)))
    assert [list(one) if ordered else sorted(one) for one in found] == [
        [number * 100 + row for row in range(40)] for number in range(3)
    ]
    assert rejected(client) > before


def test_who_waits_sleeps_and_then_gets_all(client: Client, full: None) -> None:
    before, connection = rejected(client), client.connection
    turns = [connection.turns]  # each is a time that the one who waits woke up
    looking = threading.Timer(0.6, lambda: turns.append(connection.turns))
    looking.start()
    assert list(client.map("echo", range(8), chunk=2)) == list(range(8))
    looking.join(SOON_S)
    assert rejected(client) - before >= 8
    assert turns[1] - turns[0] < 16


def test_a_deadline_that_is_nearer_is_not_waited_for(client: Client, full: None) -> None:
    started = time.monotonic()
    with pytest.raises(errors.Overloaded) as caught:
        list(client.map("echo", range(8), deadline_s=AT_ONCE_S))
    assert time.monotonic() - started < AT_ONCE_S
    assert (caught.value.retry_after_s or 0.0) > AT_ONCE_S
    found = list(client.map("echo", range(8), deadline_s=AT_ONCE_S, on_error="yield"))
    assert [type(one) for one in found] == [errors.Overloaded] * 8


def test_an_interrupt_ends_the_wait_at_once(client: Client, full: None) -> None:
    def interrupt(*_: object) -> None:
        raise Interrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        started = time.monotonic()
        with pytest.raises(Interrupt):
            list(client.map("echo", range(8)))
        assert 0.09 < time.monotonic() - started < 0.1 + AT_ONCE_S
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert client.connection._room.rows == 0


def test_the_end_of_the_client_ends_the_wait_at_once(client: Client, full: None) -> None:
    closing = threading.Timer(0.1, client.close)
    closing.start()
    started = time.monotonic()
    with pytest.raises(errors.Cancelled):
        list(client.map("echo", range(8)))
    assert 0.09 < time.monotonic() - started < 0.1 + AT_ONCE_S
    closing.join(SOON_S)


def test_an_event_loop_goes_on_while_a_map_waits(orc: Orchestrator, full: None) -> None:
    async def collect(client: AsyncClient) -> list[Any]:
        return [value async for value in client.map("echo", range(8), chunk=2)]

    async def run() -> None:
        async with orc.async_client() as client:
            stopped, waiting = (asyncio.create_task(collect(client)) for _ in range(2))
            threads = threading.active_count()
            await asyncio.sleep(0.1)
            started = time.monotonic()
            assert not stopped.done()
            stopped.cancel()
            with pytest.raises(asyncio.CancelledError):
                await stopped
            assert time.monotonic() - started < 0.1
            assert threading.active_count() <= threads + 1  # the io thread
            assert await waiting == list(range(8))
            assert time.monotonic() - started > AT_ONCE_S

    asyncio.run(run())
