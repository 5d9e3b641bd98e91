"""The lives of workers: launched, booted, ready, drained, gone, replaced."""

from __future__ import annotations

from typing import Final

from bridge.protocol.errors import CANCELLED, BridgeError, decode_error
from bridge.protocol.messages import BootFailed as BootFailedMessage
from bridge.protocol.messages import Heartbeat, Hello, Ready
from pools.core import internal, programs, replacement, sessions, shedding
from pools.core.dispatch import pump, rebalance
from pools.core.entries import (
    DEAD_WORKER_KEPT_S,
    NOT_ASKED,
    DeadWorker,
    PoolEntry,
    RequestEntry,
    WorkerEntry,
    followers_first,
)
from pools.core.events import (
    BootFailed,
    Drain,
    Exited,
    ExitReason,
    Kill,
    LaunchFailed,
    ProtocolBroken,
    WorkerDied,
    WorkerExited,
    WorkerLaunched,
)
from pools.core.leaving import dump_and_kill, kill, leave_ready, stop
from pools.core.losses import lost
from pools.core.places import degrade, fill_later, heal, reconcile
from pools.core.recycling import recycle
from pools.core.scaling import scale
from pools.core.settlement import answer_cancel, settle_error
from pools.core.states import BOOTING, LAUNCHING, ON_EXIT, ON_HELLO, ON_READY, QUEUED, SETTLED, WORKER_MOVES
from pools.core.tables import Tables, unavailable

_CHECK_EVERY_S: Final = 1.0
# A silence is noticed at most this long after its limit; its worker is dead 0.2 s later (DUMP_S).
_LISTEN_EVERY_S: Final = 0.5
# A boot imports DSPy and, one day, a model; one that takes longer hangs.
BOOT_LIMIT_S: Final = 300.0
# A launch of which nothing was ever heard, not even after it was killed, is lost: its place is filled anew.
LAUNCH_LOST_S: Final = BOOT_LIMIT_S + 10.0


def start(tables: Tables, now: float) -> None:
    """Launch every place of every pool."""
    for pool in tables.pools.values():
        reconcile(tables, pool, now)
    tables.after(now + _CHECK_EVERY_S, check)
    tables.after(now + _LISTEN_EVERY_S, listen)


def on_launched(tables: Tables, event: WorkerLaunched, now: float, peer: bytes) -> None:
    """The process exists. One that nobody expects any more is killed: its place may be another's by now."""
    worker = tables.workers.get(event.worker_id)
    if worker is None:
        tables.effects.append(Kill(event.worker_id, "nobody waits for it any more"))
        return
    worker.pid = event.pid
    worker.last_heard = now


def on_hello(tables: Tables, message: Hello, now: float, peer: bytes) -> None:
    """A worker's io thread is up (the shell has checked its token); it boots."""
    worker = tables.workers.get(message.worker_id)
    if worker is None or worker.state != LAUNCHING:
        return
    worker.state = WORKER_MOVES[worker.state][ON_HELLO]
    worker.peer = peer
    worker.pid = worker.pid or message.pid
    worker.last_heard = now
    tables.workers_by_peer[peer] = worker


def on_ready(tables: Tables, message: Ready, now: float, peer: bytes) -> None:
    """A worker takes requests from now on."""
    worker = tables.workers_by_peer.get(peer)
    if worker is None or worker.state != BOOTING:
        return
    worker.state = WORKER_MOVES[worker.state][ON_READY]
    worker.booted = True
    worker.boot_ms = (now - worker.launched_at) * 1000.0
    worker.last_heard = now
    pool = worker.pool
    pool.was_ready = True
    heal(tables, pool, now)
    if worker.died:
        return  # it lived to say so, no longer
    pool.ready.append(worker)
    tables.log("worker_ready", worker=worker.worker_id, pid=worker.pid, boot_ms=round(worker.boot_ms))
    if not pool.config.internal:
        tables.to_workers.extend((peer, program) for program in tables.programs.versions.values())
    replacement.on_ready(tables, worker, now)
    pump(tables, pool, now)
    if pool.over and not worker.held:
        rebalance(tables, pool, worker, pool.slots, now)


def on_boot_failed(tables: Tables, message: BootFailedMessage, now: float, peer: bytes) -> None:
    """A worker says why it cannot boot; its exit follows."""
    worker = tables.workers_by_peer.get(peer)
    if worker is not None:
        worker.boot_error = message.payload


def on_heartbeat(tables: Tables, message: Heartbeat, now: float, peer: bytes) -> None:
    """A worker's io thread lives, and says how its attempts get on."""
    worker = tables.workers_by_peer.get(peer)
    if worker is not None:
        worker.last_heard = now
        worker.rss_bytes = message.rss_bytes
        worker.progress = message.attempts
        worker.progress_at = now
        if not worker.last_epoch:
            worker.rss_at_birth = message.rss_bytes


def on_died(tables: Tables, event: WorkerDied, now: float, peer: bytes) -> None:
    """A worker's process has ended: dispatch to it no more. What it held is settled by WorkerExited."""
    worker = tables.workers.get(event.worker_id)
    if worker is not None:
        worker.died = True
        leave_ready(tables, worker)


def on_protocol_broken(tables: Tables, event: ProtocolBroken, now: float, peer: bytes) -> None:
    """A worker cannot be understood: replies of its live attempts may be lost, so it is killed."""
    worker = tables.workers_by_peer.get(peer)
    if worker is not None:
        kill(tables, worker, f"protocol error: {event.why}")


def on_exited(tables: Tables, event: WorkerExited, now: float, peer: bytes) -> None:
    """A worker is gone: settle what it held, remember it, fill its place again if it is to be filled."""
    worker = tables.workers.pop(event.worker_id, None)
    if worker is None:
        return
    pool = worker.pool
    worker.state = WORKER_MOVES[worker.state][ON_EXIT]
    del pool.lives[worker.worker_id]
    tables.workers_by_peer.pop(worker.peer, None)
    leave_ready(tables, worker)
    reason = BootFailed(worker.boot_error) if worker.boot_error is not None else event.reason
    cause = worker.kill_why or (worker.stop_why if reason == Exited(0) else "") or str(reason)
    with tables.together():
        if pool.config.internal:
            internal.lost(tables, worker, reason, cause, now)
        else:
            lost(tables, worker, reason, cause, now)
        _remember(tables, worker, event, reason, cause, now)
        replacement.on_exited(tables, worker, now)
        place = pool.places[worker.place]
        if place.worker is worker:
            place.worker = None
            if not tables.stopping:
                _after_end(tables, worker, event, reason, cause, now)
        if not tables.stopping:
            reconcile(tables, pool, now)
            replacement.advance(tables, pool, now)
        pump(tables, pool, now)


def _remember(
    tables: Tables, worker: WorkerEntry, event: WorkerExited, reason: ExitReason, cause: str, now: float
) -> None:
    worker.pool.dead.append(
        DeadWorker(
            worker.worker_id, worker.pid, worker.place, worker.incarnation, now, now - worker.launched_at,
            worker.requests, worker.boot_ms, reason, cause, event.peak_rss_bytes, event.log_tail, event.stacks,
        )
    )  # fmt: skip
    wanted = worker.stop_wanted
    level = "info" if wanted else "warning"
    tables.log("worker_exited", level, worker=worker.worker_id, pid=worker.pid, cause=cause, intended=wanted)


def _after_end(
    tables: Tables, worker: WorkerEntry, event: WorkerExited, reason: ExitReason, cause: str, now: float
) -> None:
    """A worker in service ended by itself, or was killed for cause: say whether and when its place is filled again."""
    pool = worker.pool
    place = pool.places[worker.place]
    normal = worker.booted and not worker.kill_why and reason == Exited(0)
    if not pool.restarts.restarts(normal=normal):
        kind = pool.config.restart.type
        place.out = f"{worker.worker_id} ended: {cause}; {kind} workers are not started again"
        tables.log("worker_not_restarted", "warning", worker=worker.worker_id, type=kind)
    if worker.booted:
        delay_s = pool.restarts.crashed(now=now) if not place.out else 0.0
    else:
        error = _boot_error(pool, worker, event, reason)
        tables.log("worker_boot_failed", "error", worker=worker.worker_id, why=error.message)
        delay_s = pool.restarts.boot_failed()
        # One failure may be bad luck while the others still boot; as many as there are places is a broken pool.
        broken = pool.boot_error is not None or pool.restarts.failed_boots >= len(pool.wanted)
        if broken and not pool.ready:
            degrade(tables, pool, error, delay_s, now)
    fill_later(tables, pool, place, delay_s, now)


def _boot_error(pool: PoolEntry, worker: WorkerEntry, event: WorkerExited, reason: ExitReason) -> BridgeError:
    """Return what callers of a pool that cannot boot are told: the root traceback, or the worker's last lines."""
    if isinstance(reason, BootFailed):
        root = decode_error(reason.error)
        text, traceback = root.message, str(root.details.get("remote_traceback", ""))
    elif isinstance(reason, LaunchFailed):
        text, traceback = reason.error, ""
    else:
        text, traceback = worker.kill_why or str(reason), "\n".join((*event.log_tail, *event.stacks))
    fails = "cannot be started" if pool.config.internal else "cannot start its workers"
    return unavailable(
        f"{pool.title} {fails} ({worker.worker_id}): {text}\n{traceback}".rstrip(), remote_traceback=traceback
    )


def listen(tables: Tables, now: float) -> None:
    """Look at every worker's heartbeat, whether pools are to grow or shrink, what has expired. Runs twice a second."""
    for worker in list(tables.workers.values()):
        if worker.state == LAUNCHING:
            worker.last_heard = now
        limit_s = worker.pool.config.heartbeat_limit_s
        if now - max(worker.last_heard, tables.awake_since) > limit_s:
            worker.silent = not worker.kill_why or worker.silent
            dump_and_kill(tables, worker, f"no heartbeat for {limit_s:g} s", now)
    scale(tables, now)
    sessions.sweep(tables, now)
    tables.after(now + _LISTEN_EVERY_S, listen)


def check(tables: Tables, now: float) -> None:
    """Bring every pool to its size, end what does not boot, forget the long dead. Runs each second."""
    tables.next_spell()
    shedding.keep_pace(tables, now)
    programs.forget(tables)
    for worker in list(tables.workers.values()):
        age_s = now - worker.launched_at
        if worker.state in (LAUNCHING, BOOTING) and age_s > BOOT_LIMIT_S:
            dump_and_kill(tables, worker, f"did not boot within {BOOT_LIMIT_S:g} s", now)
        if worker.kill_why and not worker.pid and not worker.died and age_s > LAUNCH_LOST_S:
            on_exited(tables, WorkerExited(worker.worker_id, LaunchFailed("nothing was heard of it")), now, b"")
    for pool in tables.pools.values():
        while pool.dead and pool.dead[0].exited_at < now - DEAD_WORKER_KEPT_S:
            pool.dead.popleft()
        recycle(tables, pool, now)
        reconcile(tables, pool, now)
    tables.after(now + _CHECK_EVERY_S, check)


# --- the end --------------------------------------------------------------------------------------


def on_drain(tables: Tables, event: Drain, now: float, peer: bytes) -> None:
    """Stop taking requests; stop the workers when all is settled or the budget is spent.

    Asked again, the earlier end counts.
    """
    tables.draining = True
    if tables.saves is not None:
        tables.saves.holding = True  # what could not be kept is tried once more, and waited for
    tables.ends_at = min(tables.ends_at, now + event.budget_s)
    tables.reconsider()
    tables.log("draining", budget_s=event.budget_s, requests=len(tables.requests))
    tables.after(now + event.budget_s, _budget_spent)
    stop_if_idle(tables, now)


def stop_if_idle(tables: Tables, now: float) -> None:
    """When draining and nothing is left to settle, nor to be kept while there is time: stop the workers."""
    if not tables.draining or tables.requests or tables.stopping:
        return
    if tables.saves is not None:
        if tables.saves.waits and now < tables.ends_at:
            return
        tables.to_clients.extend(tables.saves.give_up())
    stop_workers(tables, now)


def _budget_spent(tables: Tables, now: float) -> None:
    with tables.together():
        for entry in followers_first(tables.requests.values()):
            if entry.state != SETTLED:  # with another of its key
                _cut_off(tables, entry, now)
    stop_if_idle(tables, now)


def _cut_off(tables: Tables, entry: RequestEntry, now: float) -> None:
    queued = entry.state == QUEUED and not entry.resends
    text = "before this request ran" if queued else "before this request was done; it may have run"
    error = BridgeError(CANCELLED, f"the coordinator shut down {text}", retryable=queued)
    if entry.cancel != NOT_ASKED and not entry.cancel_answered:
        answer_cancel(tables, entry, "running", "asked")  # whoever waits for it gets no other word
    else:
        entry.pool.cancelled += entry.rows
        entry.cancel_answered = True
    settle_error(tables, entry, error, now)


def stop_workers(tables: Tables, now: float) -> None:
    """Tell every worker to stop; kill what is left after a short grace."""
    tables.stopping = True
    for pool in tables.pools.values():
        replacement.forget(pool)
    for worker in tables.workers.values():
        stop(tables, worker, now)
