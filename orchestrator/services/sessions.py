"""Durable sessions: saved as they change, handed back to the coordinator when the store is opened."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any, Final, Protocol

from bridge.wallclock import unix_now
from bridge.worker import arguments
from bridge.worker.call import Call
from orchestrator.errors import InvalidRequest
from orchestrator.services.store import SessionKey, SessionRow, SessionSave, Store

_SAVE: Final = "sessions.save"
# What is handed over at a time.
_ROWS: Final = 256
_BYTES: Final = 4 * 1024 * 1024


class Handover(Protocol):
    """The line to the coordinator."""

    def restore_sessions(self, rows: Sequence[Mapping[str, Any]], *, last: bool) -> bool:
        """Hand over sessions. last: these are the last ones. Return False if no more are wanted."""


class Sessions:
    """What the store does for sessions. store: returns it, open, or raises StorageError. Thread-safe."""

    def __init__(self, store: Callable[[], Store], link: Handover) -> None:
        self._store = store
        self._link = link

    def operations(self) -> dict[str, Callable[[Any, Call], Any]]:
        """Return what it can be asked, by name."""
        return {_SAVE: self.save}

    def save(self, args: Any, call: Call) -> dict[str, Any]:
        """Operation `sessions.save {sessions}`: keep what changed, all or nothing. Each is a `SessionSave`.

        Those that no database takes are left out: `refused` says which, and why.
        """
        rows = arguments.read(args, _SAVE, required=("sessions",))["sessions"]
        try:
            changes = [SessionSave(**row) for row in rows]
        except TypeError as exc:
            raise arguments.invalid("sessions", f"{_SAVE} takes sessions: {exc}") from exc
        stored = self._store().sessions
        refused: dict[SessionKey, str] = {}
        try:
            stored.save(changes, check=call.check)
        except InvalidRequest:
            refused = stored.save_most(changes, check=call.check)
        told = [{"principal": principal, "session": id_, "why": why} for (principal, id_), why in refused.items()]
        return {"saved": len(changes) - len(refused), "refused": told}

    def sync(self, store: Store) -> None:
        """Hand all sessions over that have not expired meanwhile. Raises DspoolError."""
        store.sessions.expire(unix_now())
        rows = store.sessions.load(None, _ROWS, _BYTES)
        while rows:
            more = store.sessions.load(rows[-1].key, _ROWS, _BYTES)
            if not self._link.restore_sessions([_told(row) for row in rows], last=not more) or not more:
                return
            rows = more
        self._link.restore_sessions([], last=True)


def _told(row: SessionRow) -> dict[str, Any]:
    told = {field.name: getattr(row, field.name) for field in fields(row)}
    kept = {"options": dict(row.options), "turns": [list(turn) for turn in row.turns]}
    return {**told, **kept, "first_turn": row.turns[0][0] if row.turns else 0}
