"""More bugs for the core, in what it does under load: classes, shares, push-outs, shedding, modes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace as with_values
from typing import Any, Final
from unittest.mock import patch

from bridge.protocol import messages as wire
from pools.core import admission, dispatch, shares, shedding
from pools.core.modes import NORMAL, Modes
from pools.core.queueing import PoolQueue
from pools.core.shedding import shed
from pools.core.tables import Tables

_full = admission._full
_look = Modes.look
_make_tables = Tables.__init__


# --- queues -----------------------------------------------------------------------------------------


@contextmanager
def a_class_upside_down() -> Iterator[None]:
    """Low priority goes first."""

    def choose(self: Any) -> Any:
        return next(one.turn() for one in reversed(self._classes) if one.lanes)

    with patch.object(PoolQueue, "_choose", choose):
        yield


@contextmanager
def a_greedy_principal() -> Iterator[None]:
    """Who comes first in a class is served until nothing of it is left."""

    def choose(self: Any) -> Any:
        one = next(one for one in self._classes if one.lanes)
        return next(iter(one.lanes.values()))

    with patch.object(PoolQueue, "_choose", choose):
        yield


@contextmanager
def a_push_out_with_room() -> Iterator[None]:
    """Others yield to a newcomer although the queue has room."""

    def full(tables: Any, client: Any, pool: Any, operation: str, message: Any, now: float) -> Any:
        for entry in [*pool.queue][:1]:
            if not entry.epoch:
                shed(tables, entry, "room is made", now)
        return _full(tables, client, pool, operation, message, now)

    with patch.object(admission, "_full", full):
        yield


@contextmanager
def a_push_out_of_the_oldest() -> Iterator[None]:
    """Who has waited longest yields to a newcomer."""
    newest = shares.who_yields

    def who_yields(queue: Any, *args: Any) -> Any:
        found = newest(queue, *args)
        first = next((entry for entry in queue for other in found if entry.message.priority == other.message.priority
                      and entry.client.principal == other.client.principal), None)  # fmt: skip
        return [first, *found[1:]] if first is not None else found

    with patch.object(admission, "who_yields", who_yields):
        yield


@contextmanager
def a_push_out_of_many() -> Iterator[None]:
    """More yield than a newcomer takes."""
    newest = shares.who_yields

    def who_yields(queue: Any, limit: int, principal: str, priority: int, rows: int, excess: int) -> Any:
        return newest(queue, limit, principal, priority, rows, excess + 1)

    with patch.object(admission, "who_yields", who_yields):
        yield


@contextmanager
def a_push_out_of_the_higher() -> Iterator[None]:
    """A higher class yields to a lower one."""
    newest = shares.who_yields

    def who_yields(queue: Any, limit: int, principal: str, priority: int, rows: int, excess: int) -> Any:
        return newest(queue, limit, principal, wire.PRIORITY_HIGH, rows, excess)

    with patch.object(admission, "who_yields", who_yields):
        yield


@contextmanager
def a_last_one_shed() -> Iterator[None]:
    """What waits alone is given up for its age."""

    def stale(lane: Any, entry: Any, now: float) -> bool:
        alone = len(lane.entries) == 1 and not entry.epoch and entry.deadline is not None
        return bool(shedding.is_stale(lane, entry, now) or (alone and now - entry.accepted_at > entry.deadline - now))

    with patch.object(dispatch, "is_stale", stale):
        yield


@contextmanager
def a_hasty_shed() -> Iterator[None]:
    """Whatever has waited a tenth of a second is given up."""
    with patch.object(dispatch, "is_stale", lambda lane, entry, now: not entry.epoch):
        yield


@contextmanager
def a_principal_without_limit() -> Iterator[None]:
    """What all clients of a principal have together is not looked at."""

    def make(self: Any, config: Any, *args: Any) -> None:
        _make_tables(self, with_values(config, principal_rows=1 << 20), *args)

    with patch.object(Tables, "__init__", make):
        yield


# --- modes ------------------------------------------------------------------------------------------


@contextmanager
def a_mode_ignored() -> Iterator[None]:
    """All is let in, whatever the mode."""
    with patch.object(Modes, "room", lambda self, pool, message: pool.config.max_queue):
        yield


@contextmanager
def a_mode_that_never_comes() -> Iterator[None]:
    """Signals lead to nothing."""
    with patch.object(Modes, "look", lambda self, found, now: False):
        yield


@contextmanager
def a_mode_that_stays() -> Iterator[None]:
    """Once in trouble, always in trouble."""

    def look(self: Any, found: Any, now: float) -> bool:
        return self.mode == NORMAL and _look(self, found, now)

    with patch.object(Modes, "look", look):
        yield


CROWDS: Final[tuple[Callable[[], AbstractContextManager[None]], ...]] = (
    a_class_upside_down, a_greedy_principal, a_push_out_with_room, a_push_out_of_the_oldest, a_push_out_of_many,
    a_push_out_of_the_higher, a_last_one_shed, a_hasty_shed, a_principal_without_limit, a_mode_ignored,
    a_mode_that_never_comes, a_mode_that_stays,
)  # fmt: skip
