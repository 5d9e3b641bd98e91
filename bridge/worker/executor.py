"""The executor: runs attempts, `slots` at once, on threads and on the program loop together.

The highest class goes first, in it first come, first served. An attempt waits until a thread claims it; only what is
not claimed can be given back. The thread runs it itself, or hands it to the loop and claims the next. An attempt that
waits for something that may need a slot lends its own to others, and gets the next that becomes free.
"""

from __future__ import annotations

import contextvars
import functools
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine
from operator import itemgetter
from typing import Any, Final

from bridge import faultpoints
from bridge.protocol.errors import CANCELLED, BridgeError
from bridge.protocol.messages import (
    FLAG_EVENTS,
    Credit,
    Event,
    Message,
    Reply,
    Request,
    ToolReply,
)
from bridge.protocol.names import bare
from bridge.worker.attempt import Runner, Runs, RunsAtOnce, expired, refuse
from bridge.worker.batching import Batcher, Batchers
from bridge.worker.call import Call, Progress, current_call
from bridge.worker.emitter import EVENT_BACKLOG, Deliver, emitter
from bridge.worker.lending import Attempt, Slots
from bridge.worker.program_loop import ProgramLoop, ProgramTask
from bridge.worker.raised import internal_error

log = logging.getLogger(__name__)

# Each so many claims what came first is next, whatever its class: a stream of high work holds up no other for good.
_OLDEST_EACH: Final = 8
# Threads that were needed beyond the slots stay so long, then they end.
_SPARE_S: Final = 5.0
# A task is cancelled so long after its deadline: by then nobody can take it for early.
_LATE_S: Final = 0.001

_run_ms = itemgetter(1)


class Executor:
    """Runs attempts. deliver: takes what is to be sent, from any thread, without blocking."""

    def __init__(self, slots: int, deliver: Deliver) -> None:
        self._deliver = deliver
        self._runner: Runner | None = None
        self._programs = ProgramLoop()
        lock = threading.RLock()
        self._changed = threading.Condition(lock)
        # Who leads a batch waits for more of its operation: all at its own condition, under the same lock.
        self._arrived = threading.Condition(lock)
        self._gathering: set[str] = set()
        # All in order of arrival. live: until the reply is settled; queued: what no thread has claimed, by class.
        self._live: dict[int, Attempt] = {}
        self._queued: tuple[dict[int, Attempt], ...] = ({}, {}, {})
        # What is claimed and waits for nothing runs one at a time, on whichever thread has the turn.
        self._line: deque[Attempt] = deque()
        self._turn_taken = False
        self._claims = 0
        self._threads = 0
        self._slots = Slots(slots, self._changed, self._live, deliver, self._make_room)
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
        self._batchers = Batchers(runner)
        with self._changed:
            self._make_room()

    def close(self) -> None:
        """Let the threads end as they become idle, and the program loop now."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            self._arrived.notify_all()
        self._programs.close()

    # --- called by the io thread ------------------------------------------------------------------

    def submit(self, request: Request, received_s: float) -> None:
        """Take an attempt. received_s: `time.monotonic()` when it came; its deadline counts from there."""
        deadline = None if request.deadline_ms is None else received_s + request.deadline_ms / 1e3
        events = emitter(request, self._deliver, self._event_room) if request.flags & FLAG_EVENTS else None
        call = Call(
            request.request_id, request.epoch, bare(request.operation), lm=request.lm, deadline=deadline,
            principal=request.principal, depth=request.depth, parent_request_id=request.parent_request_id,
            home=self._slots, events=events, streams=events is not None and request.event_window > 0,
        )  # fmt: skip
        if events is not None:
            events.call = call
        attempt = Attempt(request, call, events, received_s)
        self._live[request.epoch] = attempt
        with self._changed:
            self._queued[request.priority][request.epoch] = attempt
            if self._gathering and request.operation in self._gathering:
                self._arrived.notify_all()
            elif self._slots.free:
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
        text = f"{attempt.call.operation} was cancelled before it started"
        reply = refuse(attempt.request, BridgeError(CANCELLED, text))
        if not attempt.request.session or self._runner is None:
            return reply
        return self._runner.sessions.unchanged(attempt.request, reply)

    def credit(self, message: Credit) -> None:
        """Take note that the caller has read events of an attempt."""
        attempt = self._live.get(message.epoch)
        if attempt is not None and attempt.emitter is not None:
            attempt.emitter.grant(message.events)

    def tool_reply(self, message: ToolReply) -> None:
        """Hand an attempt the answer to a ToolCall of its own."""
        attempt = self._live.get(message.epoch)
        if attempt is not None and attempt.call.on_tool_reply is not None:
            attempt.call.on_tool_reply(message)

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
            attempt = self._live.get(message.epoch)
            if attempt is not None and attempt.emitter is not None:
                attempt.emitter.sent()

    # --- the executor's threads -------------------------------------------------------------------

    def _make_room(self) -> None:
        """Have a thread for each slot, and for each attempt that has lent its slot and may wait on a thread."""
        while self._threads < self._slots.threads:
            threading.Thread(target=self._work, name=f"executor[{self._threads}]", daemon=True).start()
            self._threads += 1

    def _work(self) -> None:
        while (attempt := self._claim()) is not None:
            try:
                self._take_on(attempt)
            except BaseException:  # noqa: BLE001 - not even an error could be built
                _leave(attempt)
            del attempt  # an idle thread holds on to no arguments or results

    def _take_on(self, attempt: Attempt) -> None:
        """Run a claimed attempt to its end on this thread, alone or in a batch, or have the program loop do so."""
        runner = self._runner
        assert runner is not None
        operation = attempt.request.operation
        if attempt.turn is not None:
            self._take_turn(attempt, *attempt.turn)
            return
        if (batched := runner.batched(operation)) is not None:
            self._leave_line()
            self._lead(attempt, self._batchers.of(operation, batched))
            return
        if attempt.request.session and (refused := runner.enter(attempt)) is not None:
            self._end(attempt, refused)
            return
        context = contextvars.copy_context()
        work = context.run(self._begin, attempt)
        if type(work) is RunsAtOnce:
            attempt.turn = context, work
            self._line_up(attempt)
        elif isinstance(work, Runs):
            self._leave_line()
            self._end(attempt, context.run(self._run, attempt, work))
        elif isinstance(work, Reply):
            self._end(attempt, work)
        else:
            self._programs.start(self._drive(attempt, work), context, functools.partial(_watch, attempt.call))

    # --- turns ----------------------------------------------------------------------------------------

    def _line_up(self, attempt: Attempt) -> None:
        """Run the first in line, now with this one, unless another thread has the turn: it goes on with the line.

        A thread that waited for its turn instead would be woken for each, only to wait for Python's own lock.
        """
        with self._changed:
            self._line.append(attempt)
            if self._turn_taken:
                return
            self._turn_taken = True
            attempt = self._line.popleft()
        assert attempt.turn is not None
        self._take_turn(attempt, *attempt.turn)

    def _take_turn(self, attempt: Attempt, context: contextvars.Context, work: Callable[[], Reply]) -> None:
        reply = context.run(self._run, attempt, work)
        self._turn_taken = False  # this thread looks at the line next: nobody need be woken
        self._end(attempt, reply)

    def _leave_line(self) -> None:
        """Have another thread look at the line, before this one does what may take long."""
        if self._line:
            with self._changed:
                if not self._turn_taken:
                    self._changed.notify()

    # --- batches (see `batching`) ---------------------------------------------------------------------

    def _lead(self, attempt: Attempt, batcher: Batcher) -> None:
        """Have an attempt run in a batch. All of a batch go on the one slot of its thread."""
        attempt.holds = False
        batcher.enter(attempt, self)
        with self._changed:
            self._slots.release()

    def claim_more(
        self, operation: str, most: int, until_s: float, *, alone: bool, is_current: Callable[[], bool]
    ) -> list[Attempt]:
        """Return attempts of an operation that nobody has claimed, waiting for the first until then (monotonic).

        It does not wait while attempts of other operations are waiting; alone: then it returns nothing. is_current:
        tells whether the operation is still what its name stands for, for all that has come so far; if not, likewise.
        """
        with self._changed:
            self._gathering.add(operation)
            try:
                while True:
                    waiting = [one for queued in self._queued for one in queued.values()]
                    mine = [one for one in waiting if one.request.operation == operation]
                    others = len(waiting) > len(mine)
                    left_s = until_s - time.monotonic()
                    if mine or others or left_s <= 0 or self._closed or not is_current():
                        break
                    self._arrived.wait(left_s)
                mine = [] if (alone and others) or not is_current() else mine[:most]
                for attempt in mine:
                    del self._queued[attempt.request.priority][attempt.request.epoch]
                return mine
            finally:
                self._gathering.discard(operation)
                if self._slots.free and self.queued:
                    self._changed.notify_all()

    def finish(self, attempt: Any, reply: Reply) -> None:
        """Deliver the reply to an attempt of a batch."""
        self._answer(attempt, reply)

    def _claim(self) -> Attempt | None:
        """Wait for an attempt and a slot, and make them this thread's; or for the turn of the first in line.

        Returns None when the thread is to end.
        """
        with self._changed:
            high, normal, low = self._queued
            while not (self._slots.free and (normal or high or low)):
                if self._line and not self._turn_taken:
                    self._turn_taken = True
                    return self._line.popleft()
                if self._closed or not self._wait():
                    return None
            first = normal if not (high or low) else self._turn()
            attempt = first.pop(next(iter(first)))
            self._slots.take(attempt)
            return attempt

    def _wait(self) -> bool:
        """Wait for something to change. Returns False if this thread is one too many."""
        is_spare = self._threads > self._slots.threads
        if self._changed.wait(_SPARE_S if is_spare else None) or self._line or (self._slots.free and self.queued):
            return True
        if self._threads <= self._slots.threads:
            return True
        self._threads -= 1
        return False

    def _turn(self) -> dict[int, Attempt]:
        """Return the class that is next, where others than the normal one may wait."""
        waiting = [queued for queued in self._queued if queued]
        if len(waiting) > 1:
            self._claims += 1
            if self._claims % _OLDEST_EACH == 0:
                return min(waiting, key=lambda queued: next(iter(queued)))  # epochs grow
        return waiting[0]

    def _begin(self, attempt: Attempt) -> Reply | Runs | Coroutine[Any, Any, Reply]:
        """Return what runs an attempt, or the reply to one that must not."""
        assert self._runner is not None
        request, call = attempt.request, attempt.call
        try:
            call.started_s = now = time.monotonic()
            if call.deadline is not None and now >= call.deadline:
                return expired(request)
            current_call.set(call)
            faultpoints.hit("worker.before_run")
            return self._runner.begin(request, call)
        except BaseException as exc:  # noqa: BLE001 - out of memory while answering: the caller must still be told
            return refuse(request, internal_error(exc))

    def _run(self, attempt: Attempt, work: Callable[[], Reply]) -> Reply:
        """Run an attempt on this thread."""
        try:
            reply = work()
            faultpoints.hit("worker.after_run")
            return reply
        except BaseException as exc:  # noqa: BLE001 - as above
            return refuse(attempt.request, internal_error(exc))

    async def _drive(self, attempt: Attempt, work: Coroutine[Any, Any, Reply]) -> None:
        """Run an attempt on the program loop to its end."""
        try:
            try:
                reply = await work
                faultpoints.hit("worker.after_run")
            except BaseException as exc:  # noqa: BLE001 - as above
                reply = refuse(attempt.request, internal_error(exc))
            self._end(attempt, reply)
            with self._changed:
                if self._slots.free:
                    self._changed.notify()
        except BaseException:  # noqa: BLE001 - as above
            _leave(attempt)

    def _end(self, attempt: Attempt, reply: Reply) -> None:
        self._answer(attempt, reply)
        with self._changed:
            self._slots.leave(attempt)

    def _answer(self, attempt: Attempt, reply: Reply) -> None:
        if attempt.emitter is not None:
            attempt.emitter.close()
        if attempt.call.visit is not None:
            assert self._runner is not None
            reply = self._runner.sessions.answered(attempt.call.visit, reply)
        self._deliver(reply)


def _watch(call: Call, task: ProgramTask) -> None:
    """Have a task of the program loop cancelled when its call must stop. To be called on the loop."""
    loop = task.get_loop()
    undo = call.on_stop(lambda: loop.call_soon_threadsafe(task.cancel))
    task.add_done_callback(lambda _: undo())
    if call.deadline is not None:
        timer = loop.call_at(call.deadline + _LATE_S, task.cancel)
        task.add_done_callback(lambda _: timer.cancel())


def _leave(attempt: Attempt) -> None:
    """End the process, for an attempt cannot be answered. The coordinator tells the callers of a dead worker."""
    log.critical("attempt_unanswerable: epoch %d", attempt.request.epoch, exc_info=True)
    os._exit(1)
