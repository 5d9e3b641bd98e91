"""DSPy's results as values that travel."""

from __future__ import annotations

from typing import Any

from bridge.protocol import typed
from bridge.protocol.values import MAX_NESTING


def to_plain(value: Any) -> Any:
    """Return `value` with DSPy's and pydantic's objects replaced.

    A `dspy.Prediction` becomes a `Prediction`, an `Example` or a model a record of its fields (which arrives as the
    class where that is loaded), an enum its value, a dataclass a dict, within lists, tuples, sets and dicts too.
    Everything else is left as it is: what cannot travel, what contains itself included, is told by its path when it is
    encoded.
    """
    return typed.travelling(value, MAX_NESTING)
