"""Slots: how many attempts run at once, and how one that waits lends its own to others."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextvars import Context
from typing import Final

from bridge.protocol.errors import OVERLOADED, BridgeError
from bridge.protocol.messages import Message, Pause, Reply, Request, Resume
from bridge.worker.call import Call
from bridge.worker.emitter import Deliver, Emitter
from bridge.worker.waits import await_, wait

# Attempts that may have lent their slot: each may keep a thread waiting.
MAX_AWAY: Final = 256


class Attempt:
    """An attempt in the hands of the executor.

    received_s: when it came (monotonic). holds: it has a slot. ended: it needs none any more. pauses: how many of its
    threads and tasks have lent it; returning: what waits to have it back. turn: what runs it when its turn comes, and
    in which context.
    """

    __slots__ = ("call", "emitter", "ended", "holds", "pauses", "received_s", "request", "returning", "turn")

    def __init__(self, request: Request, call: Call, emitter: Emitter | None, received_s: float) -> None:
        self.request = request
        self.received_s = received_s
        self.call = call
        self.emitter = emitter
        self.holds = False
        self.ended = False
        self.pauses = 0
        self.returning: Future[None] | None = None
        self.turn: tuple[Context, Callable[[], Reply]] | None = None


class Slots:
    """The slots of a worker. `free`, `take`, `leave`, `release` and `threads` are for who holds `changed`.

    live: the attempts that are not settled, by epoch. make_room: called, under `changed`, when `threads` has grown.
    """

    def __init__(
        self, count: int, changed: threading.Condition, live: Mapping[int, Attempt], deliver: Deliver,
        make_room: Callable[[], None],
    ) -> None:  # fmt: skip
        self.free = self._count = count
        self._changed = changed
        self._live = live
        self._deliver = deliver
        self._make_room = make_room
        self._away = 0  # attempts that have begun and have lent their slot
        # Who lent a slot and wants one back comes before all that have not begun.
        self._returning: deque[Attempt] = deque()

    @property
    def threads(self) -> int:
        """How many threads may be needed at once."""
        return self._count + self._away

    def take(self, attempt: Attempt) -> None:
        """Give a free slot to an attempt that begins."""
        self.free -= 1
        attempt.holds = True

    def leave(self, attempt: Attempt) -> None:
        """Have the slot of an attempt that has ended, if it has one."""
        attempt.ended = True
        if attempt.returning is not None:  # a thread that it leaves behind
            self._returning.remove(attempt)
            self._come_back(attempt)
        if attempt.holds:
            attempt.holds = False
            self.release()
        else:
            self._away -= 1

    def release(self) -> None:
        """Give a slot to who wants one back, else have it free for who has not begun."""
        while self._returning:
            attempt = self._returning.popleft()
            if self._come_back(attempt):
                attempt.holds = True
                self._away -= 1
                self._deliver(Resume(request_id=attempt.call.request_id, epoch=attempt.call.epoch))
                return
        self.free += 1

    # --- called by the attempts, see `call.Home` ------------------------------------------------------

    def post(self, message: Message) -> None:
        """Have a message sent."""
        self._deliver(message)

    def runs(self, call: Call) -> bool:
        """Return whether the attempt has not been answered."""
        return call.epoch in self._live

    def lend(self, call: Call) -> None:
        """Let others have the slot of an attempt. Raises BridgeError(OVERLOADED)."""
        with self._changed:
            attempt = self._live.get(call.epoch)
            if attempt is None or attempt.ended:  # a thread that it left behind
                return
            if attempt.holds and self._away >= MAX_AWAY:
                raise BridgeError(OVERLOADED, f"{MAX_AWAY} programs of this worker wait already", retryable=True)
            attempt.pauses += 1
            if attempt.pauses > 1:
                return
            if attempt.returning is not None:  # another thread of it wants the slot back: not any more
                self._returning.remove(attempt)
                self._come_back(attempt)
            elif attempt.holds:
                self._lend(attempt)

    def _lend(self, attempt: Attempt) -> None:
        attempt.holds = False
        self._away += 1
        self._make_room()
        self._deliver(Pause(request_id=attempt.call.request_id, epoch=attempt.call.epoch))
        self.release()
        if self.free:
            self._changed.notify()

    def take_back(self, call: Call) -> None:
        """Wait until the attempt has a slot. Raises CallStopped."""
        future = self._ask_back(call)
        if future is not None:
            try:
                wait(call, future)
            finally:
                self._give_up(call, future)

    async def atake_back(self, call: Call) -> None:
        """Wait like `take_back`, on an event loop."""
        future = self._ask_back(call)
        if future is not None:
            try:
                await await_(call, future)
            finally:
                self._give_up(call, future)

    def _ask_back(self, call: Call) -> Future[None] | None:
        """Return what is settled when the attempt has a slot again; None if it has one, or needs none."""
        with self._changed:
            attempt = self._live.get(call.epoch)
            if attempt is None or attempt.ended:
                return None
            attempt.pauses -= 1
            if attempt.pauses:
                return None
            future: Future[None] = Future()
            attempt.returning = future
            self._returning.append(attempt)
            if self.free:
                self.free -= 1
                self.release()
            return future

    def _give_up(self, call: Call, future: Future[None]) -> None:
        """Wait no more, where the wait ended without a slot."""
        with self._changed:
            attempt = self._live.get(call.epoch)
            if attempt is not None and attempt.returning is future:
                attempt.returning = None
                self._returning.remove(attempt)

    def _come_back(self, attempt: Attempt) -> bool:
        """Let go who waits for the attempt's slot; returns False if nobody does any more."""
        future, attempt.returning = attempt.returning, None
        if future is None or not future.set_running_or_notify_cancel():
            return False
        future.set_result(None)
        return True
