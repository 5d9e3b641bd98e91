"""Programs: which version a name means, which versions workers know, and when one is forgotten.

A request is of the version that its name meant as it was accepted, whatever becomes of the name: its rows, its resends
and what is handed over to others run that one (`entry.runs`). So a version that no name leads to any more stays known
to the workers while some request is of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, NamedTuple

from bridge.protocol.errors import NOT_FOUND, UNAVAILABLE, BridgeError
from bridge.protocol.messages import Program
from bridge.protocol.names import is_taken
from pools.core.events import ProgramSet, ProgramsSynced

if TYPE_CHECKING:
    from pools.core.tables import Tables

# The alias that a program's name alone stands for.
LIVE: Final = "live"
_MAX_NAMED: Final = 8


class Served(NamedTuple):
    """What a name that can be called means now: where it is at home, and what workers are asked for."""

    pool: str
    runs: str


class Catalog:
    """The programs.

    served: by the names that can be called. versions: what ready workers have been told, by what they are asked for.
    sets: what was last said of each program. leaving: versions that no name leads to, and some request is of. synced:
    the sets are complete. awaited: they will be, and until then nobody knows what a name means; problem: why that takes
    long, "" = it does not.
    """

    __slots__ = ("awaited", "leaving", "problem", "served", "sets", "synced", "versions")

    def __init__(self) -> None:
        self.served: dict[str, Served] = {}
        self.versions: dict[str, Program] = {}
        self.sets: dict[str, ProgramSet] = {}
        self.leaving: set[str] = set()
        self.synced = False
        self.awaited = False
        self.problem = ""

    def runs(self, operation: str) -> str:
        """Return what workers are asked for where a caller asks for `operation`."""
        served = self.served.get(operation)
        return operation if served is None else served.runs

    def refusal(self, operation: str) -> BridgeError | None:
        """Return why no worker is to be asked for this name, None for what may run."""
        if operation in self.served or is_taken(operation):
            return None
        name, at, _ = operation.partition("@")
        known = self.sets.get(name)
        if known is not None:
            names = [one for one in sorted(self.served) if one.partition("@")[0] == name]
            listed = ", ".join(names[:_MAX_NAMED]) + (", …" if len(names) > _MAX_NAMED else "")
            text = f"{operation}: no alias leads to that; give the version one, or call {listed or 'another program'}"
            return BridgeError(NOT_FOUND, text, details={"known": names})
        if self.awaited and not self.synced:
            why = f" ({self.problem})" if self.problem else ""
            text = f"{operation}: the deployed programs are not known yet{why}; ask again"
            return BridgeError(UNAVAILABLE, text, retryable=True, details={"retry_after_s": 0.5})
        if at:
            return BridgeError(NOT_FOUND, f"{operation}: no program {name!r} is deployed", details={"known": []})
        return None


def runs_of(name: str, version: int) -> str:
    """Return what a worker is asked for to run this version."""
    return f"{name}@{version}"


def version_of(runs: str) -> int:
    """Return the version in what a worker is asked for, 0 for what is no program."""
    number = runs.rpartition("@")[2]
    return int(number) if number.isdecimal() and "@" in runs else 0


def on_set(tables: Tables, event: ProgramSet, now: float, peer: bytes) -> None:
    """Have a program's names mean what they now mean; tell the ready workers what is new, the others when they are."""
    catalog = tables.programs
    before = catalog.sets.get(event.name)
    if event == before or (before is None and not event.versions):
        return
    if event.versions:
        catalog.sets[event.name] = event
    else:
        del catalog.sets[event.name]
    _rename(catalog, before, event)
    tables.routes.clear()
    _tell(tables, before, event)
    if catalog.synced:
        _log(tables, before, event)
    forget(tables)


def on_synced(tables: Tables, event: ProgramsSynced, now: float, peer: bytes) -> None:
    """Every program has been told: one that is not named is gone."""
    catalog = tables.programs
    for name in [name for name in catalog.sets if name not in event.names]:
        on_set(tables, ProgramSet(name, (), {}), now, peer)
    if not catalog.synced:
        catalog.synced = True
        tables.log("programs_synced", programs=len(catalog.sets))


def forget(tables: Tables) -> None:
    """Have workers forget the versions that are leaving and that no request is of. Costs nothing where none leaves."""
    catalog = tables.programs
    if not catalog.leaving:
        return
    used = {entry.runs for entry in tables.requests.values()}
    for worker in tables.workers.values():  # an attempt may be out whose request is settled
        used.update(entry.runs for entry in worker.attempts.values())
    gone = catalog.leaving - used
    catalog.leaving -= gone
    for runs in sorted(gone):
        program = catalog.versions.pop(runs)
        tell_workers(tables, Program(name=program.name, program_version=program.program_version))


def tell_workers(tables: Tables, program: Program) -> None:
    """Tell every ready worker of a user's pool; the others learn what there is when they are ready."""
    for pool in tables.pools.values():
        if not pool.config.internal:
            tables.to_workers.extend((worker.peer, program) for worker in pool.ready)


def _rename(catalog: Catalog, before: ProgramSet | None, event: ProgramSet) -> None:
    if before is not None:
        for name in _names(before):
            catalog.served.pop(name, None)
    catalog.served.update(_names(event))


def _names(event: ProgramSet) -> dict[str, Served]:
    """Return what can be called of a program: it, its aliases, and the versions that have one."""
    pools = {version.version: version.pool for version in event.versions}
    names: dict[str, Served] = {}
    for alias, number in event.aliases.items():
        if number in pools:
            served = Served(pools[number], runs_of(event.name, number))
            names[served.runs] = names[f"{event.name}@{alias}"] = served
            if alias == LIVE:
                names[event.name] = served
    return names


def _tell(tables: Tables, before: ProgramSet | None, event: ProgramSet) -> None:
    """Bring what workers know of a program to what it is: first what loses an alias, then what has one more."""
    catalog = tables.programs
    fewer: list[Program] = []
    more: list[Program] = []
    wanted: dict[str, Program] = {}
    for version in event.versions:
        aliases = sorted(alias for alias, number in event.aliases.items() if number == version.version)
        program = Program(
            name=event.name, program_version=version.version, payload=version.payload, aliases=aliases
        )  # fmt: skip
        wanted[runs_of(event.name, version.version)] = program
    for version in () if before is None else before.versions:
        runs = runs_of(event.name, version.version)
        known = catalog.versions.get(runs)
        if runs in wanted or known is None:
            continue
        catalog.leaving.add(runs)
        left = catalog.versions[runs] = _without_aliases(known)
        if _loses(known, left, event.aliases):
            fewer.append(left)
    for runs, program in wanted.items():
        catalog.leaving.discard(runs)
        known = catalog.versions.get(runs)
        catalog.versions[runs] = program
        if known is None or known.payload != program.payload or set(program.aliases) - set(known.aliases):
            more.append(program)
        elif _loses(known, program, event.aliases):
            fewer.append(program)
    for program in (*fewer, *more):
        tell_workers(tables, program)


def _without_aliases(program: Program) -> Program:
    return Program(name=program.name, program_version=program.program_version, payload=program.payload)


def _loses(known: Program, program: Program, aliases: Mapping[str, int]) -> bool:
    """Return whether workers must be told that a version lost an alias: one that another has now they take from it."""
    return any(alias not in aliases for alias in set(known.aliases) - set(program.aliases))


def _log(tables: Tables, before: ProgramSet | None, event: ProgramSet) -> None:
    old = {} if before is None else before.aliases
    had = set() if before is None else {version.version for version in before.versions}
    for version in event.versions:
        if version.version not in had:
            tables.log("program_deployed", program=event.name, version=version.version, pool=version.pool)
    for alias, number in event.aliases.items():
        if old.get(alias) != number:
            tables.log("alias_moved", program=event.name, alias=alias, version=number, before=old.get(alias))
    for alias in old:
        if event.versions and alias not in event.aliases:
            tables.log("alias_removed", program=event.name, alias=alias, before=old[alias])
    if not event.versions:
        tables.log("program_undeployed", program=event.name)
