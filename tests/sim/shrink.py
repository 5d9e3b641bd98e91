"""Making a failing history small: moves are left out while the same invariant still breaks.

After Zeller's delta debugging (ddmin, 2002): halves, then quarters, down to single moves.
"""

from __future__ import annotations

from collections import Counter

from tests.sim.history import Failure, play
from tests.sim.schedule import generate

_PLAYS_MAX = 2_000


def shrink(failure: Failure) -> Failure:
    """Return the same failure with as few moves as can be found."""
    whole = failure.schedule
    kept = tuple(whole.kept if whole.kept is not None else range(len(whole.moves)))
    best, plays, parts = failure, 0, 2
    origin = generate(whole.seed, whole.size)
    while len(kept) >= 1 and plays < _PLAYS_MAX:
        size = max(1, len(kept) // parts)
        for start in range(0, len(kept), size):
            fewer = kept[:start] + kept[start + size :]
            plays += 1
            smaller = play(origin.keeping(fewer), Counter())
            if smaller is not None and smaller.invariant == failure.invariant:
                best, kept, parts = smaller, fewer, max(2, parts - 1)
                break
        else:
            if size == 1:
                break
            parts = min(len(kept), parts * 2)
    return best
