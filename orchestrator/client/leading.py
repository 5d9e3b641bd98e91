"""Who drives the socket, and how: the lead, its passing on, and what a turn does.

The thread that drives the socket *leads*. A caller that waits alone leads itself: its answer costs no change of thread.
Several waiting callers, callbacks and event loops are served by an io thread, started when first needed; a caller that
then waits alone takes the lead from it. Everything is guarded by one lock; the leader polls outside of it.

Messages are sent at once when nothing else is in flight, else by the leader before it polls: what piled up meanwhile
travels together.
"""

from __future__ import annotations

import functools
import math
import os
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Final

from bridge import faultpoints
from bridge.protocol import codec
from bridge.protocol.messages import Message, Taken
from bridge.transport import Sent
from orchestrator.client.descriptors import Descriptors, drain
from orchestrator.client.future import Future, Parked
from orchestrator.client.iothread import IoThread
from orchestrator.client.link import Link
from orchestrator.client.shield import shield
from orchestrator.errors import DspoolError

_AT_MOST_MS: Final = 1000.0
_RETRY_MS: Final = 10.0
_IDLE_MS: Final = 20.0
_TELL_BYTES: Final = 1 << 20


class Leading(ABC):
    """The driving of one socket by whichever thread has reason to. What messages mean is the subclass's matter."""

    def __init__(self, link: Link) -> None:
        self.lock: Any = threading.RLock()
        self.descriptors = Descriptors(link)
        self.turns = 0  # of callers as leaders: tells the io thread that it is not needed
        self._link = link
        self._dealer = link.dealer
        self._out: list[Message] = []
        self._untold_bytes = 0  # read since the coordinator was last told
        self._unsent: deque[list[bytes]] = deque()
        self._leader: object | None = None
        self._asleep: int | None = None  # the eventfd that wakes the leader out of its poll
        # Whether something may have come of which the socket's descriptor gives no sign (any more). libzmq takes note
        # of what comes, and clears the descriptor, inside any call on the socket.
        self._stirred = True
        self._followers: dict[Parked, None] = {}
        self._look_at = math.inf  # when `_look` is due
        self._ended: DspoolError | None = None
        self._io = IoThread(self)

    @abstractmethod
    def expecting(self) -> bool:
        """Return whether an answer is due."""

    @abstractmethod
    def line_ended(self) -> None:
        """Take in what came last and end; called without the lock, by any number of threads."""

    @abstractmethod
    def broke(self, cause: BaseException) -> None:
        """End over what must not happen: a leader, or the io thread, has failed; called without the lock."""

    @abstractmethod
    def _check_owner(self) -> None:
        """Raise DspoolError in a fork."""

    @abstractmethod
    def _take(self, messages: list[Any], callbacks: list[Future]) -> None:
        """Do what messages say; add futures whose callbacks are due to `callbacks`."""

    @abstractmethod
    def _look(self, now: float, callbacks: list[Future]) -> float:
        """Do what was due at `_look_at`, with nothing left to receive; return when it is due again."""

    # --- waiting ------------------------------------------------------------------------------

    def _drive(self, ready: Callable[[], bool], waiters: Iterable[list[Any]], until: float | None) -> bool:
        """Lead, or sleep while another leads, until `ready` holds (checked under the lock) or `until` passes.

        What a signal's handler raises leaves this when the lead is given up: nobody else notices.
        """
        self._check_owner()
        shielded = shield.up()
        try:
            return self._drive_on(ready, waiters, until, shielded)
        finally:
            if shielded:
                shield.down()

    def _drive_on(
        self, ready: Callable[[], bool], waiters: Iterable[list[Any]], until: float | None, shielded: bool
    ) -> bool:
        token = object()
        while True:
            if shielded and shield.noted:
                shield.down()  # nothing shared is half done here
                shield.up()
            with self.lock:
                if ready():
                    return True
                if until is not None and time.monotonic() >= until:
                    return False
                leads = self._leader is None or (self._leader is self._io and not self._followers)
                if leads:
                    if self._leader is not None:
                        self._io.outrun()
                    self._leader = token
                    self.descriptors.enter()
                else:
                    parked = self._park(waiters)
            if leads:
                try:
                    self._lead(token, ready, until, shielded)
                except Exception as exc:  # noqa: BLE001 - whatever it is, what was just received is lost for others too
                    self.broke(exc)
                finally:
                    if shielded:
                        shield.wake = None
                    self._leave(token)
            else:
                try:
                    if shielded:
                        shield.wake = functools.partial(self._wake_parked, parked)
                    if not (shielded and shield.noted):
                        parked.sleep(-1 if until is None else max(until - time.monotonic(), 0.0))
                finally:
                    if shielded:
                        shield.wake = None
                    self._unpark(parked, waiters)

    def _park(self, waiters: Iterable[list[Any]]) -> Parked:
        parked = Parked()
        self._followers[parked] = None
        for queue in waiters:
            queue.append(parked)
        return parked

    def _wake_parked(self, parked: Parked) -> None:
        with self.lock:
            parked.wake()

    def _unpark(self, parked: Parked, waiters: Iterable[list[Any]]) -> None:
        with self.lock:
            self._followers.pop(parked, None)
            for queue in waiters:
                if parked in queue:
                    queue.remove(parked)
            if self._leader is None and self._followers:
                self._hand_over()  # it may have been woken to lead, and leaves without

    def nudge(self, wake: Callable[[], object]) -> None:
        """Have who waits look again whether it is over: `wake` wakes who sleeps, and who leads is woken here."""
        with shield.held(), self.lock:
            wake()
            if self._asleep is not None:
                self._wake_leader()

    # --- leading ------------------------------------------------------------------------------

    def _lead(self, token: object, ready: Callable[[], bool], until: float | None, shielded: bool = False) -> None:
        """Drive the socket until `ready` holds, `until` passes, a signal came, or the lead is taken away."""
        descriptors = self.descriptors
        caller = token is not self._io
        poller, wake_fd = descriptors.for_caller if caller else descriptors.for_io
        socket_fd, told = descriptors.socket_fd, False
        if shielded:
            shield.wake = descriptors.wake_caller
        while True:
            with self.lock:
                if self._leader is not token or self._ended is not None or (shielded and shield.noted):
                    return
                self._asleep = None
                callbacks = self._turn(ready, told)
                if caller:
                    self.turns += 1
                if callbacks:
                    self._call_back(callbacks)
                if ready() or (callbacks and not caller):
                    return
                timeout_ms = self._timeout_ms(until)
                if timeout_ms <= 0.0:
                    return
                self._asleep = wake_fd
            events = poller.poll(timeout_ms)
            told = over = False
            for fd, _ in events:
                if fd == socket_fd:
                    told = True
                elif fd == wake_fd:
                    drain(wake_fd)
                else:
                    over = True
            if over and self.is_over(events):
                self.line_ended()
                return

    def _leave(self, token: object) -> None:
        """Give up the lead, if it is still this thread's, and see that somebody has it where it is needed."""
        with self.lock:
            if self._leader is token:
                self._leader = self._asleep = None
                self._hand_over()
            last = self.descriptors.left()
        if last:
            self.descriptors.close()

    def _call_back(self, futures: list[Future]) -> None:
        """Have the callbacks of settled futures run on the io thread."""
        self._io.run(futures)
        if self._leader is self._io and self._asleep is not None:
            self._wake_leader()

    def _hand_over(self) -> None:
        if self._io.busy:
            self.promote()
        elif self.has_work():
            self._io.abandoned(followers=bool(self._followers))

    # --- for the io thread --------------------------------------------------------------------

    @property
    def ended(self) -> bool:
        """Whether the connection is closed or its coordinator dead."""
        return self._ended is not None

    def is_over(self, events: list[tuple[int, int]]) -> bool:
        """Return whether what was polled says that the connection is over."""
        with self.lock:
            return self.descriptors.tell_end(events)

    @property
    def led(self) -> bool:
        """Whether some thread leads."""
        return self._leader is not None

    def has_work(self) -> bool:
        """Return whether anything is to be sent or heard."""
        return bool(self._out or self._unsent) or self.expecting()

    def promote(self) -> None:
        """Have a waiting caller lead: the io thread runs callbacks, which may take their time or wait themselves.

        All are woken, and one takes the lead: one alone might be about to leave.
        """
        if self._leader is None:
            for parked in self._followers:
                parked.wake()

    def lead_as_io(self, io: IoThread) -> None:
        """Lead on the io thread until nothing is under way, a caller takes the lead, or callbacks are due."""
        with self.lock:
            if self._leader is not None:
                return
            self._leader = io
            self.descriptors.enter()
        try:
            self._lead(io, io.idle, None)
        finally:
            self._leave(io)

    # --- turns --------------------------------------------------------------------------------

    def _wake_leader(self) -> None:
        assert self._asleep is not None
        os.eventfd_write(self._asleep, 1)
        self._asleep = None

    def _timeout_ms(self, until: float | None) -> float:
        """Return how long the leader may sleep."""
        if self._unsent:
            timeout_ms = _RETRY_MS
        elif self.expecting() or until is not None:
            timeout_ms = _AT_MOST_MS
        else:
            timeout_ms = _IDLE_MS
        if self._look_at != math.inf:
            timeout_ms = min(timeout_ms, max(math.ceil((self._look_at - time.monotonic()) * 1000.0), 1))
        if until is not None:
            timeout_ms = min(timeout_ms, math.ceil((until - time.monotonic()) * 1000.0))
        return timeout_ms

    def _turn(self, ready: Callable[[], bool], told: bool) -> list[Future]:
        """Send what is out, take in what has come until `ready`; return futures whose callbacks are due.

        told: the socket's descriptor says that something has come. Unless `ready` holds afterwards, nothing is left.
        """
        if self._out or self._unsent:
            self._flush()
        callbacks: list[Future] = []
        try:
            due = self._look_at != math.inf and time.monotonic() >= self._look_at
            # Asking first is cheaper than a `receive` that finds nothing.
            while told or self._pending():
                self._stirred = True
                frames = self._dealer.receive()
                if frames is not None:
                    self._untold_bytes += sum(map(len, frames))
                    faultpoints.hit("client.before_deliver")
                    self._take(codec.decode(frames).messages, callbacks)
                    if self._untold_bytes >= _TELL_BYTES:
                        self._tell_taken()
                    if ready() and not due:
                        break
                told = False
            if due:
                self._look_at = self._look(time.monotonic(), callbacks)
        except BaseException:
            self._io.run(callbacks)  # of what is settled already: somebody waits for that
            raise
        return callbacks

    def _turn_to_the_last(self) -> list[Future]:
        """Take in all that has come."""
        return self._turn(lambda: False, told=True)

    def _pending(self) -> bool:
        """Return whether something can be received; if not, the descriptor will tell when it can."""
        if self._stirred:
            self._stirred = self._dealer.pending()
        return self._stirred

    def _flush(self) -> None:
        shielded = shield.up()
        try:
            if self._out:
                self._unsent.extend(codec.encode_frames(self._out))
                self._out.clear()
            self._stirred = True
            while self._unsent and self._dealer.send(self._unsent[0]) is Sent.YES:
                self._unsent.popleft()
            faultpoints.hit("client.after_send")
        finally:
            if shielded:
                shield.down()

    def _look_by(self, at: float) -> None:
        """Have `_look` called at `at`, or before."""
        if at < self._look_at:
            self._look_at = at
            if self._asleep is not None:
                self._wake_leader()

    def _tell_taken(self) -> None:
        """Say what has been read: the coordinator sends no more than a window beyond it."""
        self._out.append(Taken(bytes=self._untold_bytes))
        self._untold_bytes = 0
        self._flush()

    def _push(self, *, alone: bool) -> None:
        """See to it that what was just put out leaves. alone: nothing else is under way, so send it now."""
        if alone or len(self._out) >= codec.BATCH_MESSAGES:
            self._flush()
            # Sending may have swallowed the edge that the leader sleeps on.
            if self._asleep is not None and (self._unsent or self._pending()):
                self._wake_leader()
        elif self._asleep is not None:
            self._wake_leader()
