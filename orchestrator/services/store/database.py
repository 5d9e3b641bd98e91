"""A database and its transactions: SQLite in a file, or PostgreSQL by URL. Two classes, one way to read and write."""

from __future__ import annotations

import fcntl
import os
import sqlite3
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from sqlalchemy import Connection, Engine, QueuePool, create_engine, event, exc, make_url

from bridge.faultpoints import hit
from orchestrator.errors import InvalidRequest
from orchestrator.services.store.trouble import storage_error, translated

SCHEMA: Final = "dspool"
HOLD_FILE: Final = "services.lock"
# The least that a page of SQLite can have.
_PAGE_BYTES: Final = 512
_POLL_S: Final = 0.02
_CONNECT_S: Final = 3
_AGAIN_S: Final = 1.0
# Numbers for the one store of a server's database: who writes holds the one for as long, who holds it the other.
_WRITES: Final = 0x6473706F6F6C  # "dspool"
_HOLDS: Final = _WRITES + 1
_JOURNAL_BYTES: Final = 64 << 20


class Database(ABC):
    """Transactions on one database, from any thread. Errors come as StorageError.

    where: a name for people, without a password. One writes at a time, of all processes, and waits for the others for
    `busy_timeout_s` at most; who reads waits for nobody and sees one state throughout.
    """

    def __init__(self, where: str, engine: Engine, *, readonly: bool) -> None:
        self.where = where
        self.readonly = readonly
        self._engine = engine
        self._writing = threading.Lock()
        event.listen(engine, "begin", self._begin)

    @contextmanager
    def write(self, check: Callable[[], object] | None = None) -> Iterator[Connection]:
        """Give a connection in a transaction, which is committed at the end, or rolled back if anything is raised.

        check: is called last before the commit, and raises if nothing is to be kept: nobody waits for it any more.
        """
        if self.readonly:
            raise storage_error(self.where, "read_only", "it was opened to be read")
        with self._writing, translated(self.where), self._engine.connect() as connection:
            self._still_held()
            with connection.execution_options(writes=True).begin():
                yield connection
                if check is not None:
                    check()
                hit("store.before_commit")
            hit("store.after_commit")

    def try_to_write(self) -> None:
        """Raise StorageError unless the schema can be written. Nothing is."""
        with self._writing, translated(self.where), self._engine.connect() as connection:
            transaction = connection.execution_options(writes=True).begin()
            connection.exec_driver_sql("UPDATE schema_info SET version = version")
            transaction.rollback()

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Give a connection in a transaction that only reads."""
        with translated(self.where), self._engine.connect() as connection, connection.begin():
            yield connection

    def close(self) -> None:
        """Close all connections that are not in use."""
        self._engine.dispose()

    @abstractmethod
    def hold(self, wait_s: float) -> None:
        """Let no other process hold the database until `close`, or the end of this one. Raises StorageError."""

    @abstractmethod
    def _still_held(self) -> None:
        """Make sure that what is about to be written is the store, and held if `hold` was called."""

    @abstractmethod
    def _begin(self, connection: Connection) -> None:
        """Begin a transaction; one that writes if the connection's option `writes` says so."""

    @abstractmethod
    def has_schema(self, connection: Connection) -> bool:
        """Return whether there is a schema of dspool, of whatever version."""

    @abstractmethod
    def damage(self, connection: Connection, *, thorough: bool) -> list[str]:
        """Return what is damaged, a line for each place. thorough: takes a time that grows with the store."""

    @abstractmethod
    def about(self, connection: Connection) -> dict[str, Any]:
        """Return what can be told of the database: kind, bytes and more."""


# --- SQLite -----------------------------------------------------------------------------------------


class SQLite(Database):
    """A file that is there. Each commit is on the disk when it returns (WAL, `synchronous=FULL`)."""

    def __init__(self, path: Path, *, busy_timeout_s: float, readonly: bool = False, where: str | None = None) -> None:
        self.path = path
        self._file = _identity(path)
        mode = "ro" if readonly else "rw"

        def connect() -> sqlite3.Connection:
            uri = f"file:{quote(str(path))}?mode={mode}"
            # isolation_level None: the module begins no transactions of its own.
            connection = sqlite3.connect(
                uri, uri=True, timeout=busy_timeout_s, isolation_level=None, check_same_thread=False
            )
            try:
                self._set_up(connection)
            except BaseException:
                connection.close()
                raise
            return connection

        engine = create_engine("sqlite://", creator=connect, poolclass=QueuePool, pool_size=2, max_overflow=-1)
        super().__init__(where or str(path), engine, readonly=readonly)
        self._lock: int | None = None

    def hold(self, wait_s: float) -> None:
        """Take the lock beside the file, which the kernel gives back whatever ends this process."""
        if self._lock is not None:
            return
        with translated(self.where):
            lock = os.open(self.path.with_name(HOLD_FILE), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                _flock(lock, wait_s)
            except BaseException:
                os.close(lock)
                raise
        self._lock = lock

    def _still_held(self) -> None:
        """Nothing takes the lock from a living process; but what was removed is written to nowhere."""
        found = _identity(self.path)
        if found is None:
            raise storage_error(self.where, "gone", "the file was removed while it was open")
        if found != self._file:
            raise storage_error(self.where, "replaced", "another file was put in its place while it was open")

    def close(self) -> None:
        """Close all connections that are not in use, and let others hold the file."""
        super().close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _set_up(self, connection: sqlite3.Connection) -> None:
        connection.execute("PRAGMA foreign_keys=ON")
        if not self.readonly:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute(f"PRAGMA journal_size_limit={_JOURNAL_BYTES}")

    def _begin(self, connection: Connection) -> None:
        writes = connection.get_execution_options().get("writes")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    def has_schema(self, connection: Connection) -> bool:
        """Return whether there is a schema of dspool."""
        found = connection.exec_driver_sql("SELECT count(*) FROM sqlite_master WHERE name = 'schema_info'")
        return bool(found.scalar_one())

    def damage(self, connection: Connection, *, thorough: bool) -> list[str]:
        """Look through the pages; thorough: through the indexes, and the keys to other tables, too."""
        if (size := self.path.stat().st_size) < _PAGE_BYTES:
            return [f"the file was cut off after {size} bytes"]
        pragma = "integrity_check" if thorough else "quick_check"
        lines = [str(line) for line in connection.exec_driver_sql(f"PRAGMA {pragma}").scalars()]
        if thorough:
            wrong = connection.exec_driver_sql("PRAGMA foreign_key_check").all()
            lines += [f"row {row} of {table} names what {parent} does not have" for table, row, parent, _ in wrong]
        return [line for line in lines if line != "ok"]

    def about(self, connection: Connection) -> dict[str, Any]:
        """Return the sizes of the file and of its journal, in bytes."""
        return {
            "kind": "sqlite",
            "where": self.where,
            "bytes": self.path.stat().st_size,
            "journal_bytes": _size(journal_of(self.path)),
            "journal_mode": connection.exec_driver_sql("PRAGMA journal_mode").scalar_one(),
            "sqlite": sqlite3.sqlite_version,
        }

    def copy_to(self, path: Path) -> None:
        """Write all that is committed into a new file, which is on the disk when this returns."""
        # A statement of its own, in no transaction.
        with translated(self.where), self._engine.connect() as connection:
            raw: Any = connection.connection.dbapi_connection
            raw.execute("VACUUM INTO ?", (str(path),))
        _sync(path)


def _flock(fd: int, wait_s: float) -> None:
    """Lock a file. Raises BlockingIOError when somebody else has held it for so long."""
    deadline = time.monotonic() + wait_s
    while True:
        try:
            return fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise
        time.sleep(_POLL_S)


def journal_of(path: Path) -> Path:
    """Return where SQLite keeps what is committed and not yet in the file."""
    return path.with_name(f"{path.name}-wal")


def create_file(path: Path, fill: Callable[[Path], None]) -> None:
    """Make a database file: whole, or not at all. fill: is called with its path under another name.

    Of processes that do so at once one does; a file that is there is left alone.
    """
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        if path.exists():
            return
        if _size(journal_of(path)):
            why = f"the file is gone, its journal {journal_of(path).name} is still there"
            raise storage_error(str(path), "corrupt", why)
        made = path.with_name(f"{path.name}.new")
        for left in (made, journal_of(made), made.with_name(f"{made.name}-shm")):
            left.unlink(missing_ok=True)
        os.close(os.open(made, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        fill(made)
        _sync(made)
        made.rename(path)
        os.fsync(folder)
    finally:
        os.close(folder)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _identity(path: Path) -> tuple[int, int] | None:
    """Return which file a path names, None if there is none."""
    with suppress(FileNotFoundError):
        found = path.stat()
        return found.st_dev, found.st_ino
    return None


def _size(path: Path) -> int:
    with suppress(FileNotFoundError):
        return path.stat().st_size
    return 0


# --- PostgreSQL -------------------------------------------------------------------------------------


class PostgreSQL(Database):
    """The schema `dspool` of a database. What is set is set for each transaction, so poolers may stand between."""

    def __init__(self, url: str, *, busy_timeout_s: float, readonly: bool = False) -> None:
        parsed = make_url(url).set(drivername="postgresql+psycopg")
        where = parsed.set(query={}).render_as_string(hide_password=True)
        arguments = {} if "connect_timeout" in parsed.query else {"connect_timeout": _CONNECT_S}
        try:
            engine = create_engine(parsed, connect_args=arguments, pool_size=2, max_overflow=-1, pool_pre_ping=True)
        except ModuleNotFoundError as missing:
            why = f"{missing}: install the extra: pip install 'dspool[postgres]'"
            raise storage_error(where, "cannot_open", why) from None
        timeout_ms = max(1, round(busy_timeout_s * 1000))
        self._sets = f"SET LOCAL search_path TO {SCHEMA}"
        self._takes = f"SET LOCAL lock_timeout TO {timeout_ms}; SELECT pg_advisory_xact_lock({_WRITES})"
        super().__init__(where, engine, readonly=readonly)
        self._held = False
        self._holder: Connection | None = None

    def hold(self, wait_s: float) -> None:
        """Take a lock of the server's on a connection of its own: it is given back when that ends."""
        if not self._held:
            with translated(self.where):
                self._holder = self._take(wait_s)
            self._held = True

    def _take(self, wait_s: float) -> Connection:
        connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT", plain=True)
        try:
            connection.exec_driver_sql(f"SET lock_timeout TO {max(1, round(wait_s * 1000))}")
            connection.exec_driver_sql(f"SELECT pg_advisory_lock({_HOLDS})")
        except BaseException:
            _end(connection)
            raise
        return connection

    def _still_held(self) -> None:
        if not self._held:
            return
        if self._holder is not None:
            try:
                self._holder.exec_driver_sql("SELECT 1")
                return
            except exc.DBAPIError:
                # The server was started anew, or has ended that connection: the lock went with it.
                _end(self._holder)
                self._holder = None
        self._holder = self._take(_AGAIN_S)

    def close(self) -> None:
        """Close all connections that are not in use, and let others hold the database."""
        if self._holder is not None:
            _end(self._holder)
        self._held, self._holder = False, None
        super().close()

    def _begin(self, connection: Connection) -> None:
        options = connection.get_execution_options()
        if options.get("writes"):
            connection.exec_driver_sql(f"{self._sets}; {self._takes}")
        elif not options.get("plain"):
            connection.exec_driver_sql(f"SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY; {self._sets}")

    def create_schema(self) -> None:
        """Make the schema if there is none: who may only use it need not be allowed to make it."""
        asked = f"SELECT to_regnamespace('{SCHEMA}') IS NULL"
        with self.read() as connection:
            if not connection.exec_driver_sql(asked).scalar_one():
                return
        with self.write() as connection:
            if connection.exec_driver_sql(asked).scalar_one():
                connection.exec_driver_sql(f"CREATE SCHEMA {SCHEMA}")

    def has_schema(self, connection: Connection) -> bool:
        """Return whether there is a schema of dspool."""
        return bool(connection.exec_driver_sql(f"SELECT to_regclass('{SCHEMA}.schema_info') IS NOT NULL").scalar_one())

    def damage(self, connection: Connection, *, thorough: bool) -> list[str]:
        """Return nothing: the server checks its pages when they are read."""
        return []

    def about(self, connection: Connection) -> dict[str, Any]:
        """Return the size of the tables, in bytes."""
        size = (
            "SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0)::bigint FROM pg_class c "
            f"WHERE c.relnamespace = to_regnamespace('{SCHEMA}') AND c.relkind = 'r'"
        )
        return {
            "kind": "postgresql",
            "where": self.where,
            "bytes": connection.exec_driver_sql(size).scalar_one(),
            "postgresql": connection.exec_driver_sql("SHOW server_version").scalar_one(),
        }


def _end(connection: Connection) -> None:
    """End a connection for good: in the pool it would be used again, with what was set and taken on it."""
    connection.invalidate()
    connection.close()


def is_postgresql(where: str) -> bool:
    """Return whether a store is a database by its URL, not a file. Raises InvalidRequest for another kind of URL."""
    if "://" not in where:
        return False
    if where.partition("://")[0] in ("postgresql", "postgresql+psycopg"):
        return True
    raise InvalidRequest("a store is a file, or a database by postgresql+psycopg://USER:PASSWORD@HOST/DATABASE")
