"""`scripts/kills`: killers side by side count only what is theirs, and one that fails ends the run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.kill_run import Failed, Killer, _known, _write, kill_side_by_side
from tests.support.kills import LIMITS, CoordinatorKill, WorkerKill, report


def test_a_killer_that_fails_says_why_and_ends() -> None:
    with Killer("nobody", 0) as killer:
        killer.order()
        with pytest.raises(Failed, match="KeyError: 'nobody'"):
            killer.answer()
        with pytest.raises(Failed, match="it ended with 0"):
            killer.answer()


@pytest.mark.parametrize(("times", "jobs"), [(0, 1), (1, 0)])
def test_a_run_without_kills_is_refused(times: int, jobs: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        next(kill_side_by_side("coordinator", times, jobs, seed=0))


def test_what_was_written_is_never_half_there(tmp_path: Path) -> None:
    file, kills = tmp_path / "kills.json", [WorkerKill(told_s=0.25, back_s=1.0)]
    _write(file, kills)
    with file.open(encoding="utf-8") as before:
        _write(file, kills * 2)
        assert before.read().count("told_s") == 2  # whoever reads meanwhile has all of what was there
    assert _known(file, "worker") == kills * 2
    assert [path.name for path in tmp_path.iterdir()] == ["kills.json"]


def test_one_slow_kill_in_a_hundred_breaks_no_p99() -> None:
    kills = [WorkerKill(told_s=0.1, back_s=1.0)] * 99 + [WorkerKill(told_s=9.0, back_s=9.0)]
    assert {name: figure["p99"] for name, figure in report(kills).items()} == {"told_s": 0.1, "back_s": 1.0}
    assert all(figure["kept"] for figure in report(kills).values())
    assert not any(figure["kept"] for figure in report(kills[1:]).values())


@pytest.mark.slow
def test_coordinators_are_killed_side_by_side() -> None:
    kills = list(kill_side_by_side("coordinator", times=5, jobs=2, seed=1))
    assert len(kills) == 5
    for kill in kills:
        assert isinstance(kill, CoordinatorKill)
        assert kill.left == 0, kill
        assert kill.serves_s <= LIMITS["serves_s"], kill
