"""DSPy's results as values that travel."""

from __future__ import annotations

from enum import Enum
from typing import Any

import dspy  # type: ignore[import-untyped]
from pydantic import BaseModel

from bridge.protocol.values import MAX_NESTING, Prediction


def to_plain(value: Any) -> Any:
    """Return `value` with DSPy's and pydantic's objects replaced.

    A `dspy.Prediction` becomes a `Prediction`, an `Example` a dict, a model its `model_dump()`, an enum its value,
    within lists, tuples, sets and dicts too. Everything else is left as it is: what cannot travel, what contains itself
    included, is told by its path when it is encoded.
    """
    return _Plain().of(value, MAX_NESTING)


class _Plain:
    """One conversion. too_deep: it has met what cannot be encoded, so the rest is left as it is."""

    __slots__ = ("too_deep",)

    def __init__(self) -> None:
        self.too_deep = False

    def of(self, value: Any, levels: int) -> Any:
        """Return a value converted, `levels` containers deep at most."""
        if isinstance(value, str | int | float | bytes | None) and not isinstance(value, Enum):
            return value
        if levels < 0:
            self.too_deep = True
        if self.too_deep:
            return value
        below = levels - 1
        if isinstance(value, dspy.Prediction):
            return Prediction({str(name): self.of(item, below) for name, item in value.items()})
        if isinstance(value, dspy.Example):
            return {name: self.of(item, below) for name, item in value.items()}
        if isinstance(value, BaseModel):
            return self.of(value.model_dump(), levels)
        if isinstance(value, Enum):
            return self.of(value.value, below)
        if isinstance(value, dict):
            return {key: self.of(item, below) for key, item in value.items()}
        if type(value) in (list, tuple, set, frozenset):
            return type(value)(self.of(item, below) for item in value)
        return value
