"""More bugs for the core, in which version of a program runs, which its workers know, and in its own process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Final
from unittest.mock import patch

from bridge.protocol import messages as wire
from bridge.protocol.messages import Program
from pools.core import dispatch, fleet, internal, losses, programs
from pools.core.events import ProgramSet
from pools.core.programs import Catalog

_dispatch = dispatch.dispatch
_internal_lost = internal.lost


@contextmanager
def a_version_of_later() -> Iterator[None]:
    """A request runs the version that its name means as it is dispatched."""

    def later(tables: Any, entry: Any, worker: Any, now: float) -> None:
        entry.runs = tables.programs.runs(entry.message.operation)
        _dispatch(tables, entry, worker, now)

    with patch.object(dispatch, "dispatch", later):
        yield


@contextmanager
def a_route_kept() -> Iterator[None]:
    """A swap changes nothing for names that were called before."""
    on_set = fleet._HANDLERS[ProgramSet]

    def keeping(tables: Any, event: ProgramSet, now: float, peer: bytes) -> None:
        routes = dict(tables.routes)
        on_set(tables, event, now, peer)
        tables.routes.update(routes)

    with patch.dict(fleet._HANDLERS, {ProgramSet: keeping}):
        yield


@contextmanager
def a_version_forgotten_too_soon() -> Iterator[None]:
    """Workers forget a version as soon as no name leads to it."""

    def forget(tables: Any) -> None:
        catalog = tables.programs
        for runs in sorted(catalog.leaving):
            program = catalog.versions.pop(runs)
            programs.tell_workers(tables, Program(name=program.name, program_version=program.program_version))
        catalog.leaving.clear()

    with patch.object(programs, "forget", forget):
        yield


@contextmanager
def a_version_never_forgotten() -> Iterator[None]:
    """Workers know every version that there ever was."""
    with patch.object(programs, "forget", lambda tables: None):
        yield


@contextmanager
def a_newcomer_half_told() -> Iterator[None]:
    """A worker that becomes ready is told what names mean now, not what still waits to run."""
    on_ready = fleet._HANDLERS[wire.Ready]

    def half(tables: Any, message: wire.Ready, now: float, peer: bytes) -> None:
        catalog = tables.programs
        versions, named = catalog.versions, {served.runs for served in catalog.served.values()}
        catalog.versions = {runs: program for runs, program in versions.items() if runs in named}
        on_ready(tables, message, now, peer)
        catalog.versions = versions

    with patch.dict(fleet._HANDLERS, {wire.Ready: half}):
        yield


@contextmanager
def an_alias_left_behind() -> Iterator[None]:
    """Workers are not told that an alias is gone."""
    with patch.object(programs, "_loses", lambda known, program, aliases: False):
        yield


@contextmanager
def a_version_without_an_alias() -> Iterator[None]:
    """Any version can be called by its number."""
    with patch.object(Catalog, "refusal", lambda self, operation: None):
        yield


# --- the coordinator's own process ----------------------------------------------------------------------


@contextmanager
def a_service_never_launched() -> Iterator[None]:
    """Nobody launches it when it is first asked."""
    with patch.object(internal, "ask", lambda tables, pool, now: None):
        yield


@contextmanager
def a_service_waited_for() -> Iterator[None]:
    """Who asks while it is down waits until it is back."""
    with patch.object(internal, "refusal", lambda pool, now: None):
        yield


@contextmanager
def a_service_lost_like_any_worker() -> Iterator[None]:
    """What it held as it died is lost, or given back."""
    with patch.object(internal, "lost", losses.lost):
        yield


@contextmanager
def a_queue_before_a_service_that_is_down() -> Iterator[None]:
    """What waited behind what it held as it died goes on waiting."""

    def lost(*args: Any) -> None:
        with patch.object(internal, "refusal", lambda pool, now: None):
            _internal_lost(*args)

    with patch.object(internal, "lost", lost):
        yield


@contextmanager
def an_inner_operation_for_all() -> Iterator[None]:
    """Clients may ask what the coordinator alone is to ask."""
    with patch.object(internal, "objection", lambda tables, client, pool, message: None):
        yield


SWAPS: Final[tuple[Callable[[], AbstractContextManager[None]], ...]] = (
    a_version_of_later, a_route_kept, a_version_forgotten_too_soon, a_version_never_forgotten, a_newcomer_half_told,
    an_alias_left_behind, a_version_without_an_alias, a_service_never_launched, a_service_waited_for,
    a_service_lost_like_any_worker, a_queue_before_a_service_that_is_down, an_inner_operation_for_all,
)  # fmt: skip
