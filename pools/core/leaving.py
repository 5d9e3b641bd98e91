"""How workers leave: given nothing more, relieved of what they have not begun, told to stop, killed.

Whoever makes a worker leave records why before it is told: an end that was meant is never mistaken for a crash.
"""

from __future__ import annotations

from functools import partial
from typing import Final

from bridge.protocol.messages import Recall, Stop
from pools.core.entries import RequestEntry, WorkerEntry
from pools.core.events import Dump, Kill
from pools.core.states import DISPATCHED, DRAINING, ON_DRAIN, READY, WORKER_MOVES
from pools.core.tables import Tables

# A worker that is killed for cause has so long to write its stacks; the handler needs about a millisecond.
DUMP_S: Final = 0.2
# From Stop to SIGKILL at the fleet's end, at most: by then everything is settled.
STOP_GRACE_S: Final = 2.0


def leave_ready(tables: Tables, worker: WorkerEntry) -> None:
    """Take a worker out of those that are given work. Who waits for it alone is seen to when this event is over."""
    pool = worker.pool
    if worker.line is not None:
        tables.leavers.append(worker)
    if pool.dealt_to is worker:
        pool.dealt_to = None
    if worker in pool.ready:
        pool.ready.remove(worker)
        if worker.held > pool.slots:
            pool.over -= 1


def _withdraw(tables: Tables, worker: WorkerEntry) -> None:
    """Give a worker nothing more, whatever it holds."""
    if worker.state != DRAINING:
        worker.state = WORKER_MOVES[worker.state][ON_DRAIN]
        leave_ready(tables, worker)


def kill(tables: Tables, worker: WorkerEntry, why: str) -> None:
    """Have a worker killed; the reason is kept before the signal is sent. The first reason counts."""
    if worker.kill_why or worker.died:  # what ended a dead one is known, or will be
        return
    worker.kill_why = why
    _withdraw(tables, worker)
    tables.effects.append(Kill(worker.worker_id, why))


def dump_and_kill(tables: Tables, worker: WorkerEntry, why: str, now: float) -> None:
    """Have a worker that hangs write its stacks, then kill it, whether it could or not. The first reason counts."""
    if worker.kill_why or worker.died:  # what ended a dead one is known, or will be
        return
    worker.kill_why = why
    _withdraw(tables, worker)
    tables.effects.append(Dump(worker.worker_id))
    tables.after(now + DUMP_S, partial(_dumped, worker))


def _dumped(worker: WorkerEntry, tables: Tables, now: float) -> None:
    if tables.workers.get(worker.worker_id) is worker:
        tables.effects.append(Kill(worker.worker_id, worker.kill_why))


def recall(tables: Tables, worker: WorkerEntry, entry: RequestEntry) -> None:
    """Ask for an attempt back, once."""
    if not entry.recalled:
        entry.recalled = True
        tables.to_workers.append((worker.peer, Recall(request_id=entry.request_id, epoch=entry.epoch)))


def retire(tables: Tables, worker: WorkerEntry, why: str, now: float, grace_s: float | None = None) -> None:
    """Have a worker finish what it runs and stop. What it has not begun is asked back.

    grace_s: how long its work has to end; None = as long as it takes (deadlines and heartbeats are watched all the
    same). A worker that leaves already is left to it.
    """
    if worker.stop_wanted or worker.kill_why:
        return
    worker.stop_wanted = True
    worker.stop_why = why
    served = worker.state == READY
    _withdraw(tables, worker)
    # The last first: each goes to the head of the queue as it comes back.
    for epoch in reversed(worker.attempts):
        entry = worker.attempts[epoch]
        if entry.state == DISPATCHED and not worker.started(epoch):
            recall(tables, worker, entry)
    if not served or not worker.attempts:
        stop(tables, worker, now)
    elif grace_s is not None:
        tables.after(now + grace_s, partial(_work_overdue, worker, grace_s))


def _work_overdue(worker: WorkerEntry, grace_s: float, tables: Tables, now: float) -> None:
    if worker.attempts and tables.workers.get(worker.worker_id) is worker:
        dump_and_kill(tables, worker, f"{worker.stop_why}: its work did not end within {grace_s:g} s", now)


def stop(tables: Tables, worker: WorkerEntry, now: float) -> None:
    """Tell a worker to end; kill it after its pool's grace period, after 2 s at most at the fleet's end."""
    if worker.kill_why:
        return
    if not worker.told_to_stop:
        worker.told_to_stop = worker.stop_wanted = True
        _withdraw(tables, worker)
        if not worker.peer:
            kill(tables, worker, "stopped before it had booted")
            return
        tables.to_workers.append((worker.peer, Stop()))
    grace_s = worker.pool.config.grace_s
    if tables.stopping:
        grace_s = min(grace_s, STOP_GRACE_S)
    tables.after(now + grace_s, partial(_stop_overdue, worker, grace_s))


def _stop_overdue(worker: WorkerEntry, grace_s: float, tables: Tables, now: float) -> None:
    if tables.workers.get(worker.worker_id) is not worker:
        return
    why = f"did not stop within {grace_s:g} s"
    if tables.stopping:
        kill(tables, worker, why)
    else:
        dump_and_kill(tables, worker, why, now)
