"""What hostile bytes are given to, and what must hold of the answer: where it does not, a target raises."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgpack
import msgspec

from bridge.protocol.codec import MAX_BATCH_FRAME_BYTES, Decoded, decode, encode_frames, unpack_outcomes
from bridge.protocol.errors import BridgeError, decode_error
from bridge.protocol.messages import TYPES, Message
from bridge.protocol.values import decode_value, decode_values, encode_value, read_plain_rows, split_values
from tests.fuzz.corpus import frames_of

PAYLOAD_BYTES: Final = 10_000
HEADER_BYTES: Final = 2_048
NESTING: Final = 32
_KINDS: Final = frozenset(TYPES.values())
# A message of a type that nobody knows: with it in front, a frame is read message by message.
_STRANGE: Final = bytes(msgpack.packb([1, 99, 0, b""]))


def read_frames(data: bytes) -> None:
    """Frames are read, or told what is wrong with them; what was read can be sent, and is read as the same."""
    frames = frames_of(data)
    decoded = decode(frames, PAYLOAD_BYTES, header_bytes=HEADER_BYTES)
    assert type(decoded) is Decoded
    assert decoded.messages or decoded.unknown or decoded.problem is not None, "silence"
    assert 0 <= decoded.request_id < 1 << 63
    for message in decoded.messages:
        assert type(message) in _KINDS, message
        assert type(message.payload) is bytes, message
    assert _wire(_again(decoded.messages)) == _wire(decoded.messages), "another message came out"


def read_headers(data: bytes) -> None:
    """The short way to read a frame of like messages, and the one message by message, find the same."""
    frames = frames_of(data)
    if not frames[0] or len(frames[0]) > MAX_BATCH_FRAME_BYTES - len(_STRANGE):
        return
    shortly = decode(frames, PAYLOAD_BYTES)
    slowly = decode([_STRANGE + frames[0], *frames[1:]], PAYLOAD_BYTES)
    assert (slowly.unknown, slowly.request_id) == (shortly.unknown + 1, shortly.request_id), (shortly, slowly)
    assert (slowly.problem is None) == (shortly.problem is None), (shortly, slowly)
    assert _wire(slowly.messages) == _wire(shortly.messages), (shortly, slowly)


def read_values(data: bytes) -> None:
    """Bytes are a value that can be sent again, or a BridgeError; rows and outcomes likewise."""
    value: Any = None
    with contextlib.suppress(BridgeError):
        value = decode_value(data, nesting=NESTING)
    decode_value(encode_value(value, nesting=NESTING), nesting=NESTING)
    with contextlib.suppress(BridgeError):
        decode_values(split_values(data, 2), nesting=NESTING)
    with contextlib.suppress(ValueError, msgpack.UnpackException):
        unpack_outcomes(data)
    read_plain_rows(data, 3)
    assert type(decode_error(data)) is BridgeError


TARGETS: Final[Mapping[str, Callable[[bytes], None]]] = {
    "frames": read_frames,
    "headers": read_headers,
    "values": read_values,
}


def _again(messages: Sequence[Message]) -> list[Message]:
    return [message for frames in encode_frames(messages) for message in decode(frames).messages]


def _wire(messages: Sequence[Message]) -> bytes:
    # Not ==: a deadline that is no number is unlike itself.
    return msgspec.msgpack.encode(messages)
