"""Constraints: what a converted value must keep to besides its type."""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final

from signatures.converters.levels import Refused, Take
from signatures.types import Annotated, Constraints, Scalar, Type

Test = Callable[[Any], bool]

# A multiple is judged on exact fractions; numbers of more digits than this are refused.
_MAX_EXPONENT: Final = 1_000


def limited(take: Take, base: Type, constraints: Constraints) -> Take:
    """Return a converter that also refuses what breaks the constraints."""
    if not constraints:
        return take
    tests = [found for found in (_bounds(base, constraints), *_others(constraints)) if found is not None]
    if len(tests) == 1:
        return _tested(take, tests[0])

    def checked(value: Any) -> Any:
        value = take(value)
        for test in tests:
            if not test(value):
                raise Refused
        return value

    return checked


def _tested(take: Take, test: Test) -> Take:
    def checked(value: Any) -> Any:
        value = take(value)
        if test(value):
            return value
        raise Refused

    return checked


def _bounds(base: Type, one: Constraints) -> Test | None:
    if one.min_length is not None or one.max_length is not None:
        return _lengths(one.min_length or 0, math.inf if one.max_length is None else one.max_length)
    if one.ge is None and one.le is None and one.gt is None and one.lt is None:
        return None
    inner = base.base if isinstance(base, Annotated) else base
    exact = isinstance(inner, Scalar) and inner.name == "decimal.Decimal"
    low, high = (one.gt if one.ge is None else one.ge), (one.lt if one.le is None else one.le)
    # A float such as 0.1 stands for what is written: for Decimals it becomes just that.
    made = (lambda bound: Decimal(str(bound))) if exact else (lambda bound: bound)
    bottom = made(-math.inf if low is None else low)
    top = made(math.inf if high is None else high)
    test = _between(bottom, top) if one.gt is None and one.lt is None else _inside(bottom, top, one)
    return _without_nan(test) if exact else test


# A nan lies nowhere: each comparison with it is false.


def _between(low: Any, high: Any) -> Test:
    def test(value: Any) -> bool:
        return bool(low <= value <= high)

    return test


def _inside(low: Any, high: Any, one: Constraints) -> Test:
    open_below, open_above = one.gt is not None, one.lt is not None

    def test(value: Any) -> bool:
        return bool((low < value if open_below else low <= value) and (value < high if open_above else value <= high))

    return test


def _without_nan(test: Test) -> Test:
    # To compare a Decimal nan raises.
    return lambda value: not value.is_nan() and test(value)


def _lengths(low: int, high: float) -> Test:
    return lambda value: low <= len(value) <= high


def _others(one: Constraints) -> list[Test]:
    tests: list[Test] = []
    if one.multiple_of is not None:
        tests.append(_multiple(one.multiple_of))
    if one.finite:
        tests.append(math.isfinite)
    if one.pattern is not None:
        tests.append(_pattern(one.pattern))
    if one.format is not None:
        tests.append(_format(one.format))
    return tests


def _multiple(of: float) -> Test:
    # As written: 0.3 is a multiple of 0.1, though the floats' quotient is none.
    unit = Fraction(str(of))

    def test(value: Any) -> bool:
        if isinstance(value, int):
            return value % unit == 0
        number = Decimal(repr(value)) if isinstance(value, float) else value
        if not number.is_finite() or number.is_zero():
            return bool(number.is_finite())
        digits = len(number.as_tuple().digits)
        if abs(number.adjusted()) + digits > _MAX_EXPONENT:
            return False
        return Fraction(number) % unit == 0

    return test


def _pattern(pattern: str) -> Test:
    from signatures.native.validators import matches

    # Its TimeoutError is no refusal: it ends the whole conversion, so that many texts do not each take so long.
    return lambda value: matches(pattern, value)


def _format(name: str) -> Test:
    from signatures.native.validators import FORMATS

    problem = FORMATS[name]
    return lambda value: problem(value) is None
