"""The event log in the services process: the coordinator saves it here, and reads from here what is older."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Final

from bridge.protocol.errors import INVALID_REQUEST, BridgeError
from bridge.worker import arguments
from bridge.worker.call import Call
from orchestrator.services.store import EventRow, Store

# How many are kept, and how many more there may be before the oldest go.
RETENTION: Final = 100_000
_TRIM_EACH: Final = 2_000
_MAX_ROWS: Final = 1_000
_ANSWER_CHARS: Final = 1 << 20


class Events:
    """Operations `events.save`, which the coordinator alone may ask, and `events.read`. Thread-safe.

    keeper: returns the store, or raises StorageError. retention: how many events are kept.
    """

    def __init__(self, keeper: Callable[[], Store], *, retention: int = RETENTION) -> None:
        self._keeper = keeper
        self._retention = retention
        self._lock = threading.Lock()
        self._untrimmed = _TRIM_EACH  # looked at with the first batch

    def operations(self) -> dict[str, Any]:
        """Return what can be asked here."""
        return {"events.save": self._save, "events.read": self._read}

    def sync(self, store: Store) -> None:
        """Nothing: the coordinator knows what it has saved, and whoever saves twice saves once."""

    def _save(self, args: Any, call: Call) -> dict[str, Any]:
        """Operation `events.save [[seq, at, event, level, fields], …]`: they are on the disk when this returns."""
        rows = [EventRow(*row) for row in args]
        events = self._keeper().events
        events.append(rows)
        with self._lock:
            self._untrimmed += len(rows)
            due = self._untrimmed >= _TRIM_EACH
            if due:
                self._untrimmed = 0
        if due:
            events.trim(self._retention)
        return {"saved": rows[-1].seq if rows else 0}

    def _read(self, args: Any, call: Call) -> dict[str, Any]:
        """Operation `events.read {after, before, limit}`: {events, more}, those between two numbers, in order.

        before: 0 = all behind `after`. limit: 1,000 at most. more: whether there are others behind these.
        """
        given = arguments.read(args, "events.read", optional=("after", "before", "limit"))
        after, before, limit = (_number(given, name) for name in ("after", "before", "limit"))
        limit = min(limit or _MAX_ROWS, _MAX_ROWS)
        found = self._keeper().events.read(after, limit)
        more = len(found) == limit
        events: list[EventRow] = []
        size = 0
        for row in found:
            if before and row.seq >= before:
                more = False
                break
            size += len(str(row.fields))
            if events and size > _ANSWER_CHARS:
                more = True
                break
            events.append(row)
        return {"events": events, "more": more}


def _number(given: dict[str, Any], name: str) -> int:
    value = given.get(name, 0)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 63:
        raise BridgeError(INVALID_REQUEST, f"{name}: no number from 0 on", details={"path": name})
    return value
