"""Internal pools: the coordinator's own process among workers that serve users (see `pools.services`).

One is launched when it is first needed, and its first requests wait for that. Once it has been ready, what is asked
while it is down is refused at once, and what it held as it died ends so too: each of its operations is done or not, and
may be asked for again. It is never beside its successor, for it may be the one writer of something.
"""

from __future__ import annotations

from typing import Any, Final

from bridge.protocol.errors import INVALID_REQUEST, BridgeError, not_found
from bridge.protocol.messages import Request
from pools.core import dispatch
from pools.core.entries import ClientEntry, PoolEntry, WorkerEntry
from pools.core.events import ExitReason, Signalled
from pools.core.places import reconcile
from pools.core.settlement import settle_error
from pools.core.states import RUNNING, SETTLED
from pools.core.tables import Tables, unavailable

OFF: Final = "off"
BOOTING: Final = "booting"
READY: Final = "ready"
DOWN: Final = "down"
# It is back sooner, as a rule; who asks again at once would only be refused again.
_RETRY_S: Final = 0.1


def ask(tables: Tables, pool: PoolEntry, now: float) -> None:
    """Have an internal pool launched, unless it was asked for before."""
    if not pool.asked:
        pool.asked = True
        tables.log("internal_pool_launched", pool=pool.name)
        reconcile(tables, pool, now)


def objection(tables: Tables, client: ClientEntry, pool: PoolEntry, message: Request) -> BridgeError | None:
    """Return why a client may not ask this of an internal pool, or None."""
    if message.pool:
        return not_found("pool", message.pool, tables.user_pools)
    if message.operation in tables.config.inner and client.client_no:
        known = [name for name, home in tables.config.homes.items() if home == pool.name]
        return not_found("operation", message.operation, [name for name in known if name not in tables.config.inner])
    for path in ("idempotency_key", "session", "in_session", "worker"):
        if getattr(message, path):
            text = f"{path}: {message.operation} takes none; it is done or not, and may be asked for again"
            return BridgeError(INVALID_REQUEST, text, details={"path": path})
    return None


def refusal(pool: PoolEntry, now: float) -> BridgeError | None:
    """Return why an internal pool can do nothing now, None if it can or is about to for the first time."""
    if pool.boot_error is not None:
        details = {**pool.boot_error.details, "retry_after_s": max(_RETRY_S, pool.probe_at - now)}
        return unavailable(pool.boot_error.message, **details)
    if not pool.was_ready or pool.ready:
        return None
    after_s = max(_RETRY_S, pool.places[1].not_before - now)
    text = f"{pool.title} is being started again; calls go on meanwhile. Try again in {after_s:.1f} s"
    return unavailable(text, retry_after_s=after_s)


def lost(tables: Tables, worker: WorkerEntry, reason: ExitReason, cause: str, now: float) -> None:
    """End what a dead worker of an internal pool held, and what waited behind that."""
    pool = worker.pool
    signal = reason.number if isinstance(reason, Signalled) else None
    for epoch in list(worker.attempts):
        entry = worker.attempts[epoch]
        ran = entry.state == RUNNING or worker.started(epoch)
        dispatch.release(tables, worker, epoch)
        if entry.state == SETTLED:
            continue
        text = f"{pool.title} ended ({cause}) before {entry.message.operation} was answered"
        error = unavailable(
            f"{text}: it is done whole or not at all; ask again", cause=cause, signal=signal,
            executed="maybe" if ran else "no", worker=worker.worker_id, retry_after_s=_RETRY_S,
        )  # fmt: skip
        settle_error(tables, entry, error, now)
    refused = refusal(pool, now)
    for entry in list(pool.queue):
        if refused is not None and entry.state != SETTLED:
            settle_error(tables, entry, refused, now)


def is_trusted(tables: Tables, peer: bytes) -> bool:
    """Return whether this client belongs to the worker of an internal pool that lives and is to live.

    What one that was killed has left unread says nothing any more: its successor has said what is so.
    """
    client = tables.clients.get(peer)
    worker = tables.workers.get(client.worker_id) if client is not None else None
    return worker is not None and worker.pool.config.internal and not worker.died and not worker.kill_why


def is_settled(pool: PoolEntry) -> bool:
    """Return whether an internal pool keeps nobody waiting: it is not needed, has been ready, or could not boot."""
    return not pool.asked or pool.was_ready or pool.boot_error is not None


def state(pool: PoolEntry) -> str:
    """Return off (nobody has needed it), booting (for the first time), ready or down."""
    if not pool.asked:
        return OFF
    if pool.ready:
        return READY
    return DOWN if pool.was_ready or pool.boot_error is not None else BOOTING


def row(pool: PoolEntry, now: float) -> dict[str, Any]:
    """Return an internal pool as `stats` lists it: state, worker, pid, restarts, and why it is down if it is."""
    worker = pool.places[1].worker
    error = refusal(pool, now)
    return {
        "state": state(pool),
        "worker": None if worker is None else worker.worker_id,
        "pid": None if worker is None else worker.pid or None,
        "restarts": pool.restarts.count,
        "queued": pool.queued,
        "in_flight": pool.in_flight,
        "completed": pool.completed,
        "failed": pool.failed,
        "problem": None if error is None else error.message.partition("\n")[0],
    }
