"""Simulated time: what is due when. It jumps from one thing to the next."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any


class Clock:
    """Things to do, by time; those of one time in the order in which they were asked for. Seconds."""

    __slots__ = ("_due", "_order", "now")

    def __init__(self, now: float) -> None:
        self.now = now
        self._due: list[tuple[float, int, Callable[..., object], tuple[Any, ...]]] = []
        self._order = 0

    def at(self, when: float, what: Callable[..., object], *args: Any) -> None:
        """Call `what(*args)` at `when`, at once if that is past."""
        self._order += 1
        heapq.heappush(self._due, (when, self._order, what, args))

    def after(self, delay_s: float, what: Callable[..., object], *args: Any) -> None:
        """Call `what(*args)` in `delay_s`."""
        self._order += 1
        heapq.heappush(self._due, (self.now + delay_s, self._order, what, args))

    def next_due(self) -> float | None:
        """Return when the next thing is due, or None."""
        return self._due[0][0] if self._due else None

    def do_next(self) -> None:
        """Jump to the next thing and do it."""
        when, _, what, args = heapq.heappop(self._due)
        if when > self.now:
            self.now = when
        what(*args)
