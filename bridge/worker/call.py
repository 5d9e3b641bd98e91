"""One attempt, as the operation that runs it sees it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any, Final

from bridge.protocol.errors import CANCELLED, DEADLINE_EXCEEDED, BridgeError

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


class Call:
    """One attempt: its identity, its deadline, its cancellation, what it used, how far it is.

    Thread-safe: a program may run parts of itself on threads of its own. Cheap to make: most calls are never
    cancelled, so the event and the lock that guards the rare moments are not each call's own.
    deadline, started_s: `time.monotonic()` seconds; None: it has no deadline, it does not run yet.
    """

    __slots__ = (
        "_cancelled", "_emit", "_event", "_stepped_s", "cached", "cost_usd", "deadline", "epoch", "lm", "lm_calls",
        "operation", "request_id", "rows_done", "started_s", "tokens",
    )  # fmt: skip

    def __init__(
        self, request_id: int, epoch: int, operation: str, *, lm: str = "", deadline: float | None = None,
        emit: Emit | None = None,
    ) -> None:  # fmt: skip
        self.request_id = request_id
        self.epoch = epoch
        self.operation = operation
        self.lm = lm
        self.deadline = deadline
        self._emit = emit
        self._cancelled = False
        self._event: threading.Event | None = None
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
        """Ask the program to stop at its next boundary."""
        with _LOCK:
            self._cancelled = True
            if self._event is not None:
                self._event.set()

    @property
    def cancelled(self) -> threading.Event:
        """Set when the program is asked to stop; operations that wait, wait on it."""
        with _LOCK:
            if self._event is None:
                self._event = threading.Event()
                if self._cancelled:
                    self._event.set()
            return self._event

    def check(self) -> None:
        """Raise CallStopped if the call was cancelled or its deadline has passed. Waits call it."""
        if self._cancelled:
            raise CallStopped(BridgeError(CANCELLED, f"{self.operation} was cancelled while running"))
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

    def emit(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Send a progress event to the caller, if it asked for events. A boundary. Raises CallStopped."""
        self.step()
        if self._emit is not None:
            self._emit(kind, fields)

    @property
    def wants_events(self) -> bool:
        """Whether anybody reads what `emit` sends."""
        return self._emit is not None

    def used(self, *, lm_calls: int = 0, tokens: int = 0, cost_usd: float | None = None, cached: bool = False) -> None:
        """Add to what this call has used: an LM call has ended."""
        self._stepped_s = time.monotonic()
        with _LOCK:
            self.lm_calls += lm_calls
            self.tokens += tokens
            if cost_usd is not None:
                self.cost_usd = (self.cost_usd or 0.0) + cost_usd
            self.cached = self.cached or cached


class InlineCall(Call):
    """What runs on the io thread itself: nobody can cancel it, and by the time anybody looks it is done."""

    __slots__ = ()

    def step(self) -> None:
        """Go on."""


# The call being run. Threads that DSPy starts get it from `scope.CallBoundary`; a program's own run uncounted.
current_call: ContextVar[Call | None] = ContextVar("dspool_call", default=None)
