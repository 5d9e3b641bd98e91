"""`AsyncClient`: the same methods, awaited. The event loop is never blocked: an io thread drives the socket."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from contextlib import AbstractAsyncContextManager, ExitStack, closing
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from bridge.protocol.errors import BridgeError
from bridge.protocol.messages import Event
from orchestrator.client import native
from orchestrator.client.api import Api
from orchestrator.client.calls import Callee
from orchestrator.client.core import Connection
from orchestrator.client.events import FleetEvent, Reading
from orchestrator.client.future import CancelOutcome, Future
from orchestrator.client.jobs import AsyncJob, EventLog, Steps
from orchestrator.client.mailbox import Mailbox, Waiter, tell
from orchestrator.client.remote import Awaiting
from orchestrator.client.request import Call, check_request, encode_args, encode_payload, encode_rows
from orchestrator.client.room import Asking
from orchestrator.client.rows import MAX_CHUNK_BYTES, MapPlan, RowMap
from orchestrator.client.sessions import AsyncSession, opening
from orchestrator.client.signature_text import signing, takes_signature, with_text
from orchestrator.client.stream import WINDOW, AsyncStream, Feed
from orchestrator.errors import DspoolError, from_bridge

T = TypeVar("T")
Lend = Callable[[], AbstractAsyncContextManager[object]]

# How long a map that runs in this process may hold the event loop.
_TURN_S: Final = 0.005
# How often a map that waits to send refused rows again looks whether the connection has ended.
_LOOK_S: Final = 0.5


class AsyncFuture:
    """The outcome of one request, to come: await it. If the awaiting task is cancelled, so is the request.

    request_id, meta, done(), cancel(force): as those of `Future`.
    """

    def __init__(self, core: Future, waiter: Waiter, read: Callable[[Future], Any], connection: Connection) -> None:
        self.core = core
        self.waiter = waiter
        self._read = read
        self._connection = connection

    @property
    def request_id(self) -> int:
        """Names the request."""
        return self.core.request_id

    @property
    def meta(self) -> Any:
        """How the request was executed; None until it is settled."""
        return self.core.meta

    def done(self) -> bool:
        """Return whether the request is settled."""
        return self.core.done()

    def cancel(self, force: bool = False) -> AsyncCancelOutcome:
        """Ask for cancellation; return what is known at once. Its `.outcome(timeout)` is awaited."""
        found = self.core.cancel(force)
        return AsyncCancelOutcome(found.stage, found.how, found)

    async def settled(self, timeout_s: float | None = None) -> None:
        """Wait until it is settled. Raises TimeoutError; the request goes on."""
        async with asyncio.timeout(timeout_s):
            await asyncio.shield(self.waiter)

    def on_settled(self, call: Callable[[], object]) -> None:
        """Have something called in the event loop when it is settled."""
        self.waiter.add_done_callback(lambda _: call())

    def __await__(self) -> Generator[Any, None, Any]:
        try:
            if not self.core.done():
                # Shielded: other tasks may await the same answer.
                waiting, lend = asyncio.shield(self.waiter), self._connection.apaused
                yield from (waiting if lend is None else lent(lend, waiting)).__await__()
        except asyncio.CancelledError:
            self.core.cancel()
            raise
        return self._read(self.core)

    def __repr__(self) -> str:
        return f"<AsyncFuture request_id={self.request_id} {'settled' if self.done() else 'in flight'}>"


@dataclass(frozen=True, slots=True)
class AsyncCancelOutcome:
    """What became of a cancellation; see CancelOutcome."""

    stage: str
    how: str
    _core: CancelOutcome

    def __bool__(self) -> bool:
        return bool(self._core)

    async def outcome(self, timeout: float | None = None) -> CancelOutcome:  # noqa: ASYNC109 - as CancelOutcome's
        """Return the final outcome, waiting for it. Raises TimeoutError if it is not known in `timeout` seconds."""
        return await asyncio.to_thread(self._core.outcome, timeout)


class AsyncClient(Awaiting, Api):
    """A connection to a coordinator for asyncio; an asynchronous context manager.

    Connecting takes a moment, and up to `timeout_s` where a coordinator hangs: `connect_async` does it without blocking
    the event loop. Raises Unavailable if no coordinator answers.
    """

    def __init__(self, endpoint: str, *, principal: str = "default", run_id: str = "", timeout_s: float = 5.0) -> None:
        self.connection = Connection(endpoint, principal=principal, run_id=run_id, timeout_s=timeout_s)
        self._mailbox: Mailbox | None = None

    @property
    def endpoint(self) -> str:
        """Where the coordinator listens."""
        return self.connection.endpoint

    async def cancel(self, request_id: int, force: bool = False) -> AsyncCancelOutcome:
        """Cancel a request of this client; see Future.cancel."""
        found = self.connection.cancel_id(request_id, force)
        return AsyncCancelOutcome(found.stage, found.how, found)

    def session(
        self, id: str, *, ttl_s: float | None = None, affinity: str | None = None, on_loss: str | None = None
    ) -> AsyncSession:
        """Open the session of this name, or begin it, when it is awaited or entered; see `Client.session`."""
        return AsyncSession(self, opening(id, ttl_s, affinity, on_loss))

    async def close(self) -> None:
        """Leave: what is queued is cancelled, what runs is asked to stop, futures end with Cancelled."""
        await asyncio.to_thread(self.connection.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.endpoint}>"

    # --- what is done with plans --------------------------------------------------------------

    def _encode(self, args: Any) -> bytes:
        connection = self.connection
        return encode_args(args, connection.nesting, connection.message_bytes)

    def _encode_rows(self, rows: list[Any]) -> bytes | None:
        return encode_rows(rows, self.connection.nesting, MAX_CHUNK_BYTES)

    def _box(self) -> Mailbox:
        """Return the mailbox of the running loop."""
        loop = asyncio.get_running_loop()
        if self._mailbox is None or self._mailbox.loop is not loop:
            self._mailbox = Mailbox(loop)
        return self._mailbox

    async def _send(
        self, call: Call[Any], on_event: Callable[[Event], object] | None = None, *, event_window: int = 0,
        news: Callable[[], object] | None = None,
    ) -> AsyncFuture:  # fmt: skip
        """Send a request. news: called under the connection's lock when it is settled."""
        box, connection = self._box(), self.connection
        check_request(call.operation, call.pool, call.deadline_s, call.lm)
        args = with_text(call.args) if takes_signature(call.operation) else call.args
        if call.pool is None and native.is_native(call.operation):
            done = native.run(connection, call.operation, args)
            waiter = box.loop.create_future()
            # Not settled at once: who awaits many such calls gives others of the loop their turn.
            with connection.lock:
                box.put(waiter)
            return AsyncFuture(done, waiter, call.value, connection)
        payload = encode_payload(args, connection.nesting, connection.message_bytes)
        route = connection.route(call.operation, call.pool or "")
        while True:
            waiter = box.loop.create_future()
            put = functools.partial(box.put, waiter)
            if connection.has_room(route, 1, put):
                break
            try:
                await waiter
            except asyncio.CancelledError:
                connection.offer_room()
                raise
        notify = put if news is None else _both(put, news)
        serving = None if call.tools is None else call.tools.serve(connection, box.loop)
        core = connection.submit(
            payload, route, lm=call.lm or "", deadline_s=call.deadline_s, terms=call.terms, notify=notify,
            on_event=on_event, event_window=event_window, on_tool_call=None if serving is None else serving.call,
        )  # fmt: skip
        if serving is not None:
            core.add_done_callback(serving.end)  # type: ignore[arg-type]
        return AsyncFuture(core, waiter, call.value, connection)

    async def _run(self, call: Call[T]) -> T:
        future = await self._send(call)
        lend = self.connection.apaused
        try:
            await (future.waiter if lend is None else lent(lend, future.waiter))
        except asyncio.CancelledError:
            future.core.cancel()
            raise
        return call.value(future.core)

    async def _submit(self, call: Call[Any]) -> AsyncFuture:
        return await self._send(call)

    async def _start(self, call: Call[T]) -> AsyncJob[T]:
        log = EventLog()
        future = await self._send(call, log.add if call.events else None)
        return AsyncJob(future, log, call, self.connection)

    def _callee(self, plan: Callable[[dict[str, Any]], Call[T]]) -> Callee[Awaitable[T], AsyncStream]:
        return Callee(lambda inputs: self._run(plan(inputs)), lambda inputs: self._stream(plan(inputs)))

    def _stream(self, call: Call[Any]) -> AsyncStream:
        def send(feed: Feed) -> Awaitable[AsyncFuture]:
            return self._send(call, feed.add, event_window=WINDOW, news=feed.news)

        return AsyncStream(call, self.connection, send, self._sleep)

    async def _sleep(self, feed: Feed, has_news: Callable[[], bool]) -> None:
        box, connection = self._box(), self.connection
        waiter = box.loop.create_future()
        with connection.lock:
            if has_news():
                return
            feed.listener = functools.partial(box.put, waiter)
        lend = connection.apaused
        await (waiter if lend is None else lent(lend, waiter))

    async def _run_steps(self, steps: Steps) -> Any:
        value: Any = None
        while True:
            try:
                call = steps.send(value)
            except StopIteration as stop:
                return stop.value
            value = await self._run(call)

    async def _follow(self, reading: Reading) -> AsyncIterator[FleetEvent]:
        while not reading.over:
            try:
                found = reading.take(await self._run(reading.ask()))
            except DspoolError as error:
                found = reading.failed(error, ended=self.connection.ended)
            for event in found:
                yield event
            if reading.pause_s:
                await asyncio.sleep(reading.pause_s)

    def _map(self, plan: MapPlan) -> AsyncIterator[Any]:
        loop, connection, news = asyncio.get_running_loop(), self.connection, asyncio.Event()
        operation = plan.fields["operation"]
        if "pool" not in plan.fields and native.is_native(operation):
            return self._taking_turns(native.run_rows(connection, plan))
        encode, encode_rows = signing(operation, self._encode, self._encode_rows)
        route, lm = connection.route(operation, plan.fields.get("pool", "")), plan.fields.get("lm", "")

        wake = functools.partial(tell, loop, news.set)
        asking = Asking(functools.partial(connection.has_room, route), connection.offer_room, wake)

        def send(payload: bytes, rows: int, deadline_s: float | None, notify: Callable[[object], object]) -> Future:
            def settled(future: object) -> None:
                notify(future)
                wake()

            return connection.submit(
                payload, route, lm=lm, rows=rows, deadline_s=deadline_s, terms=plan.terms, notify=settled
            )  # fmt: skip

        rows = RowMap(
            plan, connection.max_in_flight, encode=encode, encode_rows=encode_rows, send=send,
            has_room=asking.fits, ended=lambda: connection.ended,
        )  # fmt: skip
        return self._iterate(rows, news, asking.end)

    async def _iterate(self, rows: RowMap, news: asyncio.Event, end: Callable[[], None]) -> AsyncIterator[Any]:
        with ExitStack() as at_end:
            at_end.callback(end)
            steps = at_end.enter_context(closing(rows.values()))
            for values in steps:
                if values is None:
                    lend, waiting = self.connection.apaused, _wait(news, rows.until)
                    await (waiting if lend is None else lent(lend, waiting))
                    continue
                for value in values:
                    yield value

    async def _taking_turns(self, made: Generator[Any, None, None]) -> AsyncIterator[Any]:
        """Yield values that are made here; between them others of the event loop have their turn."""
        until = time.monotonic() + _TURN_S
        with closing(made) as values:
            for value in values:
                yield value
                if time.monotonic() >= until:
                    await asyncio.sleep(0)
                    until = time.monotonic() + _TURN_S


async def lent(lend: Lend, waiting: Awaitable[Any]) -> None:
    """Await something within `lend()`. Raises what keeps it from being entered as one of our errors."""
    try:
        async with lend():
            await waiting
    except BridgeError as exc:
        raise from_bridge(exc) from None


def _both(put: Callable[[Future], object], news: Callable[[], object]) -> Callable[[Future], object]:
    def notify(future: Future) -> None:
        put(future)
        news()

    return notify


async def _wait(news: asyncio.Event, until: float | None) -> None:
    """Wait for news, at most until then (monotonic) or a little while."""
    timer = None
    if until is not None:
        wait_s = min(max(until - time.monotonic(), 0.0), _LOOK_S)
        timer = asyncio.get_running_loop().call_later(wait_s, news.set)
    try:
        await news.wait()
    finally:
        if timer is not None:
            timer.cancel()
    news.clear()
