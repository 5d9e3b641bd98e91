"""What is kept of a session, as values: its state and its turns. The coordinator keeps the bytes and reads none."""

from __future__ import annotations

from typing import Any

from bridge.protocol.errors import INVALID_REQUEST, BridgeError
from bridge.protocol.values import MAX_NESTING, decode_value, encode_value


def read_state(data: bytes) -> dict[str, Any]:
    """Return a state. Raises BridgeError(INVALID_REQUEST) for what is none."""
    if not data:
        return {}
    state = decode_value(data, nesting=MAX_NESTING)
    if not isinstance(state, dict):
        raise BridgeError(INVALID_REQUEST, f"a session's state is a mapping, not a {type(state).__name__}")
    return state


def write_state(state: dict[Any, Any], nesting: int, max_bytes: int) -> bytes:
    """Return a state as it is kept.

    Raises BridgeError: INVALID_REQUEST for what cannot travel, TOO_LARGE above `max_bytes`.
    """
    if not state:
        return b""
    for key in state:
        if not isinstance(key, str):
            text = f"the keys of a session's state are texts, got {key!r:.80}"
            raise BridgeError(INVALID_REQUEST, text, details={"path": "state"})
    try:
        return encode_value(state, nesting=nesting, max_bytes=max_bytes)
    except BridgeError as error:
        if error.code != INVALID_REQUEST:
            size = error.details["bytes"]
            text = f"the session's state takes {size:,} bytes, at most {max_bytes:,} are kept (sessions.max_bytes)"
            raise BridgeError(error.code, text, details=error.details) from None
        path = f"state.{error.details.get('path', '')}".rstrip(".").replace(".[", "[", 1)
        raise BridgeError(error.code, f"the session's state: {error.message}", details={"path": path}) from None


def read_turn(data: bytes) -> dict[str, Any]:
    """Return what was said in one call. Raises BridgeError(INVALID_REQUEST) for what is none."""
    turn = decode_value(data, nesting=MAX_NESTING)
    if not isinstance(turn, dict):
        raise BridgeError(INVALID_REQUEST, f"a turn of a session is a mapping, not a {type(turn).__name__}")
    return turn
