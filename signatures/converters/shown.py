"""Values as error messages show them: short, and without running code of theirs."""

from __future__ import annotations

import datetime
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

from signatures.converters.levels import unwrapped

MAX_SHOWN: Final = 60
_MAX_ITEMS: Final = 3
_MAX_BITS: Final = 150

# The metaclass of a class may have a `__name__` of its own; this is the real one.
_name_of: Final = type.__dict__["__name__"].__get__
# Their repr is Python's own, and as short as their value.
_SAFE: Final = frozenset({bool, float, complex, datetime.date, datetime.timedelta, UUID})
_DATED: Final = frozenset({datetime.datetime, datetime.time})
_OPEN: Final[dict[type, tuple[str, str]]] = {
    list: ("[", "]"), tuple: ("(", ")"), set: ("{", "}"), frozenset: ("frozenset({", "})"),
}  # fmt: skip


def type_name(value: Any) -> str:
    """Return the name of a value's class, at most 60 characters of it."""
    return str(_name_of(type(value)))[:MAX_SHOWN]


def got(value: Any) -> str:
    """Return "int (123)": the class and the value; the class alone where a value has no safe text."""
    if value is None:
        return "None"
    text = shown(value)
    return type_name(value) if text is None else f"{type_name(value)} ({text})"


def shown(value: Any) -> str | None:
    """Return a value in at most 60 characters, None if only its own code could say."""
    text = _text(unwrapped(value), 0)
    return text if text is None or len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 1]}…"


def _text(value: Any, depth: int) -> str | None:
    kind = type(value)
    if value is None or kind in _SAFE:
        return repr(value)
    if kind is int:
        # Python refuses to write very long ones.
        return repr(value) if value.bit_length() <= _MAX_BITS else f"of {value.bit_length()} bits"
    if kind in (str, bytes, bytearray):
        return repr(value[: MAX_SHOWN + 1])
    if kind in _DATED:
        return value.isoformat() if value.tzinfo is None else None
    if kind is Decimal:
        return str(value) if abs(value.adjusted()) < MAX_SHOWN else None
    if kind is dict:
        return _entries(value, depth)
    return _items(value, depth) if kind in _OPEN else None


def _items(value: Any, depth: int) -> str:
    before, after = _OPEN[type(value)]
    if depth and value:
        return f"{before}…{after}"
    parts = [_inner(one, depth) for _, one in zip(range(_MAX_ITEMS), value, strict=False)]
    return f"{before}{', '.join(parts)}{_more(value)}{after}"


def _entries(value: dict[Any, Any], depth: int) -> str:
    if depth and value:
        return "{…}"
    entries = zip(range(_MAX_ITEMS), value.items(), strict=False)
    parts = [f"{_inner(key, depth)}: {_inner(one, depth)}" for _, (key, one) in entries]
    return f"{{{', '.join(parts)}{_more(value)}}}"


def _inner(value: Any, depth: int) -> str:
    text = _text(value, depth + 1)
    if text is None:
        return type_name(value)
    return text if len(text) <= MAX_SHOWN // 2 else f"{text[: MAX_SHOWN // 2]}…"


def _more(value: Any) -> str:
    return ", …" if len(value) > _MAX_ITEMS else ""
