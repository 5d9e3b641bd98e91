"""Ending requests early: cancellation, deadlines, clients that leave."""

from __future__ import annotations

from functools import partial

from bridge.protocol.errors import CANCELLED, DEADLINE_EXCEEDED, BridgeError
from bridge.protocol.messages import Bye, Cancel, CancelReply
from pools.core import breakers
from pools.core.entries import ASKED, FORCED, ClientEntry, RequestEntry, WorkerEntry, followers_first
from pools.core.events import ClientGone
from pools.core.leaving import dump_and_kill, kill, recall
from pools.core.progress import how_far
from pools.core.settlement import answer_cancel, settle_error
from pools.core.shares import leave
from pools.core.states import DISPATCHED, SETTLED
from pools.core.tables import Tables


def on_cancel(tables: Tables, message: Cancel, now: float, peer: bytes) -> None:
    """A client cancels one of its requests. Queued work is certain not to run; running work is asked."""
    entry = tables.requests.get(message.request_id)
    if entry is None or entry.client.peer != peer:
        tables.to_clients.append((peer, CancelReply(request_id=message.request_id, stage="finished", how="none")))
        return
    if peer not in tables.clients:
        return  # it has left, and all that it had was cancelled
    cancel(tables, entry, now, force=message.force)


def cancel(tables: Tables, entry: RequestEntry, now: float, *, force: bool) -> None:
    """Cancel a request, wherever it is. The answer to its client follows when it is known."""
    entry.cancel = max(entry.cancel, FORCED if force else ASKED)
    worker = entry.worker
    if worker is None:
        cancel_waiting(tables, entry, now)
    elif entry.keyed is not None and entry.keyed.outlives(entry):
        answer_cancel(tables, entry, "running", "cooperative")
        text = f"{entry.message.operation} was cancelled; it goes on for others with its idempotency key"
        settle_error(tables, entry, BridgeError(CANCELLED, text), now)
    elif entry.state == DISPATCHED and not worker.started(entry.epoch):
        recall(tables, worker, entry)
    else:
        stop_attempt(tables, worker, entry.epoch, now)
        children = tables.children.get(entry.request_id) if entry.tied else None
        if children:
            with tables.together():
                for child in followers_first(children.values()):
                    if child.state != SETTLED:
                        cancel(tables, child, now, force=force)


def end_orphans(tables: Tables, now: float) -> None:
    """Cancel what was asked for by programs that have ended, by force: nobody waits for it. Theirs are orphans then."""
    with tables.together():
        while tables.orphans:
            children = tables.children.get(tables.orphans.pop())
            for child in followers_first(children.values()) if children else ():
                if child.state != SETTLED and child.cancel != FORCED:
                    cancel(tables, child, now, force=True)


def cancel_waiting(tables: Tables, entry: RequestEntry, now: float) -> None:
    """Cancel what no worker has. If an attempt of it was lost, that one ran, and was killed with its worker."""
    if entry.resends:
        answer_cancel(tables, entry, "running", "killed")
        text = f"{entry.message.operation} was cancelled before it was sent again; it may have run"
    else:
        answer_cancel(tables, entry, "queued", "dequeued")
        text = f"{entry.message.operation} was cancelled before it ran"
    settle_error(tables, entry, BridgeError(CANCELLED, text), now)


def stop_attempt(tables: Tables, worker: WorkerEntry, epoch: int, now: float) -> None:
    """Ask a running attempt to stop at its next boundary; see to it that its slot comes back.

    The worker of an attempt that is out of time, or was cancelled by force, is killed after the grace period. A plain
    cancellation leaves it time.
    """
    entry = worker.attempts[epoch]
    tables.to_workers.append((worker.peer, Cancel(request_id=entry.request_id, epoch=epoch)))
    if entry.state == SETTLED or entry.cancel == FORCED:
        tables.after(now + worker.pool.config.grace_s, partial(_grace_over, worker, epoch))


def _grace_over(worker: WorkerEntry, epoch: int, tables: Tables, now: float) -> None:
    entry = worker.attempts.get(epoch)
    if entry is None or tables.workers.get(worker.worker_id) is not worker:
        return
    why = f"{entry.message.operation} did not stop within {worker.pool.config.grace_s:g} s of being asked"
    breakers.deaf(tables, entry, now)
    if entry.cancel == FORCED:
        worker.kill_asked = True
        kill(tables, worker, why)  # somebody who knows wants it gone: nothing to find out
    else:
        dump_and_kill(tables, worker, why, now)


def expire(tables: Tables, now: float) -> None:
    """Settle every request whose deadline has passed, and stop its attempt.

    Followers of its idempotency key have another: what outran a deadline may hang, and no one else's may wait for it.
    """
    due = tables.deadlines.pop_due(now)
    if not due:
        return
    with tables.together():
        for entry in followers_first(tables.requests[request_id] for request_id in due):
            if entry.state != SETTLED:  # with one before it
                _expired(tables, entry, now)


def _expired(tables: Tables, entry: RequestEntry, now: float) -> None:
    worker = entry.worker
    started = worker is not None and (entry.state != DISPATCHED or worker.started(entry.epoch))
    settle_error(tables, entry, _too_late(entry, worker if started else None, now), now)
    if worker is None:
        return
    if started:
        stop_attempt(tables, worker, entry.epoch, now)
    else:
        recall(tables, worker, entry)


def _too_late(entry: RequestEntry, running_at: WorkerEntry | None, now: float) -> BridgeError:
    stage = "queued" if running_at is None else "running"
    after_s = now - entry.accepted_at
    text = f"{entry.message.operation} was still {stage} at its deadline, {after_s:.2f} s after it was accepted"
    if running_at is None and entry.resends:
        text += "; an attempt before was lost with its worker"
    far = how_far(running_at, entry, now) if running_at is not None else ""
    return BridgeError(DEADLINE_EXCEEDED, f"{text} ({far})" if far else text, details={"stage": stage})


def on_bye(tables: Tables, message: Bye | ClientGone, now: float, peer: bytes) -> None:
    """A client left: nobody waits for its answers."""
    client = tables.clients.pop(peer, None)
    if client is not None:
        leave(tables, client)
        abandon(tables, client, now)


def abandon(tables: Tables, client: ClientEntry, now: float) -> None:
    """Cancel whatever a client has under way."""
    if not client.in_flight:
        return
    # The latest first: what a worker holds behind what it runs is taken back before the room for it is there.
    theirs = [entry for entry in reversed(tables.requests.values()) if entry.client is client]
    with tables.together():
        for entry in followers_first(theirs):
            if entry.state != SETTLED:  # with one before it, of its idempotency key
                cancel(tables, entry, now, force=False)
