"""When a worker that ended is started again.

After OTP's restart intensity: at once while the pool stays within `max_restarts` in `window_s`. Beyond it dspool
waits instead of giving up, doubling with jitter, because the pool's other workers still serve. A boot failure is its
own kind: the next try would fail too, so it waits from the first. Which ends call for a restart at all is the pool's
restart type, OTP's too: permanent, transient, temporary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from pools.config import RestartConfig


class RestartPolicy:
    """The restarts of one pool. `random` returns [0, 1): the jitter."""

    def __init__(self, config: RestartConfig, random: Callable[[], float]) -> None:
        self._config = config
        self._random = random
        self._recent: deque[float] = deque()
        self._waits = 0  # consecutive delayed restarts
        self.count = 0
        self.failed_boots = 0  # in a row

    def restarts(self, *, normal: bool) -> bool:
        """Return whether a worker that ended is started again. normal: it left by itself, with exit code 0."""
        kind = self._config.type
        return kind == "permanent" or (kind == "transient" and not normal)

    def crashed(self, *, now: float) -> float:
        """Count a restart after a crash; return the seconds to wait before it."""
        self.count += 1
        if self._within_intensity(now):
            self._recent.append(now)
            self._waits = 0
            return 0.0
        return self._backoff()

    def boot_failed(self) -> float:
        """Count a restart after a failed boot; return the seconds to wait before it."""
        self.count += 1
        self.failed_boots += 1
        return self._backoff()

    def recovered(self, *, now: float) -> None:
        """Forget the backoff of failed boots: a worker became ready. A crash loop of ready workers keeps its own."""
        self.failed_boots = 0
        if self._within_intensity(now):
            self._waits = 0

    def is_exhausted(self, *, now: float) -> bool:
        """Return whether the pool has used up the restarts that are made at once."""
        return self._config.max_restarts > 0 and not self._within_intensity(now)

    def _within_intensity(self, now: float) -> bool:
        recent = self._recent
        while recent and recent[0] <= now - self._config.window_s:
            recent.popleft()
        return len(recent) < self._config.max_restarts

    def _backoff(self) -> float:
        low, high = self._config.backoff_s
        delay = min(high, low * 2.0 ** min(self._waits, 60))
        self._waits += 1
        # Half to full: never much sooner than meant, never in step with another pool.
        return delay * (0.5 + 0.5 * self._random())
