"""Modes of degradation: which signals count when, what a mode lets in, and that it does no harm."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, seed, settings
from hypothesis import strategies as st

from bridge.protocol import messages as wire
from bridge.protocol.messages import PRIORITY_HIGH, PRIORITY_LOW, PRIORITY_NORMAL
from pools.config import DegradationConfig
from pools.core.events import CpuRead, MemoryRead
from pools.core.modes import BREAKER, CPU, CRITICAL, DEGRADED, MEASURES, MEMORY, NORMAL, QUEUE, Modes, Readings, Signal
from tests.support.fleet import Sim, pool

QUIET = Readings(cpu=0.1, memory=0.3, queue=0.0, waits=False, breaker=False)
PRIORITIES = (PRIORITY_HIGH, PRIORITY_NORMAL, PRIORITY_LOW)


def readings(**changed: Any) -> Readings:
    return QUIET._replace(**changed)


def look(modes: Modes, found: Readings, seconds: int, now: float = 0.0) -> float:
    """Look once a second for so long; return the time of the next look."""
    for _ in range(seconds):
        modes.look(found, now)
        now += 1.0
    return now


def test_a_signal_counts_once_it_has_held_and_is_over_well_below_its_threshold() -> None:
    signal = Signal(0.8, 5.0)
    values = [0.8] * 5 + [0.7] + [0.8] * 6 + [0.73] * 9 + [0.71] * 5 + [0.73] + [0.71] * 6 + [0.79]
    counts = [signal.read(value, float(now)) for now, value in enumerate(values)]
    assert [now for now in range(1, len(counts)) if counts[now] != counts[now - 1]] == [11, 32]


def test_what_nobody_reads_does_not_count() -> None:
    signal = Signal(0.8, 1.0)
    assert not any(signal.read(None, float(now)) for now in range(10))
    assert not any(signal.read(1.0, float(now), matters=False) for now in range(10))


@pytest.mark.parametrize(
    ("trouble", "counting"),
    [
        (readings(cpu=0.9, waits=True), [CPU]),
        (readings(memory=0.9), [MEMORY]),
        (readings(queue=0.5), [QUEUE]),
        (readings(breaker=True), [BREAKER]),
    ],
)
def test_each_signal_alone_degrades_after_five_seconds(trouble: Readings, counting: list[str]) -> None:
    modes = Modes(DegradationConfig())
    look(modes, trouble, 5)
    assert modes.mode == NORMAL
    now = look(modes, trouble, 1, now=5.0)
    assert (modes.mode, modes.counting) == (DEGRADED, counting)
    assert modes.why
    now = look(modes, QUIET, 5, now)
    assert modes.mode == DEGRADED
    look(modes, QUIET, 1, now)
    assert (modes.mode, modes.why) == (NORMAL, "")


def test_a_busy_machine_on_which_nothing_waits_is_in_no_trouble() -> None:
    modes = Modes(DegradationConfig())
    look(modes, readings(cpu=1.0), 60)
    assert modes.mode == NORMAL


def test_critical_is_memory_nearly_gone_or_two_signals_and_a_queue_nearly_full() -> None:
    for trouble, mode in (
        (readings(memory=0.95), CRITICAL),
        (readings(queue=1.0), DEGRADED),
        (readings(queue=0.89, cpu=1.0, waits=True), DEGRADED),
        (readings(queue=0.9, cpu=1.0, waits=True), CRITICAL),
        (readings(queue=0.9, breaker=True), CRITICAL),
    ):
        modes = Modes(DegradationConfig())
        look(modes, trouble, 10)
        assert modes.mode == mode, trouble


def test_critical_lasts_until_the_queue_it_keeps_short_is_short() -> None:
    modes = Modes(DegradationConfig())
    now = look(modes, readings(queue=1.0, cpu=1.0, waits=True), 10)
    now = look(modes, readings(queue=0.5, cpu=1.0, waits=True), 100, now)  # what a critical mode lets in
    assert modes.mode == CRITICAL
    now = look(modes, readings(queue=0.4, cpu=1.0, waits=True), 6, now)
    assert modes.mode == DEGRADED


def test_without_a_configuration_the_mode_is_normal() -> None:
    modes = Modes(None)
    look(modes, readings(cpu=1.0, memory=1.0, queue=1.0, waits=True, breaker=True), 30)
    assert modes.mode == NORMAL


def test_the_table_lets_less_in_the_worse_it_is_and_never_refuses_high_priority() -> None:
    assert list(MEASURES) == [NORMAL, DEGRADED, CRITICAL]
    for milder, worse in ((NORMAL, DEGRADED), (DEGRADED, CRITICAL)):
        for priority in PRIORITIES:
            assert MEASURES[worse].shares[priority] <= MEASURES[milder].shares[priority]
        assert MEASURES[milder].put_off <= MEASURES[worse].put_off
    for measure in MEASURES.values():
        assert measure.shares[PRIORITY_HIGH] == 1.0
        assert measure.shares[PRIORITY_LOW] <= measure.shares[PRIORITY_NORMAL]
    assert set(MEASURES[NORMAL].shares.values()) == {1.0}


@seed(20)
@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(*[st.floats(0.0, 1.0)] * 3, st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_a_mode_changes_at_most_once_in_its_time_to_hold_either_way(rows: list[Any]) -> None:
    modes = Modes(DegradationConfig(hold_s=5.0))
    rises, falls = [], []
    for now, row in enumerate(rows):
        before = modes.counting
        changed = modes.look(Readings(*row), float(now))
        assert modes.mode in MEASURES
        assert changed or modes.counting == before or modes.mode == CRITICAL or (before and modes.counting)
        rises += [(name, now) for name in modes.counting if name not in before]
        falls += [(name, now) for name in before if name not in modes.counting]
    for name, at in rises:
        assert not any(other == name and 0 <= at - then < 5 for other, then in falls)


# --- in the fleet -------------------------------------------------------------------------------------


def troubled(mode: str, **fields: Any) -> Sim:
    """Return a fleet in this mode, one slot taken, with a queue for ten."""
    sim = Sim(pool(slots=1, prefetch=0, max_queue=10, heartbeat_limit_s=1e6, **fields), degradation=DegradationConfig())
    sim.submit()
    for _ in range(10):
        sim.submit()
    if mode == CRITICAL:
        sim.handle(CpuRead(1.0))
    sim.run_until(sim.now + 7.0)
    assert sim.fleet.stats(sim.now)["mode"] == mode
    return sim


def drain_to(sim: Sim, queued: int) -> None:
    """Have the worker answer, oldest first, until so many wait."""
    while sim.pool().queued > queued:
        sim.reply(next(iter(sim.process().attempts.values())).request_id)


@pytest.mark.parametrize(
    ("mode", "allowed"),
    [
        (DEGRADED, {PRIORITY_HIGH: 10, PRIORITY_NORMAL: 10, PRIORITY_LOW: 5}),
        (CRITICAL, {PRIORITY_HIGH: 10, PRIORITY_NORMAL: 5, PRIORITY_LOW: 0}),
    ],
)
def test_each_priority_may_fill_its_part_of_a_queue(mode: str, allowed: dict[int, int]) -> None:
    for priority, limit in allowed.items():
        sim = troubled(mode)
        drain_to(sim, 0)
        accepted = [sim.submit(priority=priority) for _ in range(max(limit, 1))]
        assert not sim.replies.keys() & set(accepted)
        if limit < 10:
            error = sim.error(sim.submit(priority=priority))
            assert error.code == "OVERLOADED"
            assert error.details["retry_after_s"] > 0
            assert f"dspool is in {mode} mode (" in error.message
            assert "a queue is long" in error.message


def test_low_priority_has_a_place_where_nothing_waits_even_in_the_worst_mode() -> None:
    sim = troubled(CRITICAL)
    drain_to(sim, 0)
    request_id = sim.submit(priority=PRIORITY_LOW)
    assert request_id not in sim.replies


@pytest.mark.parametrize("mode", [DEGRADED, CRITICAL])
def test_optimizing_is_put_off_unless_it_is_urgent(mode: str) -> None:
    sim = troubled(mode)
    drain_to(sim, 1)
    error = sim.error(sim.submit("optimize"))
    assert (error.code, error.retryable, error.details) == ("OVERLOADED", True, {"retry_after_s": 5.0, "mode": mode})
    assert sim.submit("optimize", priority=PRIORITY_HIGH) not in sim.replies
    assert sim.submit("optimized_program") not in sim.replies


def test_what_is_accepted_goes_on_and_the_fast_path_returns_with_the_normal_mode() -> None:
    sim = troubled(CRITICAL)
    drain_to(sim, 0)
    sim.reply(next(iter(sim.process().attempts.values())).request_id)
    assert {reply.status for reply in sim.replies.values()} == {wire.OK}
    sim.run_until(sim.now + 20.0)
    assert [log.fields["mode"] for log in sim.logs("mode_changed")] == [CRITICAL, NORMAL]
    assert not sim.tables.wary


def test_memory_alone_sets_the_mode_too() -> None:
    sim = Sim(degradation=DegradationConfig())
    sim.handle(MemoryRead(0.96))
    sim.run_until(sim.now + 7.0)
    stats = sim.fleet.stats(sim.now)
    assert (stats["mode"], stats["load"]) == (CRITICAL, {"cpu": None, "memory": 0.96, "queue": 0.0})


def test_a_pool_grows_in_every_mode_for_the_queue_is_what_it_grows_for() -> None:
    sim = troubled(CRITICAL, max_size=4)
    assert sim.launches() == ["general-1.1", "general-2.1"]
    sim.boot("general-2.1")
    sim.run_until(sim.now + 2.0)
    assert sim.pool().size == 4
