"""A failure inside the client ends its connection with an error: whoever waits is told, however it waits."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bridge import faultpoints
from bridge.faultpoints import Fault
from orchestrator import AsyncClient, Client, errors
from orchestrator.client.future import Future
from tests.functional.test_client_core import echo_process, io_threads
from tests.support.waiting import wait_until

SOON_S = 10.0


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with echo_process(tmp_path_factory.mktemp("e")) as (endpoint, _):
        yield endpoint


@pytest.fixture
def client(endpoint: str) -> Iterator[Client]:
    with Client(endpoint) as client:
        yield client


@pytest.fixture
def fault(tmp_path: Path) -> Iterator[Callable[[int], None]]:
    """Have the n-th frame from now on fail as it is delivered."""

    def arm(nth: int) -> None:
        faultpoints.arm(faultpoints.schedule(str(tmp_path), [Fault("client.before_deliver", nth, "raise")]))
        faultpoints.begin(str(tmp_path))

    yield arm
    faultpoints.arm("")


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> list[threading.ExceptHookArgs]:
    """What threads ended of."""
    found: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", found.append)
    return found


def is_told(error: BaseException | None) -> None:
    assert type(error) is errors.DspoolError
    assert error.code == "INTERNAL"
    assert "FaultInjected: a fault was injected at client.before_deliver" in error.message
    assert "in _turn" in error.details["traceback"]


def leads(future: Future) -> None:
    future.result(SOON_S)


def by_callback(future: Future) -> None:
    done = threading.Event()
    future.add_done_callback(lambda _: done.set())
    assert done.wait(SOON_S)
    future.result(0)


def by_wait(future: Future) -> None:
    assert concurrent.futures.wait([future], SOON_S).done
    future.result(0)


def in_a_thread(future: Future) -> None:
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        both = [pool.submit(future.result, SOON_S) for _ in range(2)]
        is_told(both[0].exception(SOON_S))
        both[1].result(SOON_S)


@pytest.mark.parametrize("wait", [leads, by_callback, by_wait, in_a_thread])
def test_whoever_waits_is_told(
    client: Client, endpoint: str, fault: Callable[[int], None], broken: list[Any], wait: Callable[[Future], None]
) -> None:
    unanswered = client.submit("ignore")
    told: list[BaseException | None] = []
    unanswered.add_done_callback(lambda done: told.append(done.exception()))
    assert client.execute("echo", 1) == 1
    fault(1)
    future = client.submit("echo", 2)
    with pytest.raises(errors.DspoolError) as caught:
        wait(future)
    is_told(caught.value)
    is_told(unanswered.exception(0))
    wait_until(lambda: bool(told), SOON_S, "the callback of the other one")
    is_told(told[0])
    with pytest.raises(errors.DspoolError) as caught:
        client.execute("echo", 3)
    is_told(caught.value)
    client.close()
    wait_until(lambda: not io_threads(), SOON_S, "no thread is left")
    with Client(endpoint) as other:
        assert other.execute("echo", 4) == 4


def test_every_callback_runs_once_whatever_came_before_the_failure(
    client: Client, fault: Callable[[int], None], broken: list[Any]
) -> None:
    fault(3)
    errors_: list[Any] = []
    sent = 0
    while not client.connection.ended:
        try:
            client.submit("echo", sent).add_done_callback(lambda done: errors_.append(done.exception()))
        except errors.DspoolError as error:
            is_told(error)
            break
        sent += 1
    wait_until(lambda: len(errors_) == sent, SOON_S, "every callback")
    is_told(errors_[-1])
    client.close()
    assert len(errors_) == sent


def test_an_event_loop_is_told(endpoint: str, fault: Callable[[int], None], broken: list[Any]) -> None:
    async def main() -> None:
        async with AsyncClient(endpoint) as client:
            assert await client.execute("echo", 1) == 1
            fault(1)
            outcomes = await asyncio.wait_for(
                asyncio.gather(client.execute("ignore"), client.execute("echo", 2), return_exceptions=True), SOON_S
            )
            for outcome in outcomes:
                is_told(outcome if isinstance(outcome, BaseException) else None)

    asyncio.run(main())
    wait_until(lambda: [one.exc_type for one in broken] == [faultpoints.FaultInjected], SOON_S, "the thread's end")


def test_a_map_is_told(client: Client, fault: Callable[[int], None], broken: list[Any]) -> None:
    fault(2)
    with pytest.raises(errors.DspoolError) as caught:
        list(client.map("echo", range(64), chunk=8, window=16))
    is_told(caught.value)


def test_a_callback_that_ends_its_thread_ends_the_connection(client: Client, broken: list[Any]) -> None:
    """Others' callbacks run all the same."""
    ran = threading.Event()

    def leave(_: object) -> None:
        raise SystemExit(3)

    waiting = client.submit("ignore")
    waiting.add_done_callback(lambda _: ran.set())
    client.submit("echo", 1).add_done_callback(leave)
    with pytest.raises(errors.DspoolError, match="SystemExit: 3"):
        waiting.result(SOON_S)
    assert ran.wait(SOON_S)
    wait_until(lambda: [one.exc_type for one in broken] == [SystemExit], SOON_S, "the thread's end")
