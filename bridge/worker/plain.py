"""DSPy's results as values that travel."""

from __future__ import annotations

from enum import Enum
from typing import Any

import dspy  # type: ignore[import-untyped]
from pydantic import BaseModel

from bridge.protocol.values import Prediction


def to_plain(value: Any) -> Any:
    """Return `value` with DSPy's and pydantic's objects replaced.

    A `dspy.Prediction` becomes a `Prediction`, an `Example` a dict, a model its `model_dump()`, an enum its value,
    within lists, tuples, sets and dicts too. Everything else is left as it is: what cannot travel is told by its path
    when it is encoded.
    """
    if isinstance(value, str | int | float | bytes | None) and not isinstance(value, Enum):
        return value
    if isinstance(value, dspy.Prediction):
        return Prediction({str(name): to_plain(item) for name, item in value.items()})
    if isinstance(value, dspy.Example):
        return {name: to_plain(item) for name, item in value.items()}
    if isinstance(value, BaseModel):
        return to_plain(value.model_dump())
    if isinstance(value, Enum):
        return to_plain(value.value)
    if isinstance(value, dict):
        return {key: to_plain(item) for key, item in value.items()}
    if type(value) in (list, tuple, set, frozenset):
        return type(value)(to_plain(item) for item in value)
    return value
