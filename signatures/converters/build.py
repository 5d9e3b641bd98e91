"""From a node of the type tree to its converter. Each is compiled once."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final

from signatures.converters import choices, containers, scalars
from signatures.converters.levels import BASE, EXACT, FULL, Level, Refused, Take
from signatures.converters.limits import limited
from signatures.types import (
    NONE,
    Annotated,
    Constrained,
    Constraints,
    Custom,
    Generic,
    Literal,
    Media,
    Record,
    Scalar,
    Type,
    Union,
)

_CACHED: Final = 1_024


@lru_cache(maxsize=_CACHED)
def taker(type: Type, constraints: Constraints = NONE, level: Level = FULL) -> Take:
    """Return the converter to a type: it returns the converted value or raises Refused.

    A hostile value (a mapping that raises) may make it raise what that raised.
    """
    return limited(_unlimited(type, level), type, constraints)


def _unlimited(type: Type, level: Level) -> Take:
    match type:
        case Scalar():
            return scalars.taker(type.name, level)
        case Generic():
            arguments = tuple(taker(argument, NONE, level) for argument in type.arguments)
            return containers.taker(type.name, arguments, _exact_item(type), type.variadic, level)
        case Literal():
            return choices.literal_taker(type.values, level)
        case Union():
            return _union(type, level)
        case Annotated():
            return taker(type.base, NONE, level)
        case Constrained():
            return taker(type.base, type.constraints, level)
        case Media():
            return _something
        case Record():
            from signatures.converters.members import record_taker

            return record_taker(type, level)
        case Custom():
            from signatures.converters.classes import class_taker

            return class_taker(type.python, level)
    raise TypeError(f"no converter is known for {type!r}")


def _exact_item(type: Generic) -> type | None:
    """Return the class whose instances the items may be without being looked at one by one."""
    item = type.arguments[0] if len(type.arguments) == 1 else None
    rule = scalars.RULES.get(item.name) if isinstance(item, Scalar) else None
    # A bytearray is copied.
    return None if rule is None or rule.python is bytearray else rule.python


def _union(type: Union, level: Level) -> Take:
    levels = [one for one in (EXACT, BASE, FULL) if one <= level]
    return choices.union_taker([tuple(taker(member, NONE, one) for member in type.members) for one in levels])


def _something(value: Any) -> Any:
    # What DSPy's own types accept is DSPy's to say.
    if value is None:
        raise Refused
    return value
