"""What operators ask of workers and pools: resize, drain, restart. What makes no sense is refused with advice."""

from __future__ import annotations

from bridge.protocol.errors import INVALID_REQUEST, BridgeError, not_found
from pools.config import MAX_SIZE
from pools.core.entries import Place, PoolEntry, Wish, WorkerEntry
from pools.core.events import DrainWorker, Resize, Restart
from pools.core.places import reconcile
from pools.core.replacement import replace, vacate
from pools.core.scaling import set_bounds, set_size
from pools.core.tables import Tables, unavailable


def on_resize(tables: Tables, event: Resize, now: float, peer: bytes) -> None:
    """Bring a pool to another size, or give it bounds and the size that is nearest within them.

    New places are filled at once, the workers of the highest leave when they are done; all places are in service again,
    drained ones too.
    """
    pool = tables.user_pools.get(event.pool)
    if pool is None:
        raise not_found("pool", event.pool, tables.user_pools)
    least, most = event.size, event.size if event.max_size is None else event.max_size
    if not 0 <= least <= MAX_SIZE:
        raise _invalid("size", f"{least} workers; 0 to {MAX_SIZE} are possible")
    if not least <= most <= MAX_SIZE or (most and not least):
        raise _invalid("size", f"{least} to {most} workers; a pool that may grow has 1 to {MAX_SIZE}")
    _refuse_while_draining(tables)
    before, size = pool.size, set_bounds(pool, least, most, now)
    tables.log("pool_resized", pool=pool.name, size=size, before=before, least=least, most=most)
    for place in pool.places.values():
        if place.number <= most:
            _into_service(place)
    set_size(tables, pool, size, f"the pool was resized to {size}", now)


def on_drain_worker(tables: Tables, event: DrainWorker, now: float, peer: bytes) -> None:
    """Take a worker out of service: it finishes what it runs, and its place stays empty."""
    worker = tables.workers.get(event.worker_id)
    if worker is None:
        raise not_found("worker", event.worker_id, tables.workers)
    _refuse_while_draining(tables)
    _refuse_spare(worker)
    pool = worker.pool
    if pool.config.internal:
        raise _invalid("worker", f"{worker.worker_id} is the coordinator's own: it can be restarted, not drained")
    place = pool.places[worker.place]
    if place.worker is not worker:
        return  # it leaves already
    tables.log("worker_drained", worker=worker.worker_id)
    place.out = "drained"
    vacate(tables, place, "drained", now)
    reconcile(tables, pool, now)


def on_restart(tables: Tables, event: Restart, now: float, peer: bytes) -> None:
    """Replace a worker, or a pool's one after the other; fill its places that were taken out of service."""
    if event.grace_s is not None and not 0 <= event.grace_s <= 86_400:
        raise _invalid("grace_s", "seconds from 0 to 86400")
    _refuse_while_draining(tables)
    wish = Wish("restarted", event.grace_s)
    pool = tables.pools.get(event.target)
    if pool is not None:
        if not pool.size:
            raise _invalid("target", f"pool {pool.name} is off (size 0): resize it")
        for place in [place for place in pool.places.values() if place.number <= pool.size]:
            _restart_place(tables, pool, place, wish, now)
    else:
        pool, place = _place_of(tables, event.target)
        _restart_place(tables, pool, place, wish, now)
    if pool.boot_error is not None:
        pool.probe_at = now
    pool.asked = True
    reconcile(tables, pool, now)


def _restart_place(tables: Tables, pool: PoolEntry, place: Place, wish: Wish, now: float) -> None:
    _into_service(place)
    place.not_before = pool.replace_at = now  # whoever asks has seen to it, and need not wait
    if place.worker is not None:
        replace(tables, place.worker, wish, now)


def _into_service(place: Place) -> None:
    if place.out:
        place.out = ""
        place.not_before = 0.0


def _place_of(tables: Tables, worker_id: str) -> tuple[PoolEntry, Place]:
    """Return the place that a worker has, or had last. Raises BridgeError."""
    worker = tables.workers.get(worker_id)
    if worker is not None:
        _refuse_spare(worker)
        pool, number = worker.pool, worker.place
    else:
        pool, number = _of_the_dead(tables, worker_id)
    place = pool.places[number]
    if number > pool.size:
        raise _invalid("target", f"{worker_id} was beyond the size of pool {pool.name} ({pool.size}): resize it")
    if place.worker is not None and place.worker is not worker:
        raise _invalid("target", f"{place.worker.worker_id} has taken the place of {worker_id}")
    return pool, place


def _of_the_dead(tables: Tables, worker_id: str) -> tuple[PoolEntry, int]:
    for pool in tables.pools.values():
        for dead in pool.dead:
            if dead.worker_id == worker_id:
                return pool, dead.place
    raise not_found("worker or pool", worker_id, [*tables.pools, *tables.workers])


def _refuse_spare(worker: WorkerEntry) -> None:
    succession = worker.pool.succession
    if succession is not None and succession.spare is worker and not succession.old.stop_wanted:
        old = succession.old.worker_id
        raise _invalid("worker", f"{worker.worker_id} is the spare of {old} and has not taken its place yet")


def _refuse_while_draining(tables: Tables) -> None:
    if tables.draining:
        raise unavailable("the coordinator is shutting down")


def _invalid(path: str, text: str) -> BridgeError:
    return BridgeError(INVALID_REQUEST, f"{path}: {text}", details={"path": path})
