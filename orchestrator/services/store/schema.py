"""The tables of the store, as they are since the last migration."""

from __future__ import annotations

import json
from typing import Any, Final

from sqlalchemy import BigInteger, Column, Double, ForeignKeyConstraint, Integer, LargeBinary, MetaData, Table, Text
from sqlalchemy.types import TypeDecorator

metadata: Final = MetaData()


def dumps(value: Any) -> str:
    """Return the text of plain JSON, in ASCII. Raises ValueError, TypeError or RecursionError for what is none."""
    return json.dumps(value, allow_nan=False, separators=(",", ":"))


loads: Final = json.loads


class PlainText(TypeDecorator[str]):
    """Text that every database can hold: no NUL characters, no halves of surrogate pairs. Raises ValueError."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Any) -> str | None:
        """Return the text as it is, if it can be held."""
        if value is not None:
            if "\0" in value:
                raise ValueError("text with a NUL character cannot be stored")
            value.encode()
        return value


class Json(TypeDecorator[Any]):
    """Plain JSON, in ASCII: what was written is what is read, whatever the database makes of its own JSON type."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> str | None:
        """Return the text of a value; None has none."""
        return None if value is None else dumps(value)

    def process_result_value(self, value: str | None, dialect: Any) -> Any:
        """Return the value of a text."""
        return None if value is None else loads(value)


schema_info: Final = Table(
    "schema_info",
    metadata,
    Column("version", Integer, nullable=False),
    Column("identity", PlainText),  # random, of whoever made the store: by it one is told from another
)

program_counters: Final = Table(
    "program_counters",
    metadata,
    Column("name", PlainText, primary_key=True),
    Column("last_version", Integer, nullable=False),
)

program_versions: Final = Table(
    "program_versions",
    metadata,
    Column("name", PlainText, primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("sha256", PlainText, nullable=False),
    Column("pool", PlainText, nullable=False),
    Column("target", Json, nullable=False),
    Column("state", Json),
    Column("config", Json),
    Column("inputs", Json, nullable=False),
    Column("outputs", Json, nullable=False),
    Column("signature", PlainText, nullable=False),
    Column("deployed_by", PlainText, nullable=False),
    Column("deployed_at", Double, nullable=False),
    Column("note", PlainText, nullable=False),
    Column("source", LargeBinary),
    Column("source_sha256", PlainText),
    Column("predictors", Json),
)

program_aliases: Final = Table(
    "program_aliases",
    metadata,
    Column("name", PlainText, primary_key=True),
    Column("alias", PlainText, primary_key=True),
    Column("version", Integer, nullable=False),
    Column("previous", Integer),
    Column("moved_by", PlainText, nullable=False),
    Column("moved_at", Double, nullable=False),
    ForeignKeyConstraint(["name", "version"], ["program_versions.name", "program_versions.version"]),
)

sessions: Final = Table(
    "sessions",
    metadata,
    Column("principal", PlainText, primary_key=True),
    Column("id", PlainText, primary_key=True),
    Column("generation", BigInteger, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("ttl_s", Double, nullable=False),
    Column("options", Json, nullable=False),
    Column("state", LargeBinary),
    Column("calls", BigInteger, nullable=False),
    Column("stats", LargeBinary, nullable=False),
    Column("touched_at", Double, nullable=False),
)

session_turns: Final = Table(
    "session_turns",
    metadata,
    Column("principal", PlainText, primary_key=True),
    Column("id", PlainText, primary_key=True),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("turn", LargeBinary, nullable=False),
    ForeignKeyConstraint(["principal", "id"], ["sessions.principal", "sessions.id"], ondelete="CASCADE"),
)

events: Final = Table(
    "events",
    metadata,
    # The name of SQLite's own key of a row: a BIGINT would need an index beside it.
    Column("seq", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=False),
    Column("at", Double, nullable=False),
    Column("event", PlainText, nullable=False),
    Column("level", PlainText, nullable=False),
    Column("fields", Json, nullable=False),
)
