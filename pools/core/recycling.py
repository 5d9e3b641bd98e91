"""When a worker has served long enough: its requests, its age, its memory."""

from __future__ import annotations

from typing import Final

from pools.core.entries import PoolEntry, Wish, WorkerEntry
from pools.core.replacement import replace
from pools.core.tables import Tables

# A worker that has not grown by so much is not replaced for its memory: the next one would be born as large.
_GROWTH: Final = 1.5
# Between two workers of a pool that are replaced for their memory: work that needs more than the limit must not end
# each worker that has done some of it, one after the other.
_MEMORY_EVERY_S: Final = 30.0


def recycle(tables: Tables, pool: PoolEntry, now: float) -> None:
    """Have the workers of a pool replaced that are beyond a limit."""
    for worker in list(pool.ready):
        if not pool.large_at_birth and _GROWTH * worker.rss_at_birth > pool.config.memory_limit_mb << 20 > 0:
            _tell(tables, worker)
        why = reason(worker, now)
        if why:
            replace(tables, worker, Wish(why), now)
        elif now >= pool.memory_recycle_at and _has_grown(worker):
            why = f"recycled: {worker.rss_bytes >> 20:,} MiB of memory"
            if replace(tables, worker, Wish(why), now):
                pool.memory_recycle_at = now + _MEMORY_EVERY_S


def _tell(tables: Tables, worker: WorkerEntry) -> None:
    """Tell the operator, once in each pool, that its memory limit is too near what its workers are born with."""
    pool = worker.pool
    pool.large_at_birth = True
    tables.log(
        "worker_large_at_birth", "warning", worker=worker.worker_id, rss_mb=worker.rss_at_birth >> 20,
        memory_limit_mb=pool.config.memory_limit_mb, limit_is_mb=int(_GROWTH * worker.rss_at_birth) >> 20,
    )  # fmt: skip


def reason(worker: WorkerEntry, now: float) -> str:
    """Return why a worker that serves is to be recycled, memory aside; the empty string if it is not. 0 is no limit."""
    config, tolerance = worker.pool.config, worker.tolerance
    if config.max_requests and worker.requests >= config.max_requests * tolerance:
        return f"recycled: {worker.requests:,} requests"
    age_s = now - worker.launched_at
    if config.max_age_s and age_s >= config.max_age_s * tolerance:
        return f"recycled: {age_s:,.0f} s old"
    return ""


def _has_grown(worker: WorkerEntry) -> bool:
    """Return whether a worker is beyond its pool's limit of memory, and not merely as large as it was born."""
    limit_mb = worker.pool.config.memory_limit_mb
    limit_bytes = max(limit_mb << 20, _GROWTH * worker.rss_at_birth) * worker.tolerance
    return limit_mb > 0 and worker.rss_bytes >= limit_bytes
