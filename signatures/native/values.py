"""Values as texts that are equal when the values are, and Unicode's canonical decomposition in linear time."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from datetime import date, time, timedelta
from decimal import Decimal
from enum import Enum
from functools import cache
from hashlib import sha256
from itertools import count, groupby
from typing import Any, Final
from uuid import UUID

MAX_VALUES: Final = 200_000
MAX_CHARS: Final = 1024 * 1024
MAX_DEPTH: Final = 50
# 1e400 and 1e-400 written out are long numbers already.
_MAX_EXPONENT: Final = 1_000

# Of 1/2**1074 written out as two whole numbers, in base 16.
_LONGEST_FLOAT: Final = 300
_MAX_NUMBER_CHARS: Final = 80

_nans: Final = count()


class Budget:
    """What is left to look at: values, and characters of text."""

    __slots__ = ("chars", "values")

    def __init__(self) -> None:
        self.values = MAX_VALUES
        self.chars = MAX_CHARS

    def spend(self, chars: int) -> None:
        """Charge one value with this much text. Raises ValueError."""
        self.values -= 1
        self.chars -= chars
        if self.values < 0 or self.chars < 0:
            raise ValueError(f"the value is too large: at most {MAX_VALUES:,} values and {MAX_CHARS:,} characters")


def key(value: Any, budget: Budget | None = None, depth: int = 0) -> str:
    """Return a text that two values share if they are equal, and only then.

    1 equals 1.0 and Decimal(1), not True; a tuple equals a list of the same items; an Enum equals its value;
    dataclasses and pydantic models equal the mapping of their fields; NaN equals nothing. As keys, texts cannot be
    chosen to collide, as numbers can. Raises ValueError for a value too large, nested deeper than 50, or of
    another type.
    """
    budget = budget or Budget()
    if depth > MAX_DEPTH:
        raise ValueError(f"the value is nested deeper than {MAX_DEPTH}")
    if isinstance(value, Enum):
        value = value.value
    budget.spend(len(value) if isinstance(value, (str, bytes, bytearray, memoryview)) else 0)
    match value:
        case None | bool():
            return str(value)
        case str():
            return f"t{len(value)}:{value}"
        case int() | float() | Decimal():
            return _bounded(_number_key(value), budget)
        case bytes() | bytearray() | memoryview():
            return f"b{bytes(value).hex()}"
        case date() | time() | timedelta() | UUID():
            return f"{type(value).__name__}({value})"
        case list() | tuple():
            return f"[{','.join([key(item, budget, depth + 1) for item in value])}]"
        case set() | frozenset():
            return f"<{','.join(sorted(key(item, budget, depth + 1) for item in value))}>"
    members = value if isinstance(value, Mapping) else _members(value)
    if members is None:
        raise ValueError(f"a {type(value).__name__} cannot be compared; give its data")
    pairs = (f"{key(name, budget, depth + 1)}={key(item, budget, depth + 1)}" for name, item in members.items())
    return f"{{{','.join(sorted(pairs))}}}"


def _bounded(shown: str, budget: Budget) -> str:
    """Return a number's text; in place of a long one what stands for it. One longer than any float's is charged."""
    if len(shown) <= _MAX_NUMBER_CHARS:
        return shown
    budget.chars -= max(0, len(shown) - _LONGEST_FLOAT)
    if budget.chars < 0:
        budget.spend(0)
    return f"h{sha256(shown.encode()).hexdigest()}"


def _number_key(value: float | Decimal) -> str:
    if value.is_nan() if isinstance(value, Decimal) else value != value:
        return f"nan{next(_nans)}"
    if isinstance(value, Decimal) and value.is_finite() and abs(value.adjusted()) > _MAX_EXPONENT:
        sign, digits, exponent = value.as_tuple()
        shown = "".join(map(str, digits))
        kept = shown.rstrip("0")
        return f"d{sign}{kept}e{int(exponent) + len(shown) - len(kept)}" if kept else "n0/1"
    try:
        top, bottom = value.as_integer_ratio()
    except OverflowError:
        return f"{float(value)}"
    return f"n{top:x}/{bottom:x}"


def _members(value: Any) -> dict[str, Any] | None:
    """Return the fields of a pydantic model or a dataclass, None for anything else."""
    if isinstance(value, type):
        return None
    if hasattr(type(value), "model_fields"):
        return {name: getattr(value, name) for name in type(value).model_fields}
    return {one.name: getattr(value, one.name) for one in fields(value)} if is_dataclass(value) else None


# --- Unicode ----------------------------------------------------------------------------------------

# Python sorts the marks behind a character one by one, which is fast for a few and quadratic for thousands.
_MANY_MARKS: Final = 64
_LAST_MARK: Final = 0x1FFFF


def nfd(text: str) -> str:
    """Return a text in Unicode's normalization form D, in linear time also where thousands of marks are in a row."""
    if text.isascii() or not _many_marks().search(text):
        return unicodedata.normalize("NFD", text)
    # The standard's own algorithm: decompose each character, then sort each row of marks by their classes.
    apart = {ord(one): unicodedata.normalize("NFD", one) for one in set(text)}
    found = text.translate(apart)
    classes = {one: unicodedata.combining(one) for one in set(found)}
    return "".join(
        "".join(sorted(row, key=classes.__getitem__)) if is_mark else "".join(row)
        for is_mark, row in groupby(found, key=lambda one: classes[one] > 0)
    )


@cache
def _many_marks() -> re.Pattern[str]:
    marks = "".join(one for one in map(chr, range(0x300, _LAST_MARK)) if unicodedata.combining(one))
    return re.compile(f"[{marks}]{{{_MANY_MARKS},}}")
