"""Attempts that wait for something of their own (a nested request, a tool) lend their slot out meanwhile.

A paused attempt stays in its worker's books and takes none of its slots: the worker is given something else to do. One
that goes on counts again, whatever the worker holds by then.
"""

from __future__ import annotations

from bridge.protocol.messages import Pause, Resume
from pools.core.dispatch import pump, rebalance
from pools.core.entries import RequestEntry, WorkerEntry
from pools.core.tables import Tables


def on_pause(tables: Tables, message: Pause, now: float, peer: bytes) -> None:
    """An attempt lends its slot out. Said twice, or of an attempt that has ended, it changes nothing."""
    worker = tables.workers_by_peer.get(peer)
    entry = worker.attempts.get(message.epoch) if worker is not None else None
    if worker is None or entry is None or entry.request_id != message.request_id or entry.paused:
        return
    entry.tied = entry.paused = True
    _lend(worker, entry, 1)
    pool = worker.pool
    if pool.dealt_to is worker:
        pool.dealt_to = None
    pump(tables, pool, now)
    if pool.over and worker.held < pool.slots and worker in pool.ready:
        rebalance(tables, pool, worker, 1, now)


def on_resume(tables: Tables, message: Resume, now: float, peer: bytes) -> None:
    """A paused attempt goes on. Said of one that is not paused, it changes nothing."""
    worker = tables.workers_by_peer.get(peer)
    entry = worker.attempts.get(message.epoch) if worker is not None else None
    if worker is None or entry is None or entry.request_id != message.request_id or not entry.paused:
        return
    entry.paused = False
    _lend(worker, entry, -1)
    pump(tables, worker.pool, now)  # it is one fewer of those that are paused: that may be what others waited for


def _lend(worker: WorkerEntry, entry: RequestEntry, sign: int) -> None:
    """Move the rows of an attempt out of what its worker holds, or (sign -1) back."""
    pool, rows = worker.pool, sign * entry.rows
    worker.paused += sign
    pool.lent += rows
    before = worker.held
    worker.held = after = before - rows
    if worker in pool.ready:
        pool.over += (after > pool.slots) - (before > pool.slots)
