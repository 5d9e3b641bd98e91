"""The reconciler: brings every pool to its size. What ended says when a place may be filled; this fills it.

It runs after every change and, for what was lost on the way, each second.
"""

from __future__ import annotations

from functools import partial
from typing import Final

from bridge.protocol.errors import BridgeError
from pools.core.entries import Place, PoolEntry, WorkerEntry
from pools.core.events import Launch
from pools.core.settlement import settle_error
from pools.core.states import SETTLED
from pools.core.tables import Tables, unavailable

# Limits for recycling are met this much sooner or later.
_TOLERANCE: Final = 0.1


def launch(tables: Tables, pool: PoolEntry, place: Place, now: float) -> WorkerEntry:
    """Begin the next life of a place; whether it is the place's worker or its spare is the caller's to say."""
    place.incarnation += 1
    worker = WorkerEntry(pool, place.number, place.incarnation, (), now)
    worker.slots_page = tables.open_page(worker.worker_id)
    worker.tolerance = 1.0 - _TOLERANCE + 2.0 * _TOLERANCE * tables.random()
    pool.lives[worker.worker_id] = worker
    tables.workers[worker.worker_id] = worker
    tables.effects.append(Launch(worker.worker_id, pool.name, place.number, place.incarnation))
    return worker


def reconcile(tables: Tables, pool: PoolEntry, now: float) -> None:
    """Fill the places that are wanted, empty and due: of a degraded pool one at a time, to see whether it heals."""
    if tables.stopping or not pool.asked:
        return
    if pool.config.internal and pool.lives:
        return  # it is never beside its successor
    wanted = pool.wanted
    if not wanted and not pool.ready:
        _refuse_queue(tables, pool, now)
    vacant = [place for place in wanted if place.worker is None]
    if pool.boot_error is not None:
        _probe(tables, pool, vacant, now)
        return
    for place in vacant:
        if place.not_before <= now:
            place.worker = launch(tables, pool, place, now)


def _probe(tables: Tables, pool: PoolEntry, vacant: list[Place], now: float) -> None:
    if pool.probe in pool.lives or now < pool.probe_at:
        return
    # One may have to wait longer, for a crash of its own.
    place = next((place for place in vacant if place.not_before <= now), None)
    if place is not None:
        place.worker = launch(tables, pool, place, now)
        pool.probe = place.worker.worker_id


def fill_later(tables: Tables, pool: PoolEntry, place: Place, delay_s: float, now: float) -> None:
    """Let a place stay empty for a while."""
    if delay_s <= 0:
        return
    place.not_before = now + delay_s
    tables.log("worker_restart_delayed", "warning", pool=pool.name, place=place.number, delay_s=round(delay_s, 3))
    tables.after(place.not_before, partial(_due, pool))


def _due(pool: PoolEntry, tables: Tables, now: float) -> None:
    reconcile(tables, pool, now)


def degrade(tables: Tables, pool: PoolEntry, error: BridgeError, delay_s: float, now: float) -> None:
    """Answer whatever a pool is asked with `error` until one of its workers is ready; try one after `delay_s`."""
    if pool.boot_error is None:
        tables.log("pool_degraded", "error", pool=pool.name, why=error.message)
    pool.boot_error = error
    pool.probe_at = now + delay_s
    tables.after(pool.probe_at, partial(_due, pool))
    _refuse_queue(tables, pool, now)


def heal(tables: Tables, pool: PoolEntry, now: float) -> None:
    """A worker is ready: if the pool was degraded, all its places are filled again."""
    pool.restarts.recovered(now=now)
    if pool.boot_error is not None:
        pool.boot_error = None
        tables.log("pool_healed", pool=pool.name)
        for place in pool.places.values():
            place.not_before = 0.0
        reconcile(tables, pool, now)


def unserved(pool: PoolEntry) -> BridgeError | None:
    """Return why nobody can serve what is queued in a pool, None if somebody does or will."""
    if not pool.size:
        return unavailable(f"pool {pool.name} is off (size 0); set pools.{pool.name}.size, or resize it, to use it")
    if pool.boot_error is not None:
        return pool.boot_error
    if pool.ready or pool.wanted:
        return None
    whys = sorted({place.out for place in pool.places.values() if place.number <= pool.size})
    return unavailable(f"pool {pool.name} has no worker in service ({', '.join(whys)}); restart it to use it")


def _refuse_queue(tables: Tables, pool: PoolEntry, now: float) -> None:
    error = unserved(pool)
    if error is not None:
        waiting = list(pool.seclusion.waiting.values()) if pool.seclusion is not None else []
        for entry in [*pool.queue, *waiting]:
            if entry.state != SETTLED:  # before, or with another of its idempotency key
                settle_error(tables, entry, error, now)
