"""Validation: the values of all fields at once, compiled once per tuple of fields."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from signatures.converters.explain import Found, collect, members
from signatures.converters.levels import FULL, Refused
from signatures.converters.members import Member, mapping_taker, members_of
from signatures.converters.shown import got
from signatures.errors import Problem, ValidationError

if TYPE_CHECKING:
    from signatures.model import Field

_CACHED: Final = 256


@lru_cache(maxsize=_CACHED)
def validator(fields: tuple[Field, ...]) -> Callable[[Any], dict[str, Any]]:
    """Return the function that checks a mapping of values against fields.

    It returns a new dict of the converted values, in the order of the fields, with defaults filled in; containers
    among them are fresh ones each time. It raises ValidationError that lists every missing, unknown or unfit value
    with its path, and nothing else, whatever the values do. It may be called from several threads at once.
    Raises ValidationError for a default that does not fit.
    """
    known = members_of(fields)
    take = mapping_taker(known, FULL)

    def validate(values: Any) -> dict[str, Any]:
        try:
            return take(values)  # type: ignore[no-any-return]
        except Refused:
            raised = None
        except Exception as exc:  # noqa: BLE001 - the code of a given value, such as its keys(), can raise anything
            raised = exc
        raise ValidationError(_problems(known, values, raised))

    return validate


def _problems(known: tuple[Member, ...], values: Any, raised: Exception | None) -> list[Problem]:
    found = Found()

    def look() -> None:
        if isinstance(values, Mapping):
            members(known, values, "", found)
        else:
            found.add("", f"must be a mapping of names to values, got {got(values)}")

    collect(found, look, "", raised)
    return found.problems
