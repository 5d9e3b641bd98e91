"""What can go wrong with a store, told once: which of it it is, what to do, and that the store is kept as it is."""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from sqlalchemy import exc

from orchestrator.errors import DspoolError, InvalidRequest, StorageError

_RETRYABLE: Final = frozenset({"full", "io", "locked", "unreachable"})
_KEPT: Final = "it is kept as it is"
# What each reason means, and what helps. {file}: the store; {why}: what the database said.
_TEXTS: Final = {
    "full": "the store {file} cannot be written: its disk is full ({why}); make room: nothing else has to be done",
    "io": "the store {file} cannot be read or written: its disk is full, a limit on the size of files is reached, or "
    f"the disk fails ({{why}}); make room, or see what the system's log says of the disk; {_KEPT}",
    "read_only": "the store {file} cannot be written: it, or its folder, is read-only ({why}); make both writable for "
    "this user",
    "corrupt": f"the store {{file}} is damaged ({{why}}); {_KEPT}: stop the coordinator, move the file away, "
    "its -wal and -shm too, and put a backup in its place (`dspool store backup` makes them) or begin anew",
    "newer_schema": "the store {file} was written by a newer version of dspool ({why}); "
    f"{_KEPT}: run that version, or give this one a data_dir of its own",
    "foreign": f"{{file}} is not a store of dspool ({{why}}); {_KEPT}: move it away, or name another data_dir",
    "gone": "the store {file} is gone ({why}); what is deployed is served as before: put it back, or restart the "
    "coordinator, with a backup in its place or to begin anew",
    "replaced": f"{{file}} is another store than before ({{why}}); {_KEPT}, and what is deployed is served as before: "
    "put the other one back, or restart the coordinator to use this one",
    "locked": "the store {file} is in use by another process ({why}); end that process, or try again",
    "cannot_open": "the store {file} cannot be opened ({why}); see that it, and its folder, can be read and written by "
    "this user",
    "refused": "the store {file} cannot be opened: the database refuses ({why}); see `store.url` in the configuration",
    "unreachable": "the store {file} cannot be reached ({why}); see that the database runs: it is tried again with "
    "the next call",
    "failed": f"the store {{file}} could not do what was asked ({{why}}); {_KEPT}",
}
_TOLD_AS: Final = {"refused": "cannot_open", "gone": "corrupt", "replaced": "foreign"}
_SQLITE: Final = {
    sqlite3.SQLITE_FULL: "full",
    sqlite3.SQLITE_IOERR: "io",
    sqlite3.SQLITE_READONLY: "read_only",
    sqlite3.SQLITE_CORRUPT: "corrupt",
    sqlite3.SQLITE_NOTADB: "corrupt",
    sqlite3.SQLITE_BUSY: "locked",
    sqlite3.SQLITE_LOCKED: "locked",
    sqlite3.SQLITE_PROTOCOL: "locked",
    sqlite3.SQLITE_CANTOPEN: "cannot_open",
    sqlite3.SQLITE_PERM: "cannot_open",
    sqlite3.SQLITE_AUTH: "cannot_open",
    sqlite3.SQLITE_NOLFS: "cannot_open",
}
_SYSTEM: Final = {
    errno.ENOSPC: "full",
    errno.EDQUOT: "full",
    errno.EFBIG: "io",
    errno.EIO: "io",
    errno.EROFS: "read_only",
    errno.EWOULDBLOCK: "locked",
}
# SQLSTATEs of PostgreSQL, or the classes (two characters) that they belong to.
_POSTGRES: Final = {
    "53100": "full",
    "58030": "io",
    "25006": "read_only",
    "XX001": "corrupt",
    "XX002": "corrupt",
    "55P03": "locked",
    "08": "unreachable",
    "53": "unreachable",
    "57": "unreachable",
    "28": "refused",
    "3D": "refused",
    "42501": "refused",
}


def storage_error(file: str, reason: str, why: str) -> StorageError:
    """Return the error for one of the reasons above; `StorageError.reason` is one of those that it lists."""
    text = _TEXTS[reason].format(file=file, why=why)
    told = _TOLD_AS.get(reason, reason)
    return StorageError(text, retryable=told in _RETRYABLE, file=file, reason=told)


@contextmanager
def translated(file: str) -> Iterator[None]:
    """Raise what the database raises inside as StorageError, and values that no database takes as InvalidRequest."""
    try:
        yield
    except (exc.SQLAlchemyError, sqlite3.Error, OSError) as error:
        raise _translation(file, error) from error


def _translation(file: str, error: Exception) -> DspoolError:
    cause = error.orig if isinstance(error, exc.StatementError) and error.orig is not None else error
    why = " ".join(str(cause).split()) or type(cause).__name__
    if isinstance(cause, OSError):
        return storage_error(file, _SYSTEM.get(cause.errno or 0, "cannot_open"), why)
    if isinstance(cause, sqlite3.Error):
        return storage_error(file, _of_sqlite(cause), why)
    if isinstance(error, exc.DBAPIError):
        return storage_error(file, _of_postgres(error), why)
    if isinstance(cause, ValueError | TypeError | OverflowError | RecursionError):
        return InvalidRequest(f"this cannot be stored: {why}")
    return storage_error(file, "failed", why)


def _of_sqlite(error: sqlite3.Error) -> str:
    # The low byte is the kind, the rest says more of it.
    return _SQLITE.get(getattr(error, "sqlite_errorcode", -1) & 0xFF, "failed")


def _of_postgres(error: exc.DBAPIError) -> str:
    state = getattr(error.orig, "sqlstate", None)
    if state is None:
        # A server that refuses a connection says why in words alone: with these it is no matter of waiting.
        refused = any(words in str(error.orig) for words in ("authentication failed", "does not exist", "pg_hba.conf"))
        return "refused" if refused else "unreachable"
    return _POSTGRES.get(state) or _POSTGRES.get(state[:2], "failed")
