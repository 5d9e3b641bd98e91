"""How hard a converter tries, and how it says no."""

from __future__ import annotations

import sys
from collections.abc import Callable
from enum import IntEnum
from typing import Any, Final

Take = Callable[[Any], Any]


class Refused(Exception):
    """A value does not fit. It carries nothing: what is wrong is found out by a second look, which may be slow."""


class Level(IntEnum):
    """What a converter may do to a value.

    EXACT: nothing: the result equals the value and is of its types. BASE: values of subclasses and numpy's scalars
    become plain ones. FULL: every conversion of the rules. A union tries its members at each level in turn.
    """

    EXACT = 0
    BASE = 1
    FULL = 2


EXACT: Final = Level.EXACT
BASE: Final = Level.BASE
FULL: Final = Level.FULL


def unwrapped(value: Any) -> Any:
    """Return the Python value of a numpy scalar, any other value as it is. Never loads numpy."""
    numpy = sys.modules.get("numpy")
    generic = getattr(numpy, "generic", None)
    return value.item() if generic is not None and isinstance(value, generic) else value
