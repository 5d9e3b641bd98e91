"""The thread that serves what nobody waits for: callbacks, event loops, several waiting callers."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

from orchestrator.client.descriptors import Descriptors, drain
from orchestrator.client.shield import shield

if TYPE_CHECKING:
    from orchestrator.client.future import Future
    from orchestrator.client.leading import Leading

# How long it leaves the lead to callers who wait, before it looks whether one still does.
_WATCH_MS: Final = 2
# How long it keeps the lead when nothing is under way: the next request then needs no wake-up.
_IDLE_S: Final = 0.02


class IoThread:
    """Started when first needed, parked when nothing is under way. Methods are called under the connection's lock.

    While parked it holds no reference to the connection, so an abandoned one is collected and the thread ends.
    """

    def __init__(self, connection: Leading) -> None:
        self._lock = connection.lock
        self._connection = weakref.ref(connection)
        self._descriptors: Descriptors = connection.descriptors
        self._thread: threading.Thread | None = None
        self._callbacks: deque[Future] = deque()
        self._resting = False  # asleep without the lead: parked, watching callers lead, or outrun by one
        self._watching = False
        self._seen_turns = -1
        self._idle_at: float | None = None
        self._exiting = False
        self.busy = False  # running callbacks: it cannot lead now

    def submitted(self) -> None:
        """Lead, unless callers have been leading just now: then watch them first."""
        if self._thread is None or (self._resting and not self._watching):
            self._wake(at_once=True)

    def abandoned(self, *, followers: bool) -> None:
        """Take over from a caller that stops leading; with `followers` waiting, at once."""
        if self._thread is None or (self._resting and (followers or not self._watching)):
            self._wake(at_once=followers)

    def outrun(self) -> None:
        """Take note that a caller has taken the lead: this thread sleeps on, and has to be woken for anything else."""
        self._resting = True

    def run(self, futures: Iterable[Future]) -> None:
        """Run the callbacks of settled futures, soon."""
        self._callbacks.extend(futures)
        if self._callbacks:
            self._wake(at_once=False)

    def stop(self) -> None:
        """End the thread once its callbacks are run."""
        if self._thread is not None:
            self._wake(at_once=True)

    def join(self) -> None:
        """Wait for the thread's end, without the lock. Does nothing on the thread itself."""
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _wake(self, *, at_once: bool) -> None:
        connection = self._connection()
        if at_once and connection is not None:
            self._seen_turns = connection.turns
        if self._thread is None or self._exiting:
            with shield.held():
                self._exiting = False
                self._descriptors.enter()
                self._thread = threading.Thread(target=self._main, name="dspool-client-io", daemon=True)
                self._thread.start()
        elif self._resting:
            os.eventfd_write(self._descriptors.io_wake_fd, 1)
            self._resting = False

    # --- on the thread ------------------------------------------------------------------------

    def _main(self) -> None:
        events: list[tuple[int, int]] = []
        try:
            while self._serve(events):
                events = self._descriptors.io_parked.poll()
                drain(self._descriptors.io_wake_fd)
        except BaseException as exc:
            self._broke(exc)
            raise
        finally:
            with self._lock:
                last = self._descriptors.left()
            if last:
                self._descriptors.close()

    def _broke(self, cause: BaseException) -> None:
        """Fail what waits for this thread, before it ends. Callbacks that are due run on another one."""
        with self._lock:
            self._exiting = True
            self.busy = False
        connection = self._connection()
        if connection is not None:
            connection.broke(cause)

    def _serve(self, events: list[tuple[int, int]]) -> bool:
        """Do what is to be done; return whether to park (False: the end)."""
        connection = self._connection()
        if connection is None:
            return False
        while True:
            if events and connection.is_over(events):
                connection.line_ended()
            events = []
            with self._lock:
                action = self._choose(connection)
            if action == "park" or action == "end":
                return action == "park"
            if action == "callbacks":
                self._run_callbacks()
            elif action == "lead":
                connection.lead_as_io(self)
            else:
                events = self._descriptors.io_parked.poll(_WATCH_MS)
                with self._lock:
                    # From here on nobody writes: what is there can be taken back.
                    self._resting = self._watching = False
                if events:
                    drain(self._descriptors.io_wake_fd)

    def _choose(self, connection: Leading) -> str:
        self._resting = self._watching = False
        if self._callbacks:
            self.busy = True
            connection.promote()
            return "callbacks"
        if connection.ended:
            self._exiting = True
            return "end"
        turns, seen = connection.turns, self._seen_turns
        self._seen_turns = turns
        if turns != seen:  # parking would have to be ended again at once
            self._resting = self._watching = True
            return "watch"
        if connection.led or not connection.has_work():
            self._resting = True
            return "park"
        self._idle_at = None
        return "lead"

    def _run_callbacks(self) -> None:
        while self._callbacks:
            self._callbacks.popleft().run_callbacks()
        with self._lock:
            self.busy = False

    def idle(self) -> bool:
        """Return whether nothing has been under way for a while: the end of a lead."""
        connection: Any = self._connection()
        if connection is None or connection.has_work():
            self._idle_at = None
            return False
        now = time.monotonic()
        if self._idle_at is None:
            self._idle_at = now
        return now - self._idle_at >= _IDLE_S
