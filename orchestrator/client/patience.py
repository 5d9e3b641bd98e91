"""How long a map waits with rows that the coordinator has refused for now, and when it sends them again."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

from orchestrator.errors import CircuitOpen, Overloaded

# How long rows without a deadline are sent again and again while no row at all is answered.
PATIENCE_S: Final = 60.0
LEAST_WAIT_S: Final = 0.05
# Waits are longer than they must be by up to this part: many clients are refused, and would be back, at one time.
_JITTER: Final = 0.1


class Patience:
    """That of one map. until: when it may send again (monotonic), None = now. Nobody sleeps in here."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.until: float | None = None
        self._clock = clock
        self._in_vain_since: float | None = None  # the first refusal since a row was answered
        self._breaker = False  # whether a breaker was met: it says exactly when it lets something through again

    def answered(self) -> None:
        """Take note that rows were answered."""
        self._in_vain_since = None

    def hurry(self) -> None:
        """Wait no longer than the least, if a full queue is what is waited for: its state has changed."""
        if self.until is not None and not self._breaker:
            self.until = min(self.until, self._clock() + LEAST_WAIT_S * (1.0 + _JITTER * random.random()))

    def refused(self, error: Overloaded | CircuitOpen, deadline: float | None) -> bool:
        """Take note that rows were refused. Return whether they are to be sent again, which is when `until` is over.

        deadline: that of the rows, monotonic. They are not kept waiting for a time that lies beyond it.
        """
        now = self._clock()
        if self._in_vain_since is None:
            self._in_vain_since = now
        wait_s = max(error.retry_after_s or 0.0, LEAST_WAIT_S)
        at = now + wait_s * (1.0 + _JITTER * random.random())
        if deadline is None:
            end = self._in_vain_since + PATIENCE_S
            at = min(at, end)
            goes_on = now < end
        else:
            goes_on = at < deadline
        if goes_on:
            self._breaker = isinstance(error, CircuitOpen) or (self._breaker and self.until is not None)
            self.until = at if self.until is None else max(at, self.until)
        return goes_on

    def over(self) -> bool:
        """Return whether the wait is over, if there was one."""
        if self.until is not None and self._clock() >= self.until:
            self.until = None
        return self.until is None
