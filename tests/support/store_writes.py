"""Writes to a store, by number, that may be repeated; and what must be there after so many of them."""

from __future__ import annotations

import json
from typing import Any, Final

from orchestrator.services.store import EventRow, SessionSave, Store, VersionDraft

SESSIONS: Final = 5
EVENTS: Final = 3


def write(store: Store, number: int) -> None:
    """Do write `number`, from 0: a version, a session's call or a few events by turns. It may be repeated."""
    turn, kind = divmod(number, 3)
    if kind == 0:
        store.programs.add_version(draft(turn), "live")
    elif kind == 1:
        store.sessions.save([save(turn)])
    else:
        store.events.append([event(seq) for seq in range(turn * EVENTS + 1, (turn + 1) * EVENTS + 1)])


def draft(turn: int) -> VersionDraft:
    return VersionDraft(name="qa", sha256=f"{turn:064x}", pool="general", target={"module": "m"}, state=_filling(turn))


def save(turn: int) -> SessionSave:
    call, session = divmod(turn, SESSIONS)
    state, seq = json.dumps(_filling(turn)).encode(), call + 1
    of: dict[str, Any] = {"principal": "p", "id": f"s{session}", "generation": 1, "ttl_s": 60.0, "calls": seq}
    return SessionSave(**of, seq=seq, state=state, turns=[(seq, b"%d" % turn)])


def event(seq: int) -> EventRow:
    return EventRow(seq, float(seq), "worker_exited", "info", {"worker": f"general-1.{seq}"})


def _filling(turn: int) -> dict[str, str]:
    # From nothing to some pages of the database.
    return {"text": "x" * (turn * 997 % 20_000)}


def is_there(store: Store, number: int) -> bool:
    """Return whether a write, the last one or one before, can be read."""
    turn, kind = divmod(number, 3)
    if kind == 0:
        version = store.programs.version("qa", turn + 1)
        return version is not None and version.content == draft(turn).content
    if kind == 1:
        wanted = save(turn)
        kept = {row.key: row for row in store.sessions.load()}.get(wanted.key)
        return kept is not None and kept.seq >= wanted.seq and dict(kept.turns).get(wanted.seq) == wanted.turns[0][1]
    return [row.seq for row in store.events.read(turn * EVENTS, EVENTS)] == [
        event(seq).seq for seq in range(turn * EVENTS + 1, (turn + 1) * EVENTS + 1)
    ]


def wrong(store: Store, writes: int) -> list[str]:
    """Return what is not as it must be after so many writes: a line for each lost, doubled or damaged one."""
    turns = {kind: len(range(kind, writes, 3)) for kind in range(3)}
    lines = [f"damaged: {line}" for line in store.check()]
    versions = [(row.version, row.sha256) for row in store.programs.versions("qa")]
    lines += compared("versions", versions, [(turn + 1, draft(turn).sha256) for turn in range(turns[0])])
    for row in store.sessions.load():
        mine = [save(turn) for turn in range(turns[1]) if save(turn).key == row.key]
        lines += compared(f"turns of {row.id}", list(row.turns), [one.turns[0] for one in mine])
        if (row.seq, row.calls, row.state) != (mine[-1].seq, mine[-1].calls, mine[-1].state):
            lines.append(f"{row.id} is not as it was saved last")
    lines += compared("sessions", store.sessions.count(), min(turns[1], SESSIONS))
    lines += compared("events", store.events.read(0, writes * EVENTS), [*map(event, range(1, turns[2] * EVENTS + 1))])
    return lines


def compared(what: str, found: Any, expected: Any) -> list[str]:
    return [] if found == expected else [f"{what}: {str(found)[:300]} instead of {str(expected)[:300]}"]
