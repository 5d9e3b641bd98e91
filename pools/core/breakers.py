"""A pool's circuit breakers: its own, and one for each of its operations that has failed.

A failure is the death of a worker that had started the request, or a deadline that passed while it ran, if that was
long enough to tell (`_is_overrun`) or if it did not stop then; a deadline that nested requests share counts once. A
success is every answer of a worker, errors too: that a user's program raises says that the pool works. What did not
run, was cancelled, waited for something of its own as its worker died, or died because somebody ordered it, is neither:
if it was a probe, another takes its place. An operation that fails alone opens its own breaker; the pool's opens only
when several fail, and most of what the pool does.

Where nothing fails there is no breaker, and a request costs two increments (see `settlement`, which feeds the breakers;
they settle by it what they refuse, so each imports the other as a module).
"""

from __future__ import annotations

from typing import Any, Final

from bridge.protocol.errors import (
    CANCELLED,
    CIRCUIT_OPEN,
    DEADLINE_EXCEEDED,
    OVERLOADED,
    POISON_REQUEST,
    SLOW_CONSUMER,
    UNAVAILABLE,
    WORKER_LOST,
    BridgeError,
    decode_error,
    error_code,
)
from bridge.protocol.messages import Reply
from pools.core import settlement
from pools.core.breaker import CLOSED, HALF_OPEN, Breaker
from pools.core.breaker import OPEN as OPEN
from pools.core.credits import RunTimes
from pools.core.entries import NOT_ASKED, PoolEntry, RequestEntry
from pools.core.states import QUEUED, SETTLED
from pools.core.tables import Tables

# The key of the pool's own breaker beside those of its operations, whose names are never empty.
POOL: Final = ""
# Operation names come from callers.
MAX_BREAKERS: Final = 1024
# So many different operations must fail before the pool is thought to be at fault.
_OPERATIONS: Final = 2
# Errors that say nothing about the pool. The loss of a worker is counted attempt by attempt, by `failed`.
_NEITHER: Final = frozenset(
    {CANCELLED, CIRCUIT_OPEN, OVERLOADED, POISON_REQUEST, SLOW_CONSUMER, UNAVAILABLE, WORKER_LOST}
)
_SEVERITY: Final = (OPEN, HALF_OPEN, CLOSED)
# Deadlines that lie closer together are one, told in milliseconds in between.
_SAME_S: Final = 0.001


# --- what is let through ----------------------------------------------------------------------------


def tripped(pool: PoolEntry, operation: str) -> bool:
    """Return whether requests of an operation are to be looked at one by one."""
    breakers = pool.breakers
    return any(key in breakers and breakers[key].tripped for key in (POOL, operation)) if breakers else False


def refusal(pool: PoolEntry, operation: str, now: float) -> BridgeError | None:
    """Return why a request is not let through, or None."""
    worst: tuple[float, str] | None = None
    for key in (POOL, operation) if pool.breakers else ():
        breaker = pool.breakers.get(key)
        wait_s = breaker.wait_s(now) if breaker is not None else None
        if wait_s is not None and (worst is None or wait_s > worst[0]):
            worst = wait_s, key
    if worst is None:
        return None
    wait_s, key = worst
    failures, outcomes = pool.breakers[key].counts(0)
    what = f"{key} in pool {pool.name}" if key else f"pool {pool.name}"
    return BridgeError(
        CIRCUIT_OPEN,
        f"{what} is not tried now: {failures} of its last {outcomes} requests lost their worker or hung; "
        f"try again in {wait_s:.2f} s",
        retryable=True,
        details={"retry_after_s": wait_s, "pool": pool.name, "operation": key},
    )


def admitted(tables: Tables, entry: RequestEntry, now: float) -> None:
    """A request goes to where breakers are not closed: it is their probe, unless they opened since it was accepted."""
    pool = entry.pool
    for key in (POOL, entry.message.operation) if pool.breakers else ():
        breaker = pool.breakers.get(key)
        if breaker is None or not breaker.tripped or entry.accepted_at <= breaker.opened_at:
            continue
        entry.watched = True
        if breaker.lease(entry.request_id, entry.deadline, now):
            tables.log("breaker_half_open", pool=pool.name, operation=key)


# --- what feeds them --------------------------------------------------------------------------------


def failed(tables: Tables, entry: RequestEntry, now: float) -> None:
    """Count an attempt whose worker died of it, or with it, or that ran past its deadline."""
    pool, worker, operation = entry.pool, entry.worker, entry.message.operation
    if pool.config.breaker is None:
        return
    if worker is not None and worker.kill_why and not worker.silent and (worker.stop_wanted or worker.kill_asked):
        return  # somebody ordered its end
    for key, counter in ((operation, entry.times), (POOL, pool)):
        breaker = pool.breakers.get(key) or _make(pool, key)
        if breaker is not None and entry.accepted_at <= breaker.opened_at:
            continue  # it was let through before
        counter.outcomes += 1
        if breaker is not None and breaker.failed(counter.outcomes, operation, now):
            _opened(tables, pool, key, breaker, now)


def succeeded(tables: Tables, entry: RequestEntry, now: float) -> None:
    """Count a watched request that its worker answered, and let it close what it was a probe of."""
    if entry.worker is None:
        return  # it did not run: another request's outcome is its own
    pool, operation = entry.pool, entry.message.operation
    counters: tuple[tuple[str, RunTimes | PoolEntry], ...] = ((operation, entry.times), (POOL, pool))
    for key, counter in counters:
        breaker = pool.breakers.get(key)
        if breaker is not None and entry.accepted_at <= breaker.opened_at:
            continue  # it was let through before
        counter.outcomes += 1
        if breaker is not None and breaker.succeeded(counter.outcomes):
            tables.log("breaker_closed", pool=pool.name, operation=key)


def ended(tables: Tables, entry: RequestEntry, reply: Reply, now: float) -> None:
    """Count a request that settles with an error, if that says anything, and give back its leases."""
    payload = reply.payload or b""
    code = error_code(payload)
    if code == DEADLINE_EXCEEDED:
        running = decode_error(payload).details.get("stage") == "running"
        if running and _is_overrun(entry, now) and not _is_parents(tables, entry):
            entry.overran = True
            failed(tables, entry, now)
    elif code not in _NEITHER:
        succeeded(tables, entry, now)
    released(entry)


def released(entry: RequestEntry) -> None:
    """Give back the leases of a request that has ended, or that is to be sent again: its own would keep it out."""
    if entry.watched:
        for key in (POOL, entry.message.operation):
            breaker = entry.pool.breakers.get(key)
            if breaker is not None:
                breaker.release(entry.request_id)


def deaf(tables: Tables, entry: RequestEntry, now: float) -> None:
    """Count an attempt that is out of time and does not stop when it is asked, unless its deadline counted already."""
    late = entry.state == SETTLED and entry.deadline is not None and entry.cancel == NOT_ASKED
    if late and not entry.overran:
        entry.overran = True
        failed(tables, entry, now)


def _is_overrun(entry: RequestEntry, now: float) -> bool:
    """Whether it was the run that took the time: not a queue, nor a caller's impatience.

    Where too much is asked, what reaches a worker late runs out of time there; to refuse all for that would end it. So
    the run took longer than its wait, and than others of its operation take. Where none has ended yet, a caller's own
    deadline proves nothing: that of the pool does.
    """
    end = now if entry.deadline is None else min(now, entry.deadline)
    ran_s, waited_s = end - entry.dispatched_at, entry.dispatched_at - entry.accepted_at
    median_ms = entry.times.median_ms
    if median_ms is None:
        return entry.message.deadline_ms is None and ran_s >= waited_s
    return ran_s >= waited_s and ran_s * 1000.0 >= median_ms * entry.rows


def _is_parents(tables: Tables, entry: RequestEntry) -> bool:
    """Whether what has passed is the deadline of the request that it is nested in: that one counts, once for all."""
    if not entry.message.parent_request_id:
        return False
    parent = tables.requests.get(entry.message.parent_request_id)
    if parent is None or parent.deadline is None or entry.deadline is None:
        return parent is None
    return parent.deadline - entry.deadline < _SAME_S


def _make(pool: PoolEntry, key: str) -> Breaker | None:
    """Return a new breaker, in the place of the oldest closed one if there are as many as may be; None without one."""
    breakers = pool.breakers
    if len(breakers) >= MAX_BREAKERS:
        spare = next((name for name, breaker in breakers.items() if name != POOL and not breaker.tripped), None)
        if spare is None:
            return None
        del breakers[spare]
    assert pool.config.breaker is not None
    breaker = breakers[key] = Breaker(pool.config.breaker, operations=1 if key else _OPERATIONS)
    return breaker


def _opened(tables: Tables, pool: PoolEntry, key: str, breaker: Breaker, now: float) -> None:
    """Have admission ask for each request, and settlement for each that is under way. What never ran is refused."""
    for name in [name for name, route in tables.routes.items() if route.pool is pool and key in (POOL, name[0])]:
        del tables.routes[name]
    for entry in tables.requests.values():
        if entry.pool is pool and key in (POOL, entry.message.operation):
            entry.watched = True
    failures, outcomes = breaker.counts(0)
    tables.log(
        "breaker_opened", "warning", pool=pool.name, operation=key, failures=failures, outcomes=outcomes,
        open_s=pool.config.breaker.open_s if pool.config.breaker is not None else 0.0,
    )  # fmt: skip
    _refuse_queue(tables, pool, key, now)


def _refuse_queue(tables: Tables, pool: PoolEntry, key: str, now: float) -> None:
    """Refuse what waits and no worker has had: more workers would die of it, and who asked may ask elsewhere."""
    for entry in [entry for entry in pool.queue if not entry.epoch and key in (POOL, entry.message.operation)]:
        error = refusal(pool, entry.message.operation, now)
        if error is not None and entry.state == QUEUED:  # not settled with one before it
            settlement.settle_error(tables, entry, error, now)


# --- what is told of them ---------------------------------------------------------------------------


def state(pool: PoolEntry, now: float) -> str:
    """Return the worst state among a pool's breakers: open, half_open or closed; off if it is to have none."""
    if pool.config.breaker is None:
        return "off"
    states = {breaker.state(now) for breaker in pool.breakers.values()}
    return next((state for state in _SEVERITY if state in states), CLOSED)


def rows(pool: PoolEntry, now: float) -> list[dict[str, Any]]:
    """Return the pool's own breaker (operation ""), then those of operations that count failures."""
    config = pool.config.breaker
    if config is None:
        return []
    own = pool.breakers.get(POOL) or Breaker(config)
    listed = [_row(POOL, own, pool.outcomes, now)]
    for key, breaker in pool.breakers.items():
        if key != POOL and (row := _row(key, breaker, pool.credits.outcomes(key), now))["failures"]:
            listed.append(row)
    return listed


def _row(key: str, breaker: Breaker, count: int, now: float) -> dict[str, Any]:
    failures, outcomes = breaker.counts(count)
    return {
        "operation": key,
        "state": breaker.state(now),
        "failures": failures,
        "outcomes": outcomes,
        "opens": breaker.opens,
        "retry_after_s": breaker.wait_s(now),
    }
