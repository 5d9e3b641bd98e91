"""Converters of lists, tuples, sets and mappings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any, Final

from signatures.converters.levels import BASE, EXACT, FULL, Level, Refused, Take

# What each container is made to. The abstract ones have a plain one to stand for them.
_LISTS: Final = frozenset({"list", "Sequence", "Iterable", "Collection"})
_SETS: Final[dict[str, type[Any]]] = {"set": set, "frozenset": frozenset}


def taker(name: str, arguments: tuple[Take, ...], exact: type | None, variadic: bool, level: Level) -> Take:
    """Return the converter to a container.

    arguments: the converters of its items, of its keys and values; empty for a bare one. exact: the class whose own
    instances the only argument takes as they are, if there is one.
    """
    if name in _LISTS:
        return _list(arguments[0] if arguments else None, exact, level)
    if name in _SETS:
        return _set(_SETS[name], arguments[0] if arguments else None, level)
    if name == "tuple":
        if arguments and not variadic:
            return _fixed_tuple(arguments, level)
        return _tuple(arguments[0] if arguments else None, level)
    return _dict(arguments[0], arguments[1], level) if arguments else _bare_dict(level)


# --- what may stand for a container -------------------------------------------------------------
# Values of subclasses are read by the base class's methods: none of their own runs.


def listed(value: Any, level: Level = FULL) -> list[Any] | tuple[Any, ...]:
    """Return the items of a value that may stand for a list."""
    if type(value) is list or (level is FULL and type(value) is tuple):
        return value
    if level >= BASE and isinstance(value, list):
        return list.copy(value)
    if level is FULL and isinstance(value, tuple):
        return tuple.__getitem__(value, slice(None))
    raise Refused


def tupled(value: Any, level: Level = FULL) -> list[Any] | tuple[Any, ...]:
    """Return the items of a value that may stand for a tuple."""
    if type(value) is tuple:
        return value
    if level is EXACT:
        raise Refused
    if isinstance(value, tuple):
        return tuple.__getitem__(value, slice(None))
    if level is FULL:
        return listed(value)
    raise Refused


def grouped(value: Any, python: type[Any], level: Level = FULL) -> Iterable[Any]:
    """Return the items of a value that may stand for a set or a frozenset."""
    if type(value) is python:
        return value  # type: ignore[no-any-return]
    if level >= BASE and isinstance(value, python):
        return set().union(value)
    if level is FULL:
        return set().union(value) if isinstance(value, set | frozenset) else listed(value)
    raise Refused


def mapped(value: Any, level: Level = FULL) -> dict[Any, Any]:
    """Return the entries of a value that may stand for a mapping."""
    if type(value) is dict:
        return value
    if level >= BASE and isinstance(value, dict):
        return dict.copy(value)
    if level is FULL and isinstance(value, Mapping):
        # No further than the length it claims: an endless one ends.
        return {key: value[key] for key in islice(iter(value), len(value))}
    raise Refused


# --- converters ---------------------------------------------------------------------------------


def _list(item: Take | None, exact: type | None, level: Level) -> Take:
    if item is None:
        return lambda value: list(listed(value, level))
    if exact is not None:
        return _plain_list(item, {exact}, level)

    def take(value: Any) -> list[Any]:
        return [item(one) for one in (value if type(value) is list else listed(value, level))]

    return take


def _plain_list(item: Take, exact: set[type], level: Level) -> Take:
    def take(value: Any) -> list[Any]:
        items = value if type(value) is list else listed(value, level)
        # Items that are all of the right class are copied at once.
        return list(items) if set(map(type, items)) == exact else [item(one) for one in items]

    return take


def _tuple(item: Take | None, level: Level) -> Take:
    def take(value: Any) -> tuple[Any, ...]:
        items = tupled(value, level)
        return tuple(items) if item is None else tuple([item(one) for one in items])

    return take


def _fixed_tuple(items: tuple[Take, ...], level: Level) -> Take:
    length = len(items)

    def take(value: Any) -> tuple[Any, ...]:
        given = tupled(value, level)
        if len(given) != length:
            raise Refused
        return tuple([item(one) for item, one in zip(items, given, strict=True)])

    return take


def _set(python: type[Any], item: Take | None, level: Level) -> Take:
    def take(value: Any) -> Any:
        items = grouped(value, python, level)
        try:
            return python(items if item is None else [item(one) for one in items])
        except TypeError:
            # An item cannot be hashed.
            raise Refused from None

    return take


def _bare_dict(level: Level) -> Take:
    def take(value: Any) -> dict[Any, Any]:
        return dict(mapped(value, level))

    return take


def _dict(key: Take, item: Take, level: Level) -> Take:
    def take(value: Any) -> dict[Any, Any]:
        given = value if type(value) is dict else mapped(value, level)
        try:
            taken = {key(name): item(one) for name, one in given.items()}
        except TypeError:
            # A key cannot be hashed once it is converted.
            raise Refused from None
        # Two keys that became one would lose a value.
        if len(taken) != len(given):
            raise Refused
        return taken

    return take
