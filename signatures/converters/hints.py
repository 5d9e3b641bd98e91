"""The named members of classes: of dataclasses, TypedDicts and NamedTuples, by their annotations."""

from __future__ import annotations

import dataclasses
import typing
from functools import lru_cache
from typing import Any, Final

from signatures.converters.members import Member
from signatures.errors import SignatureError
from signatures.types import ANY, NONE, Type

_CACHED: Final = 256


def is_typed_dict(python: type) -> bool:
    """Tell whether a class is a TypedDict, of typing or of typing_extensions."""
    return issubclass(python, dict) and hasattr(python, "__required_keys__") and hasattr(python, "__total__")


def is_named_tuple(python: type) -> bool:
    """Tell whether a class is a NamedTuple."""
    return issubclass(python, tuple) and isinstance(getattr(python, "_fields", None), tuple)


@lru_cache(maxsize=_CACHED)
def class_members(python: type) -> tuple[Member, ...] | None:
    """Return the members of a class whose values are made by name, None if it is of another kind.

    A member whose annotation cannot be resolved or says nothing about values (a Callable, a TypeVar) is Any: the class
    itself may check it. Members without a value get their defaults from the class.
    """
    if is_typed_dict(python):
        hints = _hints(python)
        return tuple(_member(name, hint, _is_required(python, name, hint)) for name, hint in hints.items())
    if is_named_tuple(python):
        hints, defaults = _hints(python), getattr(python, "_field_defaults", {})
        return tuple(_member(name, hints.get(name, Any), name not in defaults) for name in _names(python))
    if dataclasses.is_dataclass(python):
        hints = _hints(python)
        return tuple(
            _member(one.name, hints.get(one.name, Any), _has_no_default(one))
            for one in dataclasses.fields(python)
            if one.init
        )
    return None


@lru_cache(maxsize=_CACHED)
def is_recursive(python: type) -> bool:
    """Tell whether values of a class may contain values of the same class."""
    seen: set[type] = set()
    waiting = [python]
    while waiting:
        for member in class_members(waiting.pop()) or ():
            for inner in member.type.customs.values():
                if inner is python:
                    return True
                if inner not in seen:
                    seen.add(inner)
                    waiting.append(inner)
    return False


def _names(python: type) -> tuple[str, ...]:
    return tuple(python._fields)  # type: ignore[attr-defined]


def _member(name: str, hint: Any, required: bool) -> Member:
    return Member(name, _type(hint), NONE, required)


def _type(hint: Any) -> Type:
    # Here, because annotations are read by a module that may need converters.
    from signatures.annotations import from_annotation

    try:
        return from_annotation(hint)
    except SignatureError:
        return ANY


def _hints(python: type) -> dict[str, Any]:
    try:
        return typing.get_type_hints(python, localns={python.__name__: python}, include_extras=True)
    except Exception:  # noqa: BLE001 - an annotation is a text of the user's, and can raise anything
        # One of them cannot be resolved: the others count all the same.
        return {name: _hint(python, one) for name, one in _written(python).items()}


def _written(python: type) -> dict[str, Any]:
    written: dict[str, Any] = {}
    for base in reversed(python.__mro__):
        written |= vars(base).get("__annotations__", {})
    return written


def _hint(python: type, written: Any) -> Any:
    holder = type("Holder", (), {"__annotations__": {"one": written}, "__module__": python.__module__})
    try:
        return typing.get_type_hints(holder, localns={python.__name__: python}, include_extras=True)["one"]
    except Exception:  # noqa: BLE001 - as above
        return Any


def _is_required(python: type, name: str, hint: Any) -> bool:
    while (origin := str(typing.get_origin(hint)).rpartition(".")[2]) in ("Required", "NotRequired", "ReadOnly"):
        # What is written counts: __required_keys__ does not know annotations that are texts.
        if origin != "ReadOnly":
            return origin == "Required"
        (hint,) = typing.get_args(hint)
    return name in python.__required_keys__  # type: ignore[attr-defined]


def _has_no_default(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
