"""Compiled converters: what values a type accepts, and what it makes of them.

`scalars`, `times`, `containers`, `choices`, `members` and `classes` hold the rules; `limits` the constraints; `build`
puts them together; `explain` says what is wrong, once something is; `words` says what would be right.
"""

from __future__ import annotations

from typing import Any

from signatures.converters.build import taker
from signatures.converters.explain import problems_of
from signatures.converters.levels import Refused
from signatures.converters.words import expects
from signatures.errors import ValidationError
from signatures.types import Constraints, Type

__all__ = ["convert", "expects"]


def convert(type: Type, constraints: Constraints, value: Any, path: str) -> Any:
    """Return a value converted to a type.

    path: how messages call the value. Raises ValidationError that lists every problem, each with its path; nothing
    else, whatever the value does.
    """
    take = taker(type, constraints)
    try:
        return take(value)
    except Refused:
        raised = None
    except Exception as exc:  # noqa: BLE001 - the code of a given value, such as its keys(), can raise anything
        raised = exc
    raise ValidationError(problems_of(type, constraints, value, path, raised))
