"""The JSON form of values: what JSON can hold, so that validation makes the value of it again."""

from __future__ import annotations

import math
from dataclasses import fields, is_dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any, Final
from uuid import UUID

_MAX_DEPTH: Final = 64


class NotJson(ValueError):
    """A value that has no JSON form."""


def json_value(value: Any, depth: int = 0) -> Any:
    """Return the JSON form of a value.

    Raises NotJson for infinity, bytes that are no UTF-8, and objects of other classes.
    """
    if depth > _MAX_DEPTH:
        raise NotJson("it is nested too deep")
    match value:
        case Enum():
            known = isinstance(value.value, str | int | float | bytes | None)
            return text_choice(value.value) if known else value.name
        case None | bool() | str() | int():
            return value
        case float():
            if math.isfinite(value):
                return value
            raise NotJson(f"{value} is no JSON number")
        case bytes() | bytearray():
            return _text(bytes(value))
        case datetime() | date() | time():
            return value.isoformat()
        case timedelta():
            return duration(value)
        case Decimal() | UUID() | complex():
            return str(value)
        case list() | tuple():
            return [json_value(one, depth + 1) for one in value]
        case set() | frozenset():
            # A set has no order of its own; its schema has one.
            return sorted((json_value(one, depth + 1) for one in value), key=repr)
        case dict():
            return {_key(key): json_value(one, depth + 1) for key, one in value.items()}
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json", by_alias=True)
    if is_dataclass(value) and not isinstance(value, type):
        return {one.name: json_value(getattr(value, one.name), depth + 1) for one in fields(value) if one.init}
    raise NotJson(f"a {type(value).__name__} has no JSON form")


def text_choice(value: str | int | float | bytes | None) -> Any:
    """Return what stands in JSON for a choice of a Literal: the value, or its text if JSON has no such value."""
    is_plain = not isinstance(value, bytes) and (not isinstance(value, float) or math.isfinite(value))
    return value if is_plain else str(value)


def duration(value: timedelta) -> str:
    """Return a duration as ISO 8601 has it: `P1DT2.500000S`."""
    sign, length = ("-", -value) if value < timedelta(0) else ("", value)
    fraction = f".{length.microseconds:06}" if length.microseconds else ""
    return f"{sign}P{length.days}DT{length.seconds}{fraction}S"


def _text(value: bytes) -> str:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        raise NotJson("the bytes are no UTF-8") from None


def _key(key: Any) -> str:
    form = json_value(key)
    if isinstance(form, str):
        return form
    if isinstance(form, bool | int | float):
        return str(form)
    raise NotJson(f"a {type(key).__name__} is no key of a JSON object")
