"""Clients inside programs: `connect()` in a worker gives a client of the worker's own coordinator.

What such a client asks for belongs to the attempt that asks: it carries its request id, ends no later, and is cancelled
when that one ends. While the program waits here for an answer its slot is lent to others, so a pool whose every slot
waits for calls of its own still serves these.

All clients of a principal in one worker share one connection, which stays open: a program may connect on each call.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import Any, ClassVar, Final, TypeVar, cast

from bridge import nesting
from bridge.nesting import Parent
from bridge.protocol.errors import BridgeError
from bridge.protocol.messages import Reply
from orchestrator.client.aio import AsyncClient
from orchestrator.client.client import Client
from orchestrator.client.core import Connection
from orchestrator.client.future import Future
from orchestrator.client.link import Link, open_link
from orchestrator.client.request import Call
from orchestrator.client.room import Room, Route
from orchestrator.errors import Cancelled, DeadlineExceeded, DspoolError, InvalidRequest, from_bridge

T = TypeVar("T")
C = TypeVar("C", Client, AsyncClient)

# Principals for whom the programs of a worker keep a connection; more only while all are in use.
_MOST: Final = 32
# Clocks that started one after the other, over the same time: this much later the parent's deadline may come.
_LATEST_S: Final = 0.1


class Unheld(Room):
    """Room for all: who waited here for its turn might be whom the others wait for. The coordinator sets the bounds."""

    def fits(self, route: Route, rows: int, promised: int = 0) -> bool:
        """Return True."""
        return True


class ChildFuture(Future):
    """A request of a program. Its error has the operation as `details["nested"]`, for the program's caller to see."""

    def settle(self, reply: Reply | None, error: DspoolError | None = None) -> bool:
        """End the future, as every future ends."""
        self._name(error)
        return super().settle(reply, error)

    def _load(self) -> None:
        super()._load()
        self._name(self._exception)

    def _name(self, error: BaseException | None) -> None:
        if isinstance(error, DspoolError):
            error.details["nested"] = self.route.operation


def _open_link(endpoint: str, **named: Any) -> Link:
    """Open a line as this worker's: what comes over it may be nested in what runs here."""
    worker_id, token = nesting.credentials()
    return open_link(endpoint, worker_id=worker_id, token=token, **named)


class SharedConnection(Connection):
    """What the programs of a worker share."""

    room_class: ClassVar = Unheld
    future_class: ClassVar = ChildFuture
    open_link: ClassVar = staticmethod(_open_link)


class Handle:
    """What one client in a program has of its own.

    The parent of what it asks for is the attempt that the calling thread or task works for; on a thread that the
    program has started by itself, the one in which the client was made, while that runs: a client, and a thread that
    uses it, may be kept for requests to come.
    """

    def __init__(self, endpoint: str, principal: str) -> None:
        """principal: of what no attempt asks for."""
        self.closed = False
        self._endpoint = endpoint
        self._principal = principal
        self._maker = nesting.current()
        self._lines: dict[str, ChildConnection] = {}

    def parent(self) -> Parent | None:
        """Return the parent of what is asked for here and now."""
        current = nesting.current()
        if current is not None:
            return current
        maker = self._maker
        if maker is not None and not maker.runs():
            self._maker = maker = None
        return maker

    def line(self) -> Connection:
        """Return the connection for that: requests travel in their parent's name."""
        parent = self.parent()
        principal = self._principal if parent is None else parent.principal
        line = self._lines.get(principal)
        if line is None or (line.shared.ended and not self.closed):
            if len(self._lines) >= _MOST:
                self._lines = {name: line for name, line in self._lines.items() if not line.shared.ended}
            line = self._lines[principal] = ChildConnection(_shared(self._endpoint, principal), self)
        return cast(Connection, line)


class ChildConnection:
    """The shared connection as one client in a program has it; what is not defined here is the shared one's."""

    def __init__(self, shared: Connection, handle: Handle) -> None:
        self.shared = shared
        self._handle = handle

    def __getattr__(self, name: str) -> Any:
        return getattr(self.shared, name)

    def submit(self, payload: bytes, route: Route, *, deadline_s: float | None = None, **more: Any) -> Future:
        """Send a request of the current parent; see `Connection.submit`."""
        self._check_open()
        parent = self._handle.parent()
        if parent is not None:
            more["parent_request_id"] = parent.request_id
            if parent.deadline is not None:
                remaining_s = max(parent.deadline - time.monotonic(), 0.001)
                deadline_s = remaining_s if deadline_s is None else min(deadline_s, remaining_s)
        try:
            future = self.shared.submit(payload, route, deadline_s=deadline_s, **more)
        except Cancelled:  # closed as idle, just now
            return self._handle.line().submit(payload, route, deadline_s=deadline_s, **more)
        future._connection = cast(Connection, self)  # who waits for it waits here
        future._waiters = Waiters(self._handle)
        return future

    def wait(self, future: Future, timeout_s: float | None = None) -> bool:
        """Wait until the future is settled; return whether it is. Raises what unwinds a program that is to stop."""
        until = None if timeout_s is None else time.monotonic() + timeout_s
        self.wait_until(future.done, [future.waiters], until)
        parent = self._handle.parent()
        if parent is not None and future.done():
            _share_deadline(parent, future)
        return future.done()

    def wait_until(self, ready: Callable[[], bool], waiters: Iterable[list[Any]], until: float | None = None) -> None:
        """Wait as `Connection.wait_until`, with the slot lent, at most until the program is to stop."""
        shared, parent = self.shared, self._handle.parent()
        if ready():
            return
        if parent is None or (until is not None and until <= time.monotonic()):
            shared.wait_until(ready, waiters, until)
            return
        stopping: list[bool] = []
        own: list[Any] = []

        def wake() -> None:
            for parked in own:
                parked.wake()

        def stop() -> None:
            stopping.append(True)
            shared.nudge(wake)

        with _waiting(parent, stop):
            shared.wait_until(lambda: bool(stopping) or ready(), [*waiters, own], until)

    @property
    def apaused(self) -> Callable[[], AbstractAsyncContextManager[object]] | None:
        """Within which something of this connection is awaited."""
        parent = self._handle.parent()
        return None if parent is None else parent.apaused

    @property
    def ended(self) -> bool:
        """Whether nothing more can be asked."""
        return self._handle.closed or self.shared.ended

    def take_id(self) -> int:
        """Return an id; see `Connection.take_id`."""
        self._check_open()
        return self.shared.take_id()

    def close(self) -> None:
        """Ask for nothing more. What is under way ends as it would have: with the program at the latest."""
        self._handle.closed = True

    def _check_open(self) -> None:
        if self._handle.closed:
            raise Cancelled("the client was closed")


class Waiters(list[Any]):
    """Who waits for a future of a program. The functions of `concurrent.futures` put there what they sleep on."""

    def __init__(self, handle: Handle) -> None:
        super().__init__()
        self._handle = handle

    def append(self, waiter: Any) -> None:
        """Add one; such that the slot is lent while it sleeps."""
        if type(getattr(waiter, "event", None)) is threading.Event:
            waiter.event = LendingEvent(self._handle)
        super().append(waiter)


class LendingEvent(threading.Event):
    """An event of a program's own: who waits for it lends the slot, and is woken if the program is to stop."""

    def __init__(self, handle: Handle) -> None:
        super().__init__()
        self._handle = handle

    def wait(self, timeout: float | None = None) -> bool:
        """Wait as `threading.Event` does. Raises what unwinds a program that is to stop."""
        parent = self._handle.parent()
        if parent is None or self.is_set():
            return super().wait(timeout)
        with _waiting(parent, self.set):
            return super().wait(timeout)


@contextmanager
def _waiting(parent: Parent, stop: Callable[[], object]) -> Iterator[None]:
    """Lend the slot while the body waits. stop: ends that, called on any thread if the program is to stop.

    Raises Overloaded if too many wait already, InvalidRequest on an event loop, and what unwinds a program.
    """
    _refuse_on_a_loop()
    take_back = parent.on_stop(stop)
    try:
        with parent.paused():
            yield
    except BridgeError as exc:
        raise from_bridge(exc) from None
    finally:
        take_back()
    parent.check()


def _share_deadline(parent: Parent, future: Future) -> None:
    """Unwind a program whose time is up, rather than have it learn of that from a request that had no more time."""
    if isinstance(future.exception(), DeadlineExceeded) and (left_s := _left_s(parent)) < _LATEST_S:
        time.sleep(left_s)
        parent.check()


def _left_s(parent: Parent) -> float:
    return math.inf if parent.deadline is None else max(parent.deadline - time.monotonic(), 0.0)


def _refuse_on_a_loop() -> None:
    """Raise InvalidRequest on an event loop: what is waited for may need that very loop."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise InvalidRequest("a Client waits, which holds up the event loop: in async code use `await connect_async()`")


class NestedClient(Client):
    """A Client of the worker's own coordinator. `close` ends this one alone, not the connection."""

    def __init__(self, handle: Handle) -> None:
        self._handle = handle

    @property
    def connection(self) -> Connection:  # type: ignore[override]
        """The connection for what is asked for here and now."""
        return self._handle.line()


class NestedAsyncClient(AsyncClient):
    """An AsyncClient of the worker's own coordinator. `close` ends this one alone, not the connection."""

    def __init__(self, handle: Handle) -> None:
        self._handle = handle
        self._mailbox = None

    async def _run(self, call: Call[T]) -> T:
        try:
            return await super()._run(call)
        except DeadlineExceeded:
            parent = self._handle.parent()
            if parent is not None and (left_s := _left_s(parent)) < _LATEST_S:
                await asyncio.sleep(left_s)
                parent.check()
            raise

    @property
    def connection(self) -> Connection:  # type: ignore[override]
        """The connection for what is asked for here and now."""
        return self._handle.line()


_LOCK: Final = threading.Lock()
_SHARED: Final[dict[tuple[str, str], Connection]] = {}


def connect_nested(client: type[C], endpoint: str, principal: str) -> C:
    """Return a client of the coordinator at `endpoint`, of which this process is a worker.

    principal: of calls that no attempt makes; others are in their parent's. Raises InvalidRequest where it is another's
    than the parent's, Unavailable if the coordinator does not answer.
    """
    parent = nesting.current()
    if parent is not None and principal not in ("default", parent.principal):
        raise InvalidRequest(
            f"a program calls in its caller's name ({parent.principal!r}), not as {principal!r}: leave `principal` "
            "out, or give the endpoint for a client of its own",
            path="principal",
        )
    handle = Handle(endpoint, principal)
    handle.line()  # it answers
    nested: Any = NestedClient if issubclass(client, Client) else NestedAsyncClient
    return cast(C, nested(handle))


def _shared(endpoint: str, principal: str) -> Connection:
    key = endpoint, principal
    with _LOCK:
        found = _SHARED.pop(key, None)
        if found is None or found.ended:
            _make_room()
            found = SharedConnection(endpoint, principal=principal)
        _SHARED[key] = found  # the last used stand last
        return found


def _make_room() -> None:
    """Close the connection that was not asked for the longest and waits for nothing, where there are too many."""
    if len(_SHARED) >= _MOST:
        for key, connection in _SHARED.items():
            with connection.lock:
                is_idle = not connection.expecting()
            if is_idle:
                del _SHARED[key]
                connection.close()
                return
