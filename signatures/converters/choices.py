"""Converters to one of several things: the values of a Literal, the members of an Enum, the types of a union."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import Enum
from typing import Any, Final

from signatures.converters.levels import EXACT, FULL, Level, Refused, Take, unwrapped

_PLAIN: Final = (str, int, float, bytes)
_KINDS: Final = frozenset({str, int, bool, float, bytes, type(None)})
_NOTHING: Final = object()
_BASED: Final[dict[type, Take]] = {
    str: str.__str__,
    int: int.__index__,
    float: float.__float__,
    bytes: bytes.__bytes__,
}


def plain(value: Any) -> Any:
    """Return the plain value of a text, number or bytes of a subclass, any other value as it is."""
    value = unwrapped(value)
    if type(value) in _KINDS:
        return value
    for python in _PLAIN:
        if isinstance(value, python):
            return _BASED[python](value)
    return value


class Choices:
    """Values by equality and type, and by the text of those that are no texts.

    results: what each value stands for; the values themselves for a Literal.
    """

    def __init__(self, values: Sequence[Any], results: Sequence[Any]) -> None:
        self._exact: dict[tuple[type, Any], Any] = {}
        texts: dict[str, list[Any]] = {}
        for value, result in zip(values, results, strict=True):
            if type(value) in _KINDS:
                self._exact.setdefault((type(value), value), result)
                if type(value) is not str:
                    texts.setdefault(str(value), []).append(result)
        # A text that stands for two values stands for neither.
        self._texts = {text: found[0] for text, found in texts.items() if len(found) == 1}

    def find(self, value: Any, *, texts: bool = False) -> Any:
        """Return what an equal value of the same type stands for; with `texts`, a text also. Raises Refused."""
        # Nothing else is looked up: its hash and equality are code of its own.
        if type(value) not in _KINDS:
            raise Refused
        found = self._exact.get((type(value), value), _NOTHING)
        if found is _NOTHING and texts and type(value) is str:
            found = self._texts.get(value, _NOTHING)
        if found is _NOTHING:
            raise Refused
        return found


def literal_taker(values: tuple[Any, ...], level: Level) -> Take:
    """Return the converter to a Literal."""
    choices = Choices(values, values)

    def find(value: Any) -> Any:
        return choices.find(value if level is EXACT else plain(value), texts=level is FULL)

    if not all(type(value) is str for value in values):
        return find
    known = frozenset(values)
    return lambda value: value if type(value) is str and value in known else find(value)


def enum_taker(python: type[Enum], level: Level) -> Take:
    """Return the converter to an Enum: a member, else the value or the name of one."""
    members = python.__members__
    named: dict[Any, Any] = dict(members)
    # A value goes before a name that is the same.
    taken = frozenset(member.value for member in members.values() if type(member.value) is str)
    choices = Choices([member.value for member in members.values()], list(members.values()))

    def take(value: Any) -> Any:
        if isinstance(value, python):
            return value
        if level is not FULL:
            raise Refused
        value = plain(value)
        if type(value) is str and value in named and value not in taken:
            return named[value]
        return choices.find(value, texts=True)

    return take


def union_taker(levels: Iterable[tuple[Take, ...]]) -> Take:
    """Return the converter to a union, from its members' converters at each level, the gentlest level first."""
    takes = tuple(take for members in levels for take in members)

    def take(value: Any) -> Any:
        for one in takes:
            try:
                return one(value)
            except Refused:
                continue
        raise Refused

    return take
