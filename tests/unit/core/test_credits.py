from __future__ import annotations

import itertools

import pytest

from pools.core.credits import PREFETCH_MAX, PREFETCH_MIN, Credits, RunTimes, hand_for, prefetch_for
from tests.support.fleet import Sim, pool


@pytest.mark.parametrize(
    ("median_ms", "prefetch"),
    [(0.0, 256), (0.25, 256), (0.5, 128), (1.0, 64), (2.0, 32), (6.4, 10), (19.9, 3), (20.0, 2), (20_000.0, 2)],
)
def test_prefetch_by_median(median_ms: float, prefetch: int) -> None:
    assert prefetch_for(median_ms) == prefetch


@pytest.mark.parametrize(("median_ms", "hand"), [(0.0, 32), (0.01, 32), (0.1, 5), (0.5, 1), (100.0, 1)])
def test_hands_are_half_a_millisecond_of_work(median_ms: float, hand: int) -> None:
    assert hand_for(median_ms) == hand


def test_work_of_microseconds_is_dealt_by_the_hand_and_evenly() -> None:
    sim = Sim(pool(size=2, slots=8, prefetch=None))
    sim.reply(sim.submit(), run_ms=0.01)
    served = [sim.attempt(sim.submit())[0] for _ in range(128)]
    assert [len(list(run)) for _, run in itertools.groupby(served)] == [32, 32, 32, 32]
    assert sim.entry("general-1.1").held == sim.entry("general-2.1").held


def test_an_unknown_operation_starts_with_two() -> None:
    times = RunTimes()
    assert (times.median_ms, times.prefetch) == (None, 2)


def test_the_first_run_counts_and_outliers_do_not() -> None:
    times = RunTimes()
    times.add(0.2)
    assert times.prefetch == PREFETCH_MAX
    for run_ms in (0.1, 900.0, 0.2):  # up to the fourth sample
        times.add(run_ms)
    assert times.prefetch == PREFETCH_MAX
    assert times.median_ms == 0.2


def test_the_median_follows_a_change_within_a_batch_of_sixteen() -> None:
    times = RunTimes()
    for _ in range(32):
        times.add(0.1)
    for _ in range(16):
        times.add(500.0)
    assert (times.median_ms, times.prefetch) == (500.0, PREFETCH_MIN)


def test_the_table_of_operations_is_bounded_and_drops_the_oldest() -> None:
    credits = Credits()
    first, second = credits.of("op 0"), credits.of("op 1")
    assert credits.of("op 0") is first
    for n in range(2, 1025):
        credits.of(f"op {n}")
    assert credits.of("op 1") is second
    assert credits.of("op 0") is not first


def test_a_worker_holds_slots_and_prefetch() -> None:
    sim = Sim(pool(slots=3, prefetch=2))
    for _ in range(8):
        sim.submit()
    assert sim.entry().held == 5
    assert sim.pool().queued == 3


def test_auto_prefetch_grows_with_fast_runs_and_shrinks_with_slow_ones() -> None:
    sim = Sim(pool(slots=1, prefetch=None))
    ids = [sim.submit() for _ in range(300)]
    assert sim.entry().held == 1 + PREFETCH_MIN
    sim.reply(ids[0], run_ms=0.1)
    assert sim.entry().held == 1 + PREFETCH_MAX
    slow = [sim.submit("slow", pool="general") for _ in range(5)]
    assert sim.entry().held == 1 + PREFETCH_MAX
    for request_id in ids[1:]:
        sim.reply(request_id, run_ms=0.1)
    assert sim.entry().held == 1 + PREFETCH_MIN  # what is unknown starts with two, whatever the others are
    sim.reply(slow[0], run_ms=300.0)
    assert sim.entry().held == 1 + PREFETCH_MIN


def test_a_fast_operation_gives_a_slow_one_no_credit() -> None:
    sim = Sim(pool(slots=1, prefetch=None))
    sim.reply(sim.submit("fast"), run_ms=0.1)
    for _ in range(30):
        sim.submit("fast")
    sim.submit("slow")
    assert sim.entry().held == 30
    assert sim.pool().queued == 1


def test_a_fast_operation_does_not_overtake_a_slow_one_that_waits() -> None:
    sim = Sim(pool(slots=1, prefetch=None))
    sim.reply(sim.submit("fast"), run_ms=0.1)
    slow = [sim.submit("slow") for _ in range(4)]
    assert slow[3] in sim.queued()
    assert sim.submit("fast") in sim.queued()  # though a worker has credit for it


def test_the_run_time_of_a_chunk_counts_per_row() -> None:
    sim = Sim(pool(slots=1, prefetch=None))
    sim.reply(sim.submit(rows=100), run_ms=50.0)
    assert sim.pool().credits.of("echo").median_ms == 0.5


def test_a_chunk_may_exceed_the_credit_by_itself_only() -> None:
    sim = Sim(pool(slots=2, prefetch=1))
    sim.submit(rows=2)
    sim.submit(rows=100)  # 2 < 3: the next message, whatever its rows
    waiting = sim.submit()
    assert sim.entry().held == 102
    assert waiting in sim.queued()
