"""Deadlines in O(1): buckets of equal width, a heap of the buckets that hold something.

After the hashed timing wheels of Varghese and Lauck (1987): nearly every deadline is removed before it is due, so
removal must be as cheap as insertion and leave nothing behind.
"""

from __future__ import annotations

import heapq
from typing import Final, Generic, TypeVar

T = TypeVar("T")

# An expired deadline is noticed at most this much late.
WIDTH_S: Final = 0.02
_PER_S: Final = 1.0 / WIDTH_S
# Emptied buckets that may stay in the heap beyond as many as are in use, before it is made anew.
_SPARE: Final = 128


class Deadlines(Generic[T]):
    """A set of (key, deadline). Deadlines are absolute seconds of the fleet's clock."""

    def __init__(self) -> None:
        self._buckets: dict[int, dict[T, None]] = {}
        self._heap: list[int] = []

    def __len__(self) -> int:
        return sum(map(len, self._buckets.values()))

    def add(self, key: T, deadline: float) -> int:
        """Add a key; return the bucket, which `discard` wants back."""
        bucket = int(deadline * _PER_S) + 1
        keys = self._buckets.get(bucket)
        if keys is None:
            keys = self._buckets[bucket] = {}
            heapq.heappush(self._heap, bucket)
            if len(self._heap) > 2 * len(self._buckets) + _SPARE:
                self._heap = sorted(self._buckets)  # a sorted list is a heap
        keys[key] = None
        return bucket

    def discard(self, key: T, bucket: int) -> None:
        """Remove a key if it is still there."""
        keys = self._buckets.get(bucket)
        if keys is not None:
            keys.pop(key, None)
            if not keys:
                del self._buckets[bucket]

    def next_due(self) -> float | None:
        """Return when the earliest bucket is due, or None."""
        heap = self._heap
        while heap and heap[0] not in self._buckets:
            heapq.heappop(heap)
        return heap[0] * WIDTH_S if heap else None

    def pop_due(self, now: float) -> list[T]:
        """Remove and return every key whose bucket is due, earliest first."""
        due: list[T] = []
        while (at := self.next_due()) is not None and at <= now:
            due.extend(self._buckets.pop(heapq.heappop(self._heap)))
        return due
