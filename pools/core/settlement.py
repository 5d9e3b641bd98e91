"""The one place where a request settles."""

from __future__ import annotations

from msgspec.structs import replace

from bridge.protocol.errors import CANCELLED, BridgeError, encode_error, error_code
from bridge.protocol.messages import ERROR, OK, ROWS, CancelReply, Reply
from pools.core import breakers, nesting
from pools.core.entries import NOT_ASKED, RequestEntry, WorkerEntry
from pools.core.failures import failed
from pools.core.states import ON_SETTLE, QUEUED, REQUEST_MOVES, WAITING
from pools.core.tables import Tables


def settle(tables: Tables, entry: RequestEntry, reply: Reply, now: float) -> None:
    """Give `entry` its outcome: `reply` as its worker sent it, completed by what the fleet knows.

    The attempt, if one is out, stays in its worker's books until the worker answers or dies.
    """
    pool = entry.pool
    rows = entry.rows
    worker = entry.worker
    if worker is None:
        _take_out(entry)
    else:
        pool.in_flight -= rows
    entry.state = REQUEST_MOVES[entry.state][ON_SETTLE]
    del tables.requests[entry.request_id]
    if entry.deadline is not None:
        tables.deadlines.discard(entry.request_id, entry.bucket)
    client = entry.client
    client.in_flight -= rows
    client.account.in_flight -= rows
    total_ms = (now - entry.accepted_at) * 1000.0
    if reply.status == OK or reply.status == ROWS:
        pool.completed += rows
        if worker is not None:
            pool.latency.add(total_ms, now=now)
        if entry.watched:
            breakers.succeeded(tables, entry, now)
        else:
            entry.times.outcomes += 1
            pool.outcomes += 1
    else:
        pool.failed += rows
        breakers.ended(tables, entry, reply, now)
        failed(tables, entry, reply, total_ms, now)
    completed = _completed(tables, entry, reply, total_ms, now)
    if entry.session is None:
        tables.to_clients.append((client.peer, completed))
    else:
        entry.session.settled(tables, entry, completed, now)
    if entry.cancel != NOT_ASKED or entry.keyed is not None or entry.tied:
        _tell_others(tables, entry, completed, now)


def _completed(tables: Tables, entry: RequestEntry, reply: Reply, total_ms: float, now: float) -> Reply:
    worker, name = entry.worker, entry.pool.name
    return replace(
        reply,
        epoch=entry.epoch,
        worker=worker.worker_id if worker is not None else reply.worker,
        pool=name if worker is not None else reply.pool or name,
        attempt=entry.attempts or reply.attempt,
        queue_ms=((entry.dispatched_at or now) - entry.accepted_at) * 1000.0,  # given back, it was never dispatched
        total_ms=total_ms,
        pressed=_pressed(tables, entry),
        fallback_used=entry.fallback_used or reply.fallback_used,
    )


def _tell_others(tables: Tables, entry: RequestEntry, completed: Reply, now: float) -> None:
    """Answer who cancelled it; tell those that share its work, and those that work for it."""
    if entry.cancel != NOT_ASKED and not entry.cancel_answered:
        _answer_cancel(tables, entry, completed, entry.worker)
    if entry.keyed is not None:
        entry.keyed.settled(tables, entry, completed, now)
    if entry.tied:
        nesting.settled(tables, entry)


def _take_out(entry: RequestEntry) -> None:
    """Take what no worker has from where it waits."""
    pool = entry.pool
    if entry.state == QUEUED:
        pool.queue.discard(entry)
    elif entry.state == WAITING:
        if pool.seclusion is not None:
            pool.seclusion.waiting.pop(entry.request_id, None)
        if entry.waits_for is not None:
            entry.waits_for.leave_line(entry)
        entry.watched = True  # it does not run itself: what becomes of it says nothing
    pool.queued -= entry.rows


def _pressed(tables: Tables, entry: RequestEntry) -> bool:
    """Whether a client should have less under way: the queue is half full, or it had more than its share of it.

    The queue alone says too little: of what clients have under way most may be answers that they have not read yet, and
    all that they send in return may come at once. Where slots are free nobody is held back for others.
    """
    pool, client = entry.pool, entry.client
    limit = pool.config.max_queue
    if pool.queued * 2 > limit and pool.waiting_rows * 2 > limit:
        return True
    if tables.sharers < 2 or client.peak * tables.sharers <= limit:
        return False
    if pool.in_flight - pool.lent + entry.rows < len(pool.ready) * pool.slots:
        return False
    client.peak = client.in_flight
    return True


def settle_error(tables: Tables, entry: RequestEntry, error: BridgeError, now: float) -> None:
    """Settle with an error of the fleet's own."""
    settle(tables, entry, Reply(request_id=entry.request_id, status=ERROR, payload=encode_error(error)), now)


def answer_cancel(tables: Tables, entry: RequestEntry, stage: str, how: str) -> None:
    """Say what became of a cancellation, once."""
    entry.cancel_answered = True
    if how != "none":
        entry.pool.cancelled += entry.rows
    tables.to_clients.append(
        (entry.client.peer, CancelReply(request_id=entry.request_id, stage=stage, how=how)),
    )


def _answer_cancel(tables: Tables, entry: RequestEntry, reply: Reply, worker: WorkerEntry | None) -> None:
    """Say how a cancellation of running work ended: it stopped, it was killed, or it finished first."""
    if reply.status == ERROR and error_code(reply.payload or b"") == CANCELLED:
        killed = worker is not None and bool(worker.kill_why)
        answer_cancel(tables, entry, "running", "killed" if killed else "cooperative")
    else:
        answer_cancel(tables, entry, "finished", "none")
