"""What programs ask for while they run, and the connections of workers' processes through which they do."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, Any, Final

from bridge.protocol import messages as wire
from pools.config import FleetConfig
from tests.sim.asks import KEYS, POISON, PROGRAM, SHARED, Ask
from tests.sim.client import Client
from tests.sim.noise import Noise, pick
from tests.sim.work import Work

if TYPE_CHECKING:
    from tests.sim.world import World

# Numbers of these connections begin here.
INSIDERS_FROM: Final = 1000
_ASKS: Final = 0.03
_ASTRAY: Final = 0.03
_KEYED: Final = 0.2
_POISONED: Final = 0.03
# How deep a family is, and how many there are in each place.
_SIZES: Final = ((1, 1), (1, 1), (1, 2), (1, 6), (2, 1), (2, 2), (3, 2), (9, 1))
_TOO_DEEP: Final = 9
_RUNS_S: Final = (0.0001, 0.002, 0.002, 0.03, 0.2)
_ENDINGS: Final = ("ok",) * 12 + ("error", "hang", "deaf", "late", "crash", "twice")
_DEADLINES_MS: Final = (None, None, None, None, 40.0, 2000.0)
_ROWS: Final = (1,) * 9 + (2, 2, 600)
_PRIORITIES: Final = (wire.PRIORITY_NORMAL, wire.PRIORITY_LOW, wire.PRIORITY_HIGH)
# What any program may ask for by itself.
_SMALL: Final = (
    ((Ask("fast"), Work(0.0001)),),
    ((Ask("slow"), Work(0.01)), (Ask("slow", rows=2), Work(0.002))),
    ((Ask("slow", deadline_ms=40.0, idempotent=True), Work(0.03)),),
    ((Ask("slow", key="k", payload=b"a"), Work(0.002)),),
)


class Insider(Client):
    """A connection of a worker's process for one principal. read(id) is called for each answer."""

    def __init__(self, world: World, number: int, worker_id: str, principal: str, read: Callable[[int], None]) -> None:
        self._answered = read
        name = f"{worker_id} for {principal}"
        super().__init__(world, number, name=name, principal=principal, worker_id=worker_id)

    def _read(self, message: wire.Message) -> None:
        super()._read(message)
        if type(message) in (wire.Reply, wire.Invalid):
            self._answered(message.request_id)


def children_of(seed: int, epoch: int) -> tuple[tuple[Any, Work], ...]:
    """Return what an attempt asks for that was not said to ask for anything: now and then something."""
    noise = Noise(seed, f"children {epoch}")
    return _SMALL[int(noise.next() * len(_SMALL))] if noise.next() < _ASKS else ()


def goes_astray(seed: int, epoch: int) -> bool:
    """Whether an attempt names another's parent."""
    return Noise(seed, f"astray {epoch}").next() < _ASTRAY


def draw_family(random: Random, config: FleetConfig) -> tuple[Ask, Work]:
    """Draw a request whose program asks for others, and so may theirs."""
    levels, count = pick(random, _SIZES)
    if levels == _TOO_DEEP:
        return Ask("slow"), _chain(levels)
    children: tuple[tuple[Ask, Work], ...] = ()
    for _ in range(levels):
        child = _draw_child(random, config, children)
        children = tuple(_draw_child(random, config, children) if n % 2 else child for n in range(count))
    ask = Ask(
        "slow", deadline_ms=pick(random, (*_DEADLINES_MS, 300.0)), priority=pick(random, _PRIORITIES),
        idempotent=random.random() < 0.3,
    )  # fmt: skip
    if random.random() < _KEYED:
        ask = ask._replace(key=pick(random, KEYS), payload=pick(random, SHARED))
    return ask, _draw_work(random, children)


def _chain(levels: int) -> Work:
    children = ((Ask("slow"), _chain(levels - 1)),) if levels else ()
    return Work(0.0001, children=children)


def _draw_child(random: Random, config: FleetConfig, children: tuple[tuple[Ask, Work], ...]) -> tuple[Ask, Work]:
    ask = Ask(
        pick(random, ("slow", "slow", "fast", PROGRAM)), pick(random, ("", "", "", config.pools[-1].name)),
        pick(random, _ROWS), pick(random, _DEADLINES_MS), pick(random, _PRIORITIES), random.random() < 0.3,
    )  # fmt: skip
    kind = random.random()
    if kind < _KEYED:
        ask = ask._replace(key=pick(random, KEYS), payload=pick(random, SHARED), rows=1)
    elif kind < _KEYED + _POISONED:
        return ask._replace(payload=POISON), Work(pick(random, _RUNS_S), "crash")
    return ask, _draw_work(random, children)


def _draw_work(random: Random, children: tuple[tuple[Ask, Work], ...]) -> Work:
    waits = random.random() < 0.8
    return Work(pick(random, _RUNS_S), pick(random, _ENDINGS), children=children, waits=waits)
