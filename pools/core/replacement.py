"""Replacing workers that serve: the spare comes first, then the old one goes. One at a time in each pool."""

from __future__ import annotations

from functools import partial

from pools.core.entries import Place, PoolEntry, Succession, Wish, WorkerEntry
from pools.core.leaving import retire
from pools.core.places import launch, reconcile
from pools.core.states import READY
from pools.core.tables import Tables


def replace(tables: Tables, worker: WorkerEntry, wish: Wish, now: float) -> bool:
    """Have a worker replaced, as soon as its pool has replaced those that were asked for before.

    Return False if it leaves or is to be replaced already: then nothing changes.
    """
    pool = worker.pool
    succession = pool.succession
    if worker.stop_wanted or worker.kill_why or (succession is not None and succession.old is worker):
        return False
    if worker.worker_id in pool.wishes:
        return False
    pool.wishes[worker.worker_id] = wish
    advance(tables, pool, now)
    return True


def advance(tables: Tables, pool: PoolEntry, now: float) -> None:
    """Begin the next replacement of a pool, unless one is under way."""
    while pool.wishes and pool.succession is None and now >= pool.replace_at and not tables.draining:
        worker_id = next(iter(pool.wishes))
        wish = pool.wishes.pop(worker_id)
        worker = pool.lives.get(worker_id)
        place = pool.places[worker.place] if worker is not None else None
        if worker is None or place is None or place.worker is not worker or worker.died or worker.kill_why:
            continue
        if worker.state == READY and not pool.config.internal:
            spare = launch(tables, pool, place, now)
            pool.succession = Succession(worker, spare, wish)
            tables.log("worker_replacing", worker=worker_id, spare=spare.worker_id, why=wish.why)
        else:
            # It does not serve yet, and there is nothing to keep up; or it must not be beside its successor.
            place.worker = None
            grace_s = pool.config.grace_s if wish.grace_s is None and pool.config.internal else wish.grace_s
            retire(tables, worker, wish.why, now, grace_s)
            reconcile(tables, pool, now)


def on_ready(tables: Tables, worker: WorkerEntry, now: float) -> None:
    """A worker is ready: if it is a spare, it takes its place and the old one leaves."""
    succession = worker.pool.succession
    if succession is not None and succession.spare is worker:
        worker.pool.places[worker.place].worker = worker
        retire(tables, succession.old, succession.wish.why, now, succession.wish.grace_s)


def on_exited(tables: Tables, worker: WorkerEntry, now: float) -> None:
    """A worker ended: it may be one that is being replaced, or its spare. Call before its place is looked at."""
    pool = worker.pool
    succession = pool.succession
    place = pool.places[worker.place]
    pool.wishes.pop(worker.worker_id, None)
    if succession is None:
        return
    if worker is succession.old:
        pool.succession = None
        if place.worker is worker:  # it did not wait for its spare
            place.worker = succession.spare
            pool.restarts.count += 1
    elif worker is succession.spare and place.worker is not worker:
        _failed(tables, pool, succession, now)


def _failed(tables: Tables, pool: PoolEntry, succession: Succession, now: float) -> None:
    """Leave workers that serve alone until somebody asks again: what stopped this spare would stop the next."""
    forget(pool)
    pool.replace_at = now + pool.restarts.boot_failed()
    tables.after(pool.replace_at, partial(_due, pool))
    why = succession.spare.kill_why or "it ended before it was ready"
    old, spare = succession.old.worker_id, succession.spare.worker_id
    tables.log("worker_replacement_failed", "error", worker=old, spare=spare, why=why)


def forget(pool: PoolEntry) -> None:
    """Forget which workers were to be replaced."""
    pool.succession = None
    pool.wishes.clear()


def _due(pool: PoolEntry, tables: Tables, now: float) -> None:
    advance(tables, pool, now)


def vacate(tables: Tables, place: Place, why: str, now: float) -> None:
    """Have the worker of a place leave it. Others may have the place from now on."""
    worker = place.worker
    if worker is not None:
        place.worker = None
        _call_off(tables, worker, now)
        retire(tables, worker, why, now)


def _call_off(tables: Tables, worker: WorkerEntry, now: float) -> None:
    """Forget that a worker was to be replaced; a spare that has not taken its place is not needed any more."""
    pool = worker.pool
    pool.wishes.pop(worker.worker_id, None)
    succession = pool.succession
    if succession is not None and succession.old is worker and not worker.stop_wanted:
        pool.succession = None
        retire(tables, succession.spare, f"{worker.worker_id} is not replaced any more", now)
