"""The plan of chaos: a pure function of its seed."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import pytest

from orchestrator.chaos.plan import KINDS, WEIGHTS, plan


def test_the_same_seed_is_the_same_plan() -> None:
    assert list(islice(plan(7, 0.5), 500)) == list(islice(plan(7, 0.5), 500))
    assert list(islice(plan(7, 0.5), 500)) != list(islice(plan(8, 0.5), 500))


def test_deeds_come_as_often_as_asked_for_and_every_kind_comes() -> None:
    deeds = list(islice(plan(1, 2.0), 20_000))
    times = [deed.at_s for deed in deeds]
    assert times == sorted(times)
    assert times[-1] / len(deeds) == pytest.approx(2.0, rel=0.03)
    counts, total = Counter(deed.kind for deed in deeds), sum(WEIGHTS.values())
    for kind in KINDS:
        assert counts[kind] / len(deeds) == pytest.approx(WEIGHTS[kind] / total, rel=0.2), kind


def test_only_the_kinds_that_were_asked_for_come() -> None:
    assert {deed.kind for deed in islice(plan(1, 1.0, ["leak", "kill_worker"]), 200)} == {"leak", "kill_worker"}


@pytest.mark.parametrize(("every_s", "kinds"), [(0.0, KINDS), (-1.0, KINDS), (1.0, []), (1.0, ["kill_wrker"])])
def test_a_plan_of_nothing_is_refused(every_s: float, kinds: list[str]) -> None:
    with pytest.raises(ValueError, match="kinds are some of"):
        plan(1, every_s, kinds)
