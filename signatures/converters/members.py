"""Converters of mappings with named members: the fields of a signature, records, the fields of classes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from signatures.converters.build import taker
from signatures.converters.containers import mapped
from signatures.converters.levels import FULL, Level, Refused, Take
from signatures.types import MISSING, Constraints, Record, Type

if TYPE_CHECKING:
    from signatures.model import Field

Make = Callable[[], Any]


class Member(NamedTuple):
    """One name of a mapping. make: gives the default; None leaves a name that is not required out."""

    name: str
    type: Type
    constraints: Constraints
    required: bool
    make: Make | None = None


def members_of(fields: Iterable[Field], level: Level = FULL) -> tuple[Member, ...]:
    """Return the members that fields stand for. Raises ValidationError for a default that does not fit."""
    return tuple(
        Member(field.name, field.type, field.constraints, field.required, None if field.required else maker(field))
        for field in fields
    )


def maker(field: Field) -> Make:
    """Return what makes a field's default: converted once, and a fresh copy each time if it can change."""
    # Here, because the package's own module needs this one.
    from signatures.converters import convert

    default = convert(field.type, field.constraints, field.default, f"the default of {field.name}")
    if _is_constant(default):
        return lambda: default
    return lambda: _copied(default)


_CONSTANT: Final = frozenset({str, int, float, bool, bytes, complex, type(None)})


def _is_constant(value: Any) -> bool:
    return type(value) in _CONSTANT


def _copied(value: Any) -> Any:
    if type(value) in _CONSTANT:
        return value
    if type(value) is list:
        return [_copied(one) for one in value]
    if type(value) is dict:
        return {key: _copied(one) for key, one in value.items()}
    return copy.deepcopy(value)


def record_taker(type: Record, level: Level) -> Take:
    """Return the converter to a record: a dict in the order of its members."""
    # Defaults are filled in at the last level alone: a filled value is not the value as it was.
    return mapping_taker(members_of(type.members), level, fill=level is FULL)


def mapping_taker(members: tuple[Member, ...], level: Level, *, fill: bool = True) -> Take:
    """Return the converter from a mapping to a dict of its members. fill: defaults stand in for missing names."""
    steps = tuple((one.name, taker(one.type, one.constraints, level), one.required, one.make) for one in members)

    def take(value: Any) -> dict[str, Any]:
        given = value if type(value) is dict else mapped(value, level)
        taken: dict[str, Any] = {}
        left_over = len(given)
        for name, take_one, required, make in steps:
            one = given.get(name, MISSING)
            if one is not MISSING:
                taken[name] = take_one(one)
                left_over -= 1
            elif required or (make is not None and not fill):
                raise Refused
            elif make is not None:
                taken[name] = make()
        # What is left over has a name that is not known.
        if left_over:
            raise Refused
        return taken

    return take
