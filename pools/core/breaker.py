"""One circuit breaker: closed, open, half_open. Pure; who counts what, and what is refused, is in `breakers`.

After Nygard, Release It! (2007), with the sliding window of counts of resilience4j, and probes that cannot be lost:
each holds a lease, and a lease ends.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final

from pools.config import BreakerConfig

CLOSED: Final = "closed"
OPEN: Final = "open"
HALF_OPEN: Final = "half_open"
# A probe that has not ended by then is given up: others are let through. If it ends well after all, that counts.
PROBE_S: Final = 30.0
# What a caller is told to wait at least, where only a probe's end is waited for.
_SOON_S: Final = 0.05


class Breaker:
    """Whether requests of one kind are let through, by how those before ended.

    Outcomes are counted by the caller, which costs an increment each; the breaker is told of failures alone, with the
    count that includes them: those within the last `window` have a count above `outcomes - window`. So it is looked at
    whether it is to open when something fails, and at no other time.

    operations: it opens only when so many different operations are among the failures.
    opened_at: when it opened last. What was accepted then or before has no say any more: the caller sees to that.
    """

    __slots__ = ("_base", "_config", "_counts", "_failures", "_leases", "_operations", "_state", "opened_at", "opens")

    def __init__(self, config: BreakerConfig, *, operations: int = 1) -> None:
        self._config = config
        self._operations = operations
        self._state = CLOSED
        self._failures: deque[tuple[int, str]] = deque()  # (count, operation), oldest first
        self._base = 0  # the count from which on outcomes are looked at
        self._counts = (0, 0)  # failures and outcomes, as it opened
        self._leases: dict[int, float] = {}  # request id -> when its probe is given up
        self.opened_at = -math.inf
        self.opens = 0

    @property
    def tripped(self) -> bool:
        """Whether it is not closed."""
        return self._state != CLOSED

    def state(self, now: float) -> str:
        """Return closed, open or half_open; it is half open from the moment on when it would let a probe through."""
        if self._state == OPEN and now >= self.opened_at + self._config.open_s:
            return HALF_OPEN
        return self._state

    def counts(self, outcomes: int) -> tuple[int, int]:
        """Return failures and outcomes: in the window, or those that opened it."""
        if self.tripped:
            return self._counts
        self._forget(outcomes)
        return len(self._failures), min(outcomes - self._base, self._config.window)

    def wait_s(self, now: float) -> float | None:
        """Return None if a request is let through, else after how many seconds it is worth asking again."""
        if self._state == CLOSED:
            return None
        left_s = self.opened_at + self._config.open_s - now
        if left_s > 0:
            return left_s
        leases = self._leases
        for request_id in [request_id for request_id, until in leases.items() if until <= now]:
            del leases[request_id]
        if len(leases) < self._config.probes:
            return None
        return min(max(min(leases.values()) - now, _SOON_S), self._config.open_s)

    def lease(self, request_id: int, deadline: float | None, now: float) -> bool:
        """Let a request through as a probe, if there is need of one. Return whether it is the first since it opened."""
        if self._state == CLOSED:
            return False
        first = self._state == OPEN
        self._state = HALF_OPEN
        self._leases[request_id] = now + PROBE_S if deadline is None else min(deadline, now + PROBE_S)
        return first

    def release(self, request_id: int) -> None:
        """A request ended: if it was a probe, another may take its place."""
        self._leases.pop(request_id, None)

    def failed(self, outcomes: int, operation: str, now: float) -> bool:
        """Take a failure of what was accepted after `opened_at`. Return whether the breaker opened."""
        if self._state == CLOSED:
            self._forget(outcomes - 1)
            self._failures.append((outcomes, operation))
            counts = self.counts(outcomes)
            if not self._is_enough(*counts):
                return False
            self._counts = counts
        elif self._state == OPEN:
            return False
        self._state = OPEN
        self.opened_at = now
        self.opens += 1
        self._leases.clear()
        return True

    def succeeded(self, outcomes: int) -> bool:
        """Take a success of what was accepted after `opened_at`. Return whether that closed the breaker."""
        if self._state == CLOSED:
            return False
        self._state = CLOSED
        self._base = outcomes
        self._failures.clear()
        self._leases.clear()
        return True

    def _is_enough(self, failures: int, outcomes: int) -> bool:
        config = self._config
        return (
            outcomes >= config.min_calls
            and failures >= config.failure_rate * outcomes
            and len({operation for _, operation in self._failures}) >= self._operations
        )

    def _forget(self, outcomes: int) -> None:
        """Forget the failures that have left the window, and all of them when the caller's count has begun anew."""
        failures = self._failures
        if outcomes < self._base or (failures and failures[-1][0] > outcomes):
            self._base = 0
            failures.clear()
        while failures and failures[0][0] <= outcomes - self._config.window:
            failures.popleft()
