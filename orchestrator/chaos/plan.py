"""What is done to a system, and when: a pure function of the seed."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

# How often each kind comes, relative to the others. Workers die most: that is what a system has to live with.
WEIGHTS: Final[Mapping[str, float]] = {
    "kill_worker": 30,
    "stop_worker": 8,
    "segv_worker": 8,
    "hang": 6,
    "hold_gil": 5,
    "leak": 3,
    "flood": 4,
    "kill_zygote": 4,
    "kill_nanny": 2,
    "kill_coordinator": 2,
    "kill_client": 4,
    "stop_client": 3,
    "malformed": 8,
}
KINDS: Final = tuple(WEIGHTS)

# For how long a process is stopped, the interpreter lock held: within what the others bear, and beyond it.
_SECONDS: Final[Mapping[str, tuple[float, ...]]] = {
    "stop_worker": (0.2, 1.0, 6.0),
    "stop_client": (0.2, 1.0, 2.0),
    "hold_gil": (0.2, 1.0, 6.0),
    "hang": (30.0,),
}


@dataclass(frozen=True, slots=True)
class Mischief:
    """One deed, `at_s` seconds after the begin. rank: of the victim among those there are then, modulo their number."""

    at_s: float
    kind: str
    rank: int
    seconds: float = 0.0


def plan(seed: int, every_s: float, kinds: Collection[str] = KINDS) -> Iterator[Mischief]:
    """Yield what is done, without end: a Poisson process with a deed each `every_s` seconds on average.

    kinds: some of KINDS. Raises ValueError for others, for none, and where `every_s` is not positive.
    """
    chosen = [kind for kind in KINDS if kind in kinds]
    if not chosen or len(chosen) < len(set(kinds)) or every_s <= 0.0:
        raise ValueError(f"kinds are some of {', '.join(KINDS)}, and every_s is positive")
    return _plan(random.Random(f"chaos {seed}"), every_s, chosen)


def _plan(rng: random.Random, every_s: float, kinds: list[str]) -> Iterator[Mischief]:
    at_s, weights = 0.0, [WEIGHTS[kind] for kind in kinds]
    while True:
        at_s += rng.expovariate(1.0 / every_s)
        (kind,) = rng.choices(kinds, weights)
        yield Mischief(at_s, kind, rng.randrange(1 << 16), rng.choice(_SECONDS.get(kind, (0.0,))))
