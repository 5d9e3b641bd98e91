"""The fleet as its users see it: plain dicts for stats, pools and workers."""

from __future__ import annotations

from typing import Any

from pools.core import breakers
from pools.core.entries import DeadWorker, PoolEntry, worker_state
from pools.core.events import BootFailed, Exited, LaunchFailed, Signalled, Vanished
from pools.core.health import fullest
from pools.core.places import unserved
from pools.core.progress import running
from pools.core.tables import Tables


def stats(tables: Tables, now: float) -> dict[str, Any]:
    """Return `pools`, `requests` and `memory`. At every answer accepted == settled + queued + in_flight (rows)."""
    pools = tables.user_pools.values()
    queued = sum(pool.queued for pool in pools)
    in_flight = sum(pool.in_flight for pool in pools)
    return {
        "pools": {pool.name: _pool_stats(pool, now) for pool in pools},
        "requests": {
            "accepted": sum(pool.accepted for pool in pools),
            "settled": sum(pool.completed + pool.failed for pool in pools),
            "queued": queued,
            "in_flight": in_flight,
            "rejected": sum(pool.rejected for pool in pools),
            "cancelled": sum(pool.cancelled for pool in pools),
            "shed": sum(pool.shed for pool in pools),
            "fenced": tables.fenced,
            "resent": sum(pool.resent for pool in pools),
            "attached": tables.attached,
        },
        "memory": {"used": tables.memory_used, "paused": tables.memory_paused},
        "mode": tables.modes.mode,
        "quarantined": len(tables.poison.letters),
        "sessions": {"count": len(tables.sessions), "bytes": tables.sessions.bytes},
        "load": {"cpu": tables.cpu_used, "memory": tables.memory_used, "queue": fullest(tables)},
    }


def _pool_stats(pool: PoolEntry, now: float) -> dict[str, Any]:
    problem = _problem(pool)
    served = "ok" if problem is None else "off"
    return {
        "state": served if pool.boot_error is None else "degraded",
        "why": problem,
        "size": pool.size,
        "min_size": pool.least,
        "max_size": pool.most if pool.least < pool.most else None,
        "ready": len(pool.ready),
        "busy": sum(1 for worker in pool.ready if worker.attempts),
        "queued": pool.queued,
        "in_flight": pool.in_flight,
        "paused": pool.lent,
        "restarts": pool.restarts.count,
        "breaker": breakers.state(pool, now),
        "p50_ms": pool.latency.quantile_ms(0.50),
        "p99_ms": pool.latency.quantile_ms(0.99),
        "completed": pool.completed,
        "failed": pool.failed,
        "resent": pool.resent,
        "shed": pool.shed,
    }


def pools(tables: Tables, now: float) -> list[dict[str, Any]]:
    """Return each pool's name, state, size and settings."""
    return [
        {
            "pool": pool.name,
            **_pool_stats(pool, now),
            "state": _pool_state(pool),
            "slots": pool.slots,
            "max_queue": pool.config.max_queue,
            "default_deadline_s": pool.config.default_deadline_s,
            "problem": _problem(pool),
            "breakers": breakers.rows(pool, now),
        }
        for pool in tables.user_pools.values()
    ]


def _pool_state(pool: PoolEntry) -> str:
    """off: no place is in service. degraded: its workers cannot boot. starting: none is ready."""
    if not pool.wanted:
        return "off"
    if pool.boot_error is not None:
        return "degraded"
    return "ok" if pool.ready else "starting"


def _problem(pool: PoolEntry) -> str | None:
    """Return why nobody serves a pool that somebody should."""
    error = unserved(pool) if pool.size else None
    return error.message if error is not None else None


def replacing(tables: Tables, target: str) -> list[str]:
    """Return who is replaced or will be: of a pool, or the worker alone if it is among them."""
    found: list[str] = []
    for pool in tables.pools.values():
        current = [pool.succession.old.worker_id] if pool.succession is not None else []
        found.extend(name for name in (*current, *pool.wishes) if target in (pool.name, name))
    return found


def workers(tables: Tables, now: float) -> list[dict[str, Any]]:
    """Return living workers by pool and place, then the dead, latest first."""
    rows: list[dict[str, Any]] = []
    for pool in tables.user_pools.values():
        for worker in pool.workers:
            rows.append(
                {
                    "id": worker.worker_id,
                    "pool": pool.name,
                    "pid": worker.pid,
                    "incarnation": worker.incarnation,
                    "state": worker_state(worker),
                    "in_flight": sum(entry.rows for entry in worker.attempts.values()),
                    "paused": worker.paused,
                    "rss_bytes": worker.rss_bytes,
                    "age_s": now - worker.launched_at,
                    "requests": worker.requests,
                    "boot_ms": worker.boot_ms,
                    "running": running(worker, now),
                    "leaving": worker.kill_why or worker.stop_why or None,
                    "exit": None,
                }
            )
    for pool in tables.user_pools.values():
        rows.extend(_dead(pool, dead) for dead in reversed(pool.dead))
    return rows


def _dead(pool: PoolEntry, dead: DeadWorker) -> dict[str, Any]:
    return {
        "id": dead.worker_id,
        "pool": pool.name,
        "pid": dead.pid,
        "incarnation": dead.incarnation,
        "state": "exited",
        "in_flight": 0,
        "paused": 0,
        "rss_bytes": 0,
        "age_s": dead.lived_s,
        "requests": dead.requests,
        "boot_ms": dead.boot_ms,
        "leaving": None,
        "exit": {
            "cause": dead.cause,
            "kind": _KINDS[type(dead.reason)],
            "code": dead.reason.code if isinstance(dead.reason, Exited) else None,
            "signal": dead.reason.number if isinstance(dead.reason, Signalled) else None,
            "peak_rss_bytes": dead.peak_rss_bytes,
            "log_tail": list(dead.log_tail[-20:]),
            "stacks": list(dead.stacks),
        },
    }


_KINDS: dict[type, str] = {
    Exited: "exited",
    Vanished: "vanished",
    Signalled: "signalled",
    BootFailed: "boot_failed",
    LaunchFailed: "launch_failed",
}
