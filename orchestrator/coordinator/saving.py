"""Durable sessions on their way into the store: batches that the services process keeps, one after the other."""

from __future__ import annotations

from typing import Final

from bridge.protocol.errors import decode_error
from bridge.protocol.messages import ERROR, Reply
from bridge.protocol.values import decode_value, encode_value
from bridge.wallclock import unix_now
from orchestrator.coordinator.asking import Asking
from orchestrator.coordinator.event_log import EventLog
from orchestrator.coordinator.sessions import save_rows
from pools.core.events import SessionsSaved, SessionsUnsaved
from pools.core.fleet import Fleet
from pools.core.internal import BOOTING, DOWN, READY
from pools.services import NAME

# Answers wait for it: a store that takes longer keeps nobody waiting.
_LIMIT_MS: Final = 2000.0
# After a failure; what is to be kept stays so.
_AGAIN_S: Final = 1.0


class SavingSessions:
    """Has what changed of the sessions kept. Why that fails, if it does, is the fleet's `sessions_problem`."""

    def __init__(self, fleet: Fleet, asking: Asking, events: EventLog) -> None:
        self._fleet = fleet
        self._asking = asking
        self._under_way = False
        self._not_before = 0.0
        self._missed = False  # the services process was not there
        self._last = False  # the fleet drains, and this was tried since
        self._events = events

    def go_on(self, now: float) -> None:
        """Send the next batch, unless one is on its way. What changes meanwhile goes with the one after it."""
        if self._under_way or not self._is_due(now):
            return
        batch = self._fleet.take_unsaved(now)
        if batch is None:
            return
        token = batch.token
        payload = encode_value({"sessions": save_rows(batch.images, unix_now())})

        def replied(reply: Reply, now: float) -> None:
            self._under_way = False
            if reply.status != ERROR:
                self._note("")
                for refused in decode_value(reply.payload or b"")["refused"]:
                    self._events.tell("session_not_kept", "error", **refused)
                self._not_before = 0.0
                self._fleet.handle(SessionsSaved(token), now)
                return
            self._not_before = now + _AGAIN_S
            self._missed = self._fleet.internal_state(NAME) != READY
            why = decode_error(reply.payload or b"").message.partition("\n")[0]
            self._note(why)
            self._fleet.handle(SessionsUnsaved(token, why), now)
            if self._missed and not self._fleet.internal_boot_error(NAME):
                self._last = False  # it died of something else, and is on its way back
                self._fleet.await_unsaved()

        self._under_way = True
        self._asking.ask("sessions.save", payload, replied, now, deadline_ms=_LIMIT_MS)

    def end(self) -> None:
        """Tell of what this run has not had kept: it ends now."""
        if left := self._fleet.unkept_sessions:
            why = self._fleet.sessions_problem or "the coordinator has left before it was"
            self._events.tell("sessions_not_kept", "warning", count=left, why=why)

    def _is_due(self, now: float) -> bool:
        """Return whether it is worth trying now. Before the end there is one more try, for which the store is awaited.

        After a failure it is tried again when that process is back, or a moment later.
        """
        state = self._fleet.internal_state(NAME)
        if self._fleet.draining and self._not_before:
            if self._last or state == BOOTING or (state == DOWN and not self._fleet.internal_boot_error(NAME)):
                return False
            self._last = True
            return True
        return now >= self._not_before or (self._missed and state == READY)

    def _note(self, problem: str) -> None:
        before, self._fleet.sessions_problem = self._fleet.sessions_problem, problem
        if problem and not before:
            self._events.tell("sessions_not_kept", "warning", why=problem)
        elif before and not problem:
            self._events.tell("sessions_kept_again")
