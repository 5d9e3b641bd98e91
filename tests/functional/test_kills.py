"""`scripts/kills`: killers side by side count only what is theirs, and one that fails ends the run."""

from __future__ import annotations

import pytest

from tests.support.kill_run import Failed, Killer, kill_side_by_side
from tests.support.kills import LIMITS, CoordinatorKill


def test_a_killer_that_fails_says_why_and_ends() -> None:
    with Killer("nobody", 0) as killer:
        killer.order()
        with pytest.raises(Failed, match="KeyError: 'nobody'"):
            killer.answer()
        with pytest.raises(Failed, match="it ended with 0"):
            killer.answer()


@pytest.mark.slow
def test_coordinators_are_killed_side_by_side() -> None:
    kills = list(kill_side_by_side("coordinator", times=5, jobs=2, seed=1))
    assert len(kills) == 5
    for kill in kills:
        assert isinstance(kill, CoordinatorKill)
        assert kill.left == 0, kill
        assert kill.serves_s <= LIMITS["serves_s"], kill
