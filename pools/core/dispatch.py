"""Who runs what, when: least-loaded dispatch within credits, replies, recalls."""

from __future__ import annotations

from functools import partial
from typing import Final

from msgspec.structs import replace

from bridge.protocol.errors import CANCELLED, DEADLINE_EXCEEDED, error_code
from bridge.protocol.messages import ERROR, FLAG_EVENTS, PRIORITY_HIGH, Event, Recalled, Reply, Started
from pools.core import lines
from pools.core.cancellation import cancel_waiting, end_orphans, stop_attempt
from pools.core.credits import SLOW_MS, RunTimes
from pools.core.entries import NOT_ASKED, PoolEntry, RequestEntry, WorkerEntry
from pools.core.leaving import recall, stop
from pools.core.nesting import attempt_ended
from pools.core.settlement import settle
from pools.core.shedding import TARGET_S, is_stale, shed_stale
from pools.core.states import (
    DISPATCHED,
    ON_DISPATCH,
    ON_RESUME,
    ON_RETURN,
    ON_START,
    READY,
    REQUEST_MOVES,
    RUNNING,
    SETTLED,
)
from pools.core.tables import Tables

# Idle workers take queued work from loaded ones only where a run is worth the round trip of a Recall.
_RECALL_WORTH_MS: Final = SLOW_MS / 4
# Runs that end so would have taken longer, if they ever began.
_CUT_SHORT: Final = frozenset({CANCELLED, DEADLINE_EXCEEDED})


def pump(tables: Tables, pool: PoolEntry, now: float) -> None:
    """Dispatch from the head of the queue while some worker has credit for it; shed what waited too long."""
    if tables.held is not None:
        tables.held[pool.name] = partial(pump, tables, pool, now)
        return
    if tables.orphans:
        end_orphans(tables, now)  # before anything is begun: what they asked for is not
    if pool.seclusion is not None:
        pool.seclusion.proceed(tables, now)
    if pool.shedding:
        return  # what is shed had others with its key behind it: who sheds it goes on with them, one after the other
    queue = pool.queue
    while queue.open_lanes or pool.lined:
        if pool.lined and _serve_line(tables, pool, now):
            continue
        if not queue.open_lanes:
            return
        entry = queue.head()
        if now - entry.accepted_at > TARGET_S and is_stale(queue.front(), entry, now):
            shed_stale(tables, entry, now)
            continue
        message = entry.message
        if message.priority == PRIORITY_HIGH:
            worker = choose(pool, entry.times, 1, nested=message.depth > 0)
        else:
            worker = choose(pool, entry.times)
        if worker is None:
            return
        queue.pop()
        if entry.session is not None or message.worker:
            own = lines.own_worker(tables, entry, worker, now)
            if own is None:
                continue
            worker = own
        dispatch(tables, entry, worker, now)


def _serve_line(tables: Tables, pool: PoolEntry, now: float) -> bool:
    """Give a worker who waits for it longest, if that is its turn; return whether anything was done."""
    entry = lines.first(pool)
    worker = entry.waits_for if entry is not None else None
    if entry is None or worker is None:
        return False
    worker.leave_line(entry)
    entry.state = REQUEST_MOVES[entry.state][ON_RESUME]
    if pool.seclusion is None or not pool.seclusion.takes(tables, entry, now):
        dispatch(tables, entry, worker, now)
    return True


def enqueue(tables: Tables, entry: RequestEntry, now: float, *, first: bool = False) -> None:
    """Have a request wait for a worker: in the queue, or to run alone if it is under suspicion."""
    pool = entry.pool
    if pool.seclusion is not None and pool.seclusion.takes(tables, entry, now):
        return
    if first:
        pool.queue.push_first(entry)
    else:
        pool.queue.push(entry)


def choose(pool: PoolEntry, times: RunTimes, more: int = 0, *, nested: bool = False) -> WorkerEntry | None:
    """Return the ready worker that holds least, or None if none has credit for an operation of these run times.

    Among equals the one that was given something longest ago, so that idle workers take turns. A worker may take
    the next message, whatever its rows, while it holds fewer rows than slots + prefetch. Work of microseconds is dealt
    by the hand: what a worker gets in a row travels, and returns, in one frame. more: credit beyond that, for what need
    not wait behind what workers were handed early. A worker that has lent many slots out takes what is nested alone.
    """
    prefetch = pool.config.prefetch
    credit = pool.slots + (times.prefetch if prefetch is None else prefetch) + more
    dealt = pool.dealt_to
    if dealt is not None and pool.hand_left > 0 and times.hand > 1 and 0 < dealt.held < credit:
        pool.hand_left -= 1
        return dealt
    best: WorkerEntry | None = None
    lending = pool.lent and not nested
    for worker in pool.ready:
        if worker.reserved or (lending and worker.paused >= pool.most_paused):
            continue
        if (
            best is None
            or worker.held < best.held
            or (worker.held == best.held and worker.last_epoch < best.last_epoch)
        ):
            best = worker
    if best is None or best.held >= credit:
        return None
    pool.dealt_to, pool.hand_left = best, 0 if nested else times.hand - 1
    return best


def dispatch(tables: Tables, entry: RequestEntry, worker: WorkerEntry, now: float) -> None:
    """Send `entry` to `worker` as its next attempt."""
    pool = entry.pool
    message = entry.message
    entry.state = REQUEST_MOVES[entry.state][ON_DISPATCH]
    pool.queued -= entry.rows
    pool.in_flight += entry.rows
    entry.worker = worker
    entry.epoch = epoch = next(tables.epochs)
    entry.attempts += 1
    entry.dispatched_at = now
    entry.recalled = False
    worker.last_epoch = epoch
    worker.attempts[epoch] = entry
    before = worker.held
    worker.held = after = before + entry.rows
    if before <= pool.slots < after:
        pool.over += 1
    deadline = entry.deadline
    attempt = replace(
        message,
        operation=entry.runs,
        pool=pool.name,
        principal=entry.client.principal,
        deadline_ms=None if deadline is None else (deadline - now) * 1000.0,
        epoch=epoch,
    )
    if entry.session is not None:
        attempt = entry.session.attempt(tables, worker, attempt)
    tables.to_workers.append((worker.peer, attempt))


def release(tables: Tables, worker: WorkerEntry, epoch: int) -> RequestEntry | None:
    """Take an attempt out of its worker's books; None if the worker does not hold it."""
    entry = worker.attempts.pop(epoch, None)
    if entry is None:
        return None
    slots = worker.pool.slots
    before = worker.held
    worker.held = after = before - (attempt_ended(tables, worker, entry) if entry.tied else entry.rows)
    if after <= slots < before and worker in worker.pool.ready:
        worker.pool.over -= 1
    if entry.session is not None:
        entry.session.stir(tables)
    return entry


def on_reply(tables: Tables, message: Reply, now: float, peer: bytes) -> None:
    """An attempt ended. One that is not outstanding at this worker is fenced."""
    worker = tables.workers_by_peer.get(peer)
    entry = worker.attempts.get(message.epoch) if worker is not None else None
    if worker is None or entry is None or entry.request_id != message.request_id:
        tables.fenced += 1
        return
    if entry.session is not None:
        message = entry.session.answered(tables, entry, message, worker)
    release(tables, worker, message.epoch)
    rows = entry.rows
    worker.requests += rows
    pool = entry.pool
    if message.status != ERROR or error_code(message.payload or b"") not in _CUT_SHORT:
        entry.times.add(message.run_ms / rows)
        if pool.seclusion is not None:
            pool.seclusion.answered(tables, message.epoch, entry, now)
    if entry.state == SETTLED:
        tables.fenced += rows  # out of time or cancelled: its caller has been answered
        if entry.keyed is not None:
            entry.keyed.answered(tables, message, now)
    else:
        settle(tables, entry, message, now)
    if worker.stop_wanted and not worker.attempts:
        stop(tables, worker, now)
    if pool.queue.open_lanes or pool.lined or pool.seclusion is not None:
        pump(tables, pool, now)
    elif pool.over and worker.held < pool.slots:
        rebalance(tables, pool, worker, 1, now)


def rebalance(tables: Tables, pool: PoolEntry, idle: WorkerEntry, wanted: int, now: float) -> None:
    """Ask the most loaded worker to give back the `wanted` attempts it would start last, as far as its slots are full.

    Some ready worker must hold more than its slots (`pool.over`).
    """
    loaded = max(pool.ready, key=lambda worker: worker.held)
    wanted = min(wanted, loaded.held - pool.slots)
    if loaded is idle or idle.died or idle.reserved or idle.state != READY:
        return
    for epoch in reversed(loaded.attempts):
        if wanted <= 0:
            return
        entry = loaded.attempts[epoch]
        if entry.paused or entry.message.worker or (entry.session is not None and entry.session.strict):
            continue
        run_ms = entry.times.median_ms
        # No run of it has ended yet: they take at least as long as this one has been waiting.
        if ((now - entry.dispatched_at) * 1000.0 if run_ms is None else run_ms) < _RECALL_WORTH_MS:
            return
        if not entry.recalled and entry.state == DISPATCHED and not loaded.started(epoch):
            recall(tables, loaded, entry)
            wanted -= 1


def on_recalled(tables: Tables, message: Recalled, now: float, peer: bytes) -> None:
    """A worker gave an attempt back: it never ran."""
    worker = tables.workers_by_peer.get(peer)
    entry = worker.attempts.get(message.epoch) if worker is not None else None
    if worker is None or entry is None or entry.state == RUNNING:
        tables.fenced += 1
        return
    release(tables, worker, message.epoch)
    if entry.state != SETTLED:
        give_back(tables, entry, now)
    elif entry.keyed is not None:
        entry.keyed.ceded(tables, now)
    if worker.stop_wanted and not worker.attempts:
        stop(tables, worker, now)
    pump(tables, entry.pool, now)


def give_back(tables: Tables, entry: RequestEntry, now: float) -> None:
    """Return an attempt that provably never ran to the head of the queue, unless nobody wants it any more."""
    pool = entry.pool
    entry.state = REQUEST_MOVES[entry.state][ON_RETURN]
    pool.in_flight -= entry.rows
    pool.queued += entry.rows
    entry.worker = None
    entry.attempts -= 1
    entry.dispatched_at = 0.0
    if entry.cancel != NOT_ASKED:
        cancel_waiting(tables, entry, now)
    else:
        enqueue(tables, entry, now, first=True)


def on_started(tables: Tables, message: Started, now: float, peer: bytes) -> None:
    """A worker keeps an attempt that was recalled: it runs, or its reply is on its way."""
    worker = tables.workers_by_peer.get(peer)
    entry = worker.attempts.get(message.epoch) if worker is not None else None
    if worker is None or entry is None:
        return  # its reply came first
    if entry.state == DISPATCHED:
        entry.state = REQUEST_MOVES[entry.state][ON_START]
    if entry.state == SETTLED or entry.cancel != NOT_ASKED:
        stop_attempt(tables, worker, message.epoch, now)


def on_event(tables: Tables, message: Event, now: float, peer: bytes) -> None:
    """Progress of a running attempt: passed on if its caller listens."""
    worker = tables.workers_by_peer.get(peer)
    entry = worker.attempts.get(message.epoch) if worker is not None else None
    if entry is not None and entry.state != SETTLED and entry.message.flags & FLAG_EVENTS:
        tables.to_clients.append((entry.client.peer, message))
