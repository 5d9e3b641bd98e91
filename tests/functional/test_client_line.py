"""The line between a client and its coordinator: cut while both live, silent, slow to be read."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator import Client, errors
from orchestrator.client.future import Future
from orchestrator.client.overdue import GUARD_S
from tests.functional.test_client_core import echo_process, io_threads
from tests.support.link import Link
from tests.support.waiting import wait_until

SOON_S = 10.0
# The promises: a cut line is told of so soon, and a deadline is missed by so much, by a client left alone.
CUT_S, LATE_S = 2.0, 0.5
BIG = "x" * 300_000


@pytest.fixture(scope="module")
def far_end(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Any]]:
    with echo_process(tmp_path_factory.mktemp("e")) as found:
        yield found


@pytest.fixture
def link(far_end: tuple[str, Any], run_dirs: Callable[[], Path]) -> Iterator[Link]:
    with Link(run_dirs() / "link.sock", Path(far_end[0].removeprefix("ipc://"))) as link:
        yield link


@pytest.fixture
def client(link: Link) -> Iterator[Client]:
    with Client(link.endpoint) as client:
        yield client


# --- cut ----------------------------------------------------------------------------------------------


def leads(future: Future) -> None:
    future.result(SOON_S)


def by_callback(future: Future) -> None:
    done = threading.Event()
    future.add_done_callback(lambda _: done.set())
    assert done.wait(SOON_S)
    future.result(0)


def by_two(future: Future) -> None:
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for wait in [pool.submit(future.exception, SOON_S) for _ in range(2)]:
            assert isinstance(wait.result(), errors.Unavailable)
    future.result(0)


def in_asyncio(future: Future) -> None:
    async def wrapped() -> None:
        await asyncio.wait_for(asyncio.wrap_future(future), SOON_S)

    asyncio.run(wrapped())


def for_its_cancellation(future: Future) -> None:
    assert not future.cancel().outcome(SOON_S)
    future.result(0)


@pytest.mark.parametrize("wait", [leads, by_callback, by_two, in_asyncio, for_its_cancellation])
def test_a_cut_line_ends_every_wait(
    far_end: tuple[str, Any], link: Link, client: Client, wait: Callable[[Future], None]
) -> None:
    future = client.submit("ignore")
    assert client.execute("echo", 1) == 1
    if wait is for_its_cancellation:
        link.silence()  # the answer to Cancel does not come
    cut_at: list[float] = []

    def cut() -> None:
        cut_at.append(time.monotonic())
        link.cut()

    timer = threading.Timer(0.1, cut)
    timer.start()
    with pytest.raises(errors.Unavailable, match=r"closed or cut.*may or may not.*connect\(\)"):
        wait(future)
    assert time.monotonic() - cut_at[0] <= CUT_S
    with pytest.raises(errors.Unavailable):
        client.execute("echo", 2)
    timer.join()
    with Client(far_end[0]) as other:  # whose coordinator lives
        assert other.execute("echo", 3) == 3


@pytest.mark.parametrize("parked", [False, True], ids=["without a thread", "with a thread that sleeps"])
def test_an_idle_client_notices_the_cut_at_its_next_call(link: Link, client: Client, parked: bool) -> None:
    if parked:
        done = threading.Event()
        client.submit("echo", 1).add_done_callback(lambda _: done.set())
        assert done.wait(SOON_S)
    else:
        assert client.execute("echo", 1) == 1
        assert io_threads() == []
    link.cut()
    began = time.monotonic()
    with pytest.raises(errors.Unavailable):
        client.execute("echo", 2)
    assert time.monotonic() - began <= CUT_S


def test_what_came_before_the_cut_is_delivered(link: Link, client: Client) -> None:
    connection = client.connection
    dealer = connection._dealer
    assert client.execute("echo", 1) == 1
    with connection.lock:  # so nobody reads what comes
        answered = client.submit("echo", BIG)
        wait_until(dealer.pending, SOON_S, "the answer in our socket")
        open_ended = client.submit("ignore")
        link.cut()
        assert select.select([dealer.end_fileno()], [], [], SOON_S)[0]
    assert answered.result(SOON_S) == BIG
    assert isinstance(open_ended.exception(SOON_S), errors.Unavailable)


def test_a_coordinator_that_hangs_up_is_told_of(link: Link, far_end: tuple[str, Any]) -> None:
    with Client(far_end[0]) as client:  # no line between that could be cut
        future = client.submit("ignore")
        began = time.monotonic()
        with client.connection.lock:
            client.connection._dealer.send([bytes((1 << 27) + 1)])  # beyond what it reads of anybody
        assert isinstance(future.exception(SOON_S), errors.Unavailable)
        assert time.monotonic() - began <= CUT_S
    with Client(far_end[0]) as other:
        assert other.execute("echo", 1) == 1


def test_who_hangs_up_before_the_welcome_is_not_waited_for(run_dirs: Callable[[], Path]) -> None:
    path = run_dirs() / "rude.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()

        def hang_up() -> None:
            for _ in range(2):  # the client looks whether somebody is there before it connects
                server.accept()[0].close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        began = time.monotonic()
        with pytest.raises(errors.Unavailable, match="ended the connection"):
            Client(f"ipc://{path}", timeout_s=SOON_S)
        assert time.monotonic() - began <= CUT_S
        thread.join()


def test_clients_that_were_cut_leave_no_thread_and_no_descriptor(
    far_end: tuple[str, Any], run_dirs: Callable[[], Path]
) -> None:
    def here() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = here()
    with Link(run_dirs() / "link.sock", Path(far_end[0].removeprefix("ipc://"))) as link:
        clients = [Client(link.endpoint) for _ in range(5)]
        futures = [client.submit("ignore") for client in clients]
        link.cut()
        assert {type(future.exception(SOON_S)) for future in futures} == {errors.Unavailable}
        wait_until(lambda: not io_threads(), SOON_S, "the end of io threads")
        for client in clients:
            client.close()
    wait_until(lambda: here() <= before, SOON_S, "descriptors closed")


# --- deadlines without an answer ----------------------------------------------------------------------


@pytest.mark.parametrize("busy", [False, True], ids=["alone", "among others"])
def test_a_deadline_is_kept_although_the_coordinator_stands_still(far_end: tuple[str, Any], busy: bool) -> None:
    with Client(far_end[0]) as client:
        assert client.execute("echo", 1) == 1
        far_end[1].send_signal(signal.SIGSTOP)
        try:
            others = [client.submit("echo", number) for number in range(50 * busy)]
            began = time.monotonic()
            futures = [client.submit("echo", number, deadline_s=0.1 * number) for number in (3, 2, 1)]
            at: dict[int, float] = {}
            done = threading.Event()

            def note(future: Future, number: int) -> None:
                at[number] = time.monotonic() - began
                if len(at) == len(futures):
                    done.set()

            for number, future in zip((3, 2, 1), futures, strict=True):
                future.add_done_callback(lambda future, number=number: note(future, number))  # type: ignore[misc]
            assert done.wait(SOON_S)
        finally:
            far_end[1].send_signal(signal.SIGCONT)
        for number, future in zip((3, 2, 1), futures, strict=True):
            assert 0.1 * number + GUARD_S <= at[number] <= 0.1 * number + LATE_S
            error = future.exception(0)
            assert isinstance(error, errors.DeadlineExceeded)
            assert error.stage == "coordinator"
            assert "has not answered" in error.message
            assert "it may be stopped or stuck, or late" in error.message
        assert [future.result(SOON_S) for future in others] == list(range(50 * busy))
        assert client.execute("echo", 4) == 4


def test_a_client_that_stood_still_itself_reads_before_it_judges(link: Link, client: Client) -> None:
    assert client.execute("echo", 1) == 1
    link.silence(up=False)
    futures = [client.submit("echo", number, deadline_s=0.05) for number in range(3)]
    with client.connection.lock:
        select.select([], [], [], 0.05 + GUARD_S + LATE_S)
        link.speak()
    assert [future.result(SOON_S) for future in futures] == [0, 1, 2]


def test_answers_that_wait_to_be_read_are_in_time(client: Client) -> None:
    """The first answer alone is asked for, long after all of them came."""
    client.execute("echo", 1)
    with client.connection.lock:
        futures = [client.submit("echo", BIG, deadline_s=0.05) for _ in range(64)]
        wait_until(client.connection._dealer.pending, SOON_S, "an answer in our socket")
        select.select([], [], [], 0.05 + GUARD_S + LATE_S)
    assert [len(future.result(SOON_S)) for future in futures] == [len(BIG)] * 64
