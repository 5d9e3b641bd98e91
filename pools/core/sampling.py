"""Telling of what may happen any number of times."""

from __future__ import annotations


class Sample:
    """Lets `burst` be told at once and then `each_s` a second (a token bucket), and counts the rest."""

    def __init__(self, burst: int, each_s: float) -> None:
        self._burst = float(burst)
        self._each_s = each_s
        self._left = self._burst
        self._filled_at = 0.0
        self._untold = 0

    def take(self, now: float) -> bool:
        """Return whether this one is to be told; if not, it is counted."""
        if now > self._filled_at:
            self._left = min(self._burst, self._left + (now - self._filled_at) * self._each_s)
            self._filled_at = now
        if self._left < 1.0:
            self._untold += 1
            return False
        self._left -= 1.0
        return True

    def untold(self) -> int:
        """Return how many were not told since this was asked last."""
        untold, self._untold = self._untold, 0
        return untold
