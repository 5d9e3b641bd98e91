"""Where the events of an attempt go: numbered, in order, and none after its reply."""

from __future__ import annotations

import functools
import threading
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any, Final

from bridge.protocol.errors import SLOW_CONSUMER, BridgeError
from bridge.protocol.messages import UNREAD_EVENTS, Event, Message, Request
from bridge.protocol.values import encode_value
from bridge.worker.call import Call, CallStopped
from bridge.worker.program_loop import on_thread
from bridge.worker.waits import await_, wait

# Events without a window that wait to be sent, of all attempts; then the programs that emit them wait too.
EVENT_BACKLOG: Final = 1024
TOKEN: Final = "token"
# What a program may be ahead of its reader, beyond the window.
_AHEAD_CHARS: Final = 65_536
_AHEAD_EVENTS: Final = 256
SLOW_S: Final = 30.0
_CHECK_S: Final = 0.1

Deliver = Callable[[Message], None]


class Emitter:
    """Events to a caller who reads them all: the programs of a worker wait when EVENT_BACKLOG of them do. Thread-safe.

    room: how many more events may be on their way, of all attempts together.
    """

    def __init__(self, request: Request, deliver: Deliver, room: threading.Semaphore) -> None:
        self._request = request
        self._deliver = deliver
        self._room = room
        self._lock = threading.Lock()
        self._sequence = 0
        self._beyond = 0  # on their way without room
        self._open = True
        self.call: Call | None = None

    def emit(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Send an event; wait while too many are on their way.

        Raises BridgeError for fields that cannot travel, CallStopped when the call ends while waiting.
        """
        payload = encode_value(dict(fields))
        while not self._room.acquire(timeout=_CHECK_S):
            if self.call is not None:
                self.call.check()
        with self._lock:
            if self._open:
                self._send(kind, payload)
            else:
                self._room.release()

    async def aemit(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Send an event like `emit`, on an event loop."""
        await on_thread(functools.partial(self.emit, kind, fields))

    def put(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Send an event, however many are on their way."""
        payload = encode_value(dict(fields))
        with self._lock:
            if self._open:
                self._beyond += not self._room.acquire(blocking=False)
                self._send(kind, payload)

    async def flush(self) -> None:
        """All is sent."""

    def sent(self) -> None:
        """Make room: an event of this attempt has left."""
        with self._lock:
            if self._beyond:
                self._beyond -= 1
            else:
                self._room.release()

    def grant(self, events: int) -> None:
        """Take note that the reader has taken events; without a window that changes nothing."""

    def close(self) -> None:
        """Send nothing more."""
        with self._lock:
            self._open = False

    def _send(self, kind: str, payload: bytes) -> None:
        self._sequence += 1
        request = self._request
        self._deliver(
            Event(
                request_id=request.request_id, payload=payload, kind=kind, epoch=request.epoch, sequence=self._sequence
            )
        )


class WindowedEmitter(Emitter):
    """Events to a caller who says how many it has taken: no more than its window are on their way. Thread-safe.

    Adjacent tokens of one field that wait are joined. A program may be some way ahead of its reader, then it waits;
    if the reader takes nothing for `slow_s` seconds meanwhile, the call ends with SLOW_CONSUMER.
    """

    def __init__(self, request: Request, deliver: Deliver, room: threading.Semaphore, slow_s: float = SLOW_S) -> None:
        super().__init__(request, deliver, room)
        self._slow_s = slow_s
        self._window = self._credit = min(request.event_window, EVENT_BACKLOG)
        # Encoded, or a token whose text may still grow.
        self._waiting: deque[tuple[str, bytes | dict[str, Any]]] = deque()
        self._waiting_chars = 0
        self._waiters: list[Future[None]] = []

    def emit(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Send an event; wait while the program is too far ahead of its reader."""
        self.put(kind, fields)
        while (future := self._waiter(self._is_ahead)) is not None:
            assert self.call is not None
            try:
                wait(self.call, future, self._slow_s)
            except TimeoutError:
                self._give_up(self.call)

    async def aemit(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Send an event like `emit`, on an event loop."""
        self.put(kind, fields)
        await self._until_not(self._is_ahead)

    def put(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Send an event as soon as there is room for it; return at once."""
        item = dict(fields) if kind == TOKEN else encode_value(dict(fields))
        with self._lock:
            if self._open:
                self._add(kind, item)
                self._pump()

    async def flush(self) -> None:
        """Wait until all events are sent."""
        await self._until_not(lambda: bool(self._waiting))

    def sent(self) -> None:
        """Nothing: the window limits what is on its way."""

    def grant(self, events: int) -> None:
        """Make room for so many events more; UNREAD_EVENTS: send nothing more, and wait for nobody."""
        if events >= UNREAD_EVENTS:
            self.close()
        with self._lock:
            self._credit = min(self._credit + max(events, 0), self._window)
            self._pump()
            waiters, self._waiters = self._waiters, []
        for future in waiters:
            if future.set_running_or_notify_cancel():
                future.set_result(None)

    def close(self) -> None:
        """Send nothing more; what waits is dropped."""
        with self._lock:
            self._open = False
            self._waiting.clear()

    def _is_ahead(self) -> bool:
        return self._waiting_chars > _AHEAD_CHARS or len(self._waiting) > _AHEAD_EVENTS

    def _add(self, kind: str, item: bytes | dict[str, Any]) -> None:
        last = self._waiting[-1][1] if self._waiting else None
        if isinstance(item, dict) and isinstance(last, dict) and _place(item) == _place(last):
            last["text"] += item["text"]
        else:
            self._waiting.append((kind, item))
        self._waiting_chars += _chars(item)

    def _pump(self) -> None:
        while self._credit and self._waiting:
            kind, item = self._waiting.popleft()
            self._waiting_chars -= _chars(item)
            self._credit -= 1
            self._send(kind, encode_value(item) if isinstance(item, dict) else item)

    async def _until_not(self, busy: Callable[[], bool]) -> None:
        while (future := self._waiter(busy)) is not None:
            assert self.call is not None
            try:
                await await_(self.call, future, self._slow_s)
            except TimeoutError:
                self._give_up(self.call)

    def _waiter(self, busy: Callable[[], bool]) -> Future[None] | None:
        """Return what the next grant settles, None if there is nothing to wait for."""
        with self._lock:
            if not self._open or not busy():
                return None
            future: Future[None] = Future()
            self._waiters.append(future)
            return future

    def _give_up(self, call: Call) -> None:
        text = f"{call.operation} was stopped: its caller has read no event for {self._slow_s:g} s"
        error = BridgeError(SLOW_CONSUMER, text)
        call.stop(error)
        raise CallStopped(error)


def emitter(request: Request, deliver: Deliver, room: threading.Semaphore) -> Emitter:
    """Return the emitter for a request that wants events."""
    return (WindowedEmitter if request.event_window > 0 else Emitter)(request, deliver, room)


def _place(token: Mapping[str, Any]) -> tuple[Any, Any]:
    return token.get("predictor"), token.get("field")


def _chars(item: bytes | Mapping[str, Any]) -> int:
    return len(item) if isinstance(item, bytes) else len(item["text"])
