"""What a session holds as it travels: at the end of a payload, for it can be larger than a header may be.

Of an attempt that is the whole of it (a snapshot), of its reply what changed. The coordinator keeps these bytes and
reads none of them: `state` is an encoded mapping, and so is each turn.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

_encode = msgspec.msgpack.Encoder().encode
_snapshot = msgspec.msgpack.Decoder(tuple[bytes, list[bytes]]).decode
_change = msgspec.msgpack.Decoder(tuple[bytes | None, bytes | None]).decode


def pack_snapshot(state: bytes, turns: Sequence[bytes]) -> bytes:
    """Return a whole session. state: b"" = nothing yet. turns: the oldest first."""
    return _encode((state, list(turns)))


def unpack_snapshot(data: bytes) -> tuple[bytes, list[bytes]]:
    """Return a session's state and turns. Raises ValueError if it is none."""
    try:
        return _snapshot(data)
    except msgspec.DecodeError as exc:
        raise ValueError(f"no snapshot of a session: {exc}") from exc


def pack_change(state: bytes | None, turn: bytes | None) -> bytes:
    """Return what an attempt changed. state: the new one, None = as it was. turn: None = none."""
    return _encode((state, turn))


def unpack_change(data: bytes) -> tuple[bytes | None, bytes | None]:
    """Return the new state and the turn of a change. Raises ValueError if it is none."""
    try:
        return _change(data)
    except msgspec.DecodeError as exc:
        raise ValueError(f"no change of a session: {exc}") from exc


def cut_tail(payload: bytes, tail: int) -> tuple[bytes, bytes]:
    """Return what comes before the last `tail` bytes of a payload, and those. Raises ValueError if it has fewer."""
    if not 0 <= tail <= len(payload):
        raise ValueError(f"a payload of {len(payload)} bytes has no tail of {tail}")
    at = len(payload) - tail
    return payload[:at], payload[at:]
