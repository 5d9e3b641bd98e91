"""How large a batch may be: what was configured, and less after memory ran out."""

from __future__ import annotations

from typing import Any, Final

# What the texts of one batch may have in all, in characters or bytes. An item of more is a batch of its own.
BATCH_CHARS: Final = 262_144
# So many batches that went well make the limit larger again, by a quarter.
_GOOD_BATCHES: Final = 16
_GROWTH: Final = 1.25


class BatchLimit:
    """The limits of the next batch, in items and in characters. For one thread."""

    def __init__(self, most_items: int, most_chars: int = BATCH_CHARS) -> None:
        self._most_items = most_items
        self._most_chars = most_chars
        self._part = 1.0
        self._good = 0

    @property
    def items(self) -> int:
        """How many items the next batch may have, 1 at least."""
        return max(1, int(self._most_items * self._part))

    @property
    def chars(self) -> int:
        """How many characters the next batch may have."""
        return max(1, int(self._most_chars * self._part))

    def ran_out(self, items: int) -> None:
        """Memory did not suffice for a batch of so many items: half of it from now on."""
        tried = min(self._part, items / self._most_items)
        self._part = max(tried / 2, 1 / self._most_items)
        self._good = 0

    def ran(self) -> None:
        """A batch went well."""
        if self._part == 1.0:
            return
        self._good += 1
        if self._good >= _GOOD_BATCHES:
            self._good = 0
            # By a whole item at least: a quarter of less than four is none.
            self._part = min(1.0, max(self._part * _GROWTH, (self.items + 1) / self._most_items))


def size_of(item: Any) -> int:
    """Return how large an item is: characters of a text, bytes of bytes and arrays, 1 for what has no such size."""
    if isinstance(item, str | bytes | bytearray):
        return len(item)
    size = getattr(item, "nbytes", 1)
    return size if isinstance(size, int) else 1


def is_out_of_memory(exc: BaseException) -> bool:
    """Tell whether an exception says that memory ran out, of the machine or of a GPU (torch has classes of its own)."""
    return isinstance(exc, MemoryError) or any(cls.__name__ == "OutOfMemoryError" for cls in type(exc).__mro__)
