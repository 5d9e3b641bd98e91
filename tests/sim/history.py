"""Playing a history, and what came of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from tests.sim.ledger import Broken
from tests.sim.quiescence import (
    audit_books,
    check_answers,
    end_sessions,
    forget_programs,
    settle_down,
    shrink_down,
    stop,
)
from tests.sim.schedule import Schedule, describe, generate
from tests.sim.story import Story
from tests.sim.world import START_S, World

# In so many histories all books are checked after every step; in the others when nothing is under way any more.
BOOKS_EVERY = 128
_AFTER_S = 0.05


@dataclass(frozen=True, slots=True)
class Failure:
    """An invariant that a history broke."""

    schedule: Schedule
    invariant: str
    detail: str

    @property
    def replay(self) -> str:
        """The command that plays it again."""
        return f"scripts/simulate --replay {self.schedule.name}"

    def report(self) -> str:
        """Return the failure as people read it: the invariant, the moves, what the coordinator saw."""
        story = Story()
        play(self.schedule, Counter(), story)
        lines = [
            f"broken: {self.invariant}",
            f"        {self.detail}",
            f"replay: {self.replay}",
            "",
            *describe(self.schedule.config),
            "",
            f"{len(self.schedule.moves)} moves:",
            *(f"  {move}" for move in self.schedule.moves),
            "",
            "what the coordinator saw:",
            *(f"  {line}" for line in story.latest()),
        ]
        return "\n".join(lines)


def play(schedule: Schedule, seen: Counter[str], story: Story | None = None) -> Failure | None:
    """Play a history to its end; return what it broke, None if nothing."""
    try:
        _play(schedule, seen, story)
    except Broken as broken:
        return Failure(schedule, broken.invariant, broken.detail)
    return None


def _play(schedule: Schedule, seen: Counter[str], story: Story | None) -> None:
    world = World(schedule, seen, story)
    end = START_S + (schedule.moves[-1].at if schedule.moves else 0.0) + _AFTER_S
    clock = world.clock
    every_step = schedule.seed % BOOKS_EVERY == 0

    def done() -> bool:
        if every_step:
            audit_books(world)
        return clock.now >= end

    world.run(done)
    settle_down(world)
    end_sessions(world)
    forget_programs(world)
    shrink_down(world)
    stop(world)
    check_answers(world)


def play_seeds(seeds: range, seen: Counter[str]) -> Failure | None:
    """Play the histories of these seeds; return the first failure."""
    for seed in seeds:
        failure = play(generate(seed), seen)
        if failure is not None:
            return failure
    return None
