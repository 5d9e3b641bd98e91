"""`Store`: what is to outlive every process, in one database."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from sqlalchemy import func, select

from orchestrator.errors import InvalidRequest
from orchestrator.rundir import STORE_FILE
from orchestrator.services.store.database import Database, PostgreSQL, SQLite, create_file, is_postgresql
from orchestrator.services.store.events import Events
from orchestrator.services.store.migrations import LATEST, migrate, version_of
from orchestrator.services.store.programs import Programs
from orchestrator.services.store.schema import events, program_versions, schema_info, session_turns, sessions
from orchestrator.services.store.sessions import Sessions
from orchestrator.services.store.trouble import storage_error, translated

# Shorter than who asks the services waits: a store that is locked says so itself.
BUSY_TIMEOUT_S: Final = 1.0
HOLD_S: Final = 5.0
# What is numbered by run: `run << 32 | n`.
_RUN_SHIFT: Final = 32
_NUMBERED: Final = (events.c.seq, sessions.c.generation)
# What is counted, and since which version of the schema there is such a table.
_COUNTED: Final = {
    "versions": (program_versions, 1),
    "sessions": (sessions, 2),
    "turns": (session_turns, 2),
    "events": (events, 3),
}


def store_path(data_dir: str | os.PathLike[str]) -> Path:
    """Return where the store of a data directory is."""
    return Path(data_dir) / STORE_FILE


class Store:
    """Programs, sessions and events on disk. From any thread; calls block until what they write is on the disk.

    Whatever a call raises, StorageError included, it has changed nothing, but for one case: a failure in the very
    commit may leave it done. All that writes may be repeated.
    """

    def __init__(self, database: Database, schema: int) -> None:
        self.where = database.where
        self.schema = schema
        self.programs = Programs(database)
        self.sessions = Sessions(database)
        self.events = Events(database)
        self._database = database

    @classmethod
    def open(
        cls, where: str | os.PathLike[str], *, readonly: bool = False, busy_timeout_s: float = BUSY_TIMEOUT_S,
        known: str = "",
    ) -> Store:  # fmt: skip
        """Open a store, a file or `postgresql+psycopg://…`; make it if there is none, and bring it to this version.

        readonly: as it is, of this version or an earlier one, and nothing is written. known: the identity that it must
        have: then none is made. Raises StorageError: what is damaged, foreign, another one or of a newer version is
        left untouched.
        """
        named = os.fspath(where)
        database: Database
        if is_postgresql(named):
            database = PostgreSQL(named, busy_timeout_s=busy_timeout_s, readonly=readonly)
        else:
            path = Path(named).absolute()
            if not readonly:
                _prepare(path, busy_timeout_s, known)
            database = SQLite(path, busy_timeout_s=busy_timeout_s, readonly=readonly)
        try:
            return cls(database, _accept(database) if readonly else _lead(database, known))
        except BaseException:
            database.close()
            raise

    def hold(self, wait_s: float = HOLD_S) -> None:
        """Let no other process hold the store until this one closes it or ends. Raises StorageError (`locked`).

        wait_s: for one that holds it. Who does not ask to hold it can still read, and write.
        """
        self._database.hold(wait_s)

    def identity(self) -> str:
        """Return what tells this store from any other; a copy has the same."""
        return _identity(self._database)

    def last_run(self) -> int:
        """Return the highest run of a coordinator that has left events or sessions here; 0 if none has."""
        with self._database.read() as connection:
            latest = (connection.execute(select(func.max(of))).scalar_one() for of in _NUMBERED)
            return max(number or 0 for number in latest) >> _RUN_SHIFT

    def info(self) -> dict[str, Any]:
        """Return what can be told of the store: kind, where, schema, bytes, and how much of what it holds."""
        with self._database.read() as connection:
            told = {**self._database.about(connection), "schema": self.schema, "latest_schema": LATEST}
            names = select(func.count(program_versions.c.name.distinct()))
            told["programs"] = connection.execute(names).scalar_one()
            for name, (table, since) in _COUNTED.items():
                asked = select(func.count()).select_from(table)
                told[name] = connection.execute(asked).scalar_one() if self.schema >= since else 0
            return told

    def check(self) -> list[str]:
        """Look through the whole store; return what is damaged, a line each. Takes a time that grows with its size."""
        with self._database.read() as connection:
            return self._database.damage(connection, thorough=True)

    def backup(self, path: str | os.PathLike[str]) -> int:
        """Write all that is committed into a new file, itself a store; return its size in bytes. Others may go on.

        Raises InvalidRequest if there is a file, or if the store is a database with tools of its own.
        """
        if not isinstance(self._database, SQLite):
            raise InvalidRequest(f"the store is a database: back it up with pg_dump --schema=dspool {self.where}")
        target = Path(path).absolute()
        made = target.with_name(f".{target.name}.part")
        with translated(str(target)):
            if target.exists():
                raise InvalidRequest(f"{target} exists already: name a new file")
            made.unlink(missing_ok=True)
            os.close(os.open(made, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        try:
            self._database.copy_to(made)
            with translated(str(target)):
                made.rename(target)
                return target.stat().st_size
        finally:
            made.unlink(missing_ok=True)

    def close(self) -> None:
        """Close it; to be called when no call is running."""
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


# --- opening ----------------------------------------------------------------------------------------


def _prepare(path: Path, busy_timeout_s: float, known: str) -> None:
    """Make the file if there is none, unless it is `known`, and look at it. Raises StorageError.

    It is looked at before anything is opened for writing: that would bring the journal into a damaged file.
    """

    def fill(made: Path) -> None:
        with closing(SQLite(made, busy_timeout_s=busy_timeout_s, where=str(path))) as database:
            migrate(database)

    with translated(str(path)):
        if not known:
            create_file(path, fill)
        elif not path.exists():
            raise storage_error(str(path), "gone", "there is no such file any more")
        # A database that cannot be written is opened all the same, and leaves a journal that cannot be, either.
        for place in (path, path.parent):
            for mode, reason, verb in ((os.R_OK, "cannot_open", "read"), (os.W_OK, "read_only", "written")):
                if not os.access(place, mode, effective_ids=True):
                    raise storage_error(str(path), reason, f"{place} may not be {verb}")
    with closing(SQLite(path, busy_timeout_s=busy_timeout_s, readonly=True)) as database:
        _accept(database)


def _lead(database: Database, known: str) -> int:
    """Bring a database that was looked at to this version of the schema; return that."""
    if isinstance(database, PostgreSQL) and not known:
        database.create_schema()
    with database.read() as connection:
        is_there = database.has_schema(connection)
    if known:
        _check_identity(database, known, is_there=is_there)
    if is_there:
        _accept_version(database)
        database.try_to_write()
    migrate(database)
    return LATEST


def _check_identity(database: Database, known: str, *, is_there: bool) -> None:
    """Raise StorageError unless it is the store that is known; that is of this version."""
    if not is_there:
        raise storage_error(database.where, "gone", "it has no schema_info any more")
    if _accept_version(database) < LATEST or _identity(database) != known:
        raise storage_error(database.where, "replaced", "its identity in schema_info is not the same")


def _identity(database: Database) -> str:
    with database.read() as connection:
        return str(connection.execute(select(schema_info.c.identity)).scalar_one())


def _accept(database: Database) -> int:
    """Return the version of the schema. Raises StorageError if it is damaged, not of dspool, or a newer one."""
    with database.read() as connection:
        if damage := database.damage(connection, thorough=False):
            raise storage_error(database.where, "corrupt", damage[0])
    return _accept_version(database)


def _accept_version(database: Database) -> int:
    with database.read() as connection:
        version = version_of(database, connection)
    if version is None:
        raise storage_error(database.where, "foreign", "it has no schema_info")
    if version > LATEST:
        raise storage_error(database.where, "newer_schema", f"its schema is {version}, this version knows {LATEST}")
    return version
