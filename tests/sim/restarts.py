"""What must hold of launches: one worker in a place, restarts within the intensity or after a backoff."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, Final

from tests.sim.ledger import Broken, Desk, Ledger

_EPSILON_S: Final = 1e-6
# A backoff is jittered from half of what is meant.
_JITTER: Final = 0.5


class Restarts:
    """The launches of one history, by place."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._latest: dict[str, Desk] = {}
        self._ended: dict[str, tuple[float, bool, bool]] = {}  # by place: when, whether it had booted, intended
        self._at_once: dict[str, list[float]] = defaultdict(list)
        self._booted: set[str] = set()
        self._healed: dict[str, float] = {}  # by pool: when a worker was last ready

    def ready(self, desk: Desk, now: float) -> None:
        """A worker became ready."""
        self._booted.add(desk.worker_id)
        self._healed[desk.pool] = now

    def is_latest(self, desk: Desk) -> bool:
        """Whether nobody was launched at its place after it."""
        return self._latest.get(desk.place) is desk

    def exited(self, desk: Desk, *, intended: bool, now: float) -> None:
        """A worker is gone that was in service, or about to be."""
        self._ended[desk.place] = (now, desk.worker_id in self._booted, intended)

    def launched(self, desk: Desk, tables: Any, *, asked: bool, now: float) -> None:
        """Check a launch against the life before it. asked: an operator's wish led to it."""
        before = self._latest.get(desk.place)
        self._latest[desk.place] = desk
        if before is None:
            return
        if not before.exited:
            self._check_spare(desk, before, tables)
            return
        ended_at, booted, intended = self._ended.get(desk.place, (now, True, True))
        if asked or intended or _is_asked_spare(desk, tables):
            return
        config = self._ledger.pools[desk.pool].restart
        if now - ended_at >= config.backoff_s[0] * _JITTER - _EPSILON_S:
            return
        if self._healed.get(desk.pool) == now:
            return  # the pool's first worker in a while is ready: all its places are tried again
        if not booted:
            raise Broken("a failed boot waits", f"{desk.worker_id} after {now - ended_at:.3f} s")
        recent = [at for at in self._at_once[desk.pool] if at > now - config.window_s]
        if len(recent) >= config.max_restarts:
            raise Broken("restarts within the intensity", f"{desk.worker_id}: {len(recent)} before it")
        recent.append(now)
        self._at_once[desk.pool] = recent

    def _check_spare(self, desk: Desk, before: Desk, tables: Any) -> None:
        """A worker comes beside another only as its spare, or when that one leaves."""
        succession = tables.pools[desk.pool].succession
        old = tables.workers[before.worker_id]
        is_spare = succession is not None and succession.spare.worker_id == desk.worker_id
        if not is_spare and not old.stop_wanted and not old.kill_why:
            raise Broken("one worker in a place", f"{desk.worker_id} beside {before.worker_id}")


def _is_asked_spare(desk: Desk, tables: Any) -> bool:
    """Whether an operator asked for it as a spare. One that fails ends the restart: the next was asked for again."""
    succession = tables.pools[desk.pool].succession
    is_spare = succession is not None and succession.spare.worker_id == desk.worker_id
    return is_spare and succession.wish.why == "restarted"
