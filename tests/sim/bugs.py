"""Bugs that are put into the core in memory, to prove that the simulator catches their kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Final
from unittest.mock import patch

from bridge.protocol import messages as wire
from pools.core import admission, cancellation, dispatch, fleet, leaving, losses, memory, scaling, settlement
from pools.core import tables as tables_module
from pools.core.deadlines import Deadlines
from pools.core.entries import WorkerEntry
from pools.core.events import Kill, MemoryRead, WorkerDied
from pools.core.restart import RestartPolicy
from pools.core.states import SETTLED
from pools.core.stats import RecentPeak

_settle = settlement.settle
_release = dispatch.release
_dispatch = dispatch.dispatch
_give_back = dispatch.give_back
_pop_due = Deadlines.pop_due
_worker_lost = losses.worker_lost
_refusal = admission._refusal
_set_size = scaling.set_size
_AGES_S: Final = 1e6


def _handler(event: type, handler: Callable[..., None]) -> Any:
    return patch.dict(fleet._HANDLERS, {event: handler})


@contextmanager
def a_dropped_settle() -> Iterator[None]:
    """Some replies settle nothing."""

    def settle(tables: Any, entry: Any, reply: Any, now: float) -> None:
        if entry.epoch % 3:
            _settle(tables, entry, reply, now)

    with patch.object(dispatch, "settle", settle):
        yield


@contextmanager
def a_leaked_credit() -> Iterator[None]:
    """A reply that comes after its request was settled does not give its rows back."""

    def release(tables: Any, worker: Any, epoch: int) -> Any:
        entry = _release(tables, worker, epoch)
        if entry is not None and entry.state == SETTLED:
            worker.held += entry.rows
        return entry

    with patch.object(dispatch, "release", release):
        yield


@contextmanager
def a_missed_fence() -> Iterator[None]:
    """A late reply goes to the client."""
    on_reply = fleet._HANDLERS[wire.Reply]

    def unfenced(tables: Any, message: wire.Reply, now: float, peer: bytes) -> None:
        before = tables.fenced
        on_reply(tables, message, now, peer)
        if tables.fenced > before:
            for client in tables.clients.values():
                if client.client_no == message.request_id >> wire.CLIENT_SHIFT:
                    tables.to_clients.append((client.peer, message))

    with _handler(wire.Reply, unfenced):
        yield


@contextmanager
def a_fence_uncounted() -> Iterator[None]:
    """Late replies are dropped without a word in the statistics."""
    on_reply = fleet._HANDLERS[wire.Reply]

    def uncounted(tables: Any, message: wire.Reply, now: float, peer: bytes) -> None:
        before = tables.fenced
        on_reply(tables, message, now, peer)
        tables.fenced = before

    with _handler(wire.Reply, uncounted):
        yield


@contextmanager
def a_double_dispatch() -> Iterator[None]:
    """Some attempts are sent to two workers."""

    def twice(tables: Any, entry: Any, worker: Any, now: float) -> None:
        _dispatch(tables, entry, worker, now)
        others = [other for other in entry.pool.ready if other is not worker]
        if others and entry.epoch % 3 == 0:
            tables.to_workers.append((others[0].peer, tables.to_workers[-1][1]))

    with patch.object(dispatch, "dispatch", twice):
        yield


@contextmanager
def a_page_unread() -> Iterator[None]:
    """What a dead worker held is dispatched again, whatever its started slots say."""
    with patch.object(WorkerEntry, "started", lambda self, epoch: False):
        yield


@contextmanager
def a_deadline_ignored() -> Iterator[None]:
    """Some deadlines pass without anybody noticing."""

    def pop_due(self: Any, now: float) -> list[Any]:
        return [key for key in _pop_due(self, now) if key % 3]

    with patch.object(Deadlines, "pop_due", pop_due):
        yield


@contextmanager
def a_recall_ignored() -> Iterator[None]:
    """What workers give back is forgotten."""
    with _handler(wire.Recalled, lambda tables, message, now, peer: None):
        yield


@contextmanager
def a_queue_out_of_order() -> Iterator[None]:
    """What comes back is queued last instead of first."""

    def give_back(tables: Any, entry: Any, now: float) -> None:
        _give_back(tables, entry, now)
        if any(other is entry for other in entry.pool.queue):
            entry.pool.queue.discard(entry)
            entry.pool.queue.push(entry)

    with patch.object(dispatch, "give_back", give_back):
        yield


@contextmanager
def a_death_unnoticed() -> Iterator[None]:
    """Dead workers are given work until they are buried."""
    with _handler(WorkerDied, lambda tables, event, now, peer: None):
        yield


@contextmanager
def a_cancellation_untold() -> Iterator[None]:
    """Running attempts are not asked to stop."""
    with (
        patch.object(cancellation, "stop_attempt", lambda tables, worker, epoch, now: None),
        patch.object(dispatch, "stop_attempt", lambda tables, worker, epoch, now: None),
    ):
        yield


@contextmanager
def a_grace_without_end() -> Iterator[None]:
    """A worker that ignores a cancellation is never killed."""
    with patch.object(cancellation, "_grace_over", lambda worker, epoch, tables, now: None):
        yield


@contextmanager
def a_standstill_unnoticed() -> Iterator[None]:
    """Workers are judged by what was read before the coordinator stood still."""
    with patch.object(tables_module, "LATE_S", _AGES_S):
        yield


@contextmanager
def a_backoff_forgotten() -> Iterator[None]:
    """Restarts never wait."""
    with patch.object(RestartPolicy, "_backoff", lambda self: 0.0):
        yield


@contextmanager
def a_lie_about_execution() -> Iterator[None]:
    """What may have run is said not to have."""

    def worker_lost(worker: Any, reason: Any, cause: str, executed: str) -> Any:
        return _worker_lost(worker, reason, cause, "no")

    with patch.object(losses, "worker_lost", worker_lost):
        yield


@contextmanager
def a_death_too_many() -> Iterator[None]:
    """What two workers held as they died is handed to a third."""
    with patch.object(losses, "_MAX_DEATHS", 100):
        yield


@contextmanager
def a_client_charged_twice() -> Iterator[None]:
    """A settled request's rows stay on its client's account."""

    def settle(tables: Any, entry: Any, reply: Any, now: float) -> None:
        _settle(tables, entry, reply, now)
        entry.client.in_flight += entry.rows

    with patch.object(dispatch, "settle", settle):
        yield


@contextmanager
def an_answer_swapped() -> Iterator[None]:
    """Outcomes have another attempt's payload."""

    def settle(tables: Any, entry: Any, reply: Any, now: float) -> None:
        payload = b"%d" % (entry.epoch + 1)
        wrong = wire.Reply(request_id=reply.request_id, epoch=reply.epoch, status=reply.status, payload=payload)
        _settle(tables, entry, wrong, now)

    with patch.object(dispatch, "settle", settle):
        yield


@contextmanager
def an_idle_worker() -> Iterator[None]:
    """The queue is not looked at when a worker has answered."""
    with patch.object(dispatch, "pump", lambda tables, pool, now: None):
        yield


@contextmanager
def a_leaving_worker_given_work() -> Iterator[None]:
    """A worker that is to leave is dispatched to as before."""
    with patch.object(leaving, "_withdraw", lambda tables, worker: None):
        yield


@contextmanager
def a_dead_worker_killed() -> Iterator[None]:
    """A worker whose process has ended is killed all the same, and that is said to be why it ended."""

    def kill(tables: Any, worker: Any, why: str, *_: float) -> None:
        worker.kill_why = worker.kill_why or why
        tables.effects.append(Kill(worker.worker_id, why))

    with patch.multiple(leaving, kill=kill, dump_and_kill=kill):
        yield


@contextmanager
def a_timer_leaked() -> Iterator[None]:
    """Each request leaves a timer behind."""
    on_request = fleet._HANDLERS[wire.Request]

    def leaking(tables: Any, message: Any, now: float, peer: bytes) -> None:
        on_request(tables, message, now, peer)
        tables.after(now + _AGES_S, lambda tables, now: None)

    with _handler(wire.Request, leaking):
        yield


@contextmanager
def a_pool_that_does_not_grow() -> Iterator[None]:
    """Bounds change nothing: the least size is the size."""
    with patch.object(scaling, "_grow", lambda tables, pool, now: None):
        yield


@contextmanager
def a_pool_that_does_not_shrink() -> Iterator[None]:
    """What has grown stays."""
    with patch.object(scaling, "_shrink", lambda tables, pool, peak_rows, now: None):
        yield


@contextmanager
def a_pool_without_bounds() -> Iterator[None]:
    """A pool grows beyond the most that it may have."""
    with patch.object(scaling, "_size_with", lambda pool, more: pool.most + 1):
        yield


@contextmanager
def a_hasty_growth() -> Iterator[None]:
    """A pool grows as soon as anything waits."""
    with patch.object(scaling, "GROW_AFTER_S", -1.0):
        yield


@contextmanager
def a_hasty_shrink() -> Iterator[None]:
    """A pool shrinks as soon as it needs fewer workers."""
    with (
        patch.object(RecentPeak, "add", lambda self, value, *, now: value),
        patch.multiple(scaling, SHRINK_AFTER_S=0.0, SHRINK_EVERY_S=0.0),
    ):
        yield


@contextmanager
def a_growth_without_memory() -> Iterator[None]:
    """A pool grows although memory is short."""
    grow = scaling._grow

    def growing(tables: Any, pool: Any, now: float) -> None:
        with patch.object(tables, "memory_paused", False):
            grow(tables, pool, now)

    with patch.object(scaling, "_grow", growing):
        yield


@contextmanager
def a_shrink_that_drops_work() -> Iterator[None]:
    """A worker that leaves because its pool is resized is forgotten with what it runs."""

    def set_size(tables: Any, pool: Any, size: int, why: str, now: float) -> None:
        _set_size(tables, pool, size, why, now)
        for worker in pool.lives.values():
            if worker.stop_wanted:
                worker.attempts.clear()

    with patch.multiple(scaling, set_size=set_size), patch("pools.core.service.set_size", set_size):
        yield


@contextmanager
def a_pause_ignored() -> Iterator[None]:
    """Known routes are admitted although memory is short."""
    on_memory_read = fleet._HANDLERS[MemoryRead]

    def deaf(tables: Any, event: MemoryRead, now: float, peer: bytes) -> None:
        on_memory_read(tables, event, now, peer)
        tables.wary = tables.draining

    with _handler(MemoryRead, deaf):
        yield


@contextmanager
def a_pause_half_ignored() -> Iterator[None]:
    """Routes that are not known yet are admitted although memory is short."""

    def refusal(tables: Any, client: Any, pool: Any, message: Any) -> Any:
        with patch.object(tables, "memory_paused", False):
            return _refusal(tables, client, pool, message)

    with patch.object(admission, "_refusal", refusal):
        yield


@contextmanager
def a_pause_without_patience() -> Iterator[None]:
    """Admission resumes as soon as there is a little memory."""
    with patch.object(memory, "RESUME_BELOW", memory.PAUSE_AT):
        yield


BUGS: Final[tuple[Callable[[], AbstractContextManager[None]], ...]] = (
    a_dropped_settle, a_leaked_credit, a_missed_fence, a_fence_uncounted, a_double_dispatch, a_page_unread,
    a_deadline_ignored, a_recall_ignored, a_queue_out_of_order, a_death_unnoticed, a_cancellation_untold,
    a_grace_without_end, a_standstill_unnoticed, a_backoff_forgotten, a_lie_about_execution, a_death_too_many,
    a_client_charged_twice, an_answer_swapped, an_idle_worker, a_leaving_worker_given_work, a_dead_worker_killed,
    a_timer_leaked, a_pool_that_does_not_grow, a_pool_that_does_not_shrink, a_pool_without_bounds, a_hasty_growth,
    a_hasty_shrink, a_growth_without_memory, a_shrink_that_drops_work, a_pause_ignored, a_pause_half_ignored,
    a_pause_without_patience,
)  # fmt: skip
