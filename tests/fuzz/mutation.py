"""A seeded mutation engine: what a byte string becomes when somebody errs, or means harm."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Sequence
from typing import Final

# What begins something in msgpack, with sizes that do not follow.
_TOKENS: Final = (
    b"\xc0", b"\xc1", b"\xc2", b"\x80", b"\x90", b"\x9f", b"\xa0", b"\xbf", b"\xdc\xff\xff", b"\xdd\xff\xff\xff\xff",
    b"\xde\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xc9\xff\xff\xff\xff\x01", b"\xd9\xff",
    b"\xcf" + b"\xff" * 8, b"\xd3\x80" + bytes(7), b"\xcb\x7f\xf8" + bytes(6), b"\xcb\x7f\xf0" + bytes(6),
    b"\xc7\x0c\xff" + b"\xff" * 12, b"\xd6\xff" + bytes(4), b"\xed\xa0\x80", b"\x91" * 40, b"\xd4\x01\x90",
)  # fmt: skip
_MOST_BYTES: Final = 40_000


class Mutator:
    """Gives byte strings like the seeds, one to four changes away. The same seed gives the same ones."""

    def __init__(self, seeds: Sequence[bytes], seed: int | str) -> None:
        self._seeds = seeds
        self._rng = random.Random(seed)
        self._changes: tuple[Callable[[bytearray], None], ...] = (
            self._flip, self._flip, self._set, self._number, self._cut, self._drop, self._repeat, self._insert,
            self._splice,
        )  # fmt: skip

    def next(self) -> bytes:
        """Return one more; now and then a seed as it is."""
        rng = self._rng
        data = bytearray(rng.choice(self._seeds))
        for _ in range(rng.randrange(5)):
            rng.choice(self._changes)(data)
        return bytes(data[:_MOST_BYTES])

    def _at(self, data: bytearray) -> int:
        # Most that can go wrong is in the first bytes.
        size = len(data)
        return self._rng.randrange(min(size, 24) if self._rng.random() < 0.5 else size) if size else 0

    def _flip(self, data: bytearray) -> None:
        if data:
            data[self._at(data)] ^= 1 << self._rng.randrange(8)

    def _set(self, data: bytearray) -> None:
        if data:
            data[self._at(data)] = self._rng.randrange(256)

    def _number(self, data: bytearray) -> None:
        at = self._at(data)
        width, form = self._rng.choice(((1, "!B"), (2, "!H"), (4, "!I"), (8, "!Q")))
        most = (1 << 8 * width) - 1
        number = self._rng.choice((0, 1, most, most >> 1, (most >> 1) + 1, len(data) & most))
        data[at : at + width] = struct.pack(form, number)

    def _cut(self, data: bytearray) -> None:
        del data[self._at(data) :]

    def _drop(self, data: bytearray) -> None:
        at = self._at(data)
        del data[at : at + self._rng.randrange(1, 9)]

    def _repeat(self, data: bytearray) -> None:
        at = self._at(data)
        data[at:at] = bytes(data[at : at + self._rng.randrange(1, 64)]) * self._rng.choice((1, 2, 30))

    def _insert(self, data: bytearray) -> None:
        at = self._at(data)
        data[at:at] = self._rng.choice(_TOKENS)

    def _splice(self, data: bytearray) -> None:
        other = self._rng.choice(self._seeds)
        data[self._at(data) :] = other[self._rng.randrange(len(other)) if other else 0 :]
