"""What must hold of ends that the fleet brings about: for cause, with intent, and when the grace period is over."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from pools.core.tables import LATE_S
from tests.sim.ledger import Case, Desk, Ledger
from tests.sim.step import broken

# A kill comes at the first tick after the grace period, and may be announced a moment before.
KILL_LATE_S: Final = 0.5
_EPSILON_S: Final = 1e-6


class Kills:
    """The workers that were asked to stop an attempt, and by when they must have. has_unread: see `Shell`."""

    def __init__(self, ledger: Ledger, tables: Any, has_unread: Callable[[Desk, int], bool]) -> None:
        self.ledger = ledger
        self.tables = tables
        self._has_unread = has_unread
        self._stops: list[tuple[float, Desk, int]] = []
        self._unheard: list[tuple[float, Desk, int]] = []

    def asked(self, desk: Desk, epoch: int, now: float) -> None:
        """A worker was asked to stop an attempt that nobody waits for, or that is cancelled by force."""
        stop = now + self.ledger.pools[desk.pool].grace_s, desk, epoch
        self._stops.append(stop)
        self._unheard.append(stop)

    def deaf(self, now: float) -> list[Case]:
        """Return the cases whose grace period is over, and whose worker still holds them; each is returned once."""
        over = [stop for stop in self._unheard if stop[0] <= now] if self._unheard else []
        if not over:
            return []
        self._unheard = [stop for stop in self._unheard if stop[0] > now]
        return [desk.attempts[epoch] for _, desk, epoch in over if epoch in desk.attempts and not desk.exited]

    def dump(self, worker_id: str, now: float) -> None:
        """Check the announcement of a kill: the stacks are written first."""
        self.ledger.seen["Dump"] += 1
        self._doom(self.ledger.desks[worker_id], "Dump", now)

    def kill(self, worker_id: str, why: str, now: float) -> None:
        """Check a kill: only for cause."""
        desk = self.ledger.desks[worker_id]
        self.ledger.seen["Kill"] += 1
        if not desk.killed:
            self._doom(desk, why, now)

    def _doom(self, desk: Desk, why: str, now: float) -> None:
        if desk.dead:
            broken("the dead are not killed", f"{desk.worker_id}: {why}")
        overdue = any(self._is_overdue(*stop, now) for stop in self._stops if stop[1] is desk)
        limit_s = self.ledger.pools[desk.pool].heartbeat_limit_s
        silent = now - desk.last_heard > limit_s
        if not (overdue or silent or desk.broken or self.meant_to_leave(desk)):
            broken("killed for cause", f"{desk.worker_id}: {why}")
        desk.killed = True
        desk.killed_at = now

    def _is_overdue(self, due: float, desk: Desk, epoch: int, now: float) -> bool:
        """Whether an attempt should have ended. One whose end has been told for a while, and was not read, has."""
        if due > now + _EPSILON_S or epoch not in desk.attempts:
            return False
        return now - due <= LATE_S or not self._has_unread(desk, epoch)

    def meant_to_leave(self, desk: Desk) -> bool:
        """Whether somebody wants this worker to end, and the intent is recorded."""
        wanted = self.ledger.drain_due is not None or self.ledger.operated
        return wanted and bool(self.tables.workers[desk.worker_id].stop_wanted)

    def check_overdue(self, now: float) -> None:
        """Demand the kills that are due."""
        kept = []
        for stop in self._stops:
            due, desk, epoch = stop
            if epoch not in desk.attempts or desk.killed or desk.dead:
                continue
            if now > due + KILL_LATE_S:
                broken("killed after the grace period", f"{desk.worker_id} still holds epoch {epoch}")
            kept.append(stop)
        self._stops = kept
