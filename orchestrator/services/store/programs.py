"""Programs in the store: immutable versions, and the aliases that name them."""

from __future__ import annotations

import builtins
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from typing import Any, Final

from sqlalchemy import Connection, RowMapping, delete, func, insert, select, update

from bridge.protocol.errors import closest
from orchestrator.errors import InvalidRequest, NotFound
from orchestrator.services.store.database import Database
from orchestrator.services.store.rows import Added, AliasRow, ProgramRow, VersionDraft, VersionRow, VersionSummary
from orchestrator.services.store.schema import dumps, loads
from orchestrator.services.store.schema import program_aliases as aliases
from orchestrator.services.store.schema import program_counters as counters
from orchestrator.services.store.schema import program_versions as versions
from orchestrator.services.store.trouble import storage_error

Check = Callable[[], object]

_COLUMNS: Final = tuple(field.name for field in fields(VersionRow))
_SUMMARY: Final = [versions.c[name] for name in VersionSummary._fields]


class Programs:
    """Versions and aliases of programs. Each method that writes is one transaction, and may be repeated.

    check: is called last before the commit; nothing is kept if it raises, and that is what is raised.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def take_number(self, name: str) -> int:
        """Return the next number of a name, which nobody else is given."""
        with self._database.write() as connection:
            return _next(connection, name)

    def add_version(
        self, draft: VersionDraft, alias: str | None, version: int | None = None, *, check: Check | None = None
    ) -> Added:
        """Keep a version and let `alias` name it; None = no alias is moved.

        version: its number, taken before: where it is there already, with the same content, only the alias is moved.
        Without one it gets the next number, unless what the alias names now (without an alias, the newest version) has
        the same content: then that is returned. Raises StorageError if the number is another version's.
        """
        draft = _plain(draft)
        with self._database.write(check) as connection:
            before = None if alias is None else _alias(connection, draft.name, alias)
            number = version
            if number is None:
                number = _newest(connection, draft.name) if alias is None else before and before.version
            row = None if number is None else _version(connection, draft.name, number)
            created = row is None or row.content != draft.content
            if row is None or created:
                if row is not None and version is not None:
                    why = f"{draft.name} has a version {version} already, and it is another one"
                    raise storage_error(self._database.where, "failed", why)
                row = _insert(connection, draft, version or _next(connection, draft.name))
            if alias is None:
                return Added(row, created, None)
            if before is not None and before.version == row.version:
                return Added(row, created, before.previous)
            _move(connection, row.name, alias, row.version, before, draft.deployed_by, draft.deployed_at)
            return Added(row, created, before and before.version)

    def set_alias(
        self, name: str, alias: str, version: int, *, by: str = "", at: float = 0.0, check: Check | None = None
    ) -> int | None:
        """Let an alias name a version; return which it named before, None if it is new. Raises NotFound."""
        with self._database.write(check) as connection:
            before = _alias(connection, name, alias)
            if before is not None and before.version == version:
                return before.previous
            _require(connection, name, version)
            _move(connection, name, alias, version, before, by, at)
            return before and before.version

    def remove_alias(self, name: str, alias: str, *, check: Check | None = None) -> bool:
        """Forget an alias; return whether there was one."""
        with self._database.write(check) as connection:
            done = connection.execute(delete(aliases).where(aliases.c.name == name, aliases.c.alias == alias))
            return done.rowcount > 0

    def remove(self, name: str, *, check: Check | None = None) -> bool:
        """Forget a program, with all its versions; return whether there was one. Its numbers are not given again."""
        with self._database.write(check) as connection:
            connection.execute(delete(aliases).where(aliases.c.name == name))
            return connection.execute(delete(versions).where(versions.c.name == name)).rowcount > 0

    def list(self) -> list[ProgramRow]:
        """Return all programs, by name."""
        with self._database.read() as connection:
            return list(_programs(connection))

    def program(self, name: str) -> ProgramRow | None:
        """Return one program, None if there is none of this name."""
        with self._database.read() as connection:
            return next(_programs(connection, name), None)

    def versions(self, name: str) -> builtins.list[VersionSummary]:
        """Return the versions of a program, by number; empty if there is none of this name."""
        with self._database.read() as connection:
            asked = select(*_SUMMARY).where(versions.c.name == name).order_by(versions.c.version)
            return [VersionSummary(*row) for row in connection.execute(asked)]

    def version(self, name: str, version: int) -> VersionRow | None:
        """Return a version whole, None if there is none."""
        with self._database.read() as connection:
            return _version(connection, name, version)

    def known(self, draft: VersionDraft) -> int | None:
        """Return the version with a draft's content, None if none has been deployed since `deployed_by` last did.

        The version that `deployed_by` has deployed last counts, those before it do not.
        """
        draft = _plain(draft)
        theirs = (versions.c.name == draft.name) & (versions.c.deployed_by == draft.deployed_by)
        last = select(func.max(versions.c.version)).where(theirs).scalar_subquery()
        same = (versions.c.name == draft.name) & (versions.c.sha256 == draft.sha256)
        asked = select(versions).where(same & (versions.c.version >= last)).order_by(versions.c.version.desc())
        with self._database.read() as connection:
            rows = (_row(row) for row in connection.execute(asked).mappings())
            return next((row.version for row in rows if row.content == draft.content), None)

    def summaries(self, alias: str) -> builtins.list[tuple[ProgramRow, VersionSummary]]:
        """Return each program, by name, with its version that `alias` names, else the newest one."""
        with self._database.read() as connection:
            programs = {program.name: program for program in _programs(connection)}
            named = select(aliases.c.version).where(aliases.c.name == versions.c.name, aliases.c.alias == alias)
            others = versions.alias()
            newest = select(func.max(others.c.version)).where(others.c.name == versions.c.name)
            wanted = func.coalesce(named.scalar_subquery(), newest.scalar_subquery())
            asked = select(*_SUMMARY).where(versions.c.version == wanted).order_by(versions.c.name)
            found = [VersionSummary(*row) for row in connection.execute(asked)]
            return [(programs[row.name], row) for row in found]

    def served(self, *names: str) -> builtins.list[tuple[ProgramRow, builtins.list[VersionRow]]]:
        """Return each program with those of its versions that an alias names. names: of these alone."""
        named = select(aliases.c.name, aliases.c.version).distinct().subquery()
        asked = select(versions).join(
            named, (named.c.name == versions.c.name) & (named.c.version == versions.c.version)
        )
        asked = asked.order_by(versions.c.name, versions.c.version)
        if names:
            asked = asked.where(versions.c.name.in_(names))
        with self._database.read() as connection:
            of: dict[str, list[VersionRow]] = {}
            for row in connection.execute(asked).mappings():
                of.setdefault(row["name"], []).append(_row(row))
            return [(program, of.get(program.name, [])) for program in _programs(connection, *names)]


# --- in a transaction -------------------------------------------------------------------------------


def _programs(connection: Connection, *names: str) -> Iterator[ProgramRow]:
    counted = select(versions.c.name, func.count(), counters.c.last_version).join(
        counters, counters.c.name == versions.c.name
    )
    counted = counted.group_by(versions.c.name, counters.c.last_version).order_by(versions.c.name)
    named = select(aliases).order_by(aliases.c.name, aliases.c.alias)
    if names:
        counted, named = counted.where(versions.c.name.in_(names)), named.where(aliases.c.name.in_(names))
    of: dict[str, dict[str, AliasRow]] = {}
    for row in connection.execute(named).mappings():
        of.setdefault(row["name"], {})[row["alias"]] = _alias_row(row)
    for found, count, last in connection.execute(counted):
        yield ProgramRow(found, of.get(found, {}), count, last)


def _version(connection: Connection, name: str, version: int) -> VersionRow | None:
    asked = select(versions).where(versions.c.name == name, versions.c.version == version)
    row = connection.execute(asked).mappings().one_or_none()
    return None if row is None else _row(row)


def _plain(draft: VersionDraft) -> VersionDraft:
    """Return a draft as it would be read back. Raises InvalidRequest for what is no plain JSON."""
    try:
        plain = {name: loads(dumps(getattr(draft, name))) for name in ("target", "state", "config", "predictors")}
    except (ValueError, TypeError, RecursionError) as exc:
        raise InvalidRequest(f"{draft.name} cannot be stored: {exc}") from None
    return replace(draft, **plain, inputs=tuple(draft.inputs), outputs=tuple(draft.outputs))


def _insert(connection: Connection, draft: VersionDraft, version: int) -> VersionRow:
    row = VersionRow(version=version, **{key: getattr(draft, key) for key in _COLUMNS if key != "version"})
    connection.execute(insert(versions).values({key: getattr(row, key) for key in _COLUMNS}))
    return row


def _row(row: RowMapping) -> VersionRow:
    kept: dict[str, Any] = {key: row[key] for key in _COLUMNS}
    return VersionRow(**kept | {"inputs": tuple(row["inputs"]), "outputs": tuple(row["outputs"])})


def _newest(connection: Connection, name: str) -> int | None:
    newest: int | None = connection.execute(
        select(func.max(versions.c.version)).where(versions.c.name == name)
    ).scalar_one()
    return newest


def _next(connection: Connection, name: str) -> int:
    """Return the next number of a name; that it is taken is written with what takes it."""
    mine = counters.c.name == name
    last: int | None = connection.execute(select(counters.c.last_version).where(mine)).scalar_one_or_none()
    if last is None:
        connection.execute(insert(counters).values(name=name, last_version=1))
        return 1
    connection.execute(update(counters).where(mine).values(last_version=last + 1))
    return last + 1


def _require(connection: Connection, name: str, version: int) -> None:
    """Raise NotFound unless there is this version."""
    known = connection.execute(select(versions.c.version).where(versions.c.name == name)).scalars().all()
    if not known:
        names = connection.execute(select(versions.c.name).distinct()).scalars().all()
        raise NotFound(f"no program is named {name!r}", suggestions=closest(name, names))
    if version not in known:
        kept = f"{min(known)} to {max(known)}" if len(known) > 1 else f"{known[0]} alone"
        raise NotFound(f"{name} has no version {version}: it has {kept}", suggestions=[])


def _alias(connection: Connection, name: str, alias: str) -> AliasRow | None:
    asked = select(aliases).where(aliases.c.name == name, aliases.c.alias == alias)
    row = connection.execute(asked).mappings().one_or_none()
    return None if row is None else _alias_row(row)


def _alias_row(row: RowMapping) -> AliasRow:
    return AliasRow(*(row[key] for key in AliasRow._fields))


def _move(
    connection: Connection, name: str, alias: str, version: int, before: AliasRow | None, by: str, at: float
) -> None:
    told = {"version": version, "previous": before and before.version, "moved_by": by, "moved_at": at}
    if before is None:
        connection.execute(insert(aliases).values(name=name, alias=alias, **told))
    else:
        connection.execute(update(aliases).where(aliases.c.name == name, aliases.c.alias == alias).values(told))
