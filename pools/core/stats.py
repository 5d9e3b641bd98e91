"""Counters and latency of one pool; histograms with bounded memory."""

from __future__ import annotations

import math
from typing import Final

_PER_OCTAVE: Final = 8  # buckets per doubling: 9 % wide
_BUCKETS: Final = 256
_LOWEST_MS: Final = 0.001
_WINDOW_S: Final = 60.0


class Histogram:
    """Recent latencies in log-spaced buckets: the last one to two minutes, 256 counters each."""

    __slots__ = ("_current", "_previous", "_rotate_at")

    def __init__(self) -> None:
        self._current = [0] * _BUCKETS
        self._previous = [0] * _BUCKETS
        self._rotate_at = 0.0

    def add(self, value_ms: float, *, now: float) -> None:
        """Count one latency."""
        if now >= self._rotate_at:
            self._rotate(now)
        index = int(math.log2(value_ms / _LOWEST_MS) * _PER_OCTAVE) if value_ms > _LOWEST_MS else 0
        self._current[index if index < _BUCKETS else _BUCKETS - 1] += 1

    def _rotate(self, now: float) -> None:
        idle = now >= self._rotate_at + _WINDOW_S
        self._previous = [0] * _BUCKETS if idle else self._current
        self._current = [0] * _BUCKETS
        self._rotate_at = now + _WINDOW_S

    def quantile_ms(self, q: float) -> float | None:
        """Return the q-quantile in milliseconds (the upper edge of its bucket), or None without samples."""
        total = sum(self._current) + sum(self._previous)
        if not total:
            return None
        rank = q * total
        seen = 0
        for index, (a, b) in enumerate(zip(self._current, self._previous, strict=True)):
            seen += a + b
            if seen >= rank:
                return round(_LOWEST_MS * math.exp2((index + 1) / _PER_OCTAVE), 3)
        return None
