"""Values as they travel: the arguments and results of operations, as msgpack with extension types.

What arrives equals what was sent, for None, bool, int of any size, float, str (lone surrogates too), bytes, list,
tuple, dict (any hashable keys), set, frozenset, datetime, date, time, timedelta, Decimal, UUID, numpy arrays and
scalars without objects, `Prediction`. Decided for what is close to these:

* subclasses of dict, list, tuple, set, frozenset, str, int, float, bytes travel as their base (a namedtuple arrives
  as a tuple);
* bytearray and (contiguous) memoryview arrive as bytes;
* a datetime of a named zone arrives with its offset, the same instant;
* arrays arrive read-only: they are views of the message;
* enums, dataclasses, models and other objects do not travel: the error names the path and says what to send.
"""

from __future__ import annotations

import functools
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from itertools import chain
from typing import Any, Final
from uuid import UUID

import msgpack
import msgspec

from bridge.protocol.errors import INVALID_REQUEST, TOO_LARGE, BridgeError
from bridge.protocol.prediction import Meta, Prediction

__all__ = [
    "MAX_NESTING",
    "Meta",
    "Prediction",
    "decode_value",
    "decode_values",
    "encode_value",
    "encode_values",
    "read_plain_rows",
    "split_values",
]

# Deeper values are refused whatever the configured limit: each level costs stack on both sides.
MAX_NESTING: Final = 256
# A packer keeps the buffer of its largest message; beyond this it is not kept.
_KEEP_PACKER_BYTES: Final = 1 << 20
_PATH_CHARS: Final = 200
# How deep the values nest that need no extension and no care to be read.
_PLAIN_LEVELS: Final = 4

# Extension types; never renumbered.
_INT, _TUPLE, _SET, _FROZENSET, _DATETIME, _DATE, _TIME, _TIMEDELTA, _DECIMAL, _UUID = range(10)
_ARRAY, _SCALAR, _PREDICTION = range(10, 13)


# --- encoding ---------------------------------------------------------------------------------

_CONTAINERS: Final = (dict, list, tuple, set, frozenset, Prediction)
# What needs no look inside, by exact type. A type that is in neither table is met by the packer's hook.
_ATOMS: Final = frozenset({type(None), bool, int, float, str, bytes})


def encode_value(value: Any, *, nesting: int = 128, max_bytes: int | None = None) -> bytes:
    """Return `value` as msgpack.

    Raises BridgeError: INVALID_REQUEST with `details["path"]` (`docs[3].x`) for what cannot travel or nests more than
    `nesting` containers deep, TOO_LARGE above `max_bytes`.
    """
    data = _encode_flat(value) or _encode_any(value, nesting)
    if max_bytes is not None and len(data) > max_bytes:
        raise BridgeError(
            TOO_LARGE,
            f"the value takes {len(data):,} bytes, the limit is {max_bytes:,} (limits.message_bytes)",
            details={"bytes": len(data), "limit_bytes": max_bytes},
        )
    return data


_encode_plain: Final = msgspec.msgpack.Encoder().encode


def _encode_flat(value: Any) -> bytes | None:
    """Return an atom or a dict of atoms, as nearly everything is one, as msgpack by the shortest way; else None."""
    try:
        if type(value) is dict:
            for key, item in value.items():
                if type(item) not in _ATOMS or type(key) not in _ATOMS:
                    return None
        elif type(value) not in _ATOMS:
            return None
        return _encode_plain(value)
    except Exception:  # noqa: BLE001 - a big int, a lone surrogate, a dict that another thread changes
        return None


def _encode_any(value: Any, nesting: int) -> bytes:
    levels = nesting if nesting < MAX_NESTING else MAX_NESTING
    try:
        data = _pack(value) if _fits(value, levels) else b""
    except Exception as exc:
        raise _blame(value, levels, exc) from exc
    if not data:
        raise _blame(value, levels)
    return data


def _fits(value: Any, levels: int) -> bool:
    """Return whether `value` nests at most `levels` containers deep."""
    if type(value) is Prediction:
        value = value._fields
    elif not isinstance(value, (dict, list, tuple, set, frozenset)):
        return True
    if levels <= 0:
        return False
    items: Any = [*value, *value.values()] if isinstance(value, dict) else value
    if _ATOMS.issuperset(map(type, items)):
        return True
    for item in items:  # noqa: SIM110 - a generator would double the depth of the stack
        if type(item) not in _ATOMS and not _fits(item, levels - 1):
            return False
    return True


# Packers at rest. A packer is no more than a buffer, used by one call at a time: pop and append are atomic.
_idle_packers: list[msgpack.Packer] = []


def _pack(value: Any) -> bytes:
    try:
        packer = _idle_packers.pop()
    except IndexError:
        packer = msgpack.Packer(default=_extend, strict_types=True, unicode_errors="surrogatepass", buf_size=4096)
    # After an exception the packer is not put back.
    data: bytes = packer.pack(value)
    if len(data) <= _KEEP_PACKER_BYTES:
        _idle_packers.append(packer)
    return data


def _extend(value: Any) -> Any:
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
    if not isinstance(value, Enum):
        for base, to_base in _TO_BASE:
            if isinstance(value, base):
                plain = to_base(value)
                return _extend(plain) if type(plain) in _ENCODERS and not _is_small(plain) else plain
    raise TypeError(f"it is a {_type_name(value)}; {_advice(value)}")


def _is_small(value: Any) -> bool:
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
    if not _is_portable(dtype):
        raise TypeError(f"it is an array of {dtype}; send its .tolist()")
    descr = dtype.str if dtype.names is None else numpy.lib.format.dtype_to_descr(dtype)
    head = _pack([descr, list(value.shape)])
    padding = bytes(-(4 + len(head)) % 16)
    elements = flat.view(numpy.uint8).data if flat.nbytes else b""
    return b"".join((struct.pack("!I", len(head)), head, padding, elements))


def _is_portable(dtype: Any) -> bool:
    return dtype.kind in "biufcmMSUV" and not dtype.hasobject and dtype.itemsize > 0


_ENCODERS: Final[dict[type, Callable[[Any], Any]]] = {
    int: _encode_int,
    tuple: lambda value: msgpack.ExtType(_TUPLE, _pack(list(value))),
    set: lambda value: msgpack.ExtType(_SET, _pack(list(value))),
    frozenset: lambda value: msgpack.ExtType(_FROZENSET, _pack(list(value))),
    datetime: lambda value: msgpack.ExtType(_DATETIME, value.isoformat().encode()),
    date: lambda value: msgpack.ExtType(_DATE, value.isoformat().encode()),
    time: _encode_time,
    timedelta: _encode_timedelta,
    Decimal: lambda value: msgpack.ExtType(_DECIMAL, str(value).encode()),
    UUID: lambda value: msgpack.ExtType(_UUID, value.bytes),
    Prediction: lambda value: msgpack.ExtType(_PREDICTION, _pack(value._fields)),
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


def _type_name(value: Any) -> str:
    cls = type(value)
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"


def _advice(value: Any) -> str:
    if isinstance(value, Enum):
        return "send its .value or .name"
    if is_dataclass(type(value)):
        return "send dataclasses.asdict(…) of it"
    if hasattr(type(value), "model_dump"):
        return "send its .model_dump()"
    if hasattr(type(value), "toDict"):
        return "send its .toDict()"
    return "send plain data (numbers, text, bytes, lists, dicts, arrays)"


# --- naming what cannot travel ----------------------------------------------------------------


def _blame(value: Any, levels: int, cause: Exception | None = None) -> BridgeError:
    """Return the error for a value that could not be encoded, naming the place at fault."""
    try:
        fault = _find_fault(value, "", levels)
    except Exception as exc:  # noqa: BLE001 - a foreign container that cannot be looked into
        fault, cause = None, exc
    path, why = fault or ("", f"{type(cause).__name__}: {cause}")
    path = path if len(path) <= _PATH_CHARS else f"{path[:_PATH_CHARS]}…"
    return BridgeError(INVALID_REQUEST, f"{path or 'the value'} cannot travel: {why}", details={"path": path})


def _find_fault(value: Any, path: str, levels: int) -> tuple[str, str] | None:
    if not isinstance(value, _CONTAINERS):
        try:
            _pack(value)
        except Exception as exc:  # noqa: BLE001 - foreign values raise anything; whatever it is, they cannot travel
            return path, str(exc) if type(exc) is TypeError else f"{type(exc).__name__}: {exc}"
        return None
    if levels <= 0:
        return path, "it is nested too deep (limits.nesting), or contains itself"
    for step, item in _steps(value):
        fault = _find_fault(item, path + step, levels - 1)
        if fault is not None:
            return fault[0].removeprefix("."), fault[1]
    return None


def _steps(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the items of a container, each with its step of the path; the keys of a mapping first."""
    if isinstance(value, dict | Prediction):
        for key in value:
            if type(key) not in _ATOMS:
                yield "{key}", key
        for key, item in value.items():
            simple = type(key) is str and key.isidentifier()
            yield (f".{key}" if simple else f"[{_short(key)}]"), item
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield f"[{index}]", item
    else:
        for item in value:
            yield "{item}", item


def _short(key: Any) -> str:
    if type(key) is str:
        return repr(key[:40])
    return repr(key) if _is_small(key) else f"<{_type_name(key)}>"


# --- decoding ---------------------------------------------------------------------------------

_unpackb = msgpack.unpackb


def _plain_type(levels: int) -> Any:
    """Return the type of what is read by the shortest way: atoms but bytes, lists of it and dicts by str of it."""
    plain: Any = _PlainAtom
    for _ in range(levels):
        plain = _PlainAtom | list[plain] | dict[str, plain]
    return plain


_PlainAtom: Final = None | bool | int | float | str
_read_plain: Final = msgspec.msgpack.Decoder(_plain_type(_PLAIN_LEVELS)).decode
# What it raises for the rest: values not as plain as most, and damaged ones.
_NOT_PLAIN: Final = (msgspec.DecodeError, UnicodeDecodeError, MemoryError, RecursionError)


def decode_value(data: bytes, *, nesting: int = 128) -> Any:
    """Return the value in `data`. Raises BridgeError(INVALID_REQUEST) if it is damaged or nested too deep."""
    if nesting >= _PLAIN_LEVELS:
        try:
            return _read_plain(data)
        except _NOT_PLAIN:
            return _read_with_care(data, nesting)
    return _read_with_care(data, nesting)


def _read_with_care(data: bytes, nesting: int) -> Any:
    try:
        value = _unpackb(data, strict_map_key=False, unicode_errors="surrogatepass", ext_hook=_top_hook)
        levels = nesting if nesting < MAX_NESTING else MAX_NESTING
        if _fits(value, levels):
            return value
        why = f"it is nested more than {levels} deep"
    except Exception as exc:  # noqa: BLE001 - hostile bytes raise many types (MemoryError too); all mean the same
        why = f"{type(exc).__name__}: {exc}"[:300]
    raise BridgeError(INVALID_REQUEST, f"the value cannot be read: {why}", details={"path": ""})


def split_values(data: bytes, count: int) -> list[bytes]:
    """Return the `count` encoded values that `data` is the concatenation of.

    Raises BridgeError(INVALID_REQUEST) if it is not.
    """
    unpacker = msgpack.Unpacker(max_buffer_size=max(len(data), 1))
    values: list[bytes] = []
    start = 0
    try:
        unpacker.feed(data)
        while start < len(data) and len(values) <= count:
            unpacker.skip()
            end = unpacker.tell()
            values.append(data[start:end])
            start = end
    except Exception as exc:
        raise BridgeError(INVALID_REQUEST, f"the rows cannot be read: {type(exc).__name__}: {exc}"[:300]) from exc
    if len(values) != count:
        raise BridgeError(INVALID_REQUEST, f"{count} rows were announced, {len(values)} or more came")
    return values


def encode_values(values: list[Any], *, nesting: int = 128) -> bytes:
    """Return what `encode_value` makes of each value, joined. Raises as it does."""
    if _are_flat(values):
        size = len(values)
        try:
            # The array of them, without its head.
            return _encode_plain(values)[1 if size < 1 << 4 else 3 if size < 1 << 16 else 5 :]
        except (OverflowError, UnicodeEncodeError):  # a big int, a lone surrogate
            return _encode_each(values, nesting)
    return _encode_each(values, nesting)


def _encode_each(values: list[Any], nesting: int) -> bytes:
    return b"".join([encode_value(value, nesting=nesting) for value in values])


def _are_flat(values: list[Any]) -> bool:
    """Return whether all are atoms, or all are dicts of atoms."""
    kinds = set(map(type, values))
    if kinds == {dict}:
        kinds = set(map(type, chain(chain.from_iterable(values), chain.from_iterable(map(dict.values, values)))))
    return kinds <= _ATOMS


_read_plain_list: Final = msgspec.msgpack.Decoder(list[_plain_type(_PLAIN_LEVELS)]).decode  # type: ignore[misc]


def decode_values(payloads: list[bytes], *, nesting: int = 128) -> list[Any]:
    """Return what `decode_value` makes of each payload. Raises as it does, for the first that cannot be read.

    The payloads are read as one: it goes unnoticed if one holds two values and another none.
    """
    if nesting >= _PLAIN_LEVELS:
        head = b"\xdd" + len(payloads).to_bytes(4, "big")
        try:
            found: list[Any] = _read_plain_list(b"".join((head, *payloads)))
        except _NOT_PLAIN:
            return [decode_value(data, nesting=nesting) for data in payloads]
        return found
    return [decode_value(data, nesting=nesting) for data in payloads]


def read_plain_rows(data: bytes, count: int) -> list[Any] | None:
    """Return the `count` values that `data` is the concatenation of, if all are plain, as rows mostly are; else None.

    Plain values nest less deep than any limit.
    """
    if count > len(data):  # a count from a stranger: the head below has room for no more
        return None
    try:
        rows: list[Any] = _read_plain_list(b"\xdd" + count.to_bytes(4, "big") + data)
    except _NOT_PLAIN:
        return None
    return rows


def _decode_ext(level: int, code: int, data: bytes) -> Any:
    decode = _DECODERS.get(code)
    if decode is None:
        raise ValueError(f"unknown extension type {code}")
    return decode(data, level)


# A hook knows how many extensions it is inside of: the nesting of the C stack is bounded before anything is built.
_HOOKS: Final = tuple(functools.partial(_decode_ext, level) for level in range(MAX_NESTING))
_top_hook: Final = _HOOKS[0]


def _unpack_inner(data: bytes, level: int) -> Any:
    if level + 1 >= MAX_NESTING:
        raise ValueError("nested too deep")
    try:
        return _read_plain(data)
    except _NOT_PLAIN:
        return _unpack_with_care(data, level)


def _unpack_with_care(data: bytes, level: int) -> Any:
    # An Unpacker keeps its 40 KiB of state on the heap; `unpackb` inside `unpackb` would take it from the stack.
    unpacker = msgpack.Unpacker(
        strict_map_key=False,
        unicode_errors="surrogatepass",
        ext_hook=_HOOKS[level + 1],
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
    if type(fields) is not dict or not all(type(name) is str for name in fields):
        raise ValueError("not the fields of a prediction")
    return Prediction(fields)


def _decode_array(data: bytes, level: int) -> Any:
    import numpy

    (head_size,) = struct.unpack_from("!I", data)
    descr, shape = _inner_list(data[4 : 4 + head_size], level)
    dtype = numpy.dtype(descr) if type(descr) is str else numpy.lib.format.descr_to_dtype(descr)
    if not _is_portable(dtype) or any(size < 0 for size in shape):
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
}
