"""Numbers that look random and depend on names alone, so that one move more or less changes nothing for the others."""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence
from typing import Final, TypeVar

T = TypeVar("T")

_SIZE: Final = 4096
_STEP: Final = 1597
_GOLDEN: Final = 0x9E3779B1
_RANDOM: Final = random.Random(2718)
_TABLE: Final = tuple(_RANDOM.random() for _ in range(_SIZE))


class Noise:
    """A stream of numbers in [0, 1), named by the history's seed and whose it is."""

    __slots__ = ("_at",)

    def __init__(self, seed: int, name: str) -> None:
        # A checksum of similar names differs in few bits; the product differs in all.
        self._at = zlib.crc32(name.encode(), seed & 0xFFFFFFFF) * _GOLDEN >> 12

    def next(self) -> float:
        """Return the next number."""
        self._at += _STEP
        return _TABLE[self._at % _SIZE]


def pick(source: random.Random, choices: Sequence[T]) -> T:
    """Return one of the choices."""
    return choices[int(source.random() * len(choices))]
