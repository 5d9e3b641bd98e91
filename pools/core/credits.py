"""How much a worker is handed early: prefetch by the operation's median run time."""

from __future__ import annotations

from typing import Final

PREFETCH_MIN: Final = 2
PREFETCH_MAX: Final = 256
SLOW_MS: Final = 20.0
_EARLY_MS: Final = 64.0
_HAND_MS: Final = 0.5
_HAND_MAX: Final = 32
_SAMPLES: Final = 16
# Operation names come from callers: the table must not grow with them.
_MAX_OPERATIONS: Final = 1024


class RunTimes:
    """A moving median of one operation's run time, from batches of 16 samples (fewer at the start)."""

    __slots__ = ("_due", "_samples", "hand", "median_ms", "outcomes", "prefetch")

    def __init__(self) -> None:
        self.median_ms: float | None = None
        self.prefetch = PREFETCH_MIN
        self.hand = 1
        self.outcomes = 0  # requests that ended well or badly: what its breaker counts (see `breakers`)
        self._samples: list[float] = []
        self._due = 1

    def add(self, run_ms: float) -> None:
        """Count one run of one row, in milliseconds."""
        samples = self._samples
        samples.append(run_ms)
        if len(samples) >= self._due:
            samples.sort()
            self.median_ms = median = samples[len(samples) // 2]
            self.prefetch = prefetch_for(median)
            self.hand = hand_for(median)
            if self._due < _SAMPLES:
                self._due *= 2
            else:
                samples.clear()


def prefetch_for(median_ms: float) -> int:
    """Return how many requests beyond its slots a worker is handed: about 64 ms of work.

    So 2 above 20 ms, 64 at 1 ms, and 256 below 0.25 ms: what takes microseconds is worth handing over by the frame.
    """
    if median_ms >= SLOW_MS:
        return PREFETCH_MIN
    return max(PREFETCH_MIN, min(PREFETCH_MAX, int(_EARLY_MS / max(median_ms, _EARLY_MS / PREFETCH_MAX))))


def hand_for(median_ms: float) -> int:
    """Return how many requests go to one worker in a row: about half a millisecond of work."""
    return max(1, min(_HAND_MAX, int(_HAND_MS / max(median_ms, _HAND_MS / _HAND_MAX))))


class Credits:
    """The run times of one pool's operations."""

    def __init__(self) -> None:
        self._operations: dict[str, RunTimes] = {}

    def of(self, operation: str) -> RunTimes:
        """Return the record of an operation, made on first use; the oldest is dropped beyond 1,024."""
        times = self._operations.get(operation)
        if times is None:
            if len(self._operations) >= _MAX_OPERATIONS:
                del self._operations[next(iter(self._operations))]
            times = self._operations[operation] = RunTimes()
        return times

    def outcomes(self, operation: str) -> int:
        """Return how many outcomes of an operation were counted; 0 without a record."""
        times = self._operations.get(operation)
        return times.outcomes if times is not None else 0
