"""What must hold of modes: they come when a signal has held for a while, go when all are over, let in what they may."""

from __future__ import annotations

from typing import Any, Final

from bridge.protocol import messages as wire
from pools.config import DegradationConfig
from tests.sim.ledger import Case, Ledger
from tests.sim.step import broken

NORMAL: Final = "normal"
# A signal is over below this part of its threshold.
_OVER_BELOW: Final = 0.9
# Signals are looked at each second; so late at most is a mode.
_LATE_S: Final = 2.2
# After so long without a tick the coordinator may have stood still, and looks late.
_STILL_S: Final = 0.6
# The part of a queue that may be filled, by mode and class, where it is not all of it; 0 = where nothing waits.
_SHARES: Final = {
    ("degraded", wire.PRIORITY_LOW): 0.5,
    ("critical", wire.PRIORITY_NORMAL): 0.5,
    ("critical", wire.PRIORITY_LOW): 0.0,
}

# So many nested rows may wait beyond a queue, or as many as it takes if that is more.
_RESERVE_ROWS: Final = 1024


class Modes:
    """Watches the mode of one history.

    held_since: since when each signal has been beyond its threshold. over_since: since when all have been below what
    ends them.
    """

    def __init__(self, ledger: Ledger, tables: Any) -> None:
        self._ledger = ledger
        self._tables = tables
        self._held_since: dict[str, float] = {}
        self._over_since = 0.0
        self._ticked_at = 0.0

    def room(self, case: Case) -> int:
        """Return how many rows may wait in its pool where a case of its class is let in."""
        share = _SHARES.get((self._tables.modes.mode, case.priority), 1.0)
        queue = self._ledger.pools[case.pool].max_queue
        return int(share * queue) + (max(_RESERVE_ROWS, queue) if case.parent else 0)

    def ticked(self, now: float) -> None:
        """Check the mode after a tick: at ticks alone the signals are looked at."""
        config = self._ledger.config.degradation
        mode = self._tables.modes.mode
        if config is None:
            if mode != NORMAL:
                broken("modes come for a reason", f"{mode} without a configuration")
            return
        stood_still = now - self._ticked_at > _STILL_S
        self._ticked_at = now
        parts = self._parts(config, now)
        if any(part >= _OVER_BELOW for part in parts.values()) or stood_still:
            self._over_since = now
        for name, part in parts.items():
            if part < 1.0 or stood_still:
                self._held_since[name] = now
        if mode != NORMAL and now - self._over_since > config.hold_s + _LATE_S:
            broken("modes end", f"{mode}, {now - self._over_since:.2f} s after the last signal")
        longest_s = max(now - since for since in self._held_since.values()) if self._held_since else 0.0
        if mode == NORMAL and longest_s > config.hold_s + _LATE_S:
            broken("modes begin", f"{mode}, though {parts} for {longest_s:.2f} s")
        self._ledger.seen[f"mode {mode}"] += 1

    def _parts(self, config: DegradationConfig, now: float) -> dict[str, float]:
        """Return each signal as a part of its threshold."""
        pools = self._tables.pools.values()
        waits = any(pool.queue for pool in pools)
        limits = {name: pool.max_queue for name, pool in self._ledger.pools.items() if pool.max_queue}
        full = max((self._ledger.taken_rows(name) / limit for name, limit in limits.items()), default=0.0)
        is_open = any("" in pool.breakers and pool.breakers[""].state(now) == "open" for pool in pools)
        return {
            "cpu": (self._ledger.cpu_used if waits else 0.0) / config.cpu,
            "memory": self._ledger.memory_used / config.memory,
            "queue": full / config.queue,
            "breaker": float(is_open),
        }
