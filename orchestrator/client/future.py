"""Futures of requests, and what a cancellation came to."""

from __future__ import annotations

import concurrent.futures
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Final

from bridge.protocol import codec, values
from bridge.protocol.errors import BridgeError, decode_error
from bridge.protocol.messages import ERROR, NOT_RUN, ROWS, Event, Reply, ToolCall
from orchestrator.client.room import Route
from orchestrator.errors import Cancelled, DspoolError, WorkerLost, from_bridge

if TYPE_CHECKING:
    from orchestrator.client.cancelling import Cancelling
    from orchestrator.client.core import Connection

_PENDING: Final = "PENDING"
_FINISHED: Final = "FINISHED"  # the states that the functions of concurrent.futures compare with
_NOWHERE: Final = Route("", "")
_STOPPED: Final = frozenset({"dequeued", "cooperative", "killed"})


class Parked:
    """A thread that sleeps until one of its futures settles. It stands in their list of waiters."""

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def wake(self, _future: object = None) -> None:
        """Wake the thread. The caller holds the connection's lock, so two wakes never race."""
        if self._lock.locked():
            self._lock.release()

    add_result = add_exception = add_cancelled = wake

    def sleep(self, timeout_s: float) -> None:
        """Sleep until woken; -1 = without limit."""
        self._lock.acquire(timeout=timeout_s)


class Future(concurrent.futures.Future[Any]):
    """The outcome of one request, to come, with the semantics of `concurrent.futures`.

    request_id: names the request. meta: how it was executed, None until settled. cancel(): see there.

    The reply is decoded by whoever asks for it first, not by the thread that received it.
    """

    # `_condition` is the connection's one re-entrant lock: its settling holds that anyway, and a lock per future would
    # cost more than the rest of it. The functions of concurrent.futures only ever lock it.
    def __init__(self, connection: Connection, rows: int, deadline: float | None) -> None:
        self._condition: Any = connection.lock
        self._state = _PENDING
        self._exception = None
        self._loaded = False
        self._waiters: list[Any] = []
        self._done_callbacks: list[Callable[[Any], object]] = []
        self.request_id = 0
        self.rows = rows
        self.route: Route = _NOWHERE  # what its rows are counted by
        self.deadline = deadline  # monotonic; None = the pool's default, which only the coordinator knows
        self.reply: Reply | None = None
        self.notify: Callable[[Future], object] | None = None  # internal: quick, under the lock, before any callback
        self.on_event: Callable[[Event], object] | None = None
        self.on_tool_call: Callable[[ToolCall], object] | None = None
        self.ticket: Ticket | None = None
        self._connection = connection

    def done(self) -> bool:
        """Return whether the request is settled."""
        return self._state is _FINISHED

    def running(self) -> bool:
        """Return False: where a request stands is known to the coordinator alone."""
        return False

    def cancelled(self) -> bool:
        """Return whether the request ended cancelled."""
        return self.done() and isinstance(self.exception(), Cancelled)

    def result(self, timeout: float | None = None) -> Any:
        """Return the value, or raise the request's error.

        Raises TimeoutError if it is not settled in `timeout` seconds; the request goes on.
        """
        if self._state is not _FINISHED and not self._connection.wait(self, timeout):
            raise TimeoutError(f"request {self.request_id} has not answered in {timeout} s")
        if not self._loaded:
            self._load()
        if self._exception is not None:
            try:
                raise self._exception
            finally:
                self = None  # type: ignore[assignment]  # the traceback must not keep the future alive
        return self._result

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return the request's error, None if it has none. Raises TimeoutError as `result` does."""
        if self._state is not _FINISHED and not self._connection.wait(self, timeout):
            raise TimeoutError(f"request {self.request_id} has not answered in {timeout} s")
        if not self._loaded:
            self._load()
        return self._exception

    @property
    def meta(self) -> values.Meta | None:
        """How the request was executed; None until it is settled, and if it never reached a coordinator."""
        reply = self.reply
        return None if reply is None else meta_of(reply)

    def cancel(self, force: bool = False) -> CancelOutcome:  # type: ignore[override]
        """Ask for cancellation; return what is known at once, without waiting for the worker.

        The outcome is true when the request is known to be cancelled; its `.outcome(timeout)` waits for the answer.
        force: a program that ignores the request has its worker killed.
        """
        return self._connection.cancel(self, force)

    @property
    def waiters(self) -> list[Any]:
        """Who is woken when the future settles."""
        return self._waiters

    def settle(self, reply: Reply | None, error: DspoolError | None = None) -> bool:
        """End the future, under the connection's lock. Return whether it has callbacks to be run."""
        self.reply = reply
        if error is not None:
            self._exception = error
            self._loaded = True
        self._state = _FINISHED
        if self._waiters:
            self._wake_waiters()
        if self.notify is not None:
            self.notify(self)
        return bool(self._done_callbacks)

    def _wake_waiters(self) -> None:
        # `concurrent.futures.wait` tells a failure, which may end it, from a cancellation, which does not.
        failed = self._exception is not None or (self.reply is not None and self.reply.status == ERROR)
        cancelled = failed and self.cancelled()
        for waiter in self._waiters:
            if cancelled:
                waiter.add_cancelled(self)
            elif failed:
                waiter.add_exception(self)
            else:
                waiter.add_result(self)

    def run_callbacks(self) -> None:
        """Call what `add_done_callback` was given, once, without the lock."""
        self._invoke_callbacks()  # type: ignore[attr-defined]

    def _load(self) -> None:
        """Decode the reply if nobody has. Two threads may both do it; both see the same value afterwards."""
        reply, value, error = self.reply, None, None
        assert reply is not None
        try:
            value = decode(reply, self._connection.nesting)
        except DspoolError as exc:
            error = exc
        with self._condition:
            if not self._loaded:
                self._result = value
                self._exception = error
                self._loaded = True

    def __repr__(self) -> str:
        state = "settled" if self.done() else "in flight"
        return f"<Future request_id={self.request_id} {state}>"


def meta_of(reply: Reply) -> values.Meta:
    """Return what the coordinator and the worker said about an execution."""
    return values.Meta(
        request_id=reply.request_id,
        worker=reply.worker,
        pool=reply.pool,
        attempt=reply.attempt,
        queue_ms=reply.queue_ms,
        run_ms=reply.run_ms,
        total_ms=reply.total_ms,
        lm_calls=reply.lm_calls,
        tokens=reply.tokens,
        cost_usd=reply.cost_usd,
        cached=reply.cached,
        fallback_used=reply.fallback_used,
    )


def decode(reply: Reply, nesting: int) -> Any:
    """Return a reply's value; of a ROWS reply a list in which a failed row is its error. Raises its error.

    The list ends before the first row that was not run.
    """
    payload = reply.payload or b""
    try:
        if reply.status == ERROR:
            raise from_bridge(decode_error(payload))
        if reply.status == ROWS:
            return _decode_rows(codec.unpack_outcomes(payload), nesting, meta_of(reply))
        value = values.decode_value(payload, nesting=nesting)
    except DspoolError:
        raise
    except BridgeError as exc:
        raise from_bridge(exc) from None
    except (ValueError, TypeError) as exc:
        raise DspoolError(f"an answer came that cannot be read: {exc}") from exc
    if type(value) is values.Prediction:
        value.meta = meta_of(reply)
    return value


def _decode_rows(outcomes: list[tuple[int, bytes]], nesting: int, meta: values.Meta) -> list[Any]:
    if any([status for status, _ in outcomes]):
        run = takewhile(lambda outcome: outcome[0] != NOT_RUN, outcomes)
        return [_decode_row(status, data, nesting, meta) for status, data in run]
    try:
        rows = values.decode_values([data for _, data in outcomes], nesting=nesting)
    except BridgeError:  # a row that cannot be read: it fails alone
        return [_decode_row(status, data, nesting, meta) for status, data in outcomes]
    if values.Prediction in set(map(type, rows)):
        for value in rows:
            if type(value) is values.Prediction:
                value.meta = meta
    return rows


def _decode_row(status: int, payload: bytes, nesting: int, meta: values.Meta) -> Any:
    try:
        if status == ERROR:
            return from_bridge(decode_error(payload))
        value = values.decode_value(payload, nesting=nesting)
    except BridgeError as exc:
        return from_bridge(exc)
    if type(value) is values.Prediction:
        value.meta = meta
    return value


# --- cancellation -----------------------------------------------------------------------------


class Ticket:
    """A Cancel on its way: what the coordinator has answered so far."""

    def __init__(self, request_id: int, future: Future | None) -> None:
        self.request_id = request_id
        self.future = future
        self.asked = self.force = False
        self.answer: CancelOutcome | None = None
        self.waiters: list[Parked] = []

    def settled(self) -> bool:
        """Return whether nothing more will be learnt."""
        if self.answer is None:
            return False
        return self.answer.how != "asked" or self.future is None or self.future.done()


@dataclass(frozen=True, slots=True)
class CancelOutcome:
    """What became of a cancellation. True when the request is known to be cancelled.

    stage: where it was: queued | running | finished. how: dequeued (it never ran), cooperative (the program stopped),
    killed (its worker was), none (it had finished), asked (the request to stop is on its way).
    """

    stage: str
    how: str
    _ticket: Ticket | None = field(default=None, repr=False, compare=False)
    _connection: Cancelling | None = field(default=None, repr=False, compare=False)

    def __bool__(self) -> bool:
        return self.how in _STOPPED

    def outcome(self, timeout: float | None = None) -> CancelOutcome:
        """Return the final outcome, waiting for it. Raises TimeoutError if it is not known in `timeout` seconds."""
        ticket, connection = self._ticket, self._connection
        if ticket is None or connection is None:
            return self
        until = None if timeout is None else time.monotonic() + timeout
        if not connection.wait_ticket(ticket, until):
            raise TimeoutError(f"what became of request {ticket.request_id} is not known after {timeout} s")
        return final_outcome(ticket)


def final_outcome(ticket: Ticket) -> CancelOutcome:
    """Return what a settled ticket says: its answer, or, after `asked`, what the request's own end shows."""
    answer = CancelOutcome("running", "asked") if ticket.answer is None else ticket.answer
    future = ticket.future
    if answer.how != "asked" or future is None or not future.done():
        return answer
    error = future.exception()
    if isinstance(error, Cancelled):
        return CancelOutcome("running", "cooperative")
    if isinstance(error, WorkerLost) and ticket.force:
        return CancelOutcome("running", "killed")
    return answer if future.reply is None else CancelOutcome("finished", "none")
