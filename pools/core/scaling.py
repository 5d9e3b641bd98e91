"""How many places of a pool are wanted: what an operator says, or between bounds what the work asks for.

A pool with bounds grows while work waits that none of its workers has room for. It shrinks, one worker at a time, when
for a minute fewer would have done. Idle workers take turns, so no worker's idleness says that it is not needed.
"""

from __future__ import annotations

from typing import Final

from pools.core.entries import Place, PoolEntry, RequestEntry, WorkerEntry
from pools.core.places import reconcile
from pools.core.replacement import vacate
from pools.core.states import DISPATCHED
from pools.core.tables import Tables

GROW_AFTER_S: Final = 0.5
SHRINK_AFTER_S: Final = 60.0
SHRINK_EVERY_S: Final = 10.0


def set_bounds(pool: PoolEntry, least: int, most: int, now: float) -> int:
    """Let a pool have `least` to `most` places; return how many it is to have now."""
    pool.least, pool.most = least, most
    pool.shrink_at = now + SHRINK_AFTER_S
    return min(max(pool.size, least), most)


def set_size(tables: Tables, pool: PoolEntry, size: int, why: str, now: float) -> None:
    """Want so many places: new ones are filled at once, the workers of those above leave when they are done."""
    pool.size = size
    for number in range(1, size + 1):
        if number not in pool.places:
            pool.places[number] = Place(number)
    for place in reversed(list(pool.places.values())):
        if place.number > size:
            vacate(tables, place, why, now)
    reconcile(tables, pool, now)


def scale(tables: Tables, now: float) -> None:
    """Look at the size of every pool that has bounds. Runs twice a second."""
    if tables.draining:
        return
    for pool in tables.pools.values():
        if pool.least < pool.most:
            peak_rows = pool.demand.add(pool.waiting_rows + _held(pool), now=now)
            if pool.boot_error is None:
                _grow(tables, pool, now)
                _shrink(tables, pool, peak_rows, now)


def _held(pool: PoolEntry) -> int:
    """Return the rows that take up room: also those that are settled and that a worker has not let go of.

    Who has lent its slot out takes up none.
    """
    return max(pool.in_flight - pool.lent, sum(worker.held for worker in pool.ready))


def _grow(tables: Tables, pool: PoolEntry, now: float) -> None:
    """Add as many workers as what waits would fill, at most as many as there are."""
    workers = len(pool.wanted)
    if tables.memory_paused or pool.size >= pool.most or not workers or len(pool.ready) < workers:
        return  # not possible, or some are on their way
    rows, since = _waiting(pool, now)
    since = max(since, tables.awake_since)  # while the coordinator stood still nobody could be given anything
    if now - since < GROW_AFTER_S:
        return
    size = _size_with(pool, min(workers, max(1, rows // pool.slots)))
    if size is not None:
        pool.shrink_at = now + SHRINK_AFTER_S
        why = f"{rows} rows wait, the first for {now - since:.1f} s"
        tables.log("pool_grown", pool=pool.name, size=size, before=pool.size, why=why)
        set_size(tables, pool, size, why, now)


def _waiting(pool: PoolEntry, now: float) -> tuple[int, float]:
    """Return how many rows have not begun, and since when the first of them waits: since now if there is room for it.

    What a worker holds beyond its slots waits as well as what is queued.
    """
    rows = pool.waiting_rows
    since = pool.queue.oldest_at() if pool.queue else now
    for worker in pool.ready:
        if worker.held < pool.slots and worker.paused < pool.most_paused:
            return 0, now
        rows += max(0, worker.held - pool.slots)
        first = _longest_unstarted(worker) if worker.held > pool.slots else None
        if first is not None:
            since = min(since, first.accepted_at)
    return rows, since


def _longest_unstarted(worker: WorkerEntry) -> RequestEntry | None:
    """Return what has waited longest of what a worker holds: what came back from another may stand behind others."""
    unstarted = [
        entry for epoch, entry in worker.attempts.items() if entry.state == DISPATCHED and not worker.started(epoch)
    ]
    return min(unstarted, key=lambda entry: entry.accepted_at, default=None)


def _size_with(pool: PoolEntry, more: int) -> int | None:
    """Return the size that gives a pool so many more workers, or as many as it may have; None if that is none.

    A place that is out of service stays it: whoever took it out has not asked for this.
    """
    size, found = pool.size, 0
    while found < more and size < pool.most:
        size += 1
        place = pool.places.get(size)
        found += place is None or not place.out
    return size if found else None


def _shrink(tables: Tables, pool: PoolEntry, peak_rows: int, now: float) -> None:
    """Do without the worker of the highest place if fewer would have done for a minute."""
    wanted = pool.wanted
    needed = max(pool.least, -(-peak_rows // pool.slots))
    if len(wanted) > needed and now >= pool.shrink_at:
        pool.shrink_at = now + SHRINK_EVERY_S
        size = wanted[-1].number - 1
        why = f"{needed} of {len(wanted)} workers would have done for {SHRINK_AFTER_S:g} s"
        tables.log("pool_shrunk", pool=pool.name, size=size, before=pool.size, why=why)
        set_size(tables, pool, size, f"the pool shrank to {size}: {why}", now)
