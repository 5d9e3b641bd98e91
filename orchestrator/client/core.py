"""`Connection`: requests, their answers, cancellation, and the end, over one socket (see `leading`)."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager
from typing import Any, ClassVar, Final

from msgspec.structs import replace

from bridge.protocol.errors import decode_error
from bridge.protocol.large import LARGE_BYTES
from bridge.protocol.messages import (
    FLAG_EVENTS,
    Bye,
    Cancel,
    CancelReply,
    Credit,
    Event,
    InSession,
    Invalid,
    Message,
    Reply,
    Request,
    ToolCall,
    ToolReply,
    request_id_base,
)
from orchestrator.client.cancelling import Cancelling
from orchestrator.client.future import CancelOutcome, Future, Ticket
from orchestrator.client.link import ADVICE, open_link
from orchestrator.client.open import OPEN
from orchestrator.client.overdue import GUARD_S, Overdue, unanswered
from orchestrator.client.request import ORDINARY, Terms
from orchestrator.client.room import Room, Route
from orchestrator.client.sharing import Payload, Sharing
from orchestrator.client.shield import shield
from orchestrator.client.tool_calls import ToolHost, parent_of_tool, refuse
from orchestrator.errors import Cancelled, DeadlineExceeded, DspoolError, Unavailable, from_bridge

# After the line's end the last answers may still be on their way into our socket.
_LAST_WORDS_S: Final = 0.005
# A process that dies or leaves loses its sockets a moment before it is seen to be dead.
_DYING_S: Final = 0.1
# Of a traceback.
_TOLD_CHARS: Final = 4000
# Operations that the coordinator answers itself: it looks into no segment.
_CONTROL: Final = "dspool."


class Connection(Cancelling):
    """A connection to a coordinator. Thread-safe; refuses use in a forked child.

    Raises Unavailable if nobody answers at `endpoint` within `timeout_s`, or what the coordinator refuses with.
    apaused: who awaits something of this connection does so within it; None = nothing is to be done about it.
    """

    room_class: ClassVar = Room
    future_class: ClassVar = Future
    open_link: ClassVar = staticmethod(open_link)
    apaused: Callable[[], AbstractAsyncContextManager[object]] | None = None

    def __init__(self, endpoint: str, *, principal: str = "default", run_id: str = "", timeout_s: float = 5.0) -> None:
        link = self.open_link(endpoint, principal=principal, run_id=run_id, timeout_s=timeout_s)
        super().__init__(link)
        welcome = link.welcome
        self.endpoint = endpoint
        self.run_id = welcome.run_id
        self.coordinator_pid = welcome.pid
        self.nesting, self.message_bytes = welcome.nesting, welcome.message_bytes
        self.max_in_flight = welcome.max_in_flight
        self._forked = False
        self._last_id = request_id_base(welcome.client_no)
        self._futures: dict[int, Future] = {}
        self._tickets: dict[int, Ticket] = {}
        self._overdue = Overdue()
        self._room = self.room_class(welcome.max_in_flight, welcome.window_rows or welcome.max_in_flight)
        self.route = self._room.route
        self.tool_host = ToolHost()
        self._sharing = Sharing(welcome)
        OPEN.add(self)

    # --- requests -----------------------------------------------------------------------------

    def submit(self, payload: Payload, route: Route, *, lm: str = "", rows: int = 1,
               deadline_s: float | None = None, terms: Terms = ORDINARY,
               notify: Callable[[Future], object] | None = None,
               on_event: Callable[[Event], object] | None = None, event_window: int = 0,
               on_tool_call: Callable[[ToolCall], object] | None = None, parent_request_id: int = 0,
               lead: bool = False) -> Future:  # fmt: skip
        """Send a request; return its future.

        route: `self.route(operation, pool)`. lead: the caller will wait for it at once. notify: called under the lock
        when it is settled; it must be quick. on_event, on_tool_call: take its events and the calls of this side's tools
        (answered with `reply_tool`), under the lock too. event_window: no more events than so many beyond those that
        `credit` says were taken; 0 = any number. parent_request_id: the request that a program asks this one for. While
        too much is unanswered (see Welcome) this waits for room, at most the deadline; then the future fails.
        """
        if self._forked:
            self._check_owner()
        future = self.future_class(self, rows, None if deadline_s is None else time.monotonic() + deadline_s)
        future.route, future.notify = route, notify
        future.on_event, future.on_tool_call = on_event, on_tool_call
        parent_request_id = parent_of_tool(self) or parent_request_id
        room = self._room
        segment = None
        try:
            if type(payload) is not bytes or len(payload) >= LARGE_BYTES or route.large:
                framed = bool(terms.idempotency_key) or route.operation.startswith(_CONTROL)
                payload, segment = self._sharing.place(payload, route, framed=framed)
            while True:
                with self.lock:
                    if self._ended is not None:
                        raise self._ending()
                    if room.fits(route, rows):
                        number = self._last_id = self._last_id + 1
                        future.request_id = number
                        request = Request(
                            request_id=number, payload=payload, operation=route.operation, pool=route.pool, lm=lm,
                            rows=rows, deadline_ms=None if deadline_s is None else deadline_s * 1000.0,
                            priority=terms.priority, idempotency_key=terms.idempotency_key,
                            flags=terms.flags if on_event is None else terms.flags | FLAG_EVENTS,
                            event_window=event_window, parent_request_id=parent_request_id,
                        )  # fmt: skip
                        if terms.session:
                            place = InSession(terms.generation) if terms.generation else None
                            request = replace(request, session=terms.session, in_session=place)
                        if terms.worker:
                            request = replace(request, worker=terms.worker)
                        if segment is not None:
                            request = replace(request, segment=segment.name, shared_bytes=segment.used_bytes)
                            self._sharing.lent[number], segment = segment, None
                        self._enter(future, request, lead)
                        return future
                if not self._wait_room(future):
                    return future
                if future.deadline is not None:
                    deadline_s = max(future.deadline - time.monotonic(), 0.001)
        finally:
            if segment is not None:  # nothing was sent
                self._sharing.unused(segment)

    def _enter(self, future: Future, request: Request, lead: bool) -> None:
        """Note a request that there is room for, and send it. The lock is held."""
        room, route = self._room, future.route
        # No call in between: a signal's handler finds the books and what is out in keeping.
        self._futures[request.request_id] = future
        room.rows += future.rows
        route.rows += future.rows
        self._out += (request,)
        try:
            if future.deadline is not None:
                self._look_by(future.deadline + GUARD_S)
            self._push(alone=len(self._futures) == 1)
            if self._leader is None and not lead:
                self._io.submitted()
        except BaseException:  # interrupted; somebody must still hear the answer
            if self._leader is None:
                self._io.submitted()
            raise

    def credit(self, request_id: int, events: int) -> None:
        """Say that so many more of a request's events were taken. Nothing happens if it is settled."""
        self._say(Credit(request_id=request_id, events=events))

    def reply_tool(self, reply: ToolReply) -> None:
        """Answer a tool call of a request. Nothing happens if that is settled: nobody waits for the answer."""
        self._say(reply)

    def _say(self, message: Message) -> None:
        with shield.held(), self.lock:
            if message.request_id not in self._futures or self._forked:
                return
            self._out.append(message)
            self._push(alone=True)
            if self._leader is None:
                self._io.submitted()

    def take_id(self) -> int:
        """Return an id for what is answered on this side. Raises what `submit` raises of a client that is closed."""
        if self._forked:
            self._check_owner()
        with self.lock:
            if self._ended is not None:
                raise self._ending()
            number = self._last_id = self._last_id + 1
            return number

    def has_room(self, route: Route, rows: int, notify: Callable[[], object]) -> bool:
        """Return whether `rows` more rows may be sent now; if not, `notify` is called when they may, under the lock."""
        with self.lock:
            if self._ended is not None or self._room.fits(route, rows):
                return True
            self._room.want(route, rows, notify)
            return False

    def offer_room(self) -> None:
        """Give what was promised to somebody who does not want it any more to the next one."""
        with self.lock:
            self._room.offer()

    # --- waiting ------------------------------------------------------------------------------

    def wait(self, future: Future, timeout_s: float | None = None) -> bool:
        """Wait until the future is settled; return whether it is."""
        until = None if timeout_s is None else time.monotonic() + timeout_s
        return self._drive(future.done, (future._waiters,), until)

    def wait_until(self, ready: Callable[[], bool], waiters: Iterable[list[Any]], until: float | None = None) -> None:
        """Wait until `ready` holds (called under the lock). Whoever makes it true wakes what stands in `waiters`.

        until: not longer than that (monotonic), nor beyond the connection's end.
        """
        self._drive(ready if until is None else lambda: self._ended is not None or ready(), waiters, until)

    def _wait_room(self, future: Future) -> bool:
        """Wait until there is room for a request; if there is none before its deadline, fail it."""
        waiters: list[Any] = []
        room = [False]

        def notify() -> None:
            room[0] = True
            for parked in waiters:
                parked.wake()

        route, started = future.route, time.monotonic()
        try:
            if self.has_room(route, future.rows, notify) or self._drive(lambda: room[0], (waiters,), future.deadline):
                return True
        except BaseException:  # interrupted: what was promised here is the next one's
            with shield.held(), self.lock:
                self._room.withdraw(route, notify)
            raise
        waited_s = time.monotonic() - started
        text = f"no room within {waited_s:.3g} s: {route.rows} rows of {route.operation} are unanswered"
        with self.lock:
            future.settle(None, DeadlineExceeded(text, stage="client"))
        return False

    def _take(self, messages: list[Any], callbacks: list[Future]) -> None:
        futures, room = self._futures, self._room
        for message in messages:
            if type(message) is Reply:
                future = futures.pop(message.request_id, None)
                if future is not None:
                    route = future.route
                    if self._sharing.lent:
                        message = self._sharing.received(message)
                    payload = message.payload
                    if payload is not None and len(payload) >= LARGE_BYTES:
                        route.large = True
                    room.free(route, future.rows)
                    if message.pressed:
                        room.shrink(route, message.request_id, self._last_id)
                    else:
                        room.grow(route)
                    if future.settle(message):
                        callbacks.append(future)
            elif type(message) is Event:
                future = futures.get(message.request_id)
                if future is not None and future.on_event is not None:
                    future.on_event(message)
            elif type(message) is ToolCall:
                future = futures.get(message.request_id)
                if future is not None and future.on_tool_call is not None:
                    future.on_tool_call(message)
                elif future is not None:
                    refuse(self, message, {})
            elif type(message) is CancelReply:
                self._answer_ticket(message.request_id, CancelOutcome(message.stage, message.how))
            elif type(message) is Invalid:
                self._invalid(message, callbacks)
        if room.wanting:
            room.offer()

    def _invalid(self, message: Invalid, callbacks: list[Future]) -> None:
        error = from_bridge(decode_error(message.payload or b""))
        if message.muted:
            self._end(error, callbacks)
        else:
            self._fail(message.request_id, error, callbacks)

    def _fail(self, request_id: int, error: DspoolError, callbacks: list[Future]) -> None:
        future = self._futures.pop(request_id, None)
        if future is not None:
            self._sharing.lost(request_id)
            self._room.free(future.route, future.rows)
            if future.settle(None, error):
                callbacks.append(future)

    def expecting(self) -> bool:
        """Return whether an answer is due."""
        return bool(self._futures or self._tickets)

    def _look(self, now: float, callbacks: list[Future]) -> float:
        """Fail what was overdue at the last look and still is."""
        overdue, look_again_at = self._overdue.look(self._futures, now)
        for request_id in overdue:
            self._fail(request_id, unanswered(self.coordinator_pid), callbacks)
        if overdue:
            self._room.offer()
        return look_again_at

    # --- the end ------------------------------------------------------------------------------

    def close(self) -> None:
        """Say Bye, fail what is unanswered with Cancelled, free everything. May be called again, from any thread."""
        if self._forked:
            return  # a fork's copy: the descriptors are the parent's to use
        callbacks: list[Future] = []
        with shield.held(), self.lock:
            if self._ended is None:
                self._out = [message for message in self._out if type(message) is Cancel]
                self._out.append(Bye())
                self._flush()
                self._end(Cancelled("the client was closed"), callbacks)
        for future in callbacks:
            future.run_callbacks()
        self._io.join()
        self.tool_host.close()
        with shield.held():
            with self.lock:
                last = self.descriptors.unused()
            if last:
                self.descriptors.close()

    def line_ended(self) -> None:
        """Take in the last answers, then fail the rest: nothing is sent again."""
        with self.lock:
            callbacks = self._turn_to_the_last()
        time.sleep(_LAST_WORDS_S)
        died = self._link.died_within(_DYING_S)
        what = f"the coordinator (pid {self.coordinator_pid}) died"
        if not died:
            what = f"the connection to the coordinator (pid {self.coordinator_pid}) was closed or cut"
        text = f"{what}; what was in flight may or may not have been executed. Call connect() again; {ADVICE}"
        with self.lock:
            callbacks += self._turn_to_the_last()
            self._end(Unavailable(text), callbacks)
        for future in callbacks:
            future.run_callbacks()

    def broke(self, cause: BaseException) -> None:
        """Fail the rest: an answer may have been lost, and nobody would ever hear of it."""
        callbacks: list[Future] = []
        what = f"the client failed inside ({type(cause).__name__}: {cause})"
        text = f"{what}; what was in flight may or may not have been executed. Call connect() again"
        with self.lock:
            where = "".join(traceback.format_exception(cause))[-_TOLD_CHARS:]
            self._end(DspoolError(text, details={"traceback": where}), callbacks)
            self._io.run(callbacks)

    def _end(self, error: DspoolError, callbacks: list[Future]) -> None:
        """Fail everything, now and from now on."""
        if self._ended is not None:
            return
        self._ended = error
        self.descriptors.ended = True
        for request_id in list(self._futures):
            self._fail(request_id, self._ending(), callbacks)
        for ticket in list(self._tickets.values()):
            self._answer_ticket(ticket.request_id, CancelOutcome("running", "asked"))
        self._tickets.clear()
        self._sharing.close()
        self._out.clear()
        self._unsent.clear()
        self._room.end()
        for parked in self._followers:
            parked.wake()
        if self._asleep is not None:
            self._wake_leader()
        self._io.stop()

    def _ending(self) -> DspoolError:
        """Return a fresh error for each caller: a raised one collects tracebacks."""
        error = self._ended
        assert error is not None
        if isinstance(error, Cancelled):
            return Cancelled(error.message)
        return type(error)(error.message, error.code, error.retryable, error.details)

    @property
    def forked(self) -> bool:
        """Whether this process is a fork of the one that the connection belongs to."""
        return self._forked

    def disown(self) -> None:
        """Take note that this process is a fork of the one that the connection belongs to."""
        self._forked = True

    def _check_owner(self) -> None:
        if self._forked:
            raise DspoolError("this client belongs to the process that forked this one: connect() in the child")

    def __del__(self) -> None:
        if "_io" in self.__dict__:
            self.close()
