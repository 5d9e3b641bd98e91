"""Bugs that are put into the core in memory, to prove that the simulator catches their kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Final
from unittest.mock import patch

from bridge.protocol import messages as wire
from pools.core import cancellation, dispatch, fleet, leaving, settlement
from pools.core.deadlines import Deadlines
from pools.core.entries import WorkerEntry
from pools.core.events import Kill, WorkerDied
from pools.core.restart import RestartPolicy
from pools.core.states import SETTLED

_settle = settlement.settle
_release = dispatch.release
_dispatch = dispatch.dispatch
_give_back = dispatch.give_back
_pop_due = Deadlines.pop_due
_worker_lost = dispatch._worker_lost
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

    def release(worker: Any, epoch: int) -> Any:
        entry = _release(worker, epoch)
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
        if entry.request_id in entry.pool.queue:
            entry.pool.queue.move_to_end(entry.request_id)

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
def a_backoff_forgotten() -> Iterator[None]:
    """Restarts never wait."""
    with patch.object(RestartPolicy, "_backoff", lambda self: 0.0):
        yield


@contextmanager
def a_lie_about_execution() -> Iterator[None]:
    """What may have run is said not to have."""

    def worker_lost(worker: Any, signal: Any, cause: str, executed: str) -> Any:
        return _worker_lost(worker, signal, cause, "no")

    with patch.object(dispatch, "_worker_lost", worker_lost):
        yield


@contextmanager
def a_death_too_many() -> Iterator[None]:
    """What two workers held as they died is handed to a third."""
    with patch.object(dispatch, "_MAX_DEATHS", 100):
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
    with patch.object(leaving, "_withdraw", lambda worker: None):
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


BUGS: Final[tuple[Callable[[], AbstractContextManager[None]], ...]] = (
    a_dropped_settle, a_leaked_credit, a_missed_fence, a_fence_uncounted, a_double_dispatch, a_page_unread,
    a_deadline_ignored, a_recall_ignored, a_queue_out_of_order, a_death_unnoticed, a_cancellation_untold,
    a_grace_without_end, a_backoff_forgotten, a_lie_about_execution, a_death_too_many, a_client_charged_twice,
    an_answer_swapped, an_idle_worker, a_leaving_worker_given_work, a_dead_worker_killed, a_timer_leaked,
)  # fmt: skip
