"""The fleet core under the simulator: many seeded histories, and the proof that the simulator can fail."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest

from tests.sim.__main__ import main
from tests.sim.bugs import BUGS, an_answer_swapped
from tests.sim.coverage import missing
from tests.sim.crowds import CROWDS
from tests.sim.history import Failure, play, play_seeds
from tests.sim.lapses import LAPSES
from tests.sim.relations import RELATIONS
from tests.sim.schedule import generate, parse
from tests.sim.shrink import shrink
from tests.sim.story import Story
from tests.sim.swaps import SWAPS
from tests.sim.troubles import TROUBLES

# The first histories must reach everything that they are meant to.
FIRST = 3_000
BLOCKS = [range(FIRST, 7_000), *(pytest.param(range(n, n + 6_500), marks=pytest.mark.slow) for n in (7_000, 13_500))]
# A run that measures coverage is slowed down several times: there each block has a twentieth.
STEP = 1 if sys.gettrace() is None else 20
# Each bug is caught by one of so many histories, and then told in so few moves.
CAUGHT_WITHIN = 4_000
SHRUNK_TO = 9
LATE = {
    "a_line_before_a_door_that_is_closed", "a_parent_that_called_no_tool", "a_growth_without_memory", "a_lease_kept",
    "a_resend_after_want_of_memory",
}  # fmt: skip
# One that is hard to tell is let be, for the next one: so many times.
TRIES = 4


def _play(seeds: range) -> Counter[str]:
    """Return what was seen in the histories of these seeds, none of which broke an invariant."""
    seen: Counter[str] = Counter()
    failure = play_seeds(seeds, seen)
    if failure is not None:
        pytest.fail(shrink(failure).report(), pytrace=False)
    return seen


def test_histories_reach_what_they_are_meant_to() -> None:
    assert not missing(_play(range(FIRST)))


@pytest.mark.parametrize("seeds", BLOCKS, ids=str)
def test_no_history_breaks_an_invariant(seeds: range) -> None:
    _play(seeds[::STEP])


def _planted() -> list[Any]:
    """Return the bugs. Those that thousands of histories miss are slow."""
    bugs = BUGS + TROUBLES + CROWDS + RELATIONS + LAPSES + SWAPS
    return [pytest.param(bug, marks=pytest.mark.slow) if bug.__name__ in LATE else bug for bug in bugs]


def _caught() -> tuple[Failure, Failure]:
    """Return a failure, and the same made small: the first that can be told in few moves."""
    seed = tries = 0
    while True:
        failure = play_seeds(range(seed, CAUGHT_WITHIN), Counter())
        assert failure is not None
        smallest = shrink(failure)
        tries += 1
        if len(smallest.schedule.moves) <= SHRUNK_TO or tries >= TRIES:
            return failure, smallest
        seed = failure.schedule.seed + 1


@pytest.mark.parametrize("bug", _planted(), ids=lambda bug: bug.__name__)
def test_a_seeded_bug_is_caught_and_shrunk(bug: Callable[[], AbstractContextManager[None]]) -> None:
    with bug():
        failure, smallest = _caught()
        assert smallest.invariant == failure.invariant
        assert len(smallest.schedule.moves) <= SHRUNK_TO
        again = play(parse(smallest.schedule.name), Counter())
        assert again is not None
        assert again.invariant == failure.invariant
    assert play(smallest.schedule, Counter()) is None


def _told(name: str) -> list[str]:
    story = Story()
    play(parse(name), Counter(), story)
    return story.lines


def test_a_seed_and_a_size_are_a_history() -> None:
    assert _told("17") == _told("17")
    assert _told("17") != _told("18")
    assert generate(17, 3).moves == generate(17, 9).moves[:3]
    assert generate(17, 3).name == "17/3"
    assert parse("17/9:0,4").moves == (generate(17, 9).moves[0], generate(17, 9).moves[4])


@pytest.mark.parametrize("name", ["", "x", "3:99", "3:a", "3/b"])
def test_what_names_no_history_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        parse(name)


def test_any_move_can_be_left_out() -> None:
    schedule = generate(149)
    for n in range(len(schedule.moves)):
        kept = tuple(range(n)) + tuple(range(n + 1, len(schedule.moves)))
        assert play(schedule.keeping(kept), Counter()) is None


def test_the_command_sums_up(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seed", "5", "--histories", "300", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["histories"] == 300
    assert summary["broken"] is None
    assert summary["happened"]["outcome OK"] > 100


def test_the_command_tells_a_failure_small_and_plays_it_again(capsys: pytest.CaptureFixture[str]) -> None:
    with an_answer_swapped():
        assert main(["--seed", "0", "--histories", "50"]) == 1
        told = capsys.readouterr().out
        assert "broken: outcomes are the attempt's" in told
        assert "1 moves:" in told
        replay = told.partition("replay: scripts/simulate --replay ")[2].split()[0]
        assert main(["--replay", replay]) == 1
        assert "broken: outcomes are the attempt's" in capsys.readouterr().out
    assert main(["--replay", replay]) == 0
    assert "no invariant broken" in capsys.readouterr().out
