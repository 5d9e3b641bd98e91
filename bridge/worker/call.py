"""One attempt, as the operation that runs it sees it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, Protocol

from bridge.protocol.errors import CANCELLED, DEADLINE_EXCEEDED, UNAVAILABLE, BridgeError
from bridge.protocol.messages import Message, ToolReply

if TYPE_CHECKING:
    from bridge.worker.sessions import Visit

log = logging.getLogger(__name__)

Emit = Callable[[str, Mapping[str, Any]], None]
# Of an attempt that runs: epoch, run_ms, rows_done, lm_calls, quiet_ms (see messages.Heartbeat).
Progress = tuple[int, float, int, int, float]

_LOCK: Final = threading.Lock()


class CallStopped(BaseException):
    """Unwinds a running program at its next boundary (an LM call, a tool, a metric, a row, an event).

    A BaseException: DSPy's optimizers and evaluators count ordinary exceptions and go on. `error` is what
    the caller is told.
    """

    def __init__(self, error: BridgeError) -> None:
        super().__init__(error.message)
        self.error = error


class Home(Protocol):
    """What runs an attempt: it sends its messages and owns its slot. Its methods may be called from any thread."""

    def post(self, message: Message) -> None:
        """Have a message sent."""

    def runs(self, call: Call) -> bool:
        """Return whether the attempt has not been answered."""

    def lend(self, call: Call) -> None:
        """Let others have the attempt's slot. Raises BridgeError(OVERLOADED) if too many wait already."""

    def take_back(self, call: Call) -> None:
        """Wait until the attempt has a slot again, or must stop. Raises CallStopped."""

    async def atake_back(self, call: Call) -> None:
        """Wait like `take_back`, on an event loop."""


class Events(Protocol):
    """Where the events of an attempt go."""

    def emit(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Send an event; wait while there is no room for it."""

    async def aemit(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Send an event; wait like `emit`, on an event loop."""

    def put(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Send an event as soon as there is room for it; return at once."""

    async def flush(self) -> None:
        """Wait until all that was put is sent."""


class Call:
    """One attempt: its identity, its deadline, its cancellation, what it used, how far it is.

    Thread-safe: a program may run parts of itself on threads of its own. Cheap to make: most calls are never
    cancelled, so the event and the lock that guards the rare moments are not each call's own.
    deadline, started_s: `time.monotonic()` seconds; None: it has no deadline, it does not run yet.
    principal: on whose behalf it runs. depth: 0 for a caller's own request, one more for each program in between;
    parent_request_id: of the program that asked, 0 = none. streams: the caller reads tokens and status messages.
    on_tool_reply: takes the answers to this attempt's ToolCall messages, on the io thread: it must not block.
    visit: of the session that it is in, None = it is in none.
    """

    __slots__ = (
        "_emit", "_event", "_events", "_home", "_on_stop", "_stepped_s", "_why", "cached", "cost_usd", "deadline",
        "depth", "epoch", "lm", "lm_calls", "on_tool_reply", "operation", "parent_request_id", "principal",
        "request_id", "rows_done", "started_s", "streams", "tokens", "visit",
    )  # fmt: skip

    def __init__(
        self, request_id: int, epoch: int, operation: str, *, lm: str = "", deadline: float | None = None,
        emit: Emit | None = None, principal: str = "", depth: int = 0, parent_request_id: int = 0,
        home: Home | None = None, events: Events | None = None, streams: bool = False,
    ) -> None:  # fmt: skip
        self.request_id = request_id
        self.epoch = epoch
        self.operation = operation
        self.lm = lm
        self.deadline = deadline
        self.principal = principal
        self.depth = depth
        self.parent_request_id = parent_request_id
        self.streams = streams
        self.on_tool_reply: Callable[[ToolReply], None] | None = None
        self.visit: Visit | None = None
        self._emit = emit
        self._events = events
        self._home = home
        self._why: BridgeError | None = None
        self._event: threading.Event | None = None
        self._on_stop: list[Callable[[], object]] | None = None
        self.started_s: float | None = None
        self._stepped_s = 0.0
        self.rows_done = 0
        self.lm_calls = 0
        self.tokens = 0
        self.cost_usd: float | None = None
        self.cached = False

    def remaining_s(self) -> float | None:
        """Return the seconds left, never below 0; None without a deadline."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())

    def cancel(self) -> None:
        """Ask the program to stop at its next boundary. Idempotent."""
        self.stop(BridgeError(CANCELLED, f"{self.operation} was cancelled while running"))

    def stop(self, why: BridgeError) -> None:
        """Ask the program to stop at its next boundary, with an error that its caller is told; the first one counts."""
        with _LOCK:
            if self._why is None:
                self._why = why
            if self._event is not None:
                self._event.set()
            waiting, self._on_stop = self._on_stop, None
        for callback in waiting or ():
            _tell(callback)

    def on_stop(self, callback: Callable[[], object]) -> Callable[[], None]:
        """Have `callback` called once when the call is asked to stop, at once if it is; return what takes that back.

        It is called on any thread, and must not block. The deadline is not told: who waits knows `remaining_s`.
        """
        with _LOCK:
            if self._why is None:
                if self._on_stop is None:
                    self._on_stop = []
                self._on_stop.append(callback)
                return lambda: self._forget(callback)
        _tell(callback)
        return lambda: None

    def _forget(self, callback: Callable[[], object]) -> None:
        with _LOCK:
            if self._on_stop is not None and callback in self._on_stop:
                self._on_stop.remove(callback)

    @property
    def cancelled(self) -> threading.Event:
        """Set when the program is asked to stop; operations that wait, wait on it."""
        with _LOCK:
            if self._event is None:
                self._event = threading.Event()
                if self._why is not None:
                    self._event.set()
            return self._event

    def check(self) -> None:
        """Raise CallStopped if the call was cancelled or its deadline has passed. Waits call it."""
        if self._why is not None:
            raise CallStopped(self._why)
        if self.deadline is not None and time.monotonic() >= self.deadline:
            raise CallStopped(
                BridgeError(DEADLINE_EXCEEDED, f"{self.operation} ran past its deadline", details={"stage": "running"})
            )

    def step(self) -> None:
        """Note that the program has come to its next step, and `check`. Boundaries call it: each may be the last."""
        self._stepped_s = time.monotonic()
        self.check()

    def progress(self, now: float) -> Progress | None:
        """Return how far the attempt is, None before it runs. From any thread, without a lock: each value is a word."""
        started_s = self.started_s
        if started_s is None:
            return None
        quiet_s = now - max(self._stepped_s, started_s)
        return self.epoch, max(0.0, now - started_s) * 1e3, self.rows_done, self.lm_calls, max(0.0, quiet_s) * 1e3

    # --- messages of this attempt, and its slot -------------------------------------------------------

    def emit(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Send a progress event to the caller, if it asked for events. A boundary. Raises CallStopped."""
        self.step()
        if self._events is not None:
            self._events.emit(kind, fields)
        elif self._emit is not None:
            self._emit(kind, fields)

    async def aemit(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Send an event like `emit`; waits for a slow reader hold up no event loop."""
        self.step()
        if self._events is not None:
            await self._events.aemit(kind, fields)
        elif self._emit is not None:
            self._emit(kind, fields)

    def put(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Send an event like `emit` as soon as there is room for it; returns at once. A boundary."""
        self.step()
        if self._events is not None:
            self._events.put(kind, fields)
        elif self._emit is not None:
            self._emit(kind, fields)

    async def flush(self) -> None:
        """Wait until all that was `put` is sent."""
        if self._events is not None:
            await self._events.flush()

    @property
    def wants_events(self) -> bool:
        """Whether anybody reads what `emit` sends."""
        return self._emit is not None or self._events is not None

    def runs(self) -> bool:
        """Return whether the attempt has not been answered."""
        return self._home is not None and self._home.runs(self)

    def post(self, message: Message) -> None:
        """Have a message of this attempt sent to the coordinator. Raises BridgeError(UNAVAILABLE) without one."""
        if self._home is None:
            raise BridgeError(UNAVAILABLE, f"{self.operation} runs without a coordinator: it cannot ask its caller")
        self._home.post(message)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Lend the attempt's slot out while the body waits for something that may need a slot itself.

        Leaving waits until there is a slot again. Counted: the slot is lent when the first thread pauses and taken
        back when the last goes on. Raises BridgeError(OVERLOADED) if too many attempts of this worker wait already,
        CallStopped when the call must stop before it has its slot back.
        """
        home = self._home
        if home is None:
            yield
            return
        home.lend(self)
        try:
            yield
        finally:
            home.take_back(self)

    @asynccontextmanager
    async def apaused(self) -> AsyncIterator[None]:
        """Lend the slot out like `paused`, on an event loop."""
        home = self._home
        if home is None:
            yield
            return
        home.lend(self)
        try:
            yield
        finally:
            await home.atake_back(self)

    def used(self, *, lm_calls: int = 0, tokens: int = 0, cost_usd: float | None = None, cached: bool = False) -> None:
        """Add to what this call has used: an LM call has ended."""
        self._stepped_s = time.monotonic()
        with _LOCK:
            self.lm_calls += lm_calls
            self.tokens += tokens
            if cost_usd is not None:
                self.cost_usd = (self.cost_usd or 0.0) + cost_usd
            self.cached = self.cached or cached


def _tell(callback: Callable[[], object]) -> None:
    try:
        callback()
    except Exception:
        log.exception("on_stop_failed")


class InlineCall(Call):
    """What runs on the io thread itself: nobody can cancel it, and by the time anybody looks it is done."""

    __slots__ = ()

    def step(self) -> None:
        """Go on."""


# The call being run. Threads that DSPy starts get it from `scope.CallBoundary`; a program's own run uncounted.
current_call: ContextVar[Call | None] = ContextVar("dspool_call", default=None)
