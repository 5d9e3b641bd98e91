"""The event log as clients read it: where a reader is, what it asks for next, and what is missing."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from bridge.wallclock import unix_now
from orchestrator.client.request import Call
from orchestrator.errors import Cancelled, DspoolError, InvalidRequest

# How long one question waits for the next event, and how much longer for its answer.
_WAIT_S: Final = 20.0
_ANSWER_S: Final = 10.0
_ROWS: Final = 500
# While the services process comes back, what is in the store cannot be read: asked again, so often, so long.
_AGAIN_S: Final = 0.25
_PATIENCE_S: Final = 10.0
_RUN_SHIFT: Final = 32


@dataclass(frozen=True, slots=True)
class FleetEvent:
    """Something that happened to the fleet.

    seq: its number, which grows over all runs of a coordinator's data directory. at: seconds since 1970. event: what
    happened. level: info, warning or error. fields: plain JSON, by the event.

    The event `events_lost` says that before this number some are missing, and `why`.
    """

    seq: int
    at: float
    event: str
    level: str
    fields: dict[str, Any] = field(default_factory=dict)


class Reading:
    """A reader of the event log: what it asks, and what it has got of the answers. Waits for nothing itself.

    after: the number of the last event that it knows; 0 = it wants all that are kept. follow: it also wants what
    happens from now on; else it is `over` when it has what there is. pause_s: how long to wait before it asks again.
    """

    def __init__(self, after: int, *, follow: bool) -> None:
        if not isinstance(after, int) or isinstance(after, bool) or not 0 <= after < 1 << 63:
            raise InvalidRequest(f"after must be the number of an event, or 0, got {after!r}", path="after")
        self._after = after
        self._follow = follow
        self._from = after  # where the coordinator's own events begin to be asked for
        self._before = 0  # events of the store up to here are read first; 0 = none are
        self._unserved_since: float | None = None
        self.pause_s = 0.0
        self.over = False

    def ask(self) -> Call[Any]:
        """Return the next question."""
        if self._before:
            older = {"after": self._after, "before": self._before, "limit": _ROWS}
            return Call("events.read", older, deadline_s=_PATIENCE_S)
        wait_s = _WAIT_S if self._follow else 0.0
        newer = {"after": self._from, "limit": _ROWS, "wait_s": wait_s}
        return Call("dspool.events", newer, deadline_s=wait_s + _ANSWER_S)

    def take(self, answer: dict[str, Any]) -> list[FleetEvent]:
        """Return the events of an answer."""
        self.pause_s, self._unserved_since = 0.0, None
        if self._before:
            events = list(self._in_order(answer["events"]))
            if not answer["more"]:
                self._from, self._before = max(self._after, self._before - 1), 0
            return events
        lost = []
        if answer["unknown"]:
            why = f"number {self._after} is of another data directory: events begin anew"
            lost.append(_lost(answer["first"] - 1, unix_now(), why))
            self._after = self._from = 0
        if answer["older"]:
            self._before = answer["first"]
            return lost
        events = list(self._in_order(answer["events"]))
        self._from = max(self._from, self._after)
        self.over = not self._follow and self._from >= answer["last"]
        return lost + events

    def failed(self, error: DspoolError, *, ended: bool) -> list[FleetEvent]:
        """Take note that a question was not answered. Raises the error unless there is a way on.

        A store that cannot be read keeps nobody from the events that are not in it: what is there is lost. ended:
        whether the connection is.
        """
        if not self._before or ended or isinstance(error, Cancelled):
            raise error
        now = time.monotonic()
        self._unserved_since = self._unserved_since or now
        if error.retryable and now < self._unserved_since + _PATIENCE_S:
            self.pause_s = _AGAIN_S
            return []
        self.pause_s, self._unserved_since = 0.0, None
        lost = _lost(self._before - 1, unix_now(), f"the store cannot be read: {error.message}")
        # What is told to be lost is not looked for again, nor told once more.
        self._after = self._from = self._before - 1
        self._before = 0
        return [lost]

    def _in_order(self, rows: Iterable[Any]) -> Iterator[FleetEvent]:
        for seq, at, event, level, fields in rows:
            if seq <= self._after:
                continue  # it was read already
            if self._after and not _follows(self._after, seq):
                yield _lost(seq - 1, at, f"events between {self._after} and {seq} are not kept any more")
            self._after = seq
            yield FleetEvent(seq, at, event, level, dict(fields))


def _follows(before: int, seq: int) -> bool:
    """Whether no event is between two numbers: they count on within a run, and from 1 in the next one."""
    run, number = divmod(seq, 1 << _RUN_SHIFT)
    return seq == before + 1 or (number == 1 and run == (before >> _RUN_SHIFT) + 1)


def _lost(seq: int, at: float, why: str) -> FleetEvent:
    return FleetEvent(seq, at, "events_lost", "warning", {"why": why})
