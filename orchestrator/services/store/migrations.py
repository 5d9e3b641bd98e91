"""From each version of the schema to the next: a list that only grows. What stands here is never changed again.

Each migration is one transaction with the number that it leads to, so a store is of one version or of the next,
whenever the process is killed; and of processes that migrate at once one does, the others find it done.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import Connection, insert, select, update

from bridge.faultpoints import hit
from orchestrator.services.store.database import Database
from orchestrator.services.store.schema import schema_info

_PROGRAMS: Final = (
    "CREATE TABLE program_counters (name TEXT NOT NULL PRIMARY KEY, last_version INTEGER NOT NULL)",
    """CREATE TABLE program_versions (
        name TEXT NOT NULL, version INTEGER NOT NULL, sha256 TEXT NOT NULL, pool TEXT NOT NULL, target TEXT NOT NULL,
        state TEXT, config TEXT, inputs TEXT NOT NULL, outputs TEXT NOT NULL, signature TEXT NOT NULL,
        deployed_by TEXT NOT NULL, deployed_at DOUBLE PRECISION NOT NULL, note TEXT NOT NULL,
        source {blob}, source_sha256 TEXT, predictors TEXT,
        PRIMARY KEY (name, version))""",
    """CREATE TABLE program_aliases (
        name TEXT NOT NULL, alias TEXT NOT NULL, version INTEGER NOT NULL, previous INTEGER,
        moved_by TEXT NOT NULL, moved_at DOUBLE PRECISION NOT NULL,
        PRIMARY KEY (name, alias),
        FOREIGN KEY (name, version) REFERENCES program_versions (name, version))""",
)
_SESSIONS: Final = (
    """CREATE TABLE sessions (
        principal TEXT NOT NULL, id TEXT NOT NULL, generation BIGINT NOT NULL, seq BIGINT NOT NULL,
        ttl_s DOUBLE PRECISION NOT NULL, options TEXT NOT NULL, state {blob}, calls BIGINT NOT NULL,
        stats {blob} NOT NULL, touched_at DOUBLE PRECISION NOT NULL,
        PRIMARY KEY (principal, id))""",
    """CREATE TABLE session_turns (
        principal TEXT NOT NULL, id TEXT NOT NULL, seq BIGINT NOT NULL, turn {blob} NOT NULL,
        PRIMARY KEY (principal, id, seq),
        FOREIGN KEY (principal, id) REFERENCES sessions (principal, id) ON DELETE CASCADE)""",
)
_EVENTS: Final = (
    """CREATE TABLE events (
        seq {key} NOT NULL PRIMARY KEY, at DOUBLE PRECISION NOT NULL, event TEXT NOT NULL, level TEXT NOT NULL,
        fields TEXT NOT NULL)""",
)

_IDENTITY: Final = (
    "ALTER TABLE schema_info ADD COLUMN identity TEXT",
    "UPDATE schema_info SET identity = {random}",
)

# The statements that lead to version 1, 2, 3, 4.
MIGRATIONS: Final = (
    ("CREATE TABLE schema_info (version INTEGER NOT NULL)", *_PROGRAMS),
    _SESSIONS,
    _EVENTS,
    _IDENTITY,
)
LATEST: Final = len(MIGRATIONS)
_TYPES: Final = {
    "sqlite": {"blob": "BLOB", "key": "INTEGER", "random": "lower(hex(randomblob(16)))"},
    "postgresql": {"blob": "BYTEA", "key": "BIGINT", "random": "gen_random_uuid()::text"},
}


def version_of(database: Database, connection: Connection) -> int | None:
    """Return the version of the schema, None if there is none of dspool."""
    if not database.has_schema(connection):
        return None
    return connection.execute(select(schema_info.c.version)).scalar_one_or_none()


def migrate(database: Database, upto: int = LATEST) -> int:
    """Lead an empty database, or one of an earlier version, to version `upto`; return how many steps that took."""
    steps = 0
    while True:
        with database.read() as connection:
            if (version_of(database, connection) or 0) >= upto:
                return steps
        with database.write() as connection:
            # Another process may have been faster.
            version = version_of(database, connection) or 0
            if version < upto:
                _step(connection, version + 1)
                steps += 1


def _step(connection: Connection, version: int) -> None:
    for statement in MIGRATIONS[version - 1]:
        connection.exec_driver_sql(statement.format_map(_TYPES[connection.dialect.name]))
        hit("store.in_migration")
    told = {"version": version}
    connection.execute(insert(schema_info).values(told) if version == 1 else update(schema_info).values(told))
    hit("store.in_migration")
