"""When a worker has served long enough: its requests, its age, its memory."""

from __future__ import annotations

from pools.core.entries import PoolEntry, Wish, WorkerEntry
from pools.core.replacement import replace
from pools.core.tables import Tables


def recycle(tables: Tables, pool: PoolEntry, now: float) -> None:
    """Have the workers of a pool replaced that are beyond a limit."""
    for worker in list(pool.ready):
        why = reason(worker, now)
        if why:
            replace(tables, worker, Wish(why), now)


def reason(worker: WorkerEntry, now: float) -> str:
    """Return why a worker that serves is to be recycled, the empty string if it is not. A limit of 0 is none."""
    config, tolerance = worker.pool.config, worker.tolerance
    if config.max_requests and worker.requests >= config.max_requests * tolerance:
        return f"recycled: {worker.requests:,} requests"
    age_s = now - worker.launched_at
    if config.max_age_s and age_s >= config.max_age_s * tolerance:
        return f"recycled: {age_s:,.0f} s old"
    # One that has done nothing has not grown: the next would be as large.
    limit_bytes = config.memory_limit_mb * (1 << 20) * tolerance
    if limit_bytes and worker.requests and worker.rss_bytes >= limit_bytes:
        return f"recycled: {worker.rss_bytes >> 20:,} MiB of memory"
    return ""
