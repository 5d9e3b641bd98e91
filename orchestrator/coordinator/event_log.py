"""The event log: what happens to the fleet, numbered over all runs of a data directory. The newest are kept here.

An event's number is `run << 32 | n`: within a run they follow each other without a gap, so whoever reads them sees
whether one is missing. Each is told to the operator, too, on stderr.
"""

from __future__ import annotations

import bisect
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, Final, NamedTuple

import structlog

from bridge.wallclock import unix_now
from orchestrator.coordinator.run_counter import FILE_NAME, RunCounter

RUN_SHIFT: Final = 32
MAX_EVENTS: Final = 10_000
_MAX_BYTES: Final = 16 << 20
# Of what runs leave to the next one, whether it is in the store or not: what is asked for first.
_TAIL_EVENTS: Final = 1_000

# Of one event's fields: texts longer than this lose their middle, lists their end.
_TEXT_CHARS: Final = 2_000
_TEXT_END_CHARS: Final = 500
_ITEMS: Final = 32
_LEVELS: Final = 4
_EVENT_BYTES: Final = 64
_EXACT_INT: Final = 1 << 53


class Event(NamedTuple):
    """One event. at: seconds since 1970. level: info, warning or error. fields: plain JSON."""

    seq: int
    at: float
    event: str
    level: str
    fields: dict[str, Any]


class EventLog:
    """The events of this run and the last ones of the run before: 10,000 at most, the oldest go first.

    saved: the number up to which the store has them.
    """

    def __init__(self, counter: RunCounter, *, clock: Callable[[], float] = unix_now) -> None:
        self._counter = counter
        self._clock = clock
        self._log = structlog.get_logger("dspool.coordinator")
        self._kept: deque[Event] = deque()
        self._sizes: deque[int] = deque()
        self._bytes = 0
        self.last = counter.number << RUN_SHIFT
        self.saved = 0
        for event in _left_over(counter):
            self._keep(event)

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def run(self) -> int:
        """The number of this run."""
        return self._counter.number

    @property
    def first(self) -> int:
        """The number of the oldest event that is kept here; with none, the one that comes next."""
        return self._kept[0].seq if self._kept else self.last + 1

    def begin(self, **fields: Any) -> None:
        """Take note of the run's begin, and of what may be missing before it."""
        self._add("coordinator_started", "info", {"run": self.run, **fields})
        if self._counter.was_killed:
            before = self._counter.previous
            which = f"run {before}" if before else "an earlier run"
            why = f"{which} did not end in order: its last events were not saved"
            self._add("events_lost", "warning", {"why": why, **({"of_run": before} if before else {})})

    def go_above(self, run: int) -> None:
        """Have this run's number, and those of its events, be above a run's whose events the store has.

        What this data directory has of earlier runs is not told any more: the store has others of these numbers.
        """
        before = self._counter.number
        if run < before:
            return
        self._counter.go_above(run)
        raised_by = (self.run - before) << RUN_SHIFT
        own = [event for event in self._kept if event.seq > before << RUN_SHIFT]
        dropped = len(self._kept) - len(own)
        self._kept.clear()
        self._sizes.clear()
        self._bytes = 0
        self.last += raised_by
        for event in own:
            self._keep(event._replace(seq=event.seq + raised_by))
        why = f"the store has been used by run {run}: {FILE_NAME} is of another data directory, or older"
        self.tell("run_renumbered", "warning", run=self.run, before=before, why=why)
        if dropped:
            self.tell("events_lost", "warning", why=f"{dropped} events of earlier runs have numbers that others have")

    def tell(self, event: str, level: str = "info", /, *, quiet: bool = False, **fields: Any) -> None:
        """Take note of an event. quiet: it is not for the operator's log."""
        if not quiet:
            getattr(self._log, level)(event, **fields)
        self._add(event, level, fields)

    def read(self, after: int, limit: int, max_bytes: int) -> list[Event]:
        """Return the events that are kept here behind number `after`, at least one if there is any."""
        start = bisect.bisect_right(self._kept, after, key=_seq)
        found: list[Event] = []
        size = 0
        for event, event_bytes in islice(zip(self._kept, self._sizes, strict=True), start, start + limit):
            size += event_bytes
            if found and size > max_bytes:
                break
            found.append(event)
        return found

    def end(self, **fields: Any) -> None:
        """Take note of the run's end."""
        self._add("coordinator_stopped", "info", {"run": self.run, **fields})

    def hand_over(self) -> None:
        """Leave to the next run what the store has not got, and the newest events in any case."""
        unsaved = bisect.bisect_right(self._kept, self.saved, key=_seq)
        start = max(0, min(unsaved, len(self._kept) - _TAIL_EVENTS))
        try:
            self._counter.end(list(islice(self._kept, start, None)))
        except OSError as exc:
            self._log.error("events_not_kept", error=str(exc))

    def _add(self, event: str, level: str, fields: Mapping[str, Any]) -> None:
        self.last += 1
        told = {name: plain(value) for name, value in fields.items()}
        self._keep(Event(self.last, round(self._clock(), 3), event, level, told))

    def _keep(self, event: Event) -> None:
        size = _EVENT_BYTES + _size(event.fields)
        self._kept.append(event)
        self._sizes.append(size)
        self._bytes += size
        while len(self._kept) > MAX_EVENTS or self._bytes > _MAX_BYTES:
            self._kept.popleft()
            self._bytes -= self._sizes.popleft()


def _seq(event: Event) -> int:
    return event.seq


def _left_over(counter: RunCounter) -> Iterator[Event]:
    """Yield what the run before left; what is no event of an earlier run is passed over."""
    before = 0
    for seq, at, event, level, fields in counter.tail:
        texts = isinstance(event, str) and isinstance(level, str)
        if type(seq) is int and before < seq < counter.number << RUN_SHIFT and texts and isinstance(fields, dict):
            before = seq
            yield Event(seq, float(at) if isinstance(at, int | float) else 0.0, event, level, plain(fields))


def plain(value: Any, levels: int = _LEVELS) -> Any:
    """Return a value as JSON of a bounded size; what JSON lacks becomes text."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, int) and abs(value) <= _EXACT_INT:
        return int(value)
    if isinstance(value, float) and math.isfinite(value):
        return float(value)
    if levels and isinstance(value, Mapping):
        return {_text(str(name)): plain(item, levels - 1) for name, item in _some(value.items())}
    if levels and isinstance(value, list | tuple | set | frozenset):
        return [plain(item, levels - 1) for item in _some(value)]
    return _text(str(value))


def _some(items: Iterable[Any]) -> list[Any]:
    return list(islice(items, _ITEMS))


def _text(text: str) -> str:
    """Return a text that every store takes: not too long, no NUL, no lone surrogate."""
    if len(text) > _TEXT_CHARS:
        text = f"{text[: _TEXT_CHARS - _TEXT_END_CHARS]} … {text[-_TEXT_END_CHARS:]}"
    if text.isascii():
        return text.replace("\0", "?")
    return text.replace("\0", "?").encode("utf-8", "replace").decode("utf-8")


def _size(value: Any) -> int:
    """Return about how many bytes a plain value takes."""
    if isinstance(value, str):
        return 8 + len(value)
    if isinstance(value, dict):
        return 8 + sum(len(name) + _size(item) for name, item in value.items())
    if isinstance(value, list):
        return 8 + sum(map(_size, value))
    return 8
