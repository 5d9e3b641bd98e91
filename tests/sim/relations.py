"""More bugs for the core, in what programs do while they run: families, slots that are lent out, tools."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Final
from unittest.mock import patch

from msgspec.structs import replace

from bridge.protocol import messages as wire
from pools.core import cancellation, dispatch, fleet, nesting, tools
from pools.core.entries import PoolEntry
from pools.core.states import SETTLED

_nested = nesting.nested
_parent_of = nesting.parent_of
_attempt_ended = nesting.attempt_ended
_choose = dispatch.choose
_make_pool = PoolEntry.__init__
_on_tool_call = tools.on_tool_call


# --- families ---------------------------------------------------------------------------------------


@contextmanager
def a_parent_of_anybody() -> Iterator[None]:
    """Whoever knows a request's id may ask for something as its child."""

    def parent_of(tables: Any, client: Any, message: Any, now: float) -> Any:
        return tables.requests.get(message.parent_request_id) or _parent_of(tables, client, message, now)

    with patch.object(nesting, "parent_of", parent_of):
        yield


@contextmanager
def a_parent_that_called_no_tool() -> Iterator[None]:
    """Who has asked for something may ask for more as its child, whether that waits for it or not."""
    with patch.object(nesting, "_has_called", lambda tables, entry, client: entry.client is client):
        yield


@contextmanager
def a_child_of_the_dead() -> Iterator[None]:
    """A parent that was asked to stop goes on asking."""

    def parent_of(tables: Any, client: Any, message: Any, now: float) -> Any:
        parent = tables.requests.get(message.parent_request_id)
        if parent is None or not parent.cancel:
            return _parent_of(tables, client, message, now)
        with patch.object(nesting, "NOT_ASKED", parent.cancel):
            return _parent_of(tables, client, message, now)

    with patch.object(nesting, "parent_of", parent_of):
        yield


@contextmanager
def a_depth_claimed() -> Iterator[None]:
    """How deep it is nested is for the caller to say."""

    def nested(parent: Any, message: Any, now: float) -> Any:
        return replace(_nested(parent, message, now), depth=message.depth or parent.message.depth + 1)

    with patch.object(nesting, "nested", nested):
        yield


@contextmanager
def a_family_without_end() -> Iterator[None]:
    """Requests are nested as deep as they like."""
    with patch.object(nesting, "MAX_DEPTH", 1000):
        yield


@contextmanager
def a_child_that_outlives_its_parents_time() -> Iterator[None]:
    """A child has the time that it asks for."""

    def nested(parent: Any, message: Any, now: float) -> Any:
        return replace(_nested(parent, message, now), deadline_ms=message.deadline_ms)

    with patch.object(nesting, "nested", nested):
        yield


@contextmanager
def an_orphan_forgotten() -> Iterator[None]:
    """Whose parent has ended goes on."""
    with patch.object(nesting, "orphan", lambda tables, entry: None):
        yield


@contextmanager
def an_orphan_of_the_lost_kept() -> Iterator[None]:
    """What an attempt asked for that was lost is thought to be its successor's."""

    def attempt_ended(tables: Any, worker: Any, entry: Any) -> Any:
        before = [*tables.orphans]
        rows = _attempt_ended(tables, worker, entry)
        if entry.state != SETTLED:
            tables.orphans[:] = before
        return rows

    with patch.object(dispatch, "attempt_ended", attempt_ended):
        yield


@contextmanager
def an_orphan_begun() -> Iterator[None]:
    """Whose parent has just ended is dispatched before anybody thinks of it."""
    with patch.object(dispatch, "end_orphans", lambda tables, now: None):
        yield


@contextmanager
def a_child_not_told() -> Iterator[None]:
    """What is asked to stop does not pass that on."""
    stop = cancellation.stop_attempt

    def stop_attempt(tables: Any, worker: Any, epoch: int, now: float) -> None:
        stop(tables, worker, epoch, now)
        entry = worker.attempts[epoch]
        if entry.state != SETTLED and entry.cancel == 1:
            tables.children.get(entry.request_id, {}).clear()

    with patch.object(cancellation, "stop_attempt", stop_attempt):
        yield


@contextmanager
def a_family_in_the_queue() -> Iterator[None]:
    """Nested requests have the room that all have."""
    with patch.object(nesting, "reserve", lambda pool, message: 0):
        yield


@contextmanager
def a_key_that_waits_for_itself() -> Iterator[None]:
    """A child may wait for the run that waits for it."""
    with patch.object(nesting, "waits_for_itself", lambda tables, runner, message: False):
        yield


# --- slots that are lent out --------------------------------------------------------------------------


@contextmanager
def a_pause_unheard() -> Iterator[None]:
    """Who waits keeps its slot."""
    with patch.dict(fleet._HANDLERS, {wire.Pause: lambda tables, message, now, peer: None}):
        yield


@contextmanager
def a_pause_that_outlives_its_attempt() -> Iterator[None]:
    """An attempt that ends while it is paused gives back what it had lent."""

    def attempt_ended(tables: Any, worker: Any, entry: Any) -> Any:
        _attempt_ended(tables, worker, entry)
        return entry.rows

    with patch.object(dispatch, "attempt_ended", attempt_ended):
        yield


@contextmanager
def a_worker_full_of_waiters() -> Iterator[None]:
    """However many of a worker's attempts wait, it begins more."""

    def make(self: Any, *args: Any) -> None:
        _make_pool(self, *args)
        self.most_paused = 1000

    with patch.object(PoolEntry, "__init__", make):
        yield


@contextmanager
def a_worker_that_waits_for_itself() -> Iterator[None]:
    """Where many attempts wait nothing is begun, not what they wait for either."""

    def choose(pool: Any, times: Any, more: int = 0, *, nested: bool = False) -> Any:
        return _choose(pool, times, more)

    with patch.object(dispatch, "choose", choose):
        yield


# --- tools --------------------------------------------------------------------------------------------


@contextmanager
def a_tool_of_another() -> Iterator[None]:
    """Calls of tools go to whoever is connected."""

    def on_tool_call(tables: Any, message: Any, now: float, peer: bytes) -> None:
        _on_tool_call(tables, message, now, peer)
        if tables.to_clients and tables.to_clients[-1][1] is message:
            tables.to_clients[-1] = [*tables.clients][-1], message

    with patch.dict(fleet._HANDLERS, {wire.ToolCall: on_tool_call}):
        yield


@contextmanager
def a_tool_that_answers_nobody() -> Iterator[None]:
    """What tools come to is lost."""
    with patch.dict(fleet._HANDLERS, {wire.ToolReply: lambda tables, message, now, peer: None}):
        yield


@contextmanager
def a_credit_for_the_dead() -> Iterator[None]:
    """Credit goes to whoever had the request first, whether that attempt is out or not."""

    def on_credit(tables: Any, message: Any, now: float, peer: bytes) -> None:
        for worker in tables.workers.values():
            if worker.peer:
                tables.to_workers.append((worker.peer, message))
                return

    with patch.dict(fleet._HANDLERS, {wire.Credit: on_credit}):
        yield


@contextmanager
def a_program_left_alone() -> Iterator[None]:
    """Who works on for others is not told that its caller is gone."""
    with patch.object(tools, "go_on_alone", lambda tables, entry: None):
        yield


RELATIONS: Final[tuple[Callable[[], AbstractContextManager[None]], ...]] = (
    a_parent_of_anybody, a_parent_that_called_no_tool, a_child_of_the_dead, a_depth_claimed, a_family_without_end,
    a_child_that_outlives_its_parents_time, an_orphan_forgotten, an_orphan_of_the_lost_kept, an_orphan_begun,
    a_child_not_told, a_family_in_the_queue, a_key_that_waits_for_itself, a_pause_unheard,
    a_pause_that_outlives_its_attempt, a_worker_full_of_waiters, a_worker_that_waits_for_itself, a_tool_of_another,
    a_tool_that_answers_nobody, a_credit_for_the_dead, a_program_left_alone,
)  # fmt: skip
