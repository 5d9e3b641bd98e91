"""What a client does within a program: whose its requests are, when the slot is lent, what ends its waits.

The attempt is a real one, held by the test; the far end answers for itself.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, as_completed, wait
from typing import Any

import pytest

from bridge import nesting
from bridge.protocol.errors import OVERLOADED, BridgeError
from bridge.protocol.messages import Message
from bridge.worker.call import Call, CallStopped, current_call
from bridge.worker.parent import current_parent
from orchestrator import AsyncClient, Client, Final, connect, connect_async
from orchestrator.client import nested
from orchestrator.errors import Cancelled, InvalidRequest, Overloaded
from tests.support.echo_coordinator import far_end
from tests.support.waiting import wait_until


class Home:
    """Takes note of the slot."""

    def __init__(self) -> None:
        self.lent = self.taken_back = 0
        self.is_full = False

    def post(self, message: Message) -> None:
        raise AssertionError(f"nobody should have sent {message}")

    def runs(self, call: Call) -> bool:
        return True

    def lend(self, call: Call) -> None:
        if self.is_full:
            raise BridgeError(OVERLOADED, "too many wait already")
        self.lent += 1

    def take_back(self, call: Call) -> None:
        self.taken_back += 1

    async def atake_back(self, call: Call) -> None:
        self.taken_back += 1


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with far_end(tmp_path_factory.mktemp("far")) as endpoint:
        yield endpoint


@pytest.fixture
def home(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Home]:
    monkeypatch.setattr(nesting._Process, "endpoint", "")
    monkeypatch.setattr(nesting._Process, "find", None)
    nesting.serve(endpoint, current_parent)
    yield Home()
    for connection in nested._SHARED.values():
        connection.close()
    nested._SHARED.clear()


@pytest.fixture
def call(home: Home) -> Iterator[Call]:
    call = Call(77, 5, "program", principal="tenant", deadline=time.monotonic() + 30, home=home)
    token = current_call.set(call)
    yield call
    current_call.reset(token)


@pytest.fixture
def observer(endpoint: str) -> Iterator[Client]:
    """An ordinary client, to ask the far end what it was asked."""
    with Client(endpoint) as client:
        yield client


def test_a_request_says_whose_it_is_and_has_no_more_time(call: Call, home: Home, observer: Client) -> None:
    before = len(observer.execute("asked")) + 1
    client = connect()
    assert client.execute("echo", 1) == 1
    assert client.execute("echo", 2, deadline_s=1000) == 2
    assert client.execute("echo", 3, deadline_s=2) == 3
    assert list(client.map("echo", [4])) == [4]
    assert [item.value for item in client.stream("echo", 5) if isinstance(item, Final)] == [5]
    asked = observer.execute("asked")[before:]
    assert [(parent, principal) for _, parent, _, principal in asked] == [(77, "tenant")] * 5
    deadlines = [deadline_ms for _, _, deadline_ms, _ in asked]
    assert max(deadlines) <= 30_000
    assert deadlines[2] <= 2000
    assert home.lent == home.taken_back >= 3


def test_clients_share_a_connection_and_close_alone(call: Call) -> None:
    first, second = connect(), connect()
    assert first.connection.lock is second.connection.lock
    with second:
        future = second.submit("hold")
    with pytest.raises(Cancelled, match="the client was closed"):
        second.execute("echo", 1)
    assert first.execute("echo", 1) == 1
    first.execute("release")
    assert future.result(10) == "released"


def test_a_thread_without_a_context_asks_for_who_made_the_client(call: Call, home: Home, observer: Client) -> None:
    client = connect()
    before = len(observer.execute("asked")) + 1
    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(client.execute, "echo", 1).result() == 1
    assert [tuple(one[:2]) for one in observer.execute("asked")[before:]] == [("echo", 77)]
    assert home.lent == 1


def test_a_client_made_earlier_asks_for_whoever_uses_it(home: Home, observer: Client) -> None:
    client = connect()  # while nothing runs, as a program is loaded
    before = len(observer.execute("asked")) + 1
    assert client.execute("echo", 0) == 0
    for number, principal in ((5, "a"), (6, "b"), (7, "a")):
        token = current_call.set(Call(number, 1, "program", principal=principal, home=home))
        assert client.execute("echo", number) == number
        current_call.reset(token)
    asked = observer.execute("asked")[before:]
    assert [(parent, principal) for _, parent, _, principal in asked] == [(0, "default"), (5, "a"), (6, "b"), (7, "a")]
    assert len(nested._SHARED) == 3


def test_another_principal_is_refused(call: Call) -> None:
    with pytest.raises(InvalidRequest, match="in its caller's name") as caught:
        connect(principal="somebody")
    assert caught.value.path == "principal"
    assert connect(principal="tenant").execute("echo", 1) == 1


def test_an_endpoint_of_its_own_gives_an_ordinary_client(call: Call, home: Home, endpoint: str) -> None:
    with connect(endpoint) as client:
        assert type(client) is Client
        assert client.execute("echo", 1) == 1
    assert home.lent == 0


def test_idle_connections_of_many_principals_are_closed(home: Home) -> None:
    client = connect()
    for number in range(nested._MOST + 5):
        token = current_call.set(Call(1, 1, "program", principal=f"p{number}", home=home))
        assert client.execute("echo", number) == number
        current_call.reset(token)
    assert len(nested._SHARED) == nested._MOST
    token = current_call.set(Call(1, 1, "program", principal="p0", home=home))
    assert client.execute("echo", "again") == "again"
    current_call.reset(token)


@pytest.mark.parametrize("how", ["result", "stream", "map"])
def test_a_program_that_is_to_stop_waits_no_longer(call: Call, home: Home, observer: Client, how: str) -> None:
    client = connect()
    threading.Timer(0.1, call.cancel).start()
    began = time.monotonic()
    with pytest.raises(CallStopped):  # noqa: PT012 - each waits in its way
        if how == "result":
            client.execute("hold")
        elif how == "stream":
            list(client.stream("hold"))
        else:
            list(client.map("hold", [1]))
    assert time.monotonic() - began < 5
    assert home.lent == home.taken_back == 1
    with pytest.raises(CallStopped):
        client.execute("hold")


def test_the_functions_of_concurrent_futures_lend_the_slot_too(call: Call, home: Home) -> None:
    client = connect()
    held, echoed = client.submit("hold"), client.submit("echo", 1)
    assert wait([held, echoed], return_when=FIRST_COMPLETED, timeout=10).done == {echoed}
    client.submit("release").add_done_callback(lambda future: future.result())
    assert {future.result() for future in as_completed([held, echoed], timeout=10)} == {"released", 1}
    lent = home.lent
    assert lent == home.taken_back >= 1
    last = client.submit("hold")
    threading.Timer(0.1, call.cancel).start()
    with pytest.raises(CallStopped):
        wait([last])
    assert home.lent == home.taken_back == lent + 1


def test_many_threads_of_one_program_stop_together(call: Call) -> None:
    client = connect()

    def wait_for_ever() -> str:
        try:
            client.execute("hold")
        except CallStopped:
            return "stopped"
        return "answered"

    with ThreadPoolExecutor(4) as threads:
        waiting = [threads.submit(wait_for_ever) for _ in range(4)]
        wait_until(lambda: len(client.connection._futures) == 4, 10, "all wait")
        call.cancel()
        assert [one.result(10) for one in waiting] == ["stopped"] * 4


def test_where_too_many_wait_already_nobody_waits(call: Call, home: Home) -> None:
    home.is_full = True
    client = connect()
    with pytest.raises(Overloaded, match="too many wait"):
        client.execute("hold")
    future = client.submit("echo", 1)
    wait_until(future.done, 10, "the answer is there")
    assert future.result() == 1  # not waited for


def test_on_an_event_loop_only_an_async_client_waits(call: Call, home: Home, observer: Client) -> None:
    before = len(observer.execute("asked")) + 1

    async def use() -> Any:
        with pytest.raises(InvalidRequest, match="connect_async"):
            connect().execute("hold")
        async with await connect_async() as client:
            assert isinstance(client, AsyncClient)
            one = await client.execute("echo", 1)
            two = await (await client.submit("echo", 2))
            three = [item.value async for item in client.stream("echo", 3) if isinstance(item, Final)]
            four = [value async for value in client.map("echo", [4])]
        with pytest.raises(Cancelled):
            await client.execute("echo", 5)
        return [one, two, *three, *four]

    assert asyncio.run(use()) == [1, 2, 3, 4]
    assert {(parent, principal) for op, parent, _, principal in observer.execute("asked")[before:] if op == "echo"} == {
        (77, "tenant")
    }
    assert home.lent == home.taken_back >= 3


def test_a_fork_of_a_worker_has_ordinary_clients(call: Call, endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nesting._Process, "credentials", ("general-1.1", "token"))
    client = connect()
    assert client.execute("echo", 1) == 1
    pid = os.fork()
    if not pid:
        code = 1
        try:
            with connect() as mine:
                code = 0 if type(mine) is Client and mine.endpoint == endpoint and mine.execute("echo", 2) == 2 else 2
            code = 3 if any(nesting.credentials()) else code
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert client.execute("echo", 3) == 3
    assert nesting.credentials() == ("general-1.1", "token")
