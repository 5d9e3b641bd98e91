"""Sessions that a run before has kept: taken up again before any other session begins."""

from __future__ import annotations

from pools.core.calls import Calls
from pools.core.events import SessionImage, SessionRestored, SessionsSynced, SessionUnrestored
from pools.core.session import Options, Session, key_of
from pools.core.tables import Tables


def on_restored(tables: Tables, event: SessionRestored, now: float, peer: bytes) -> None:
    """Take a session that was kept, unless there is one of that name. One that is to be lost with its worker is.

    One for which there is no room stays in the store until its time is over.
    """
    image: SessionImage = event.image
    if image.ended or key_of(image.principal, image.id) in tables.sessions.by_key:
        return
    full = _no_room_for(tables, image)
    if full:
        on_unrestored(tables, SessionUnrestored(full), now, peer)
        return
    options = Options(image.ttl_s, image.affinity, image.on_loss)
    session = Session(tables.sessions, image.principal, image.id, image.generation, options, now - image.idle_s)
    session.seq, session.state, session.kept = image.seq, image.state or b"", True
    session.turns.extend(image.turns)
    session.turn_bytes = sum(len(turn) for _, turn in image.turns)
    session.stored = session.state_saved = True
    session.turn_saved = image.turns[-1][0] if image.turns else image.first_turn
    try:
        session.calls = Calls.unpack(image.stats)
    except ValueError:
        session.calls.count = image.calls
    tables.sessions.turns_until(session.turn_saved)
    if options.on_loss == "fail":
        session.lost = "the coordinator, and with it the worker where it lived, was started anew"
        session.lost_reason = "restarted"
        tables.sessions.lost += 1
    tables.sessions.add(session)


def on_unrestored(tables: Tables, event: SessionUnrestored, now: float, peer: bytes) -> None:
    """A session that was kept is not restored; the next sweep tells of it."""
    tables.sessions.unrestored += 1
    tables.sessions.why_unrestored = event.why
    if tables.saves is not None:
        tables.saves.partial = True


def on_synced(tables: Tables, event: SessionsSynced, now: float, peer: bytes) -> None:
    """All that was kept is restored, or cannot be: then calls in sessions are refused, saying why."""
    if tables.saves is not None:
        tables.saves.problem = event.problem
        tables.saves.synced = tables.saves.synced or not event.problem


def _no_room_for(tables: Tables, image: SessionImage) -> str:
    """Return why a session that was kept has no room, "" if it has."""
    config, table = tables.config.sessions, tables.sessions
    if len(table) >= config.max:
        return f"there are {len(table)} sessions (limit {config.max})"
    size = len(image.state or b"") + sum(len(turn) for _, turn in image.turns)
    if table.bytes + size > config.total_bytes:
        return f"all sessions together would hold {table.bytes + size} bytes (limit {config.total_bytes})"
    return ""
