"""What a signal's handler raises in the main thread ends the call that it meets, and nothing else."""

from __future__ import annotations

import contextlib
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from orchestrator import Client, Orchestrator, errors
from orchestrator.client.future import Future
from tests.support.acceptance import pools
from tests.support.waiting import wait_until

SOON_S = 10.0
SECONDS = 2.0


class Interrupt(BaseException):
    """What the handler raises: nothing that is caught on the way."""


@pytest.fixture(scope="module")
def orc() -> Iterator[Orchestrator]:
    with Orchestrator(pools=pools({"size": 2, "grace_s": 0.2}, 1)) as orchestrator:
        yield orchestrator


@pytest.fixture
def client(orc: Orchestrator) -> Iterator[Client]:
    with orc.client() as client:
        yield client


@contextlib.contextmanager
def interrupts(seed: int) -> Iterator[Callable[[], int]]:
    """Raise Interrupt in the main thread every few milliseconds; yield what returns how many were raised."""
    seeded = random.Random(seed)
    raised = 0
    going = True

    def raise_again(*_: object) -> None:
        nonlocal raised
        if going:
            raised += 1
            signal.setitimer(signal.ITIMER_REAL, seeded.uniform(0.0005, 0.008))
            raise Interrupt

    # What is raised in a finaliser, such as a weak reference's callback, Python itself only reports: to something that
    # the next interrupt cannot break off in the middle.
    report, sys.unraisablehook = sys.unraisablehook, lambda _: None
    before = signal.signal(signal.SIGALRM, raise_again)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.001)
        yield lambda: raised
    finally:
        going = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        sys.unraisablehook = report


def alone(client: Client, number: int, kept: list[tuple[Any, Future]]) -> None:
    assert client.execute("echo", number) == number


def mixed(client: Client, number: int, kept: list[tuple[Any, Future]]) -> None:
    if number % 4 == 0:
        assert client.execute("echo", number) == number
    elif number % 4 == 1:
        kept.append((number, client.submit("echo", number)))
    elif number % 4 == 2:
        assert list(client.map("echo", range(20))) == list(range(20))
    else:
        assert client.execute("echo", b"x" * 20_000) == b"x" * 20_000


def run_interrupted(client: Client, call: Any, kept: list[tuple[Any, Future]]) -> tuple[int, int]:
    """Call for a while in the main thread; return (calls that ended, interrupts)."""
    number = ended = 0
    until = time.monotonic() + SECONDS
    with contextlib.suppress(Interrupt), interrupts(seed=7) as raised:
        while time.monotonic() < until:
            # An interrupt between two calls must not end the run.
            with contextlib.suppress(Interrupt):
                while time.monotonic() < until:
                    number += 1
                    with contextlib.suppress(Interrupt):
                        call(client, number, kept)
                        ended += 1
    return ended, raised()


def settles_rest(client: Client) -> None:
    connection = client.connection
    wait_until(lambda: client.execute("echo", 1) == 1 and not connection.expecting(), SOON_S, "the rest")
    assert connection._room.rows == 0
    assert all(route.rows == 0 for route in connection._room._routes.values())
    assert not connection._followers
    assert not connection._room.wanting


@pytest.mark.parametrize("call", [alone, mixed])
def test_another_thread_notices_nothing(client: Client, call: Any) -> None:
    stop = threading.Event()
    sent: list[Future] = []
    waited: list[int] = []
    wrong: list[Any] = []

    def submits() -> None:
        while not stop.wait(0.002):
            sent.append(client.submit("echo", len(sent)))

    def waits() -> None:
        while not stop.is_set():
            try:
                assert client.execute("echo", len(waited), deadline_s=SOON_S) == len(waited)
            except (errors.DspoolError, AssertionError) as error:
                wrong.append(error)
            waited.append(0)

    threads = [threading.Thread(target=submits), threading.Thread(target=waits)]
    for thread in threads:
        thread.start()
    kept: list[tuple[Any, Future]] = []
    try:
        ended, raised = run_interrupted(client, call, kept)
    finally:
        stop.set()
    for thread in threads:
        thread.join(SOON_S)
        assert not thread.is_alive()
    assert min(ended, raised, len(sent), len(waited)) > 20
    assert [future.result(SOON_S) for future in sent] == list(range(len(sent)))
    assert [future.result(SOON_S) for _, future in kept] == [number for number, _ in kept]
    assert wrong == []
    settles_rest(client)


def test_a_lone_caller_goes_on_afterwards(client: Client) -> None:
    kept: list[tuple[Any, Future]] = []
    ended, raised = run_interrupted(client, mixed, kept)
    assert min(ended, raised) > 20
    assert [future.result(SOON_S) for _, future in kept] == [number for number, _ in kept]
    settles_rest(client)


@pytest.mark.parametrize("led_by_another", [False, True])
def test_a_waiting_call_is_interrupted_at_once(client: Client, led_by_another: bool) -> None:
    """While it leads, and while it sleeps and another thread leads."""

    def interrupt(*_: object) -> None:
        raise Interrupt

    other = threading.Thread(target=client.execute, args=("sleep", {"seconds": 1.0}))
    if led_by_another:
        other.start()
        wait_until(lambda: client.connection.led, SOON_S, "a leader")
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        started = time.monotonic()
        with pytest.raises(Interrupt):
            client.execute("sleep", {"seconds": 5.0})
        assert time.monotonic() - started < 0.8
    finally:
        signal.signal(signal.SIGALRM, before)
    if led_by_another:
        other.join(SOON_S)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_handler_that_raises_nothing_interrupts_nothing(client: Client) -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda number, _: seen.append(number))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
        assert client.execute("sleep", {"seconds": 0.3}) is not Interrupt
        assert len(seen) > 5
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_waiters_take_the_lead_although_one_that_was_woken_leaves(client: Client) -> None:
    """While the io thread is in a callback: the first in the line of those woken may not take the lead."""
    connection = client.connection
    entered, leave = threading.Event(), threading.Event()
    with connection.lock:
        gone = connection._park([])  # one that never looks again
    future = client.submit("echo", 1)

    def block(_: object) -> None:
        entered.set()
        leave.wait(SOON_S)

    future.add_done_callback(block)
    assert entered.wait(SOON_S)
    took: list[float] = []

    def sleeps(seconds: float) -> None:
        started = time.monotonic()
        client.execute("sleep", {"seconds": seconds})
        took.append(time.monotonic() - started)

    threads = [threading.Thread(target=sleeps, args=(seconds,)) for seconds in (0.2, 0.4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(3.0)
    connection._unpark(gone, [])
    leave.set()
    for thread in threads:
        thread.join(SOON_S)
    assert len(took) == 2
    assert max(took) < 2.0
