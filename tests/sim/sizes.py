"""What must hold of sizes: within their bounds, larger when work waits, smaller when nobody needed it for a minute."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from pools.core.events import Resize, Tick
from tests.sim.ledger import SETTLED, WAITING, Case, Ledger
from tests.sim.nesting import takes_more
from tests.sim.step import broken

GROWS_AFTER_S: Final = 0.5
# Sizes are looked at so often.
LOOKS_EVERY_S: Final = 0.5
SHRINKS_AFTER_S: Final = 60.0
SHRINKS_EVERY_S: Final = 10.0
_EPSILON_S: Final = 1e-6


class Size:
    """The size of one pool as it was after the step before.

    changed_at: when it was set, or grew last. shrunk_at: when it shrank last. first: what waits longest while every
    slot is taken and nothing else keeps the pool from growing, and grown_by: when it must have grown for that.
    ready: who served; one may be given up in the very step in which its pool grows for what it holds.
    """

    __slots__ = ("changed_at", "first", "grown_by", "ready", "shrunk_at", "size")

    def __init__(self, size: int, now: float) -> None:
        self.size = size
        self.changed_at = now
        self.shrunk_at = now
        self.first: Case | None = None
        self.grown_by = 0.0
        self.ready: tuple[Any, ...] = ()


class Sizes:
    """Watches the pools of one history that have bounds, or had."""

    def __init__(self, ledger: Ledger, tables: Any) -> None:
        self._ledger = ledger
        self._tables = tables
        self._sizes: dict[str, Size] = {}

    def after(self, event: Any, now: float) -> None:
        """Check the sizes after an event."""
        for name, pool in self._tables.pools.items():
            least, most = self._ledger.bounds[name]
            known = self._sizes.get(name)
            if known is None:
                known = self._sizes[name] = Size(pool.size, now)
            if pool.size != known.size:
                self._check_change(pool, known, event, now)
            if not least <= pool.size <= most:
                broken("sizes within their bounds", f"{name}: {pool.size}, from {least} to {most}")
            if pool.size >= most:
                known.first = None
                continue
            if not self._is_full(pool, most):
                known.first = None
            elif type(event) is Tick:
                self._check_growth(pool, known, now)
            known.ready = tuple(pool.ready)

    def _check_change(self, pool: Any, known: Size, event: Any, now: float) -> None:
        before, known.size = known.size, pool.size
        workers = sum(1 for place in pool.places.values() if place.number <= before and not place.out)
        if type(event) is Resize:
            known.changed_at = known.shrunk_at = now
        elif type(event) is not Tick or self._ledger.drain_due is not None:
            broken("sizes change for a reason", f"{pool.name}: {before} to {pool.size} at {type(event).__name__}")
        elif pool.size > before:
            known.changed_at = known.shrunk_at = now
            first = self._first_waiting(pool, {*known.ready, *pool.ready}, sure=False)
            if self._ledger.memory_paused or first is None or now - first.came_at < GROWS_AFTER_S - _EPSILON_S:
                broken("grows when work waits", f"{pool.name}: {before} to {pool.size}, first {first}")
            if len(pool.wanted) > 2 * workers:
                broken("doubles at most", f"{pool.name}: {workers} workers, then {len(pool.wanted)}")
        else:
            due = max(known.changed_at + SHRINKS_AFTER_S, known.shrunk_at + SHRINKS_EVERY_S)
            if now < due - _EPSILON_S:
                broken("kept for a minute", f"{pool.name}: {before} to {pool.size}")
            if len(pool.wanted) != workers - 1:
                broken("shrinks one by one", f"{pool.name}: {workers} workers, then {len(pool.wanted)}")
            known.shrunk_at = now

    def _check_growth(self, pool: Any, known: Size, now: float) -> None:
        """Demand that a pool that could grow has grown, if the same case waits since the look before."""
        reading = self._tables.is_reading(now)
        before, known.first = known.first, None if reading else self._first_waiting(pool, pool.ready, sure=True)
        if known.first is None:
            return
        if known.first is not before:
            known.grown_by = max(now, known.first.came_at + GROWS_AFTER_S) + LOOKS_EVERY_S
        elif now > known.grown_by + _EPSILON_S:
            broken("grows when work waits", f"{pool.name}: {known.first} for {now - known.first.came_at:.2f} s")

    def _is_full(self, pool: Any, most: int) -> bool:
        ledger = self._ledger
        for worker in pool.ready:
            if worker.held < pool.slots and takes_more(ledger.desks[worker.worker_id], pool.slots):
                return False
        if ledger.memory_paused or ledger.drain_due is not None or pool.boot_error is not None:
            return False
        places = (pool.places.get(number) for number in range(pool.size + 1, most + 1))
        return 0 < len(pool.wanted) <= len(pool.ready) and any(place is None or not place.out for place in places)

    def _first_waiting(self, pool: Any, workers: Iterable[Any], *, sure: bool) -> Case | None:
        """Return the case that has waited longest: queued, or with one of these workers, which has not begun it.

        sure: what waits to be sent again, or to run alone, is left out, for it may not be in the queue; and so is what
        waits behind one that took over another's place, and may be younger.
        """
        ledger = self._ledger
        waiting = list(ledger.queues[pool.name].values())
        if sure:
            led = {case.lane for case in waiting if case.took_over}
            waiting = [case for case in waiting if not case.astray and case.lane not in led]
        if ledger.waiting[pool.name] and not sure:
            waiting.extend(case for case in ledger.open.values() if case.state == WAITING and case.pool == pool.name)
        for worker in workers:
            desk = ledger.desks[worker.worker_id]
            if desk.held <= pool.slots:
                continue
            waiting.extend(
                case for epoch, case in desk.attempts.items() if case.state != SETTLED and not desk.marked(epoch)
            )
        return min(waiting, key=lambda case: case.came_at, default=None)
