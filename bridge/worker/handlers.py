"""Which handler of a callback a call in DSPy means, remembered.

DSPy finds it by testing what is called against a runtime protocol among others. On Python 3.11 each test costs 10 µs,
and a call of `dspy.Predict` with one callback makes ten: a quarter of its time. The outcome depends on types and names
alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Final

from dspy.utils import callback as dspys  # type: ignore[import-untyped]

# DSPy's own functions `(callback, instance, function) -> handler`, by their names in its module.
FINDERS: Final = ("_get_on_start_handler", "_get_on_end_handler")
_KEPT: Final = 1024
_MARK: Final = "dspool_remembered"


class _Names:
    """A callback whose handlers are their own names."""

    def __getattr__(self, name: str) -> str:
        return name


def remember() -> None:
    """Have DSPy remember its handlers. Idempotent; a DSPy that finds them in another way is left as it is."""
    for name in FINDERS:
        find = getattr(dspys, name, None)
        if callable(find) and not hasattr(find, _MARK):
            setattr(dspys, name, remembered(find))


def remembered(find: Callable[[Any, Any, Any], Any]) -> Callable[[Any, Any, Any], Any]:
    """Return a function that finds what `find` does, and asks it once for each kind of call."""
    names: dict[tuple[type, str, bool], str] = {}

    @functools.wraps(find)
    def handler(callback: Any, instance: Any, function: Any) -> Any:
        # What DSPy looks at of an instance besides its type.
        decides = getattr(instance, "supports_decision_requests", False) is True
        key = type(instance), function.__name__, decides
        name = names.get(key)
        if name is None:
            if len(names) >= _KEPT:
                names.clear()  # a program that makes classes as it goes
            name = names[key] = find(_Names(), instance, function)
        return getattr(callback, name)

    setattr(handler, _MARK, True)
    return handler
