"""Converters of single values: texts, numbers, bytes, None."""

from __future__ import annotations

import cmath
import math
import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any, Final, NamedTuple

from signatures.converters import times
from signatures.converters.levels import BASE, EXACT, Level, Refused, Take, unwrapped

MAX_DIGITS: Final = 1_000
# Room for a sign, an exponent and blanks.
_MAX_TEXT: Final = MAX_DIGITS + 100

_WHOLE: Final = re.compile(r"[+-]?[0-9]+")
_DECIMAL: Final = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,9})?")
_COMPLEX: Final = re.compile(r"[0-9+\-.eEjJ()]+")


class Rule(NamedTuple):
    """How values of one type are made. Each function raises Refused.

    python: the type of a result. plain: an instance of it from one of a subclass. convert: from anything else.
    """

    python: type
    plain: Take
    convert: Take


def taker(name: str, level: Level) -> Take:
    """Return the converter to a scalar, by the scalar's canonical name."""
    if name == "Any":
        return _anything
    if name == "None":
        return _nothing
    python, plain, convert = RULES[name]
    if level is EXACT:
        return _exactly(python) if python in _OWN else plain
    return _either(python, plain if level is BASE else convert)


def _anything(value: Any) -> Any:
    return value


def _nothing(value: Any) -> None:
    if value is not None:
        raise Refused


def _exactly(python: type) -> Take:
    def take(value: Any) -> Any:
        if type(value) is python:
            return value
        raise Refused

    return take


def _either(python: type, convert: Take) -> Take:
    def take(value: Any) -> Any:
        return value if type(value) is python else convert(unwrapped(value))

    return take


# --- plain values of subclasses -----------------------------------------------------------------
# The base class's own method is called, so that no method of a subclass runs.


def _based(python: type, plainly: Callable[[Any], Any]) -> Take:
    def plain(value: Any) -> Any:
        if isinstance(value, python) and not (python is int and isinstance(value, bool)):
            return plainly(value)
        raise Refused

    return plain


_plain_str: Final = _based(str, str.__str__)
_plain_int: Final = _based(int, int.__index__)
_plain_float: Final = _based(float, float.__float__)
_plain_bool: Final = _based(bool, bool)
_plain_bytes: Final = _based(bytes, bytes.__bytes__)
_plain_complex: Final = _based(complex, complex.__complex__)


def _plain_bytearray(value: Any) -> bytearray:
    if isinstance(value, bytearray):
        return bytearray(memoryview(value))
    raise Refused


# --- conversions --------------------------------------------------------------------------------


def short_text(value: str, limit: int = _MAX_TEXT) -> str:
    """Return a text without the blanks around it. Raises Refused for one that is long, at no cost."""
    if str.__len__(value) > limit:
        raise Refused
    return str.strip(value)


def _to_int(value: Any) -> int:
    if isinstance(value, bool):
        raise Refused
    if isinstance(value, int):
        return int.__index__(value)
    if isinstance(value, float) and float.is_integer(value):
        return int(float.__float__(value))
    if isinstance(value, Decimal):
        return _whole(value)
    if isinstance(value, str):
        text = short_text(value)
        if _WHOLE.fullmatch(text) and len(text.lstrip("+-")) <= MAX_DIGITS:
            return int(text)
    raise Refused


def _whole(value: Decimal) -> int:
    # The exponent is looked at first: int(Decimal("1e999999999")) would fill the memory.
    if value.is_finite() and value.adjusted() < MAX_DIGITS and value == value.to_integral_value():
        return int(value)
    raise Refused


def _to_float(value: Any) -> float:
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, bool):
        raise Refused
    if isinstance(value, int):
        return _finite(int.__index__(value))
    if isinstance(value, Decimal) and value.is_finite():
        return _finite(value)
    if isinstance(value, str) and _DECIMAL.fullmatch(text := short_text(value)):
        return _finite(text)
    raise Refused


def _finite(value: int | Decimal | str) -> float:
    try:
        number = float(value)
    except OverflowError:
        raise Refused from None
    if math.isfinite(number):
        return number
    raise Refused


def _to_bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and (text := short_text(value).lower()) in ("true", "false"):
        return text == "true"
    raise Refused


def _to_bytes(value: Any) -> bytes:
    if isinstance(value, bytes):
        return bytes.__bytes__(value)
    if isinstance(value, bytearray):
        return bytes(memoryview(value))
    try:
        if isinstance(value, memoryview):
            return bytes(value)
        if isinstance(value, str):
            return str.encode(value, "utf-8")
    except ValueError:
        # A released view; a text with half a surrogate pair.
        raise Refused from None
    raise Refused


def _to_bytearray(value: Any) -> bytearray:
    return bytearray(_to_bytes(value))


def _to_complex(value: Any) -> complex:
    if isinstance(value, complex):
        return complex.__complex__(value)
    if not isinstance(value, str):
        return complex(_to_float(value))
    text = short_text(value)
    if not _COMPLEX.fullmatch(text):
        raise Refused
    try:
        number = complex(text)
    except ValueError:
        raise Refused from None
    if cmath.isfinite(number):
        return number
    raise Refused


def _to_decimal(value: Any) -> Decimal:
    if isinstance(value, Decimal):
        return value
    if isinstance(value, bool):
        raise Refused
    if isinstance(value, int):
        return Decimal(int.__index__(value))
    if isinstance(value, float) and math.isfinite(value):
        return Decimal(float.__repr__(value))
    if isinstance(value, str) and _DECIMAL.fullmatch(text := short_text(value)):
        return Decimal(text)
    raise Refused


RULES: Final[dict[str, Rule]] = {
    "str": Rule(str, _plain_str, _plain_str),
    "int": Rule(int, _plain_int, _to_int),
    "float": Rule(float, _plain_float, _to_float),
    "bool": Rule(bool, _plain_bool, _to_bool),
    "bytes": Rule(bytes, _plain_bytes, _to_bytes),
    "bytearray": Rule(bytearray, _plain_bytearray, _to_bytearray),
    "complex": Rule(complex, _plain_complex, _to_complex),
    "decimal.Decimal": Rule(Decimal, times.instance(Decimal), _to_decimal),
    **{name: Rule(*rule) for name, rule in times.RULES.items()},
}

# A value of a subclass of these is no exact one; of the others it is taken with its class.
_OWN: Final = frozenset({str, int, float, bool, bytes, bytearray, complex})
