"""Converters to classes: enums, pydantic models, dataclasses, TypedDicts, NamedTuples; of any other, an instance."""

from __future__ import annotations

import sys
import threading
from collections.abc import Mapping
from enum import Enum
from typing import Any, Final

from signatures.converters.choices import enum_taker
from signatures.converters.containers import mapped, tupled
from signatures.converters.hints import class_members, is_named_tuple, is_recursive, is_typed_dict
from signatures.converters.levels import FULL, Level, Refused, Take
from signatures.converters.members import Member, mapping_taker

MAX_DEPTH: Final = 64


def class_taker(python: type, level: Level) -> Take:
    """Return the converter to a class. What its fields are is looked up at the first value: it may contain itself."""
    if issubclass(python, Enum):
        return enum_taker(python, level)
    if is_model(python):
        return _model_taker(python, level)
    if not (is_typed_dict(python) or level is FULL):
        return _instance_taker(python)
    made: list[Take] = []

    def take(value: Any) -> Any:
        if not made:
            made.append(_members_taker(python, level))
        return made[0](value)

    return take


def is_model(python: type) -> bool:
    """Tell whether a class is a pydantic model. Never loads pydantic."""
    base = getattr(sys.modules.get("pydantic"), "BaseModel", None)
    return base is not None and issubclass(python, base)


def is_made_of(python: type, value: Any) -> bool:
    """Tell whether a value is of a kind that a class's values are made of."""
    if is_model(python):
        return isinstance(value, Mapping)
    if class_members(python) is None:
        return False
    return isinstance(value, Mapping) or (is_named_tuple(python) and isinstance(value, list | tuple))


def names_of(python: type) -> list[str] | None:
    """Return the names in a mapping that a value of a class is made of, None for a class that takes none."""
    if is_model(python):
        return None if is_root_model(python) else _model_names(python)
    members = class_members(python)
    return None if members is None else [member.name for member in members]


def _model_names(python: Any) -> list[str]:
    return [info.alias or name for name, info in python.model_fields.items()]


def _instance_taker(python: type) -> Take:
    def take(value: Any) -> Any:
        if isinstance(value, python):
            return value
        raise Refused

    return take


def _model_taker(python: Any, level: Level) -> Take:
    takes_all = is_root_model(python)

    def take(value: Any) -> Any:
        if isinstance(value, python):
            return value
        if level is not FULL or not (takes_all or isinstance(value, Mapping)):
            raise Refused
        try:
            return python.model_validate(value if takes_all else mapped(value))
        except Exception:  # noqa: BLE001 - a model's validators can raise anything
            raise Refused from None

    return take


def is_root_model(python: type) -> bool:
    """Tell whether a pydantic model is made of one value of any kind."""
    return bool(getattr(python, "__pydantic_root_model__", False))


# --- classes that are made by name ----------------------------------------------------------------


def _members_taker(python: type, level: Level) -> Take:
    members = class_members(python)
    if members is None:
        return _instance_taker(python)
    take_mapping = mapping_taker(members, level)
    if is_typed_dict(python):
        return _gated(take_mapping) if is_recursive(python) else take_mapping
    make = _maker(python, members, take_mapping)
    if is_recursive(python):
        make = _gated(make)

    def take(value: Any) -> Any:
        return value if isinstance(value, python) else make(value)

    return take


def _maker(python: type, members: tuple[Member, ...], take_mapping: Take) -> Take:
    positional = is_named_tuple(python)

    def make(value: Any) -> Any:
        if positional and isinstance(value, list | tuple):
            value = by_place(members, value)
        taken = take_mapping(value)
        try:
            return python(**taken)
        except Exception:  # noqa: BLE001 - a class's __init__ can raise anything
            raise Refused from None

    return make


def by_place(members: tuple[Member, ...], value: Any) -> dict[str, Any]:
    """Return the items of a list or tuple by the names of a NamedTuple's fields. Raises Refused if there are more."""
    items = tupled(value)
    if len(items) > len(members):
        raise Refused
    return {member.name: one for member, one in zip(members, items, strict=False)}


# --- classes that contain themselves --------------------------------------------------------------


class _Progress(threading.local):
    """What one thread is at.

    results: what each converter made of each value. The value is kept, so that its id stays its own.
    """

    def __init__(self) -> None:
        self.depth = 0
        self.results: dict[tuple[Take, int], tuple[Any, Any]] = {}


_progress: Final = _Progress()
_REFUSED: Final = object()


def _gated(take: Take) -> Take:
    """Bound the depth of values, and look at each only once.

    A union of such classes would otherwise try each value as each class, anew at every level: 2^64 tries.
    """

    def gated(value: Any) -> Any:
        key = gated, id(value)
        known = _progress.results.get(key)
        result = _tried(take, value) if known is None else known[1]
        if known is None and _progress.depth:
            _progress.results[key] = value, result
        if result is _REFUSED:
            raise Refused
        return result

    return gated


def _tried(take: Take, value: Any) -> Any:
    if _progress.depth == MAX_DEPTH:
        return _REFUSED
    _progress.depth += 1
    try:
        return take(value)
    except Refused:
        return _REFUSED
    finally:
        _progress.depth -= 1
        if not _progress.depth:
            _progress.results.clear()
