"""From a seed and a size to a history: the fleet's configuration and the moves, each with its time."""

from __future__ import annotations

import itertools
from bisect import bisect
from dataclasses import dataclass, replace
from random import Random
from typing import Final

from pools.config import BreakerConfig, DegradationConfig, FleetConfig, PoolConfig, RestartConfig
from tests.sim.conversations import draw_sessions, has_sessions
from tests.sim.moves import MOVES, Move
from tests.sim.noise import pick
from tests.sim.services import has_services, with_services

# Moves of a history: mostly few, for a short history is played and read quickly; sometimes many.
_SIZES: Final = (4, 6, 7, 8, 10, 14)
_LONG_SIZE: Final = 50
_LONG_EVERY: Final = 50
_GAPS_S: Final = (0.0, 0.0, 0.0, 0.0003, 0.0003, 0.001, 0.001, 0.004, 0.004, 0.02, 0.1, 0.6)
_RARE: Final = 0.015
_RARE_GAP_S: Final = 3.0
_NAMES: Final = tuple(MOVES)
_WEIGHTS: Final = tuple(itertools.accumulate(kind.weight for kind in MOVES.values()))
# In a history with sessions so many moves are about them.
_TALKS: Final = 0.6
_SERVED: Final = 0.4
_SERVICES_WEIGHTS: Final = tuple(itertools.accumulate(kind.in_services for kind in MOVES.values()))
_TALK_WEIGHTS: Final = tuple(itertools.accumulate(kind.in_sessions for kind in MOVES.values()))


@dataclass(frozen=True, slots=True)
class Schedule:
    """One history before it is played. kept: which of the `size` moves of the seed are left, None = all."""

    seed: int
    size: int
    config: FleetConfig
    moves: tuple[Move, ...]
    kept: tuple[int, ...] | None = None

    def keeping(self, kept: tuple[int, ...]) -> Schedule:
        """Return the history with only these of its moves (numbers from 0)."""
        return replace(self, moves=tuple(self.moves[n] for n in kept), kept=kept)

    @property
    def name(self) -> str:
        """What `--replay` takes."""
        size = "" if self.size == size_of(self.seed) else f"/{self.size}"
        kept = "" if self.kept is None else ":" + ",".join(map(str, self.kept))
        return f"{self.seed}{size}{kept}"


def size_of(seed: int) -> int:
    """Return how many moves the history of a seed has: one in fifty is long."""
    return _LONG_SIZE if seed % _LONG_EVERY == _LONG_EVERY - 1 else _SIZES[seed % len(_SIZES)]


def generate(seed: int, size: int | None = None) -> Schedule:
    """Draw a history. The same seed and size give the same one."""
    random = Random(seed)
    config = _config(random)
    talks = has_sessions(seed)
    if talks:
        config = replace(config, sessions=draw_sessions(random))
    services = has_services(seed)
    own = with_services(random, config) if services else {}
    at = 0.0
    moves = []
    # Most histories begin with ready workers, some while they boot.
    if random.random() < 0.8:
        at = 0.5
    size = size_of(seed) if size is None else size
    for _ in range(size):
        at += _RARE_GAP_S if random.random() < _RARE else pick(random, _GAPS_S)
        weights = _WEIGHTS
        if talks and random.random() < _TALKS:
            weights = _TALK_WEIGHTS
        elif services and random.random() < _SERVED:
            weights = _SERVICES_WEIGHTS
        name = _NAMES[bisect(weights, random.random() * weights[-1])]
        moves.append(Move(round(at, 4), name, MOVES[name].draw(random, config)))
    return Schedule(seed, size, replace(config, **own), tuple(moves))


def parse(text: str) -> Schedule:
    """Read what `Schedule.name` wrote. Raises ValueError if it is not that."""
    name, colon, kept = text.partition(":")
    seed, _, size = name.partition("/")
    schedule = generate(int(seed), int(size) if size else None)
    if not colon:
        return schedule
    numbers = tuple(int(number) for number in kept.split(",") if number)
    if any(not 0 <= number < len(schedule.moves) for number in numbers):
        raise ValueError(f"history {seed} has {len(schedule.moves)} moves, numbered from 0")
    return schedule.keeping(numbers)


def _config(random: Random) -> FleetConfig:
    restart = RestartConfig(
        type=pick(random, ("permanent",) * 8 + ("transient", "temporary")),
        max_restarts=pick(random, (0, 1, 3, 20)),
        window_s=pick(random, (0.5, 10.0)),
        backoff_s=(0.1, 2.0),
    )
    prefetch = pick(random, (None, 0, 1, 1, 3))
    max_queue = pick(random, (0, 2, 6, 6, 1000, 1000))
    grace_s = pick(random, (0.2, 1.0, 5.0))

    max_requests = pick(random, (0, 0, 0, 0, 3))
    memory_limit_mb = pick(random, (0, 0, 8))
    room = pick(random, (0, 0, 0, 1, 3))

    breaker = _breaker(random)
    queue_age_s = pick(random, (None, None, None, 0.2))
    has_two = random.random() < 0.3

    def pool(name: str, size: int, default_deadline_s: float | None) -> PoolConfig:
        is_first = name == "general"
        return PoolConfig(
            name=name, size=size, max_size=size + room if room else None, slots=pick(random, (1, 1, 2, 3)),
            prefetch=prefetch, max_queue=max_queue, max_requests=max_requests, memory_limit_mb=memory_limit_mb,
            grace_s=grace_s, heartbeat_limit_s=5.0, default_deadline_s=default_deadline_s, restart=restart,
            breaker=breaker, fallback=pick(random, (None, "neural")) if is_first and has_two else None,
            fallback_operations={"slow": "fast"} if is_first and random.random() < 0.2 else {}, queue_age_s=queue_age_s,
        )  # fmt: skip

    pools = [pool("general", pick(random, (1, 1, 2, 3)), None)]
    if has_two:
        pools.append(pool("neural", 1, pick(random, (None, 0.5))))
    return FleetConfig(
        pools=tuple(pools),
        client_rows=pick(random, (5, 4096, 4096)),
        principal_rows=pick(random, (6, 16_384, 16_384, 16_384)),
        poison_deaths=pick(random, (2, 2, 2, 1, 3, 0)),
        degradation=pick(random, (None, None, _degradation(random))),
    )


def _degradation(random: Random) -> DegradationConfig:
    return DegradationConfig(memory=pick(random, (0.4, 0.8)), hold_s=pick(random, (0.0, 0.0, 1.0)))


def _breaker(random: Random) -> BreakerConfig | None:
    if random.random() < 0.6:
        return None
    return BreakerConfig(
        window=pick(random, (3, 6)), min_calls=pick(random, (1, 2, 2, 3)), failure_rate=pick(random, (0.3, 0.5, 1.0)),
        open_s=pick(random, (0.05, 0.5, 3.0)), probes=pick(random, (1, 1, 2)),
    )  # fmt: skip


def describe(config: FleetConfig) -> list[str]:
    """Return a configuration as people read it."""
    lines = [
        f"client_rows={config.client_rows} principal_rows={config.principal_rows} poison_deaths={config.poison_deaths} "
        f"degradation={config.degradation}",
        str(config.sessions),
    ]
    for pool in config.pools:
        restart = pool.restart
        lines.append(
            f"pool {pool.name}: size={pool.size} max_size={pool.max_size} slots={pool.slots} prefetch={pool.prefetch} "
            f"max_queue={pool.max_queue} grace_s={pool.grace_s} default_deadline_s={pool.default_deadline_s} "
            f"max_requests={pool.max_requests} memory_limit_mb={pool.memory_limit_mb} "
            f"{restart.type}, restarts {restart.max_restarts} in {restart.window_s} s, {pool.breaker}, "
            f"fallback={pool.fallback} {dict(pool.fallback_operations)} queue_age_s={pool.queue_age_s}"
        )
    return lines
