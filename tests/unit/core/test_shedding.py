from __future__ import annotations

from typing import Any

import pytest

from bridge.protocol.messages import PRIORITY_LOW
from pools.core.shedding import QUIET_S
from pools.core.stats import Pace
from tests.support.fleet import Sim, pool


def serve(sim: Sim, seconds: float, every_s: float, **fields: Any) -> tuple[list[int], list[int]]:
    """Run one slot at a steady pace while twice as much is asked for; return what was asked and what ran."""
    asked: list[int] = []
    ran: list[int] = []
    end = sim.now + seconds
    while sim.now < end:
        asked += [sim.submit(**fields), sim.submit(**fields)]
        sim.run_until(sim.now + every_s)
        for attempt in list(sim.process().attempts.values())[:1]:
            ran.append(attempt.request_id)
            sim.start(attempt.request_id)
            sim.reply(attempt.request_id, run_ms=every_s * 1000.0)
    return asked, ran


def codes(sim: Sim, ids: list[int]) -> set[str]:
    return {
        sim.error(request_id).code for request_id in ids if request_id in sim.replies and sim.replies[request_id].status
    }


def test_in_a_standing_queue_those_who_run_have_half_of_their_time_left() -> None:
    sim = Sim(pool(slots=1, prefetch=0))
    asked, _ = serve(sim, 12.0, 0.1, deadline_ms=4000.0)
    assert sim.pool().shed > 0
    assert codes(sim, asked) == {"OVERLOADED"}  # nobody ran out of time
    _, ran = serve(sim, 5.0, 0.1, deadline_ms=4000.0)
    assert ran
    assert all(sim.replies[request_id].queue_ms <= 2000.0 + 101.0 for request_id in ran)


def test_a_short_deadline_is_kept_too() -> None:
    sim = Sim(pool(slots=1, prefetch=0))
    serve(sim, 3.0, 0.05, deadline_ms=800.0)
    asked, ran = serve(sim, 3.0, 0.05, deadline_ms=800.0)
    assert len(ran) in (60, 61)  # the worker is never without work that can still be done
    assert codes(sim, asked) == {"OVERLOADED"}


def test_the_last_one_is_not_shed_however_long_it_waited() -> None:
    sim = Sim(pool(), ready=False)
    alone = sim.submit(deadline_ms=10_000.0)
    sim.run_until(sim.now + 6.0)
    sim.boot()
    assert sim.attempt(alone)
    assert sim.pool().shed == 0


def test_what_is_shed_hands_its_key_over_however_many_follow() -> None:
    sim = Sim(pool(slots=1, prefetch=0, heartbeat_limit_s=1e6))
    first = sim.submit(deadline_ms=60_000.0)
    keyed = [sim.submit("pay", idempotency_key="k", deadline_ms=4000.0) for _ in range(600)]
    last = sim.submit(deadline_ms=60_000.0)
    sim.run_until(sim.now + 3.0)
    sim.reply(first)
    assert {sim.error(request_id).code for request_id in keyed} == {"OVERLOADED"}
    assert sim.pool().shed == 600
    assert sim.attempt(last)
    assert not sim.tables.keys.running


def test_a_run_that_comes_from_another_lane_does_not_make_a_new_one_stand() -> None:
    sim = Sim(pool(slots=1, prefetch=0, heartbeat_limit_s=1e6))
    first = sim.submit()
    sim.submit("pay", idempotency_key="k", priority=PRIORITY_LOW)
    sim.run_until(sim.now + 1.5)
    sim.submit("pay", idempotency_key="k")  # its run has waited for long, but not in this lane
    fresh = sim.submit(deadline_ms=300.0)
    sim.submit(deadline_ms=300.0)
    sim.run_until(sim.now + 0.16)  # more than half of their time
    sim.reply(first)
    sim.reply(next(iter(sim.process().attempts.values())).request_id)
    assert sim.attempt(fresh)


def test_without_a_deadline_nothing_is_shed() -> None:
    sim = Sim(pool(slots=1, prefetch=0))
    serve(sim, 20.0, 0.1)
    assert sim.pool().shed == 0


def test_a_pools_own_limit_holds_without_deadlines() -> None:
    sim = Sim(pool(slots=1, prefetch=0, queue_age_s=1.5))
    _, ran = serve(sim, 8.0, 0.1)
    assert sim.pool().shed > 0
    assert all(sim.replies[request_id].queue_ms <= 1500.0 + 101.0 for request_id in ran)


def test_the_lesser_limit_counts() -> None:
    sim = Sim(pool(slots=1, prefetch=0, queue_age_s=1.5))
    _, ran = serve(sim, 8.0, 0.1, deadline_ms=60_000.0)
    assert all(sim.replies[request_id].queue_ms <= 1500.0 + 101.0 for request_id in ran)


def test_a_queue_that_was_short_a_moment_ago_is_not_standing() -> None:
    sim = Sim(pool(slots=1, prefetch=0))
    first, waiting = sim.submit(), sim.submit(deadline_ms=1000.0)
    sim.run_until(sim.now + 0.7)  # more than half of its time, in less than the interval
    sim.reply(first)
    assert sim.attempt(waiting)


def test_what_a_worker_gave_back_is_not_shed() -> None:
    sim = Sim(pool(size=2, slots=1, prefetch=1))
    ids = [sim.submit(deadline_ms=4000.0) for _ in range(4)]
    held = [r for r in ids if sim.attempt(r)[0].worker_id == "general-2.1"]
    sim.run_until(sim.now + 3.0)
    sim.die("general-2.1")
    for request_id in [r for r in ids if r not in held]:
        sim.reply(request_id)
    assert all(sim.attempt(request_id) for request_id in held)
    assert sim.pool().shed == 0


def test_one_principals_standing_queue_is_not_anothers() -> None:
    sim = Sim(pool(slots=1, prefetch=0))
    modest = sim.connect(2, "modest")
    serve(sim, 6.0, 0.1, deadline_ms=4000.0)
    request_id = sim.submit(peer=modest, deadline_ms=400.0)
    sim.run_until(sim.now + 0.25)  # more than half of its time
    for _ in range(2):
        [attempt] = sim.process().attempts.values()
        sim.reply(attempt.request_id)
    assert request_id in sim.executed or sim.attempt(request_id)


def test_shedding_is_told_once_and_its_end_too() -> None:
    sim = Sim(pool(slots=1, prefetch=0))
    serve(sim, 12.0, 0.1, deadline_ms=4000.0)
    assert (len(sim.logs("shedding_began")), len(sim.logs("shedding_ended"))) == (1, 0)
    sim.tick(QUIET_S + 12.0)
    assert (len(sim.logs("shedding_began")), len(sim.logs("shedding_ended"))) == (1, 1)
    assert sim.fleet.stats(sim.now)["requests"]["shed"] == sim.fleet.stats(sim.now)["pools"]["general"]["shed"] > 0


# --- what cannot make it -----------------------------------------------------------------------------------------


def test_what_cannot_run_in_time_is_refused_at_once() -> None:
    sim = Sim(pool(slots=1, prefetch=0))
    serve(sim, 10.0, 0.1)  # without deadlines: a hundred wait, the first for five seconds
    refused = sim.submit(deadline_ms=2000.0)
    error = sim.error(refused)
    assert error.code == "OVERLOADED"
    assert "it cannot run in 2 s" in error.message
    assert sim.submit(deadline_ms=30_000.0) in sim.tables.requests
    assert sim.submit() in sim.tables.requests


def test_who_waits_in_no_queue_is_not_refused_for_that_of_others() -> None:
    sim = Sim(pool(slots=1, prefetch=0))
    modest = sim.connect(2, "modest")
    serve(sim, 10.0, 0.1)
    assert sim.submit(peer=modest, deadline_ms=2000.0) in sim.tables.requests
    assert sim.submit(priority=0, deadline_ms=2000.0) in sim.tables.requests


# --- the time to come again ------------------------------------------------------------------------------------------


def test_the_time_to_come_again_is_that_of_the_pools_pace() -> None:
    sim = Sim(pool(slots=1, prefetch=0, max_queue=20))
    serve(sim, 10.0, 0.1)  # ten rows a second settle, ten are refused
    sim.run_until(sim.now)
    while len(sim.queued()) < 20:
        sim.submit()
    error = sim.error(sim.submit())
    assert error.details["retry_after_s"] == pytest.approx(1.1, abs=0.4)


def test_before_anything_settled_the_time_to_come_again_is_short() -> None:
    sim = Sim(pool(slots=1, prefetch=0, max_queue=2))
    for _ in range(3):
        sim.submit()
    assert 0.0 < sim.error(sim.submit()).details["retry_after_s"] <= 0.1


def test_a_pace_is_known_only_while_something_waits() -> None:
    pace = Pace()
    pace.mark(0, 0, waits=True, now=10.0)
    assert pace.rows_per_s is None
    pace.mark(50, 30, waits=True, now=12.0)
    assert [pace.rows_per_s, pace.refused_per_s] == [25.0, 15.0]
    pace.mark(80, 30, waits=False, now=13.0)
    assert pace.rows_per_s is None
    assert pace.refused_per_s == 0.0
    pace.mark(90, 30, waits=True, now=14.0)
    assert pace.rows_per_s is None
