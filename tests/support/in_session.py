"""Calls in sessions, as a test's client and its workers see them."""

from __future__ import annotations

from typing import Any

from bridge.protocol import messages as wire
from bridge.protocol.errors import BridgeError, encode_error
from bridge.protocol.sessions import cut_tail, pack_change, unpack_snapshot
from pools.core.events import OpenSession
from pools.core.session import Session, key_of
from tests.support.fleet import Sim


def call(sim: Sim, session: str = "s", *, generation: int = 0, operation: str = "qa", **fields: Any) -> int:
    """Ask for something in a session; return the request's id."""
    there = wire.InSession(generation) if generation else None
    return sim.submit(operation, session=session, in_session=there, **fields)


def open_session(sim: Sim, session: str = "s", *, principal: str = "default", **options: Any) -> Session:
    """Open a session; return it."""
    sim.handle(OpenSession(principal, session, **options))
    return found(sim, session, principal)


def found(sim: Sim, session: str = "s", principal: str = "default") -> Session:
    return sim.tables.sessions.by_key[key_of(principal, session)]


def at(sim: Sim, request_id: int) -> str:
    """Return the id of the worker that has a request's attempt."""
    return sim.attempt(request_id)[0].worker_id


def waits(sim: Sim, request_id: int) -> bool:
    """Return whether a request is accepted and with no worker."""
    return sim.tables.requests[request_id].worker is None


def brought(sim: Sim, request_id: int) -> tuple[bytes, list[bytes]] | None:
    """Return the state and turns that came with a request's attempt; None: its worker has them."""
    _, attempt = sim.attempt(request_id)
    there = attempt.in_session
    assert there is not None
    if not there.snapshot:
        assert not there.tail
        return None
    return unpack_snapshot(cut_tail(attempt.payload or b"", there.tail)[1])


def answer(
    sim: Sim, request_id: int, state: bytes | None = None, turn: bytes | None = b"turn", *, error: str = "",
    value: bytes = b"", **fields: Any,
) -> None:  # fmt: skip
    """Have the worker answer a call, with what it changed of its session."""
    _, attempt = sim.attempt(request_id)
    assert attempt.in_session is not None
    payload = encode_error(BridgeError(error, "no")) if error else value
    changed = state is not None or turn is not None
    tail = pack_change(state, turn) if changed else b""
    change = wire.SessionChange(attempt.in_session.seq + changed, len(tail))
    status = wire.ERROR if error else wire.OK
    sim.reply(request_id, status=status, payload=payload + tail, session=change, **fields)
