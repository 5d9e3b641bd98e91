"""How the event log comes into the store: in batches, one after the other, while the services process is there."""

from __future__ import annotations

from typing import Any, Final

from bridge.protocol.errors import decode_error
from bridge.protocol.messages import OK, Reply
from bridge.protocol.values import encode_value
from orchestrator.coordinator.asking import Asking
from orchestrator.coordinator.event_log import EventLog
from pools.core.fleet import Fleet
from pools.services import NAME as SERVICES

OPERATION: Final = "events.save"
_BATCH_EVENTS: Final = 500
_BATCH_BYTES: Final = 1 << 20
_DEADLINE_MS: Final = 5_000.0
_AGAIN_S: Final = 2.0


class EventSaving:
    """Saves what the store has not got. A failure is no event: it would be one more to be saved.

    problem: why the last batch was not saved, or None.
    """

    def __init__(self, events: EventLog, asking: Asking, fleet: Fleet) -> None:
        self._events = events
        self._asking = asking
        self._fleet = fleet
        self._under_way = 0  # the number up to which events are being saved, 0 = none are
        self._not_before = 0.0
        self.problem: str | None = None

    def tend(self, now: float) -> None:
        """Send the next batch if there is one. About twice a second, so that a commit is for many events."""
        events = self._events
        if self._under_way or events.saved >= events.last or now < self._not_before:
            return
        if self._fleet.internal_state(SERVICES) != "ready":  # it is not started for this
            return
        batch = events.read(events.saved, _BATCH_EVENTS, _BATCH_BYTES)
        self._under_way = batch[-1].seq
        self._asking.ask(
            OPERATION, encode_value([list(event) for event in batch]), self._ended, now, deadline_ms=_DEADLINE_MS
        )

    def _ended(self, reply: Reply, now: float) -> None:
        upto, self._under_way = self._under_way, 0
        if reply.status == OK:
            self._events.saved = upto
            self.problem = None
            self.tend(now)
        else:
            self.problem = decode_error(reply.payload or b"").message
            self._not_before = now + _AGAIN_S

    def state(self) -> dict[str, Any]:
        """Return what `stats` shows of the event log."""
        events = self._events
        return {
            "first": events.first,
            "last": events.last,
            "saved": events.saved,
            "kept": len(events),
            "problem": self.problem,
        }
