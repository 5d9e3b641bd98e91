"""The event log in the store."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import delete, func, insert, select

from orchestrator.services.store.database import Database
from orchestrator.services.store.rows import EventRow
from orchestrator.services.store.schema import events


class Events:
    """Events by their number. Each method that writes is one transaction, and may be repeated."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def append(self, rows: Sequence[EventRow]) -> None:
        """Keep events; those whose number is known already are the same ones."""
        if not rows:
            return
        new = {row.seq: row._asdict() for row in rows}
        with self._database.write() as connection:
            asked = select(events.c.seq).where(events.c.seq.between(min(new), max(new)))
            for seq in connection.execute(asked).scalars():
                new.pop(seq, None)
            if new:
                connection.execute(insert(events), list(new.values()))

    def read(self, after: int = 0, limit: int = 1000) -> list[EventRow]:
        """Return events behind number `after`, in their order, `limit` at most."""
        asked = select(events).where(events.c.seq > after).order_by(events.c.seq).limit(limit)
        with self._database.read() as connection:
            return [EventRow(*row) for row in connection.execute(asked)]

    def first_seq(self) -> int:
        """Return the number of the oldest event that is kept; 0 if there is none."""
        with self._database.read() as connection:
            return connection.execute(select(func.min(events.c.seq))).scalar_one() or 0

    def last_seq(self) -> int:
        """Return the number of the newest event; 0 if there is none."""
        with self._database.read() as connection:
            return connection.execute(select(func.max(events.c.seq))).scalar_one() or 0

    def trim(self, keep: int) -> int:
        """Forget all but the newest `keep` events; return how many that were."""
        oldest = select(events.c.seq).order_by(events.c.seq.desc()).limit(1).offset(max(0, keep - 1))
        with self._database.write() as connection:
            if keep <= 0:
                return connection.execute(delete(events)).rowcount
            bound = connection.execute(oldest).scalar_one_or_none()
            return 0 if bound is None else connection.execute(delete(events).where(events.c.seq < bound)).rowcount
