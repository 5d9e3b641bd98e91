"""Values as they travel: the arguments and results of operations, as msgpack with extension types.

What arrives equals what was sent, for None, bool, int of any size, float, str (lone surrogates too), bytes, list,
tuple, dict (any hashable keys), set, frozenset, datetime, date, time, timedelta, Decimal, UUID, numpy arrays and
scalars without objects, `Prediction`; DSPy's types and pydantic models as `typed` says. Decided for what is close to
these:

* subclasses of dict, list, tuple, set, frozenset, str, int, float, bytes travel as their base (a namedtuple arrives
  as a tuple);
* bytearray and (contiguous) memoryview arrive as bytes;
* a datetime of a named zone arrives with its offset, the same instant;
* arrays arrive read-only: they are views of the message;
* enums, dataclasses and other objects do not travel but within a model: the error names the path and says what to
  send.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any, Final

import msgpack
import msgspec

from bridge.protocol import large, typed
from bridge.protocol.errors import INVALID_REQUEST, TOO_LARGE, BridgeError
from bridge.protocol.extensions import (
    MAX_NESTING,
    NOT_PLAIN,
    PLAIN_LEVELS,
    is_small,
    pack,
    plain_type,
    read_plain,
    type_name,
    unpack,
)
from bridge.protocol.prediction import Completions, Meta, Prediction
from bridge.protocol.record import Example, Record

__all__ = [
    "MAX_NESTING",
    "Completions",
    "Example",
    "Meta",
    "Prediction",
    "Record",
    "decode_value",
    "decode_values",
    "encode_parts",
    "encode_value",
    "encode_values",
    "read_plain_rows",
    "split_values",
]

_PATH_CHARS: Final = 200


# --- encoding ---------------------------------------------------------------------------------

_CONTAINERS: Final = (dict, list, tuple, set, frozenset)
# What needs no look inside, by exact type. A type that is in neither table is met by the packer's hook.
_ATOMS: Final = frozenset({type(None), bool, int, float, str, bytes})


def encode_value(value: Any, *, nesting: int = 128, max_bytes: int | None = None) -> bytes:
    """Return `value` as msgpack.

    Raises BridgeError: INVALID_REQUEST with `details["path"]` (`docs[3].x`) for what cannot travel or nests more than
    `nesting` containers deep, TOO_LARGE above `max_bytes`.
    """
    data = _encode_flat(value) or _encode_any(value, nesting)
    if max_bytes is not None and len(data) > max_bytes:
        raise _too_large(len(data), max_bytes)
    return data


def encode_parts(value: Any, *, nesting: int = 128, max_bytes: int | None = None) -> list[large.Part]:
    """Return what `encode_value` returns in parts to be joined; large arrays are parts that nobody has copied.

    Raises as it does.
    """
    if not large.holds_large(value):
        return [encode_value(value, nesting=nesting, max_bytes=max_bytes)]
    levels = nesting if nesting < MAX_NESTING else MAX_NESTING
    try:
        parts = large.encode(value) if _fits(value, levels) else None
    except Exception as exc:
        raise _blame(value, levels, exc) from exc
    if parts is None:
        raise _blame(value, levels)
    size = sum(map(len, parts))
    if max_bytes is not None and size > max_bytes:
        raise _too_large(size, max_bytes)
    return parts


def _too_large(size: int, max_bytes: int) -> BridgeError:
    text = f"the value takes {size:,} bytes, the limit is {max_bytes:,} (limits.message_bytes)"
    return BridgeError(TOO_LARGE, text, details={"bytes": size, "limit_bytes": max_bytes})


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
        data = pack(value) if _fits(value, levels) else b""
    except Exception as exc:
        raise _blame(value, levels, exc) from exc
    if not data:
        raise _blame(value, levels)
    return data


def _fits(value: Any, levels: int) -> bool:
    """Return whether `value` nests at most `levels` containers deep."""
    if type(value) is Prediction:
        value = value._parts
    elif not isinstance(value, (dict, list, tuple, set, frozenset)):
        found = typed.opened(value, levels)
        if found is None:
            return True
        value = found._parts
    if levels <= 0:
        return False
    items: Any = [*value, *value.values()] if isinstance(value, dict) else value
    if _ATOMS.issuperset(map(type, items)):
        return True
    for item in items:  # noqa: SIM110 - a generator would double the depth of the stack
        if type(item) not in _ATOMS and not _fits(item, levels - 1):
            return False
    return True


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
    if not issubclass(type(value), _CONTAINERS):
        try:
            found = typed.opened(value, levels)
            if found is None:
                pack(value)
        except Exception as exc:  # noqa: BLE001 - foreign values raise anything; whatever it is, they cannot travel
            return path, str(exc) if type(exc) is TypeError else f"{type(exc).__name__}: {exc}"
        if found is None:
            return None
        value = found._parts
    if levels <= 0:
        return path, "it is nested too deep (limits.nesting), or contains itself"
    for step, item in _steps(value):
        fault = _find_fault(item, path + step, levels - 1)
        if fault is not None:
            return fault[0].removeprefix("."), fault[1]
    return None


def _steps(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the items of a container, each with its step of the path; the keys of a mapping first."""
    if isinstance(value, dict):
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
    return repr(key) if is_small(key) else f"<{type_name(key)}>"


# --- decoding ---------------------------------------------------------------------------------


def decode_value(data: bytes, *, nesting: int = 128) -> Any:
    """Return the value in `data`. Raises BridgeError(INVALID_REQUEST) if it is damaged or nested too deep."""
    if nesting >= PLAIN_LEVELS:
        try:
            return read_plain(data)
        except NOT_PLAIN:
            return _read_with_care(data, nesting)
    return _read_with_care(data, nesting)


def _read_with_care(data: bytes, nesting: int) -> Any:
    try:
        value = large.decode(data) if data[:1] == large.MARK else unpack(data)
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


_read_plain_list: Final = msgspec.msgpack.Decoder(list[plain_type(PLAIN_LEVELS)]).decode  # type: ignore[misc]


def decode_values(payloads: list[bytes], *, nesting: int = 128) -> list[Any]:
    """Return what `decode_value` makes of each payload. Raises as it does, for the first that cannot be read.

    The payloads are read as one: it goes unnoticed if one holds two values and another none.
    """
    if nesting >= PLAIN_LEVELS:
        head = b"\xdd" + len(payloads).to_bytes(4, "big")
        try:
            found: list[Any] = _read_plain_list(b"".join((head, *payloads)))
        except NOT_PLAIN:
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
    except NOT_PLAIN:
        return None
    return rows
