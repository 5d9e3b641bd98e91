"""What is refused or given up because there is too much: by the age of what waits, and with the time to come again.

After CoDel (Nichols and Jacobson 2012, RFC 8289), for requests with deadlines: a queue that is never short is a
standing queue, and whatever leaves it last has no time left to run. What has waited too long of it is shed, so that
those who are served still have time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from bridge.protocol.errors import OVERLOADED, BridgeError
from bridge.protocol.messages import Request
from pools.core.entries import PoolEntry, RequestEntry
from pools.core.queueing import NESTED, Lane, class_of
from pools.core.settlement import settle_error

if TYPE_CHECKING:
    from pools.core.tables import Tables

# A lane where each request waited longer than the target for an interval has a standing queue.
TARGET_S: Final = 0.1
INTERVAL_S: Final = 1.0
# Without any for so long, shedding has ended.
QUIET_S: Final = 5.0
_LEAST_S, _MOST_S = 0.05, 60.0
_UNKNOWN_MS: Final = 10.0


def is_stale(lane: Lane, entry: RequestEntry, now: float) -> bool:
    """Return whether the head of `lane`, which has waited longer than the target, is to be shed.

    A lane is first in, first out: since this one crossed the target every other before it has been beyond it too. If
    somebody looked since then, it was so before.
    """
    if entry.epoch or entry.moved or entry.session is not None or len(lane.entries) == 1 or lane.priority == NESTED:
        # A worker had it, or it waited elsewhere: it is not where its age would have it. Nobody waits behind it. It
        # is half done.
        return False
    crossed_at = entry.accepted_at + TARGET_S
    if lane.looked_at < crossed_at:
        lane.above_since = crossed_at
    lane.looked_at = now
    if now - lane.above_since < INTERVAL_S:
        return False
    limit_s = _age_limit(entry)
    return limit_s is not None and now - entry.accepted_at > limit_s


def _age_limit(entry: RequestEntry) -> float | None:
    """Return how long a request may wait: half of its time, or as configured if that is less."""
    limit_s = entry.pool.config.queue_age_s
    if entry.deadline is None:
        return limit_s
    half_s = (entry.deadline - entry.accepted_at) / 2.0
    return half_s if limit_s is None else min(half_s, limit_s)


def shed(tables: Tables, entry: RequestEntry, why: str, now: float) -> None:
    """Settle a queued request as Overloaded."""
    pool = entry.pool
    if not pool.shed_at:
        tables.log("shedding_began", "warning", pool=pool.name, queued=pool.queued, why=why)
    pool.shed_at = now
    pool.shed += entry.rows
    settle_error(tables, entry, overloaded(pool, why, entry.rows), now)


def shed_stale(tables: Tables, entry: RequestEntry, now: float) -> None:
    """Shed what has waited too long."""
    text = f"{entry.message.operation} waited {now - entry.accepted_at:.2f} s in the queue of {entry.pool.title}"
    entry.pool.shedding = True
    shed(tables, entry, f"{text}, too long for its deadline" if entry.deadline is not None else text, now)
    entry.pool.shedding = False


def hopeless(pool: PoolEntry, principal: str, message: Request, now: float) -> BridgeError | None:
    """Refuse what cannot be served in time: by what is before it, if all workers did nothing else, twice its deadline.

    And by what has happened: the first of those before it has waited longer than that deadline already.
    """
    lane = pool.queue.lane(class_of(message), principal) if message.deadline_ms is not None else None
    if lane is None or message.deadline_ms is None:
        return None
    head = lane.first()
    median_ms = head.times.median_ms
    slots = max(1, len(pool.ready)) * pool.slots
    waited_ms = (now - head.accepted_at) * 1000.0
    if median_ms is None or waited_ms <= message.deadline_ms:
        return None
    wait_ms = lane.rows * median_ms / slots
    if wait_ms <= 2.0 * message.deadline_ms:
        return None
    text = f"{lane.rows} rows wait before it in {pool.title}, about {wait_ms / 1000.0:.1f} s of work"
    return overloaded(pool, f"{text}: it cannot run in {message.deadline_ms / 1000.0:g} s", message.rows)


def keep_pace(tables: Tables, now: float) -> None:
    """Take the pools' pace; note where shedding has ended. Runs each second."""
    for pool in tables.pools.values():
        pool.pace.mark(pool.completed + pool.failed, pool.rejected, waits=bool(pool.queue), now=now)
        waited_s = now - pool.queue.oldest_at() if pool.queue else 0.0
        pool.hurry_ms = waited_s * 1000.0 if waited_s > TARGET_S else 0.0
        if pool.shed_at and now - pool.shed_at > QUIET_S:
            pool.shed_at = 0.0
            tables.log("shedding_ended", pool=pool.name, shed=pool.shed)


def retry_after_s(pool: PoolEntry, rows: int) -> float:
    """Return when there is a place again: when so many rows have settled as were refused in a second, and these.

    By then, all those may have come again. By the pool's pace of settling, or by run times where nothing waited before.
    """
    per_s = pool.pace.rows_per_s or _pace_by_run_times(pool)
    ahead = min(pool.waiting_rows, pool.pace.refused_per_s + rows)
    return min(_MOST_S, max(_LEAST_S, ahead / per_s))


def _pace_by_run_times(pool: PoolEntry) -> float:
    median_ms = pool.queue.head().times.median_ms if pool.queue else None
    return max(1, len(pool.ready)) * pool.slots * 1000.0 / max(0.001, median_ms or _UNKNOWN_MS)


def overloaded(pool: PoolEntry, text: str, rows: int) -> BridgeError:
    """Return the refusal, with the time after which it is worth trying again."""
    after_s = retry_after_s(pool, rows)
    return BridgeError(
        OVERLOADED, f"{text}; try again in {after_s:.2f} s", retryable=True, details={"retry_after_s": after_s}
    )
