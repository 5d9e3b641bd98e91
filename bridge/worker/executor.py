"""The executor: threads that run attempts: the highest class first, in it first come, first served.

An attempt waits until a thread claims it; only what is not claimed can be given back. The io thread alone submits and
settles; the executor's threads only claim, run and deliver.
"""

from __future__ import annotations

import contextvars
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from operator import itemgetter
from typing import Any, Final

from bridge import faultpoints
from bridge.protocol.errors import CANCELLED, BridgeError
from bridge.protocol.messages import FLAG_EVENTS, Event, Message, Reply, Request
from bridge.protocol.values import encode_value
from bridge.worker.attempt import Runner, expired, refuse
from bridge.worker.call import Call, Progress, current_call
from bridge.worker.raised import internal_error

log = logging.getLogger(__name__)

# Events that wait to be sent; then the program that emits them waits too.
EVENT_BACKLOG: Final = 1024
_CHECK_S: Final = 0.1
# Each so many claims what came first is next, whatever its class: a stream of high work holds up no other for good.
_OLDEST_EACH: Final = 8

Deliver = Callable[[Message], None]
_run_ms = itemgetter(1)


class Emitter:
    """The events of one attempt: numbered, in order, and none after its reply. Thread-safe."""

    def __init__(self, request: Request, deliver: Deliver, room: threading.Semaphore) -> None:
        self._request = request
        self._deliver = deliver
        self._room = room
        self._lock = threading.Lock()
        self._sequence = 0
        self._open = True
        self.check: Callable[[], None] = lambda: None

    def emit(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Send an event; wait while too many are on their way.

        Raises BridgeError for fields that cannot travel, CallStopped when the call ends while waiting.
        """
        payload = encode_value(dict(fields))
        while not self._room.acquire(timeout=_CHECK_S):
            self.check()
        with self._lock:
            if not self._open:
                self._room.release()
                return
            self._sequence += 1
            request = self._request
            self._deliver(
                Event(
                    request_id=request.request_id,
                    payload=payload,
                    kind=kind,
                    epoch=request.epoch,
                    sequence=self._sequence,
                )
            )

    def close(self) -> None:
        """Send nothing more."""
        with self._lock:
            self._open = False


class _Attempt:
    __slots__ = ("call", "emitter", "request")

    def __init__(self, request: Request, call: Call, emitter: Emitter | None) -> None:
        self.request = request
        self.call = call
        self.emitter = emitter


class Executor:
    """Runs attempts on `slots` threads. deliver: takes what is to be sent, from any thread, without blocking."""

    def __init__(self, slots: int, deliver: Deliver) -> None:
        self._slots = slots
        self._deliver = deliver
        self._runner: Runner | None = None
        self._changed = threading.Condition()
        # All in order of arrival. live: until the reply is settled; queued: what no thread has claimed, by class.
        self._live: dict[int, _Attempt] = {}
        self._queued: tuple[dict[int, _Attempt], ...] = ({}, {}, {})
        self._claims = 0
        self._event_room = threading.Semaphore(EVENT_BACKLOG)
        self._closed = False

    @property
    def queued(self) -> int:
        """How many attempts no thread has claimed."""
        return sum(map(len, self._queued))

    @property
    def running(self) -> int:
        """How many attempts have started and are not settled."""
        return len(self._live) - self.queued

    def start(self, runner: Runner) -> None:
        """Begin to run what was submitted and what will be."""
        self._runner = runner
        for number in range(self._slots):
            threading.Thread(target=self._work, name=f"executor[{number}]", daemon=True).start()

    def close(self) -> None:
        """Let the threads end as they become idle."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    # --- called by the io thread ------------------------------------------------------------------

    def submit(self, request: Request, received_s: float) -> None:
        """Take an attempt. received_s: `time.monotonic()` when it came; its deadline counts from there."""
        deadline = None if request.deadline_ms is None else received_s + request.deadline_ms / 1e3
        emitter = Emitter(request, self._deliver, self._event_room) if request.flags & FLAG_EVENTS else None
        call = Call(
            request.request_id, request.epoch, request.operation, lm=request.lm, deadline=deadline,
            emit=emitter.emit if emitter is not None else None,
        )  # fmt: skip
        if emitter is not None:
            emitter.check = call.check
        attempt = _Attempt(request, call, emitter)
        self._live[request.epoch] = attempt
        with self._changed:
            self._queued[request.priority][request.epoch] = attempt
            self._changed.notify()

    def recall(self, epoch: int) -> bool:
        """Take an attempt back. Returns False if it has started, or has come and gone."""
        with self._changed:
            if all(queued.pop(epoch, None) is None for queued in self._queued):
                return False
        del self._live[epoch]
        return True

    def recall_all(self) -> list[Request]:
        """Take back everything that has not started, oldest first."""
        with self._changed:
            queued = sorted(epoch for queued in self._queued for epoch in queued)
            for one in self._queued:
                one.clear()
        return [self._live.pop(epoch).request for epoch in queued]

    def cancel(self, epoch: int) -> Reply | None:
        """Return the reply to an attempt that will now never start; one that runs is asked to stop."""
        attempt = self._live.get(epoch)
        if attempt is None:
            return None
        if not self.recall(epoch):
            attempt.call.cancel()
            return None
        text = f"{attempt.request.operation} was cancelled before it started"
        return refuse(attempt.request, BridgeError(CANCELLED, text))

    def progress(self, now: float, most: int) -> list[Progress]:
        """Return how far the attempts are that run now, the longest running first, at most `most`."""
        told = [one for attempt in self._live.values() if (one := attempt.call.progress(now)) is not None]
        told.sort(key=_run_ms, reverse=True)
        return told[:most]

    def settled(self, message: Message) -> None:
        """Note that a delivered message is being sent: a reply ends its attempt, an event makes room for the next."""
        if type(message) is Reply:
            faultpoints.hit("worker.before_reply_sent")
            self._live.pop(message.epoch, None)
        elif type(message) is Event:
            self._event_room.release()

    # --- the executor's threads -------------------------------------------------------------------

    def _work(self) -> None:
        while (attempt := self._claim()) is not None:
            try:
                reply = contextvars.copy_context().run(self._run, attempt)
            except BaseException:
                # Not even an error could be built. The coordinator tells the callers of a dead worker.
                log.critical("attempt_unanswerable: epoch %d", attempt.request.epoch, exc_info=True)
                os._exit(1)
            if attempt.emitter is not None:
                attempt.emitter.close()
            self._deliver(reply)
            del attempt, reply  # an idle thread holds on to no arguments or results

    def _claim(self) -> _Attempt | None:
        """Wait for an attempt and make it this thread's. Returns None when the executor is closed."""
        with self._changed:
            high, normal, low = self._queued
            while not (normal or high or low):
                if self._closed:
                    return None
                self._changed.wait()
            first = normal if not (high or low) else self._turn()
            return first.pop(next(iter(first)))

    def _turn(self) -> dict[int, _Attempt]:
        """Return the class that is next, where others than the normal one may wait."""
        waiting = [queued for queued in self._queued if queued]
        if len(waiting) > 1:
            self._claims += 1
            if self._claims % _OLDEST_EACH == 0:
                return min(waiting, key=lambda queued: next(iter(queued)))  # epochs grow
        return waiting[0]

    def _run(self, attempt: _Attempt) -> Reply:
        assert self._runner is not None
        request, call = attempt.request, attempt.call
        try:
            call.started_s = now = time.monotonic()
            if call.deadline is not None and now >= call.deadline:
                return expired(request)
            current_call.set(call)
            faultpoints.hit("worker.before_run")
            reply = self._runner.run(request, call)
            faultpoints.hit("worker.after_run")
            return reply
        except BaseException as exc:  # noqa: BLE001 - out of memory while answering: the caller must still be told
            return refuse(request, internal_error(exc))
