"""The control operations about sessions, and sessions as the store keeps them. A client sees its principal's alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from bridge.protocol.errors import INVALID_REQUEST, NOT_FOUND, SESSION_LOST, BridgeError, shown
from bridge.protocol.messages import Reply
from pools.core.events import ExpireSession, OpenSession, SessionImage
from pools.core.fleet import Fleet
from pools.core.session import Session

# Rows that are listed unless told otherwise, and at most: the thread that does it serves everybody.
_ROWS: Final = 1000

Operation = Callable[[bytes, dict[str, Any], float], Any]
# What is told of one session beside its row, as it is kept; state and turns may be large.
_PARTS: Final[dict[str, Callable[[Session], Any]]] = {
    "metrics": lambda session: session.calls.metrics(),
    "state": lambda session: session.state,
    "turns": lambda session: [turn for _, turn in session.turns],
}


class Sessions:
    """Answers `dspool.session…`: functions of (the client, arguments, now) that raise BridgeError."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self.operations: dict[str, Operation] = {
            "session_open": self._open,
            "sessions": self._rows,
            "session": self._show,
        }

    def _open(self, peer: bytes, args: dict[str, Any], now: float) -> dict[str, Any]:
        """Attach to a session, or begin it; return its row, and `created`."""
        principal, session_id = self._fleet.principal_of(peer), _id(args)
        ttl_s = args.get("ttl_s")
        if ttl_s is not None and (not isinstance(ttl_s, int | float) or isinstance(ttl_s, bool)):
            raise _invalid("ttl_s", f"{shown(ttl_s)} is no number of seconds")
        before = self._generation(principal, session_id, now)
        event = OpenSession(principal, session_id, ttl_s, _word(args, "affinity"), _word(args, "on_loss"))
        self._fleet.handle(event, now)
        row = self._fleet.session(principal, session_id, 0, now).row(now)
        return {**row, "created": row["generation"] != before}

    def _generation(self, principal: str, session_id: str, now: float) -> int:
        try:
            return self._fleet.session(principal, session_id, 0, now).generation
        except BridgeError:
            return 0

    def _rows(self, peer: bytes, args: dict[str, Any], now: float) -> dict[str, Any]:
        """Return the first 1,000 `sessions`, the oldest first, and how many there are in all."""
        rows = self._fleet.sessions(self._fleet.principal_of(peer), now, _ROWS)
        return {"sessions": rows, "total": self._fleet.session_count(self._fleet.principal_of(peer))}

    def _show(self, peer: bytes, args: dict[str, Any], now: float) -> dict[str, Any]:
        """Return a session's row, and its `parts` that are asked for (see `_PARTS`), else all of them."""
        parts = _parts(args)
        principal = self._fleet.principal_of(peer)
        session = self._fleet.session(principal, _id(args), _generation(args), now)
        return {**session.row(now), **{part: _PARTS[part](session) for part in parts}}

    def expire(self, peer: bytes, args: dict[str, Any], now: float, answer: Reply) -> bool:
        """End a session; return whether it was there. Then `answer` goes out when that is kept."""
        event = ExpireSession(self._fleet.principal_of(peer), _id(args), _generation(args), answer)
        try:
            self._fleet.handle(event, now, peer)
        except BridgeError as error:
            if error.code not in (NOT_FOUND, SESSION_LOST):
                raise
            return False
        return True


# --- as the store keeps them ------------------------------------------------------------------------


def save_rows(images: Iterable[SessionImage], unix_now: float) -> list[dict[str, Any]]:
    """Return sessions as they are sent to the store: the fields of its `SessionSave`. unix_now: the time, seconds."""
    return [
        {
            "principal": image.principal,
            "id": image.id,
            "generation": image.generation,
            "seq": image.seq,
            "ttl_s": image.ttl_s,
            "options": {"affinity": image.affinity, "on_loss": image.on_loss},
            "state": image.state,
            "calls": image.calls,
            "stats": image.stats,
            "touched_at": unix_now - image.idle_s,
            "turns": [list(turn) for turn in image.turns],
            "first_turn": image.first_turn,
            "ended": image.ended,
        }
        for image in images
    ]


@dataclass(frozen=True)
class _Row:
    """What a row of the store has, as it is read."""

    row: Mapping[str, Any]

    def take(self, key: str, kind: type | tuple[type, ...]) -> Any:
        value = self.row[key]
        if not isinstance(value, kind) or isinstance(value, bool):
            raise _invalid(key, f"{shown(value)} in what was kept of a session")
        return value


def image_of(row: Mapping[str, Any], unix_now: float) -> SessionImage:
    """Return a session that the store has kept. Raises BridgeError(INVALID_REQUEST) for what is none."""
    read = _Row(row).take
    try:
        options = read("options", Mapping)
        return SessionImage(
            principal=read("principal", str),
            id=read("id", str),
            generation=read("generation", int),
            seq=read("seq", int),
            ttl_s=float(read("ttl_s", (int, float))),
            affinity=str(options["affinity"]),
            on_loss=str(options["on_loss"]),
            state=read("state", (bytes, type(None))),
            turns=tuple((int(number), bytes(turn)) for number, turn in read("turns", (list, tuple))),
            first_turn=read("first_turn", int),
            calls=read("calls", int),
            stats=read("stats", bytes),
            idle_s=max(0.0, unix_now - read("touched_at", (int, float))),
            ended=bool(row.get("ended", False)),
        )
    except (KeyError, TypeError, ValueError) as exc:
        raise _invalid("session", f"what was kept of a session cannot be read: {exc!r}") from None


# --- arguments --------------------------------------------------------------------------------------


def _id(args: Mapping[str, Any]) -> str:
    session_id = args.get("id")
    if not isinstance(session_id, str):
        raise _invalid("id", f"{shown(session_id)} is no session's id")
    return session_id


def _generation(args: Mapping[str, Any]) -> int:
    generation = args.get("generation") or 0
    if not isinstance(generation, int) or isinstance(generation, bool):
        raise _invalid("generation", f"{shown(generation)} is no generation of a session")
    return generation


def _parts(args: Mapping[str, Any]) -> Iterable[str]:
    parts = args.get("parts", list(_PARTS))
    if not isinstance(parts, list) or not all(isinstance(part, str) and part in _PARTS for part in parts):
        raise _invalid("parts", f"{shown(parts)} is no list of some of {', '.join(_PARTS)}")
    return parts


def _word(args: Mapping[str, Any], path: str) -> str | None:
    word = args.get(path)
    if word is not None and not isinstance(word, str):
        raise _invalid(path, f"{shown(word)} is no text")
    return word


def _invalid(path: str, text: str) -> BridgeError:
    return BridgeError(INVALID_REQUEST, f"{path}: {text}", details={"path": path})
