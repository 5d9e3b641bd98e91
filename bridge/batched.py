"""`@batched`: a function that is called with many callers' items at once.

    @batched(max_items=64, max_wait_ms=5)
    def score(texts: list[str]) -> list[float]: ...

    client.deploy("score", "file.py:score", pool="neural")
    client.execute("score", "one text")

The worker collects what callers send and calls the function with a list; each caller gets the result of its own item.
A class does as well: one instance is made per worker, with the deployment's `config`, and called in this way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple, TypeVar

MAX_ITEMS: Final = 64
MAX_WAIT_MS: Final = 5.0
# The most that may be asked for.
MOST_ITEMS: Final = 4096
MOST_WAIT_MS: Final = 10_000.0

_MARK: Final = "__dspool_batch_limits__"

T = TypeVar("T", bound=Callable[..., Any])


class BatchLimits(NamedTuple):
    """A batch is run when it has max_items, or max_wait_ms after its first item came."""

    max_items: int = MAX_ITEMS
    max_wait_ms: float = MAX_WAIT_MS


def batched(*, max_items: int = MAX_ITEMS, max_wait_ms: float = MAX_WAIT_MS) -> Callable[[T], T]:
    """Mark a function, or a class whose instances are called, as one that takes a list of items.

    It gets a list of 1 to max_items items and returns as many results in the same order: a list, a tuple or an array
    with a row for each. When it raises, it is called again with one item after the other, so that a bad item fails
    alone: calling it twice with an item must do no harm. Marked, it is called in this process as before.
    Raises ValueError for limits that cannot be.
    """
    if type(max_items) is not int or not 1 <= max_items <= MOST_ITEMS:
        raise ValueError(f"max_items must be a whole number from 1 to {MOST_ITEMS}, got {max_items!r}")
    is_number = isinstance(max_wait_ms, int | float) and not isinstance(max_wait_ms, bool)
    if not is_number or not 0 <= max_wait_ms <= MOST_WAIT_MS:
        raise ValueError(f"max_wait_ms must be a number from 0 to {MOST_WAIT_MS:g}, got {max_wait_ms!r}")

    def mark(target: T) -> T:
        if not callable(target):
            raise TypeError(f"@batched marks a function or a class, not {type(target).__name__}")
        setattr(target, _MARK, BatchLimits(max_items, float(max_wait_ms)))
        return target

    return mark


def limits_of(target: Any) -> BatchLimits | None:
    """Return the limits that a function, a class or an instance was marked with, None if it was not."""
    found = getattr(target, _MARK, None)
    return found if isinstance(found, BatchLimits) else None
