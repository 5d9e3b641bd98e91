"""Latency and demand of one pool, with bounded memory."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from itertools import accumulate
from typing import Final

_PER_OCTAVE: Final = 16  # buckets per doubling, equally wide: 3 to 6 % of their values
_PER_MANTISSA: Final = 2 * _PER_OCTAVE
_BUCKETS: Final = 512
_LOWEST_MS: Final = 0.001
_PER_MS: Final = 1.0 / _LOWEST_MS
_WINDOW_S: Final = 60.0


class Histogram:
    """Recent latencies in buckets of 3 to 6 %: the last one to two minutes, 512 counters each."""

    __slots__ = ("_current", "_previous", "_rotate_at")

    def __init__(self) -> None:
        self._current = [0] * _BUCKETS
        self._previous = [0] * _BUCKETS
        self._rotate_at = 0.0

    def add(self, value_ms: float, *, now: float) -> None:
        """Count one latency."""
        if now >= self._rotate_at:
            self._rotate(now)
        # value = mantissa * 2**exponent with a mantissa from 0.5 to 1: equal steps of it per octave.
        mantissa, exponent = math.frexp(value_ms * _PER_MS)
        index = exponent * _PER_OCTAVE + int(mantissa * _PER_MANTISSA) - _PER_MANTISSA
        self._current[0 if index < 0 else index if index < _BUCKETS else _BUCKETS - 1] += 1

    def _rotate(self, now: float) -> None:
        idle = now >= self._rotate_at + _WINDOW_S
        self._previous = [0] * _BUCKETS if idle else self._current
        self._current = [0] * _BUCKETS
        self._rotate_at = now + _WINDOW_S

    def quantile_ms(self, q: float) -> float | None:
        """Return the q-quantile in milliseconds (the upper edge of its bucket), or None without samples."""
        return quantile_ms([self], q)

    @property
    def counts(self) -> tuple[list[int], list[int]]:
        """The buckets of the current minute and of the one before."""
        return self._current, self._previous


def quantile_ms(histograms: Sequence[Histogram], q: float) -> float | None:
    """Return the q-quantile of all that these have counted, as `Histogram.quantile_ms` does."""
    merged = list(map(sum, zip(*(each for one in histograms for each in one.counts), strict=True)))
    total = sum(merged)
    if not total:
        return None
    rank = q * total
    index = next(index for index, seen in enumerate(accumulate(merged)) if seen >= rank)
    octave, step = divmod(index + 1, _PER_OCTAVE)
    return round(math.ldexp(_LOWEST_MS * (1.0 + step / _PER_OCTAVE), octave), 3)


class RecentPeak:
    """The highest of the values of the last minute, exactly: those that a later one has not outdone, highest first."""

    __slots__ = ("_peaks",)

    def __init__(self) -> None:
        self._peaks: deque[tuple[float, int]] = deque()

    def add(self, value: int, *, now: float) -> int:
        """Take a value; return the highest of the last 60 s."""
        peaks = self._peaks
        while peaks and (peaks[-1][1] <= value):
            peaks.pop()
        peaks.append((now, value))
        while peaks[0][0] <= now - _WINDOW_S:
            peaks.popleft()
        return peaks[0][1]


class Pace:
    """How fast a pool settles, by the second. rows_per_s: None unless something waited all the time."""

    __slots__ = ("_at", "_refused", "_settled", "_waited", "refused_per_s", "rows_per_s")

    def __init__(self) -> None:
        self.rows_per_s: float | None = None
        self.refused_per_s = 0.0
        self._at: float | None = None
        self._settled = 0
        self._refused = 0
        self._waited = False

    def mark(self, settled: int, refused: int, *, waits: bool, now: float) -> None:
        """Take the counts of rows so far, and whether any wait now."""
        if self._at is not None and now > self._at:
            passed_s = now - self._at
            rows_per_s = (settled - self._settled) / passed_s
            self.rows_per_s = rows_per_s if rows_per_s > 0.0 and waits and self._waited else None
            self.refused_per_s = (refused - self._refused) / passed_s
        self._at, self._settled, self._refused, self._waited = now, settled, refused, waits
