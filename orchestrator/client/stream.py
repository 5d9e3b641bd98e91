"""What a request says while it runs, read as it comes: tokens, status messages, progress, and its value at the end.

The reader sets the pace. The worker sends at most a window of events beyond those that were taken; then the program
waits. The reply always comes and ends the stream.
"""

from __future__ import annotations

import threading
import typing
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeAlias

from bridge.protocol import values
from bridge.protocol.errors import BridgeError
from bridge.protocol.messages import Event
from orchestrator.client.request import Call
from orchestrator.errors import DspoolError, InvalidRequest, from_bridge

if TYPE_CHECKING:
    from orchestrator.client.aio import AsyncFuture
    from orchestrator.client.core import Connection
    from orchestrator.client.future import Future

# Events that may be on their way, or here and not taken.
WINDOW: typing.Final = 64
# How many are taken before the worker is told.
_CREDIT_EACH: typing.Final = WINDOW // 4
# A run that is taken over by another worker begins with a window of its own; more than this nobody may send.
_MOST: typing.Final = 4 * WINDOW


@dataclass(frozen=True, slots=True)
class Token:
    """Some more text of an output field. predictor: the name of the module's part that writes it."""

    field: str
    text: str
    predictor: str = ""


@dataclass(frozen=True, slots=True)
class Status:
    """What the program is doing now, for people."""

    message: str


@dataclass(frozen=True, slots=True)
class Progress:
    """Any other event of an operation; `fields` depends on its kind.

    kind "restarted": the worker was lost and the (idempotent) request runs again, so what was streamed begins anew.
    """

    kind: str
    fields: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Final:
    """The request's value, and how it was executed; the last item of a stream."""

    value: Any
    meta: values.Meta | None = None


Item: TypeAlias = Token | Status | Progress | Final


class Feed:
    """The events of one stream that nobody has taken yet. One reader takes; `add` runs under the connection's lock."""

    def __init__(self) -> None:
        self._events: deque[Event] = deque()
        self._epoch = 0  # of the attempt whose events are read
        self._sequence = 0  # of the last one taken
        self._uncredited = 0
        self._closed = self._flooded = False
        self.waiters: list[Any] = []
        self.listener: Callable[[], object] | None = None  # called once, with the next news

    def __len__(self) -> int:
        return len(self._events)

    def add(self, event: Event) -> None:
        """Keep an event, and wake who waits for one."""
        if self._closed:
            return
        if len(self._events) < _MOST:
            self._events.append(event)
        else:
            self._flooded = True
        self.news()

    def news(self, _future: object = None) -> None:
        """Wake who waits for an event, or for the end."""
        for parked in self.waiters:
            parked.wake()
        listener, self.listener = self.listener, None
        if listener is not None:
            listener()

    def take(self, nesting: int) -> Item | None:
        """Return the next item, None if there is none. Raises DspoolError where one is missing or cannot be read."""
        if not self._events:
            if self._flooded:
                raise DspoolError(f"more than {_MOST} events came that nobody had asked for")
            return None
        event = self._events[0]
        if event.epoch != self._epoch:
            restarted, self._epoch = self._epoch != 0, event.epoch
            self._sequence = self._uncredited = 0
            if restarted:
                return Progress("restarted", {})
        self._events.popleft()
        if event.sequence != self._sequence + 1:
            raise DspoolError(f"of this stream's events number {self._sequence + 1} is missing: {event.sequence} came")
        self._sequence += 1
        self._uncredited += 1
        return _read(event, nesting)

    def due_credit(self) -> int:
        """Return how many events the worker is to be told were taken: none, or all since it was last told."""
        if self._uncredited < _CREDIT_EACH:
            return 0
        credit, self._uncredited = self._uncredited, 0
        return credit

    def close(self) -> None:
        """Keep nothing more."""
        self._closed = True
        self._events.clear()


def _read(event: Event, nesting: int) -> Item:
    try:
        fields = values.decode_value(event.payload, nesting=nesting) if event.payload else {}
    except BridgeError as exc:
        raise from_bridge(exc) from None
    if event.kind == "token":
        return Token(str(fields.get("field", "")), str(fields.get("text", "")), str(fields.get("predictor") or ""))
    if event.kind == "status":
        return Status(str(fields.get("message", "")))
    return Progress(event.kind, fields)


class _Reading:
    """What both streams do the same."""

    _over = True  # until it has begun

    def __init__(self, call: Call[Any], connection: Connection) -> None:
        self._call = call
        self._connection = connection
        self._feed = Feed()
        self._core: Future | None = None
        self._over = False

    @property
    def request_id(self) -> int:
        """Names the request; 0 before it is sent."""
        return 0 if self._core is None else self._core.request_id

    @property
    def meta(self) -> values.Meta | None:
        """How the request was executed; None until it has ended."""
        return None if self._core is None else self._core.meta

    def _step(self) -> Item | None:
        """Return what comes next, None if it is not here yet. Raises the request's error."""
        core = self._core
        assert core is not None
        if self._connection.forked:
            raise DspoolError("this stream belongs to the process that forked this one: begin one in the child")
        ended = core.done()  # asked first: whatever was said before the end is in the feed by then
        item = self._feed.take(self._connection.nesting)
        if item is not None:
            if credit := self._feed.due_credit():
                self._connection.credit(core.request_id, credit)
            return item
        if not ended:
            return None
        self._over = True
        return Final(self._call.value(core), core.meta)

    def _leave(self) -> None:
        """Cancel the request if it has not ended."""
        if self._over:
            return
        self._over = True
        self._feed.close()
        core, connection = self._core, self._connection
        if core is not None and not connection.forked:
            if not core.done():
                core.cancel()
            connection.nudge(self._feed.news)

    def __del__(self) -> None:
        # Collected in the middle of the connection's work it cannot say anything. Nor need it: the worker ends a
        # stream that is not read.
        if not self._over and not self._connection.lock._is_owned():
            self._leave()

    def __repr__(self) -> str:
        state = "over" if self._over else "open"
        return f"<{type(self).__name__} {self._call.operation} request_id={self.request_id} {state}>"


class Stream(_Reading, Iterator[Item]):
    """A request, read as it runs: an iterator of `Token`, `Status`, `Progress`, and one `Final` at the end.

    The request's error is raised where its value would be. Leaving early (`close`, the end of a `with` block, or the
    stream itself gone) cancels the request. Who does not read holds the program up; after 30 s of that it ends with
    SlowConsumer. For one reader at a time.
    """

    def __init__(self, call: Call[Any], connection: Connection, send: Callable[[Feed], Future]) -> None:
        super().__init__(call, connection)
        self._turn = threading.Lock()
        self._over = True
        self._core = send(self._feed)
        self._connection = self._core._connection
        self._over = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Item:
        if not self._turn.acquire(blocking=False):
            raise InvalidRequest("another thread is reading this stream: each needs one of its own")
        try:
            while not self._over:
                item = self._step()
                if item is not None:
                    return item
                self._connection.wait_until(self._has_news, self._waiters())
        except BaseException:
            self._leave()
            raise
        finally:
            self._turn.release()
        raise StopIteration

    def _has_news(self) -> bool:
        assert self._core is not None
        return bool(self._feed) or self._core.done() or self._over

    def _waiters(self) -> list[list[Any]]:
        assert self._core is not None
        return [self._feed.waiters, self._core.waiters]

    def close(self) -> None:
        """Read no more: a request that has not ended is cancelled. From any thread; may be called again."""
        self._leave()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class AsyncStream(_Reading, AsyncIterator[Item]):
    """A `Stream` that is awaited. The request is sent when the first item is asked for, or `async with` begins."""

    def __init__(
        self, call: Call[Any], connection: Connection, send: Callable[[Feed], Awaitable[AsyncFuture]],
        sleep: Callable[[Feed, Callable[[], bool]], Awaitable[None]],
    ) -> None:  # fmt: skip
        """sleep: waits for news of a feed, unless (under the connection's lock) there is some."""
        super().__init__(call, connection)
        self._send, self._sleep = send, sleep
        self._is_read = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Item:
        if self._is_read:
            raise InvalidRequest("another task is reading this stream: each needs one of its own")
        self._is_read = True
        try:
            await self._begin()
            while not self._over:
                item = self._step()
                if item is not None:
                    return item
                await self._sleep(self._feed, self._has_news)
        except BaseException:  # the task is cancelled, or the request has failed
            self._leave()
            raise
        finally:
            self._is_read = False
        raise StopAsyncIteration

    async def _begin(self) -> None:
        if self._core is None and not self._over:
            self._core = (await self._send(self._feed)).core
            self._connection = self._core._connection

    def _has_news(self) -> bool:
        assert self._core is not None
        return bool(self._feed) or self._core.done() or self._over

    async def aclose(self) -> None:
        """Read no more: a request that has not ended is cancelled. May be called again."""
        self._leave()

    async def __aenter__(self) -> Self:
        await self._begin()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()
