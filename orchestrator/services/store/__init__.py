"""The store: what outlives every process of dspool. Programs' versions and aliases, durable sessions, the event log.

    data_dir/                   0700; one coordinator at a time uses it (`lock`)
        store.sqlite3           0600; the store, unless `store.url` names a PostgreSQL database (its schema `dspool`)
        store.sqlite3-wal       commits that are not in the file yet: it belongs to the store, never remove one alone
        store.sqlite3-shm       the index of the journal, made anew where it is missing
        services.lock           held by the one process that uses the store (`Store.hold`)
        store.sqlite3.new       only while a store is made for the first time

Only the services process writes, and one at a time: each method that writes is one transaction, on the disk when it
returns. A store that is damaged, foreign or of a newer version is named and left as it is.
"""

from orchestrator.services.store.rows import (
    Added,
    AliasRow,
    EventRow,
    ProgramRow,
    SessionKey,
    SessionRow,
    SessionSave,
    VersionDraft,
    VersionRow,
    VersionSummary,
)
from orchestrator.services.store.store import Store, store_path

__all__ = [
    "Added",
    "AliasRow",
    "EventRow",
    "ProgramRow",
    "SessionKey",
    "SessionRow",
    "SessionSave",
    "Store",
    "VersionDraft",
    "VersionRow",
    "VersionSummary",
    "store_path",
]
