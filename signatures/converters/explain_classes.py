"""What is wrong with a value that a class refused."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, Final

from signatures.converters.classes import MAX_DEPTH, by_place, is_made_of, is_model, is_root_model
from signatures.converters.containers import mapped
from signatures.converters.explain import Found, counted, joined, members
from signatures.converters.hints import class_members, is_recursive, is_typed_dict
from signatures.converters.levels import FULL, Refused
from signatures.converters.members import Member, mapping_taker
from signatures.converters.shown import got, type_name
from signatures.converters.words import expects
from signatures.types import Custom

_MAX_TEXT: Final = 200


def explain_class(type: Custom, value: Any, path: str, found: Found) -> None:
    """Add every problem of a value that a class refused."""
    python = type.python
    if is_model(python) and (isinstance(value, Mapping) or is_root_model(python)):
        return _model(python, value, path, found)
    known = class_members(python)
    if known is None or not is_made_of(python, value):
        return found.add(path, f"must be {expects(type)}, got {got(value)}")
    if not isinstance(value, Mapping):
        try:
            value = by_place(known, value)
        except Refused:
            return found.add(path, f"must be {expects(type)}, got {counted(len(value), 'item')}")
    before = len(found.problems)
    members(known, value, path, found)
    if len(found.problems) == before:
        _whole(python, known, value, path, found)
    return None


def _whole(python: type, known: tuple[Member, ...], value: Any, path: str, found: Found) -> None:
    """Add what is wrong with a value whose members are all in order."""
    try:
        taken = mapping_taker(known, FULL)(value)
        if not is_typed_dict(python):
            python(**taken)
    except Refused:
        return found.add(path, "cannot be read")
    except Exception as exc:  # noqa: BLE001 - a class's __init__ can raise anything
        return found.add(path, f"makes no {python.__name__}: {_told(exc)}")
    # Seen from here it is not too deep, seen from further out it was.
    return found.add(path, f"is nested deeper than {MAX_DEPTH} levels" if is_recursive(python) else "cannot be read")


def _model(python: Any, value: Any, path: str, found: Found) -> None:
    try:
        python.model_validate(value if is_root_model(python) else mapped(value))
    except sys.modules["pydantic"].ValidationError as exc:
        for error in exc.errors(include_url=False, include_context=False):
            place = path
            for part in error["loc"]:
                place = joined(place, part) if isinstance(part, str) else f"{place}[{part}]"
            found.add(place, _says(error))
    except Exception as exc:  # noqa: BLE001 - a model's validators can raise anything
        found.add(path, f"makes no {python.__name__}: {_told(exc)}")


def _says(error: Any) -> str:
    """Return one problem of pydantic's in the form that problems have here."""
    text = " ".join(str(error["msg"]).split())[:_MAX_TEXT]
    match error["type"]:
        case "missing":
            return "is missing; give a value"
        case "extra_forbidden":
            return "is unknown; leave it out"
    given = got(error["input"])
    if text.startswith("Input should be "):
        return f"must be {text.removeprefix('Input should be ')}, got {given}"
    return f"is refused: {text.removeprefix('Value error, ').removeprefix('Assertion failed, ')}, got {given}"


def _told(exc: Exception) -> str:
    try:
        text = " ".join(str(exc).split())
    except Exception:  # noqa: BLE001 - the text of an exception is code of its class
        text = ""
    return text[:_MAX_TEXT] or type_name(exc)
