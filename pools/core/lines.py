"""What waits for one certain worker: a call whose session is bound to it, or a request that names it.

The worker has a line of its own for them, in the order of a pool's queue, so that they hold up nobody in that. They
come to it from the queue's head when the worker has no credit; from then on line and queue go by age.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from bridge.protocol.errors import BridgeError
from bridge.protocol.messages import PRIORITY_HIGH
from pools.core.entries import PoolEntry, RequestEntry, WorkerEntry
from pools.core.queueing import NESTED, class_of
from pools.core.settlement import settle_error
from pools.core.shedding import overloaded
from pools.core.states import ON_WAIT, READY, REQUEST_MOVES
from pools.core.tables import Tables, unavailable

if TYPE_CHECKING:
    from pools.core.session import Session

# Rows that may wait for one worker: they take no room in their pool's queue.
MAX_ROWS: Final = 1000


def serves(worker: WorkerEntry) -> bool:
    """Return whether a worker takes requests, now or when it has credit."""
    return worker.state == READY and not worker.died


def has_credit(worker: WorkerEntry, entry: RequestEntry) -> bool:
    """Return whether a worker may be given this very request now (see `dispatch.choose`)."""
    pool, message = worker.pool, entry.message
    if worker.reserved or not serves(worker):
        return False
    if pool.lent and not message.depth and worker.paused >= pool.most_paused:
        return False
    prefetch = pool.config.prefetch
    credit = pool.slots + (entry.times.prefetch if prefetch is None else prefetch)
    return worker.held < credit + (message.priority == PRIORITY_HIGH)


def own_worker(tables: Tables, entry: RequestEntry, best: WorkerEntry, now: float) -> WorkerEntry | None:
    """Return who is to run a request that was taken from its pool's queue; `best` is who would run any.

    None: it waits in its worker's line, or is settled, for that worker is not there.
    """
    session = entry.session
    if session is not None:
        error = session.lost_error()
        if error is not None:
            settle_error(tables, entry, error, now)
            return None
        return _of_session(tables, session, entry, best, now)
    worker = tables.workers.get(entry.message.worker)
    if worker is None or worker.pool is not entry.pool or not serves(worker):
        settle_error(tables, entry, gone(entry), now)
        return None
    if has_credit(worker, entry):
        return worker
    _wait(tables, entry, worker, now)
    return None


def _of_session(
    tables: Tables, session: Session, entry: RequestEntry, best: WorkerEntry, now: float
) -> WorkerEntry | None:
    """Where a worker has a free slot no call waits behind another for the sake of a hint."""
    home = session.home
    if home is None or home is best or home.pool is not entry.pool:
        return best
    if has_credit(home, entry):
        return home if session.strict or home.held < home.pool.slots or best.held >= best.pool.slots else best
    if not session.strict:
        return best
    _wait(tables, entry, home, now)
    return None


def _wait(tables: Tables, entry: RequestEntry, worker: WorkerEntry, now: float) -> None:
    """Have a queued request, which is in no queue any more, wait for a worker. It is shed where too many do."""
    if worker.lined + entry.rows > MAX_ROWS:
        entry.pool.shed += entry.rows
        text = f"{worker.lined} requests wait for worker {worker.worker_id} (limit {MAX_ROWS})"
        settle_error(tables, entry, overloaded(entry.pool, text, entry.rows), now)
        return
    entry.state = REQUEST_MOVES[entry.state][ON_WAIT]
    worker.stand_in_line(entry)


def first(pool: PoolEntry) -> RequestEntry | None:
    """Return who waits for a worker that has credit now, and has waited longest; None if others in the queue have.

    It is left in its line.
    """
    found: RequestEntry | None = None
    for worker in pool.lined.values():
        assert worker.line is not None
        entry = worker.line.head()
        if has_credit(worker, entry) and (found is None or _before(entry, found)):
            found = entry
    if found is not None and pool.queue.open_lanes and not _before(found, pool.queue.head()):
        return None
    return found


def _before(one: RequestEntry, other: RequestEntry) -> bool:
    """Return whether one of two that wait goes first: who is nested, else who has waited longer."""
    nested, others = class_of(one.message) == NESTED, class_of(other.message) == NESTED
    return nested if nested != others else one.accepted_at <= other.accepted_at


def gone(entry: RequestEntry) -> BridgeError:
    """Return why a request for one worker is not run."""
    return unavailable(f"worker {entry.message.worker}, which was to run this request, is not there, or is leaving")
