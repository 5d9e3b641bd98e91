"""Sessions in the store: the latest state of each, and its turns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from sqlalchemy import Connection, Row, bindparam, delete, func, insert, select, text, tuple_, update

from orchestrator.errors import InvalidRequest
from orchestrator.services.store.database import Database
from orchestrator.services.store.rows import SessionKey, SessionRow, SessionSave
from orchestrator.services.store.schema import session_turns as turns
from orchestrator.services.store.schema import sessions
from orchestrator.services.store.trouble import translated

_PLAIN: Final = ("generation", "seq", "ttl_s", "options", "calls", "stats", "touched_at")
# Statements are made once: to make one takes longer than SQLite needs for it.
_MINE: Final = (sessions.c.principal == bindparam("of")) & (sessions.c.id == bindparam("named"))
_KNOWN: Final = select(sessions.c.generation, sessions.c.seq).where(_MINE)
_INSERT: Final = insert(sessions)
_UPDATE: Final = update(sessions).where(_MINE).values({name: bindparam(name) for name in _PLAIN})
_UPDATE_STATE: Final = _UPDATE.values(state=bindparam("state"))
_DELETE: Final = delete(sessions).where(_MINE)
_MY_TURNS: Final = (turns.c.principal == bindparam("of")) & (turns.c.id == bindparam("named"))
_TURNS: Final = select(turns.c.seq, turns.c.turn).where(_MY_TURNS).order_by(turns.c.seq)
_FORGET_TURNS: Final = delete(turns).where(_MY_TURNS, turns.c.seq < bindparam("first"))
# Both databases read this alike. A turn that is there already is the same one.
_ADD_TURNS: Final = text(
    "INSERT INTO session_turns (principal, id, seq, turn) VALUES (:of, :named, :seq, :turn) ON CONFLICT DO NOTHING"
)


class Sessions:
    """Sessions by principal and id. Each method that writes is one transaction, and may be repeated."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def save(self, changes: Iterable[SessionSave], *, check: Callable[[], object] | None = None) -> None:
        """Keep what changed, all of it or nothing; but not what is older, by (generation, seq), than what is kept.

        check: see `Database.write`. Of a session that has ended nothing is left to compare with: a save that nobody
        waits for any more must not come after that.
        """
        with self._database.write(check) as connection:
            for change in changes:
                _save(connection, change)

    def save_most(
        self, changes: Iterable[SessionSave], *, check: Callable[[], object] | None = None
    ) -> dict[SessionKey, str]:
        """Keep what changed as `save` does, but for what no database takes; return of which session not, and why."""
        refused: dict[SessionKey, str] = {}
        with self._database.write(check) as connection:
            for change in changes:
                try:
                    with translated(self._database.where), connection.begin_nested():
                        _save(connection, change)
                except InvalidRequest as exc:
                    refused[change.key] = exc.message
        return refused

    def load(
        self, after: SessionKey | None = None, limit: int = 1000, max_bytes: int | None = None
    ) -> list[SessionRow]:
        """Return sessions by key, those behind `after`, `limit` at most.

        max_bytes: of states and turns together, about; one session is returned however large it is.
        """
        asked = select(sessions).order_by(sessions.c.principal, sessions.c.id).limit(limit)
        if after is not None:
            asked = asked.where(tuple_(sessions.c.principal, sessions.c.id) > tuple_(*after))
        found: list[SessionRow] = []
        size = 0
        # No more than a few are fetched ahead: a state may be large, and there may be room for one.
        ahead = {"yield_per": 16}
        with self._database.read() as connection, connection.execute(asked, execution_options=ahead) as rows:
            for row in rows:
                one = _row(row, _turns(connection, row.principal, row.id))
                size += len(one.state or b"") + sum(len(turn) for _, turn in one.turns)
                if found and max_bytes is not None and size > max_bytes:
                    break
                found.append(one)
        return found

    def remove(self, keys: Iterable[SessionKey]) -> None:
        """Forget sessions, with their turns."""
        with self._database.write() as connection:
            _remove(connection, list(keys))

    def expire(self, now: float) -> list[SessionKey]:
        """Forget the sessions whose time has run out since they were touched last; return their keys."""
        asked = select(sessions.c.principal, sessions.c.id).where(sessions.c.touched_at + sessions.c.ttl_s < now)
        with self._database.write() as connection:
            keys = [(principal, id_) for principal, id_ in connection.execute(asked)]
            _remove(connection, keys)
            return keys

    def count(self) -> int:
        """Return how many sessions there are."""
        with self._database.read() as connection:
            return connection.execute(select(func.count()).select_from(sessions)).scalar_one()


# --- in a transaction -------------------------------------------------------------------------------


def _save(connection: Connection, change: SessionSave) -> None:
    mine = {"of": change.principal, "named": change.id}
    known = connection.execute(_KNOWN, mine).one_or_none()
    if known is not None and (change.generation, change.seq) < (known.generation, known.seq):
        return
    if known is not None and (change.ended or change.generation > known.generation):
        connection.execute(_DELETE, mine)
        known = None
    if change.ended:
        return
    told: dict[str, Any] = {name: getattr(change, name) for name in _PLAIN}
    if known is None:
        told |= {"principal": change.principal, "id": change.id, "state": change.state}
        connection.execute(_INSERT, told)
    elif change.state is None:
        connection.execute(_UPDATE, {**mine, **told})
    else:
        connection.execute(_UPDATE_STATE, {**mine, **told, "state": change.state})
    if change.first_turn and known is not None:
        connection.execute(_FORGET_TURNS, {**mine, "first": change.first_turn})
    if new := [{**mine, "seq": seq, "turn": turn} for seq, turn in change.turns if seq >= change.first_turn]:
        connection.execute(_ADD_TURNS, new)


def _turns(connection: Connection, principal: str, id_: str) -> list[tuple[int, bytes]]:
    return [(seq, bytes(turn)) for seq, turn in connection.execute(_TURNS, {"of": principal, "named": id_})]


def _row(row: Row[Any], kept: Sequence[tuple[int, bytes]]) -> SessionRow:
    told: dict[str, Any] = {name: getattr(row, name) for name in ("principal", "id", *_PLAIN)}
    return SessionRow(**told, state=None if row.state is None else bytes(row.state), turns=kept)


def _remove(connection: Connection, keys: Sequence[SessionKey]) -> None:
    if keys:
        # The turns go with their session.
        connection.execute(_DELETE, [{"of": of, "named": named} for of, named in keys])
