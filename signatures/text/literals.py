"""Python literals, as the text of a signature holds them: defaults, and the choices of a Literal."""

from __future__ import annotations

import cmath
import math
import re
from collections.abc import Hashable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any, Final
from uuid import UUID

MAX_DEPTH: Final = 20
# Python itself writes no more than 4,300 digits.
_MAX_BITS: Final = 13_287

_TOO_DEEP: Final = f"a default is nested deeper than {MAX_DEPTH}"
_UNPRINTED: Final = re.compile(r"[\ud800-\udfff]")


class NotALiteral(ValueError):
    """A value that no literal can stand for."""


def literal(value: Any) -> str:
    """Return the text that stands for a value: equal values of equal types give equal texts. Raises NotALiteral."""
    return _text(plain(value))


def plain(value: Any, depth: int = 0) -> Any:
    """Return what the text of a value is read as: made of texts, bytes, numbers, bools, None and plain containers.

    What has no literal of its own becomes what converts to it: an enum member its value, dates ISO text, Decimal, UUID
    and complex numbers text, a model or a dataclass a dict of its fields. Raises NotALiteral.
    """
    if depth > MAX_DEPTH:
        raise NotALiteral(_TOO_DEEP)
    match value:
        case Enum():
            return plain(value.value, depth + 1)
        case int() if value.bit_length() > _MAX_BITS:
            raise NotALiteral("a whole number has at most 4,000 digits")
        case None | bool() | int() | str() | bytes():
            return value
        case float():
            if math.isnan(value):
                raise NotALiteral("nan cannot be written in a signature")
            return value
        case bytearray():
            return bytes(value)
        case complex():
            if not cmath.isfinite(value):
                raise NotALiteral("a complex number that is nan or infinite cannot be written in a signature")
            return str(value)
        case datetime() | date() | time():
            return value.isoformat()
        case timedelta():
            return value.total_seconds()
        case Decimal() | UUID():
            return str(value)
    return _plain_container(value, depth + 1)


def shape(value: Any, depth: int = 0) -> Hashable:
    """Return the texts in a value and the classes around them: two values of one shape are the same. As `literal`."""
    if depth > MAX_DEPTH:
        raise NotALiteral(_TOO_DEEP)
    if isinstance(value, set | frozenset):
        return type(value), frozenset([shape(item, depth + 1) for item in value])
    if isinstance(value, list | tuple):
        return type(value), tuple([shape(item, depth + 1) for item in value])
    fields = value if isinstance(value, dict) else _members(value)
    if fields is None:
        return type(value), literal(value)
    return type(value), tuple([(shape(key, depth + 1), shape(item, depth + 1)) for key, item in fields.items()])


def quoted(text: str) -> str:
    """Return a string literal of one line: double quotes unless the text has some and no single ones."""
    plain = repr(text)
    if plain.startswith("'") and '"' not in text:
        plain = f'"{plain[1:-1]}"'
    # repr keeps no lone surrogate, but an engine that reads bytes wrongly may have made one.
    return _UNPRINTED.sub(lambda found: f"\\u{ord(found[0]):04x}", plain)


def _plain_container(value: Any, depth: int) -> Any:
    if isinstance(value, list):
        return [plain(item, depth) for item in value]
    if isinstance(value, tuple):
        return tuple([plain(item, depth) for item in value])
    fields = value if isinstance(value, dict) else _members(value)
    try:
        if isinstance(value, set | frozenset):
            # An empty one has no literal; a list converts to it.
            return {plain(item, depth) for item in value} or []
        if fields is not None:
            return {plain(name, depth): plain(item, depth) for name, item in fields.items()}
    except TypeError:
        raise NotALiteral("what is in a set, or a key of a dict, has a text that could not be there") from None
    raise NotALiteral(f"'{type(value).__name__}' has no text that a signature could hold")


def _text(value: Any) -> str:
    match value:
        case str():
            return quoted(str(value))
        case float() if math.isinf(value):
            return "1e999" if value > 0 else "-1e999"
        case list():
            return f"[{', '.join(map(_text, value))}]"
        case tuple():
            return f"({', '.join(map(_text, value))}{',' if len(value) == 1 else ''})"
        case set():
            # It has no order of its own.
            return f"{{{', '.join(sorted(map(_text, value)))}}}"
        case dict():
            return f"{{{', '.join(f'{_text(key)}: {_text(item)}' for key, item in value.items())}}}"
    return repr(value)


def _members(value: Any) -> dict[str, Any] | None:
    """Return the fields of a pydantic model or a dataclass instance, None for anything else."""
    if isinstance(value, type):
        return None
    if hasattr(type(value), "model_fields") and hasattr(value, "model_dump"):
        return {str(name): getattr(value, name) for name in type(value).model_fields}
    fields = getattr(type(value), "__dataclass_fields__", None)
    return None if fields is None else {name: getattr(value, name) for name in fields}
