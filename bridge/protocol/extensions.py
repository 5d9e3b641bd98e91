"""What msgpack has no types for: extension types, and the packing and unpacking that know them.

`values` says which values travel and what becomes of the rest; the types and their bytes are here.
"""

from __future__ import annotations

import functools
import struct
import sys
from collections.abc import Callable
from dataclasses import is_dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any, Final
from uuid import UUID

import msgpack
import msgspec

from bridge.protocol import typed
from bridge.protocol.prediction import Prediction
from bridge.protocol.record import Example, Record

# Deeper values are refused whatever the configured limit: each level costs stack on both sides.
MAX_NESTING: Final = 256
# A packer keeps the buffer of its largest message; beyond this it is not kept.
_KEEP_PACKER_BYTES: Final = 1 << 20
# How deep the values nest that need no extension and no care to be read.
PLAIN_LEVELS: Final = 4

# Extension types; never renumbered.
_INT, _TUPLE, _SET, _FROZENSET, _DATETIME, _DATE, _TIME, _TIMEDELTA, _DECIMAL, _UUID = range(10)
_ARRAY, _SCALAR, _PREDICTION, _TYPED = range(10, 14)


# --- packing ---------------------------------------------------------------------------------

# Packers at rest. A packer is no more than a buffer, used by one call at a time: pop and append are atomic.
_idle_packers: list[msgpack.Packer] = []


def pack(value: Any) -> bytes:
    """Return `value` as msgpack. Raises TypeError with advice for what cannot travel; foreign values raise anything."""
    try:
        packer = _idle_packers.pop()
    except IndexError:
        packer = msgpack.Packer(default=extend, strict_types=True, unicode_errors="surrogatepass", buf_size=4096)
    # After an exception the packer is not put back.
    data: bytes = packer.pack(value)
    if len(data) <= _KEEP_PACKER_BYTES:
        _idle_packers.append(packer)
    return data


def extend(value: Any) -> Any:
    """Return what the packer takes in place of `value`. Raises TypeError with advice for what cannot travel."""
    encode = _ENCODERS.get(type(value))
    if encode is not None:
        return encode(value)
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        if type(value) is numpy.ndarray:
            return msgpack.ExtType(_ARRAY, _encode_array(numpy, value))
        if isinstance(value, numpy.generic):
            return msgpack.ExtType(_SCALAR, _encode_array(numpy, value))
    if (found := typed.opened(value, MAX_NESTING)) is not None:
        return _ENCODERS[type(found)](found)
    if not isinstance(value, Enum):
        for base, to_base in _TO_BASE:
            if isinstance(value, base):
                plain = to_base(value)
                return extend(plain) if type(plain) in _ENCODERS and not is_small(plain) else plain
    raise TypeError(f"it is a {type_name(value)}; {_advice(value)}")


def is_small(value: Any) -> bool:
    """Return whether it is an int that msgpack has a type for."""
    return type(value) is int and -(1 << 63) <= value < 1 << 64


def _encode_int(value: int) -> Any:
    return msgpack.ExtType(_INT, value.to_bytes((value.bit_length() + 8) // 8, "big", signed=True))


def _encode_timedelta(value: timedelta) -> Any:
    return msgpack.ExtType(_TIMEDELTA, struct.pack("!iii", value.days, value.seconds, value.microseconds))


def _encode_time(value: time) -> Any:
    if value.tzinfo is not None and value.utcoffset() is None:
        raise TypeError("it is a time of a zone whose offset depends on the date; send a datetime")
    return msgpack.ExtType(_TIME, value.isoformat().encode())


def _encode_array(numpy: Any, value: Any) -> bytes:
    """Return `[head size, head, zeros to a multiple of 16, elements in C order]`; the head is `[dtype, shape]`."""
    flat = numpy.ascontiguousarray(value).reshape(-1)
    dtype = flat.dtype
    if not is_portable(dtype):
        raise TypeError(f"it is an array of {dtype}; send its .tolist()")
    descr = dtype.str if dtype.names is None else numpy.lib.format.dtype_to_descr(dtype)
    head = pack([descr, list(value.shape)])
    padding = bytes(-(4 + len(head)) % 16)
    elements = flat.view(numpy.uint8).data if flat.nbytes else b""
    return b"".join((struct.pack("!I", len(head)), head, padding, elements))


def _encode_prediction(value: Prediction) -> Any:
    extras = value._extras
    return msgpack.ExtType(_PREDICTION, pack([value._fields, extras] if extras else value._fields))


def _encode_record(value: Record) -> Any:
    return msgpack.ExtType(_TYPED, pack([value._kind, value._fields]))


def _encode_example(value: Example) -> Any:
    keys = value.input_keys
    return msgpack.ExtType(_TYPED, pack([value._kind, value._fields, None if keys is None else sorted(keys)]))


def is_portable(dtype: Any) -> bool:
    """Return whether elements of this type mean the same to any process."""
    return dtype.kind in "biufcmMSUV" and not dtype.hasobject and dtype.itemsize > 0


_ENCODERS: Final[dict[type, Callable[[Any], Any]]] = {
    int: _encode_int,
    tuple: lambda value: msgpack.ExtType(_TUPLE, pack(list(value))),
    set: lambda value: msgpack.ExtType(_SET, pack(list(value))),
    frozenset: lambda value: msgpack.ExtType(_FROZENSET, pack(list(value))),
    datetime: lambda value: msgpack.ExtType(_DATETIME, value.isoformat().encode()),
    date: lambda value: msgpack.ExtType(_DATE, value.isoformat().encode()),
    time: _encode_time,
    timedelta: _encode_timedelta,
    Decimal: lambda value: msgpack.ExtType(_DECIMAL, str(value).encode()),
    UUID: lambda value: msgpack.ExtType(_UUID, value.bytes),
    Prediction: _encode_prediction,
    Record: _encode_record,
    Example: _encode_example,
}
_TO_BASE: Final[tuple[tuple[type, Callable[[Any], Any]], ...]] = (
    (str, str.__str__),
    (int, int.__int__),
    (float, float.__float__),
    (bytes, lambda value: bytes(memoryview(value))),
    (dict, dict),
    (list, list),
    (tuple, tuple),
    (set, set),
    (frozenset, frozenset),
)


def type_name(value: Any) -> str:
    """Return the name of a value's type, for messages."""
    cls = type(value)
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"


def _advice(value: Any) -> str:
    if isinstance(value, Enum):
        return "send its .value or .name"
    if is_dataclass(type(value)):
        return "send dataclasses.asdict(…) of it"
    if hasattr(type(value), "toDict"):
        return "send its .toDict()"
    return "send plain data (numbers, text, bytes, lists, dicts, arrays)"


# --- values without extensions ------------------------------------------------------------------


def plain_type(levels: int) -> Any:
    """Return the type of what is read by the shortest way: atoms but bytes, lists of it and dicts by str of it."""
    plain: Any = _PlainAtom
    for _ in range(levels):
        plain = _PlainAtom | list[plain] | dict[str, plain]
    return plain


_PlainAtom: Final = None | bool | int | float | str
read_plain: Final = msgspec.msgpack.Decoder(plain_type(PLAIN_LEVELS)).decode
# What it raises for the rest: values not as plain as most, and damaged ones.
NOT_PLAIN: Final = (msgspec.DecodeError, UnicodeDecodeError, MemoryError, RecursionError)


# --- unpacking ----------------------------------------------------------------------------------

_unpackb = msgpack.unpackb
# We send no timestamps of msgpack's own (type -1), others may; they never reach the hook.
_AS_DATETIME: Final = 3


def _decode_ext(level: int, code: int, data: bytes) -> Any:
    decode = _DECODERS.get(code)
    if decode is None:
        raise ValueError(f"unknown extension type {code}")
    return decode(data, level)


# A hook knows how many extensions it is inside of: the nesting of the C stack is bounded before anything is built.
_HOOKS: Final = tuple(functools.partial(_decode_ext, level) for level in range(MAX_NESTING))
top_hook: Final = _HOOKS[0]


def unpack(data: bytes) -> Any:
    """Return the value in `data`. Raises many types of exceptions for bytes that are none."""
    return _unpackb(
        data, strict_map_key=False, unicode_errors="surrogatepass", ext_hook=top_hook, timestamp=_AS_DATETIME
    )


def _unpack_inner(data: bytes, level: int) -> Any:
    if level + 1 >= MAX_NESTING:
        raise ValueError("nested too deep")
    try:
        return read_plain(data)
    except NOT_PLAIN:
        return _unpack_with_care(data, level)


def _unpack_with_care(data: bytes, level: int) -> Any:
    # An Unpacker keeps its 40 KiB of state on the heap; `unpackb` inside `unpackb` would take it from the stack.
    unpacker = msgpack.Unpacker(
        strict_map_key=False,
        unicode_errors="surrogatepass",
        ext_hook=_HOOKS[level + 1],
        timestamp=_AS_DATETIME,
        max_buffer_size=max(len(data), 1),
    )
    unpacker.feed(data)
    value = unpacker.unpack()
    if unpacker.tell() != len(data):
        raise ValueError("trailing bytes in an extension")
    return value


def _inner_list(data: bytes, level: int) -> list[Any]:
    items = _unpack_inner(data, level)
    if type(items) is not list:
        raise ValueError("not a list of items")
    return items


def _decode_prediction(data: bytes, level: int) -> Prediction:
    fields = _unpack_inner(data, level)
    if type(fields) is dict and all(type(name) is str for name in fields):
        return Prediction(fields)
    fields, extras = fields
    if not _is_fields(fields):
        raise ValueError("not the fields of a prediction")
    completions, usage = extras.get("completions"), extras.get("usage")
    if completions is not None and not (_is_fields(completions) and {list}.issuperset(map(type, completions.values()))):
        raise ValueError("not the completions of a prediction")
    if usage is not None and not _is_fields(usage):
        raise ValueError("not the usage of a prediction")
    return Prediction(fields, completions=completions, usage=usage)


def _is_fields(value: Any) -> bool:
    return type(value) is dict and all(type(name) is str for name in value)


def _decode_typed(data: bytes, level: int) -> Any:
    kind, fields, *more = _inner_list(data, level)
    return typed.made(kind, fields, *more[:1])


def _decode_array(data: bytes, level: int) -> Any:
    import numpy

    (head_size,) = struct.unpack_from("!I", data)
    descr, shape = _inner_list(data[4 : 4 + head_size], level)
    dtype = numpy.dtype(descr) if type(descr) is str else numpy.lib.format.descr_to_dtype(descr)
    if not is_portable(dtype) or any(size < 0 for size in shape):
        raise ValueError(f"an array of {dtype}, shape {shape}")
    offset = 4 + head_size + -(4 + head_size) % 16
    if 0 in shape:
        return numpy.empty(shape, dtype)
    return numpy.ndarray(shape, dtype, buffer=data, offset=offset)


_DECODERS: Final[dict[int, Callable[[bytes, int], Any]]] = {
    _INT: lambda data, _: int.from_bytes(data, "big", signed=True),
    _TUPLE: lambda data, level: tuple(_inner_list(data, level)),
    _SET: lambda data, level: set(_inner_list(data, level)),
    _FROZENSET: lambda data, level: frozenset(_inner_list(data, level)),
    _DATETIME: lambda data, _: datetime.fromisoformat(data.decode("ascii")),
    _DATE: lambda data, _: date.fromisoformat(data.decode("ascii")),
    _TIME: lambda data, _: time.fromisoformat(data.decode("ascii")),
    _TIMEDELTA: lambda data, _: timedelta(*struct.unpack("!iii", data)),
    _DECIMAL: lambda data, _: Decimal(data.decode("ascii")),
    _UUID: lambda data, _: UUID(bytes=data),
    _ARRAY: _decode_array,
    _SCALAR: lambda data, level: _decode_array(data, level)[()],
    _PREDICTION: _decode_prediction,
    _TYPED: _decode_typed,
}
