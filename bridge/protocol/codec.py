"""Frames: many messages in one, headers apart from large payloads.

A frame list as it crosses a socket is `[batch, body, body, ...]`. `batch` is the plain concatenation of
messages; a message whose payload slot is nil owns the next `body`. Small payloads (<= INLINE_BYTES) ride
inside their message: one system call then carries up to BATCH_MESSAGES of them.

Everything here is pure: bytes in, messages out, and what could not be read is a value, not an exception.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgpack
import msgspec

from bridge.protocol.messages import PROTOCOL_VERSION, TYPES, Message

INLINE_BYTES: Final = 8 * 1024
HEADER_BYTES: Final = 64 * 1024
BATCH_MESSAGES: Final = 64
BATCH_BYTES: Final = 256 * 1024
# The largest batch frame a well-behaved peer sends: a full batch plus one last inline message.
MAX_BATCH_FRAME_BYTES: Final = BATCH_BYTES + HEADER_BYTES

_encode = msgspec.msgpack.Encoder().encode
_convert = msgspec.convert
# Far above any message's fields, far below what makes a small frame a large object.
_MAX_FIELDS: Final = 64
_PAYLOAD_SLOT: Final = 3
# First byte of an array whose size takes two bytes; a smaller one has its size in the first byte itself.
_ARRAY16: Final = 0xDC


def _readers() -> dict[bytes, tuple[Any, Any]]:
    """Return, by how a message of this version begins, what reads one of its type and what reads an array of them."""
    readers = {}
    for number, kind in TYPES.items():
        size = len(kind.__struct_fields__)
        array = bytes((0x90 | size,)) if size < 1 << 4 else bytes((_ARRAY16, 0, size))
        one, many = msgspec.msgpack.Decoder(kind), msgspec.msgpack.Decoder(list[kind])  # type: ignore[valid-type]
        readers[array + bytes((PROTOCOL_VERSION, number))] = one.decode, many.decode
    return readers


_READERS: Final = _readers()


class Decoded(msgspec.Struct, frozen=True, gc=False):
    """What was read from one frame list.

    messages: in order, up to the first that could not be read. unknown: how many had a type this version
    does not know (skipped). problem: why reading ended early, else None; the rest of the frame is dropped.
    request_id: of the message at fault, where it could still be read, else 0.
    """

    messages: list[Any]
    unknown: int = 0
    problem: str | None = None
    request_id: int = 0
    wrong_version: bool = False


def encode(message: Message) -> tuple[bytes, bytes | None]:
    """Return the message's head and, if its payload is too large to ride inside, the payload as body."""
    payload = message.payload
    if payload is None or len(payload) <= INLINE_BYTES:
        return _encode(message), None
    fields = [getattr(message, name) for name in message.__struct_fields__]
    fields[_PAYLOAD_SLOT] = None
    return _encode(fields), payload


def encode_frames(messages: Iterable[Message]) -> list[list[bytes]]:
    """Pack messages, in order, into as few frame lists as the batch limits allow."""
    messages = messages if type(messages) is list else list(messages)
    batch = _encode_small(messages)
    if batch is not None:
        return [[batch]]
    out: list[list[bytes]] = []
    heads: list[bytes] = []
    bodies: list[bytes] = []
    size = 0
    for message in messages:
        head, body = encode(message)
        weight = len(head) + (len(body) if body is not None else 0)
        if heads and (len(heads) >= BATCH_MESSAGES or size + weight > BATCH_BYTES):
            out.append([b"".join(heads), *bodies])
            heads, bodies, size = [], [], 0
        heads.append(head)
        size += weight
        if body is not None:
            bodies.append(body)
    if heads:
        out.append([b"".join(heads), *bodies])
    return out


def _encode_small(messages: list[Message]) -> bytes | None:
    """Return the batch of messages that fit into one without bodies, as nearly all do; else None."""
    if not 0 < len(messages) <= BATCH_MESSAGES:
        return None
    size = 0
    for message in messages:
        payload = message.payload
        if payload:
            weight = len(payload)
            if weight > INLINE_BYTES:
                return None
            size += weight
    if size > BATCH_BYTES:
        return None
    batch = _encode_each(messages)
    return batch if len(batch) <= BATCH_BYTES else None


def _encode_each(items: list[Any]) -> bytes:
    """Return the encoded items one after the other: the array of them, without its head."""
    size = len(items)
    return _encode(items)[1 if size < 1 << 4 else 3 if size < 1 << 16 else 5 :]


def decode(frames: Sequence[bytes], max_payload_bytes: int = 1 << 62, *, header_bytes: int = HEADER_BYTES) -> Decoded:
    """Read one frame list.

    A message is refused when it is no array of `[version, type, request_id, payload, ...]`, has another
    version, fields of the wrong type, a payload that is missing or larger than `max_payload_bytes`, or takes more
    than `header_bytes` without its payload.
    """
    if not frames or not frames[0]:
        return Decoded([], problem="empty frame")
    batch = frames[0]
    if len(frames) == 1 and len(batch) <= header_bytes:
        messages = _read_alike(batch)
        if messages is not None:
            return Decoded(messages)
    return _read_with_care(frames, max_payload_bytes, header_bytes)


def _read_alike(batch: bytes) -> list[Any] | None:
    """Return the messages of a batch if all are sound, of one type and have its very fields; else None.

    So it nearly always is, and the first bytes of each message tell: how many fields it has, its version, its type.
    """
    start = batch[: 5 if batch[0] == _ARRAY16 else 3]
    readers = _READERS.get(start)
    if readers is None:
        return None
    read_one, read_many = readers
    try:
        try:
            messages = [read_one(batch)]
        except msgspec.DecodeError:  # there is more than one
            messages = read_many(bytes((_ARRAY16, 0, _count(batch, start))) + batch)
    except Exception:  # noqa: BLE001 - msgpack and msgspec raise many types on hostile bytes; `_read` says what is wrong
        return None
    for message in messages:
        if message.payload is None:
            return None
    return messages


def _count(batch: bytes, start: bytes) -> int:
    """Return how many messages a batch holds. Raises ValueError if one does not begin with `start`, or at the 65th."""
    unpacker = msgpack.Unpacker(max_buffer_size=HEADER_BYTES)
    unpacker.feed(batch)
    skip, tell, starts = unpacker.skip, unpacker.tell, batch.startswith
    at, size = 0, len(batch)
    for count in range(BATCH_MESSAGES + 1):
        if at == size:
            return count
        if not starts(start, at):
            break
        skip()
        at = tell()
    raise ValueError("other messages, or too many")


def _read_with_care(frames: Sequence[bytes], max_payload_bytes: int, header_bytes: int) -> Decoded:
    """Read a frame list message by message, up to the first that is wrong."""
    batch = frames[0]
    if len(batch) > MAX_BATCH_FRAME_BYTES:
        return Decoded([], problem=f"batch frame of {len(batch)} bytes (limit {MAX_BATCH_FRAME_BYTES})")
    unpacker = msgpack.Unpacker(
        use_list=True,
        max_buffer_size=MAX_BATCH_FRAME_BYTES,
        max_str_len=HEADER_BYTES,
        max_bin_len=HEADER_BYTES,
        max_array_len=_MAX_FIELDS,
        max_map_len=0,
        max_ext_len=0,
    )
    unpacker.feed(batch)
    return _read(unpacker, frames, len(batch), max_payload_bytes, header_bytes)


def _read(unpacker: msgpack.Unpacker, frames: Sequence[bytes], size: int, limit: int, header_limit: int) -> Decoded:
    messages: list[Message] = []
    unknown = 0
    next_body = 1
    consumed = 0
    fields: Any = None
    try:
        for fields in unpacker:
            before, consumed = consumed, unpacker.tell()
            if type(fields) is not list or len(fields) <= _PAYLOAD_SLOT:
                return Decoded(messages, unknown, "not a message array")
            if fields[0] != PROTOCOL_VERSION:
                return Decoded(
                    messages, unknown, f"protocol version {fields[0]!r}, this is {PROTOCOL_VERSION}",
                    _request_id(fields), wrong_version=True,
                )  # fmt: skip
            head_size = consumed - before - _inline_bytes(fields)
            if head_size > header_limit:
                problem = f"header of {head_size} bytes (limit {header_limit})"
                return Decoded(messages, unknown, problem, _request_id(fields))
            if fields[_PAYLOAD_SLOT] is None:
                if next_body >= len(frames):
                    return Decoded(messages, unknown, "payload frame missing", _request_id(fields))
                fields[_PAYLOAD_SLOT] = body = frames[next_body]
                next_body += 1
                if len(body) > limit:
                    problem = f"payload of {len(body)} bytes (limit {limit})"
                    return Decoded(messages, unknown, problem, _request_id(fields))
            elif type(fields[_PAYLOAD_SLOT]) is not bytes:  # msgspec would take text for base64
                return Decoded(messages, unknown, "bad field: the payload is not bytes", _request_id(fields))
            kind = TYPES.get(fields[1]) if type(fields[1]) is int else None
            if kind is None:
                unknown += 1
                continue
            messages.append(_convert(fields, kind))
        if consumed != size:
            return Decoded(messages, unknown, "truncated message")
    except msgspec.ValidationError as exc:
        return Decoded(messages, unknown, f"bad field: {exc}", _request_id(fields))
    except Exception as exc:  # noqa: BLE001 - msgpack raises many types on hostile bytes; all mean the same
        return Decoded(messages, unknown, f"not msgpack: {type(exc).__name__}: {exc}"[:300])
    if next_body != len(frames):
        return Decoded(messages, unknown, f"{len(frames) - next_body} frames belong to no message")
    return Decoded(messages, unknown)


def _inline_bytes(fields: list[Any]) -> int:
    """Return how much of a message's size is its payload. More than may ride inside counts as header."""
    payload = fields[_PAYLOAD_SLOT]
    return min(len(payload), INLINE_BYTES) if type(payload) is bytes else 0


def _request_id(fields: list[Any]) -> int:
    return fields[2] if type(fields[2]) is int and 0 <= fields[2] < 1 << 63 else 0


# --- rows -------------------------------------------------------------------------------------


def pack_outcomes(outcomes: Iterable[tuple[int, bytes]]) -> bytes:
    """Join per-row `(status, payload)` into the payload of a ROWS reply."""
    return _encode_each(list(outcomes))


def unpack_outcomes(payload: bytes) -> list[tuple[int, bytes]]:
    """Read a ROWS payload. Raises ValueError if it is no sequence of outcomes."""
    size = len(payload)
    unpacker = msgpack.Unpacker(use_list=False, max_buffer_size=size, max_bin_len=size)
    unpacker.feed(payload)
    return list(unpacker)
