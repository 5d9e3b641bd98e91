from __future__ import annotations

import random

import pytest

from pools.core.deadlines import WIDTH_S, Deadlines


def test_a_key_is_due_after_its_deadline_and_at_most_one_bucket_late() -> None:
    deadlines: Deadlines[str] = Deadlines()
    deadlines.add("a", 1000.005)
    assert deadlines.pop_due(1000.005) == []
    due = deadlines.next_due()
    assert due is not None
    assert 1000.005 < due <= 1000.005 + WIDTH_S
    assert deadlines.pop_due(due) == ["a"]
    assert len(deadlines) == 0
    assert deadlines.next_due() is None


def test_due_keys_come_earliest_first() -> None:
    deadlines: Deadlines[int] = Deadlines()
    for key, at in ((3, 3.0), (1, 1.0), (2, 2.0), (9, 9.0)):
        deadlines.add(key, at)
    assert deadlines.pop_due(5.0) == [1, 2, 3]
    assert len(deadlines) == 1


def test_a_discarded_key_is_gone_and_a_second_discard_changes_nothing() -> None:
    deadlines: Deadlines[str] = Deadlines()
    bucket = deadlines.add("a", 5.0)
    assert deadlines.add("b", 5.0) == bucket
    deadlines.discard("a", bucket)
    deadlines.discard("a", bucket)
    deadlines.discard("a", bucket + 1)
    assert len(deadlines) == 1
    assert deadlines.pop_due(6.0) == ["b"]


def test_a_bucket_that_was_emptied_and_filled_again_is_popped_once() -> None:
    deadlines: Deadlines[str] = Deadlines()
    deadlines.discard("a", deadlines.add("a", 5.0))
    deadlines.add("b", 5.0)
    assert deadlines.pop_due(6.0) == ["b"]
    assert deadlines.pop_due(7.0) == []
    assert deadlines.next_due() is None


def test_removal_leaves_nothing_behind_even_behind_an_early_deadline() -> None:
    deadlines: Deadlines[int] = Deadlines()
    deadlines.add(-1, 10.0)
    for key in range(10_000):
        deadlines.discard(key, deadlines.add(key, 100.0 + key % 7))
    assert len(deadlines) == 1
    assert len(deadlines._buckets) == 1
    assert len(deadlines._heap) < 300
    assert deadlines.next_due() == pytest.approx(10.0, abs=WIDTH_S)


def test_against_a_sorted_list() -> None:
    rng = random.Random(7)
    deadlines: Deadlines[int] = Deadlines()
    model: dict[int, tuple[float, int]] = {}
    now = 0.0
    for key in range(3000):
        choice = rng.random()
        if choice < 0.5:
            at = now + rng.random() * 5.0
            model[key] = (at, deadlines.add(key, at))
        elif choice < 0.8 and model:
            victim = rng.choice(list(model))
            deadlines.discard(victim, model.pop(victim)[1])
        else:
            now += rng.random() * 0.2
            for due in deadlines.pop_due(now):
                assert model.pop(due)[0] <= now
            assert all(at > now - WIDTH_S for at, _ in model.values())
        assert len(deadlines) == len(model)
