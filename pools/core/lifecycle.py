"""The lives of workers: launched, booted, ready, drained, gone, replaced."""

from __future__ import annotations

from functools import partial
from typing import Final

from bridge.protocol.errors import CANCELLED, BridgeError, decode_error
from bridge.protocol.messages import BootFailed as BootFailedMessage
from bridge.protocol.messages import Heartbeat, Hello, Program, Ready, Stop
from pools.core.cancellation import kill
from pools.core.dispatch import lost, pump, rebalance
from pools.core.entries import DEAD_WORKER_KEPT_S, DeadWorker, Place, PoolEntry, WorkerEntry
from pools.core.events import (
    BootFailed,
    Drain,
    ExitReason,
    Launch,
    LaunchFailed,
    ProgramDeployed,
    ProgramRemoved,
    ProtocolBroken,
    Signalled,
    WorkerDied,
    WorkerExited,
    WorkerLaunched,
)
from pools.core.settlement import settle_error
from pools.core.states import (
    BOOTING,
    DRAINING,
    LAUNCHING,
    ON_DRAIN,
    ON_EXIT,
    ON_HELLO,
    ON_READY,
    QUEUED,
    READY,
    WORKER_MOVES,
)
from pools.core.tables import Tables, unavailable

_CHECK_EVERY_S: Final = 1.0
# Between two checks the coordinator itself may have stood still (SIGSTOP, a suspended machine): then nobody was
# silent, nobody was listening.
_STALL_S: Final = 5.0
# A boot imports DSPy and, one day, a model; one that takes longer hangs.
BOOT_LIMIT_S: Final = 300.0
# From Stop to SIGKILL at the fleet's end, at most: by then everything is settled.
STOP_GRACE_S: Final = 2.0


def start(tables: Tables, now: float) -> None:
    """Launch every place of every pool."""
    tables.last_tick = now
    for pool in tables.pools.values():
        for place in pool.places.values():
            launch(tables, pool, place, now)
    tables.after(now + _CHECK_EVERY_S, check)


def launch(tables: Tables, pool: PoolEntry, place: Place, now: float) -> None:
    """Begin the next life of a place."""
    if tables.stopping or place.worker is not None:
        return
    place.incarnation += 1
    worker = WorkerEntry(pool, place.number, place.incarnation, (), now)
    worker.slots_page = tables.open_page(worker.worker_id)
    place.worker = worker
    tables.workers[worker.worker_id] = worker
    tables.effects.append(Launch(worker.worker_id, pool.name, place.number, place.incarnation))


def on_launched(tables: Tables, event: WorkerLaunched, now: float, peer: bytes) -> None:
    """The process exists."""
    worker = tables.workers.get(event.worker_id)
    if worker is not None:
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
    worker.boot_ms = (now - worker.launched_at) * 1000.0
    worker.last_heard = now
    pool = worker.pool
    pool.was_ready = True
    pool.boot_error = None
    pool.restarts.recovered(now=now)
    if worker.died:
        return  # it lived to say so, no longer
    pool.ready.append(worker)
    tables.log("worker_ready", worker=worker.worker_id, pid=worker.pid, boot_ms=round(worker.boot_ms))
    tables.to_workers.extend((peer, program) for _, program in tables.programs.values())
    pump(tables, pool, now)
    if pool.over and not worker.held:
        rebalance(tables, pool, worker, pool.slots)


def on_boot_failed(tables: Tables, message: BootFailedMessage, now: float, peer: bytes) -> None:
    """A worker says why it cannot boot; its exit follows."""
    worker = tables.workers_by_peer.get(peer)
    if worker is not None:
        worker.boot_error = message.payload


def on_heartbeat(tables: Tables, message: Heartbeat, now: float, peer: bytes) -> None:
    """A worker's io thread lives."""
    worker = tables.workers_by_peer.get(peer)
    if worker is not None:
        worker.last_heard = now
        worker.rss_bytes = message.rss_bytes


def on_died(tables: Tables, event: WorkerDied, now: float, peer: bytes) -> None:
    """A worker's process has ended: dispatch to it no more. What it held is settled by WorkerExited."""
    worker = tables.workers.get(event.worker_id)
    if worker is not None:
        worker.died = True
        _leave_ready(worker)


def on_protocol_broken(tables: Tables, event: ProtocolBroken, now: float, peer: bytes) -> None:
    """A worker cannot be understood: replies of its live attempts may be lost, so it is killed."""
    worker = tables.workers_by_peer.get(peer)
    if worker is not None and not worker.kill_why:
        kill(tables, worker, f"protocol error: {event.why}")


def on_exited(tables: Tables, event: WorkerExited, now: float, peer: bytes) -> None:
    """A worker is gone: settle what it held, remember it, replace it."""
    worker = tables.workers.pop(event.worker_id, None)
    if worker is None:
        return
    pool = worker.pool
    booted = worker.state == READY
    wanted = worker.stop_wanted
    worker.state = WORKER_MOVES[worker.state][ON_EXIT]
    _forget(tables, worker)
    reason = BootFailed(worker.boot_error) if worker.boot_error is not None else event.reason
    cause = worker.kill_why or str(reason)
    number = reason.number if isinstance(reason, Signalled) else None
    lost(tables, worker, number, cause, now)
    pool.dead.append(
        DeadWorker(
            worker.worker_id, worker.pid, worker.place, worker.incarnation, now, now - worker.launched_at,
            worker.requests, worker.boot_ms, reason, cause, event.peak_rss_bytes, event.log_tail,
        )
    )  # fmt: skip
    level = "info" if wanted else "warning"
    tables.log("worker_exited", level, worker=worker.worker_id, pid=worker.pid, cause=cause, intended=wanted)
    pool.places[worker.place].worker = None
    if tables.stopping:
        return
    delay_s = _restart_delay_s(tables, pool, worker, event, reason, booted=booted, now=now)
    if delay_s > 0:
        tables.log("worker_restart_delayed", "warning", pool=pool.name, place=worker.place, delay_s=round(delay_s, 3))
        tables.after(now + delay_s, partial(_relaunch, pool.places[worker.place], pool))
    else:
        launch(tables, pool, pool.places[worker.place], now)
    pump(tables, pool, now)


def _relaunch(place: Place, pool: PoolEntry, tables: Tables, now: float) -> None:
    launch(tables, pool, place, now)


def _restart_delay_s(
    tables: Tables, pool: PoolEntry, worker: WorkerEntry, event: WorkerExited, reason: ExitReason, *, booted: bool,
    now: float,
) -> float:  # fmt: skip
    if booted or worker.stop_wanted:
        return pool.restarts.crashed(now=now)
    error = _boot_error(pool, worker, event, reason)
    tables.log("worker_boot_failed", "error", worker=worker.worker_id, why=error.message)
    delay_s = pool.restarts.boot_failed()
    # One failure may be bad luck while the others still boot; as many as there are places is a broken pool.
    if not pool.ready and pool.restarts.failed_boots >= len(pool.places):
        pool.boot_error = error
        for entry in list(pool.queue.values()):
            settle_error(tables, entry, error, now)
    return delay_s


def _boot_error(pool: PoolEntry, worker: WorkerEntry, event: WorkerExited, reason: ExitReason) -> BridgeError:
    """Return what callers of a pool that cannot boot are told: the root traceback, or the worker's last lines."""
    if isinstance(reason, BootFailed):
        root = decode_error(reason.error)
        text, traceback = root.message, str(root.details.get("remote_traceback", ""))
    elif isinstance(reason, LaunchFailed):
        text, traceback = reason.error, ""
    else:
        text, traceback = worker.kill_why or str(reason), "\n".join(event.log_tail)
    return unavailable(
        f"pool {pool.name} cannot start its workers ({worker.worker_id}): {text}\n{traceback}".rstrip(),
        remote_traceback=traceback,
    )


def _forget(tables: Tables, worker: WorkerEntry) -> None:
    tables.workers_by_peer.pop(worker.peer, None)
    _leave_ready(worker)


def _leave_ready(worker: WorkerEntry) -> None:
    pool = worker.pool
    if pool.dealt_to is worker:
        pool.dealt_to = None
    if worker in pool.ready:
        pool.ready.remove(worker)
        if worker.held > pool.slots:
            pool.over -= 1


def check(tables: Tables, now: float) -> None:
    """Look at every worker's heartbeat; drop what is remembered of workers long dead. Runs each second."""
    tables.next_spell()
    stalled = now - tables.last_tick > _STALL_S
    for worker in tables.workers.values():
        if stalled or worker.state == LAUNCHING:
            worker.last_heard = now
        limit_s = worker.pool.config.heartbeat_limit_s
        if now - worker.last_heard > limit_s and not worker.kill_why:
            kill(tables, worker, f"no heartbeat for {limit_s:g} s")
        elif worker.state in (LAUNCHING, BOOTING) and now - worker.launched_at > BOOT_LIMIT_S and not worker.kill_why:
            kill(tables, worker, f"did not boot within {BOOT_LIMIT_S:g} s")
    for pool in tables.pools.values():
        while pool.dead and pool.dead[0].exited_at < now - DEAD_WORKER_KEPT_S:
            pool.dead.popleft()
    tables.after(now + _CHECK_EVERY_S, check)


def on_program(tables: Tables, event: ProgramDeployed, now: float, peer: bytes) -> None:
    """Route a program's name to its pool and tell every ready worker; the others learn it when they are."""
    tables.programs[event.program.name] = (event.pool, event.program)
    tables.routes.clear()
    _tell_workers(tables, event.program)


def on_program_removed(tables: Tables, event: ProgramRemoved, now: float, peer: bytes) -> None:
    """Forget a program."""
    if tables.programs.pop(event.name, None) is not None:
        tables.routes.clear()
        _tell_workers(tables, Program(name=event.name))


def _tell_workers(tables: Tables, program: Program) -> None:
    for pool in tables.pools.values():
        tables.to_workers.extend((worker.peer, program) for worker in pool.ready)


# --- the end --------------------------------------------------------------------------------------


def on_drain(tables: Tables, event: Drain, now: float, peer: bytes) -> None:
    """Stop taking requests; stop the workers when all is settled or the budget is spent.

    Asked again, the earlier end counts.
    """
    tables.draining = True
    tables.log("draining", budget_s=event.budget_s, requests=len(tables.requests))
    tables.after(now + event.budget_s, _budget_spent)
    stop_if_idle(tables, now)


def stop_if_idle(tables: Tables, now: float) -> None:
    """When draining and nothing is left to settle: stop the workers."""
    if tables.draining and not tables.requests and not tables.stopping:
        stop_workers(tables, now)


def _budget_spent(tables: Tables, now: float) -> None:
    for entry in list(tables.requests.values()):
        queued = entry.state == QUEUED
        text = "before this request ran" if queued else "before this request was done; it may have run"
        error = BridgeError(CANCELLED, f"the coordinator shut down {text}", retryable=queued)
        entry.pool.cancelled += entry.rows
        entry.cancel_answered = True
        settle_error(tables, entry, error, now)
    stop_if_idle(tables, now)


def stop_workers(tables: Tables, now: float) -> None:
    """Tell every worker to stop; kill what is left after a short grace."""
    tables.stopping = True
    for worker in tables.workers.values():
        worker.stop_wanted = True
        worker.state = WORKER_MOVES[worker.state][ON_DRAIN]
        if worker.peer:
            tables.to_workers.append((worker.peer, Stop()))
        else:
            kill(tables, worker, "stopped before it had booted")
        _leave_ready(worker)
        grace_s = min(worker.pool.config.grace_s, STOP_GRACE_S)
        tables.after(now + grace_s, partial(_kill_unstopped, worker, grace_s))


def _kill_unstopped(worker: WorkerEntry, grace_s: float, tables: Tables, now: float) -> None:
    if worker.state == DRAINING and not worker.kill_why:
        kill(tables, worker, f"did not stop within {grace_s:g} s")
