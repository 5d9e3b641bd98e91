from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from bridge.protocol.messages import FLAG_IDEMPOTENT, Bye
from pools.config import BreakerConfig, RestartConfig
from pools.core.events import Drain, Exited, Signalled
from pools.core.retries import INITIAL, MAX_RESENDS, PER_ACCEPTED, RetryBudget, pause_s
from tests.support.fleet import Sim, pool


def submit(sim: Sim, number: int = 0, **fields: Any) -> int:
    """Submit a request that may run again, and have it start."""
    request_id = sim.submit("echo", payload=b"%d" % number, flags=FLAG_IDEMPOTENT, **fields)
    sim.start(request_id)
    return request_id


def lose(sim: Sim, request_id: int, reason: Any = None) -> None:
    """Have the worker of a request die while it runs, and boot its successor."""
    worker, _ = sim.attempt(request_id)
    before = set(sim.tables.workers)
    sim.die(worker.worker_id, reason)
    for worker_id in sorted(sim.tables.workers.keys() - before):
        sim.boot(worker_id)


def test_a_repeatable_request_runs_again_after_a_pause() -> None:
    sim = Sim(jitter=0.5)
    request_id = submit(sim)
    lose(sim, request_id)
    assert sim.fleet.stats(sim.now)["requests"]["queued"] == 1
    assert sim.queued() == []
    sim.tick(0.04)
    assert not sim.process("general-1.2").attempts
    sim.tick(0.02)
    sim.reply(request_id)
    reply = sim.replies[request_id]
    assert (reply.status, reply.attempt, reply.worker) == (0, 2, "general-1.2")
    assert sim.fleet.stats(sim.now)["requests"]["resent"] == 1
    assert sim.fleet.stats(sim.now)["pools"]["general"]["resent"] == 1
    assert [log.fields["rows"] for log in sim.logs("requests_resent")] == [1]


def test_it_is_resent_twice_at_most() -> None:
    sim = Sim()
    request_id = submit(sim)
    for _ in range(MAX_RESENDS):
        lose(sim, request_id)
        sim.tick(1.0)
        sim.start(request_id)
    lose(sim, request_id)
    error = sim.error(request_id)
    assert (error.code, error.details["executed"]) == ("WORKER_LOST", "maybe")
    assert error.details["retry"] == "resent 2 times"
    assert sim.replies[request_id].attempt == 3


def test_without_leave_nothing_is_resent() -> None:
    sim = Sim()
    request_id = sim.submit("echo")
    sim.start(request_id)
    lose(sim, request_id)
    error = sim.error(request_id)
    assert error.code == "WORKER_LOST"
    assert "retry" not in error.details


def test_want_of_memory_is_not_met_with_more_of_the_same() -> None:
    sim = Sim()
    request_id = submit(sim)
    lose(sim, request_id, Signalled(9, out_of_memory=True))
    assert sim.error(request_id).details["retry"] == "not after want of memory"


def test_what_was_cancelled_is_not_resent() -> None:
    sim = Sim()
    request_id = submit(sim)
    sim.cancel(request_id)
    lose(sim, request_id)
    assert sim.error(request_id).code == "WORKER_LOST"
    assert sim.cancel_replies(request_id) == [("finished", "none")]


def test_no_resend_beyond_the_deadline() -> None:
    sim = Sim(jitter=1.0)
    late = submit(sim, deadline_ms=90.0)
    lose(sim, late)
    assert sim.error(late).details["retry"] == "no time left"
    early = submit(sim, deadline_ms=110.0)
    lose(sim, early)
    assert early in sim.tables.requests


def test_a_deadline_that_passes_in_the_pause_settles_at_once() -> None:
    sim = Sim(pool(size=2), jitter=0.9)
    request_id = submit(sim, deadline_ms=100.0)
    sim.die("general-1.1")  # nobody is left to run it
    sim.die("general-2.1")
    sim.tick(0.2)
    error = sim.error(request_id)
    assert (error.code, error.details["stage"]) == ("DEADLINE_EXCEEDED", "queued")
    assert "an attempt before was lost" in error.message


def test_a_cancellation_in_the_pause_settles_at_once() -> None:
    sim = Sim()
    request_id = submit(sim)
    lose(sim, request_id)
    sim.cancel(request_id)
    assert sim.error(request_id).code == "CANCELLED"
    assert "may have run" in sim.error(request_id).message
    assert sim.cancel_replies(request_id) == [("running", "killed")]
    sim.tick(1.0)
    assert not sim.tables.requests


def test_a_client_that_leaves_takes_its_pause_along() -> None:
    sim = Sim()
    request_id = submit(sim)
    lose(sim, request_id)
    sim.handle(Bye(), sim.client)
    assert not sim.tables.requests
    sim.tick(1.0)
    assert request_id in sim.replies


def test_the_end_of_the_fleet_settles_what_pauses() -> None:
    sim = Sim(jitter=1.0)
    request_id = submit(sim)
    lose(sim, request_id)
    sim.handle(Drain(0.01))
    sim.tick(0.05)
    assert sim.error(request_id).code == "CANCELLED"
    assert "may have run" in sim.error(request_id).message


def test_where_nobody_serves_any_more_the_loss_is_the_outcome() -> None:
    sim = Sim(pool(restart=RestartConfig(type="temporary")))
    request_id = submit(sim)
    lose(sim, request_id, Exited(1))
    sim.tick(1.0)
    error = sim.error(request_id)
    assert error.code == "WORKER_LOST"
    assert "no worker in service" in error.details["retry"]


def test_a_breaker_that_opened_in_the_pause_lets_no_resend_through() -> None:
    breaker = BreakerConfig(window=10, min_calls=2, failure_rate=0.5, open_s=10.0)
    sim = Sim(replace(pool(), breaker=breaker), jitter=0.5)
    first, second = submit(sim, 1), submit(sim, 2)
    lose(sim, first)  # and the other with it
    sim.tick(0.2)
    for request_id in (first, second):
        error = sim.error(request_id)
        assert (error.code, error.details["executed"]) == ("WORKER_LOST", "maybe")
        assert "is not tried now" in error.details["retry"]
    assert not sim.process("general-1.2").attempts


def test_a_pool_where_everything_dies_resends_no_more_than_its_budget() -> None:
    restart = RestartConfig(max_restarts=1000)
    sim = Sim(replace(pool(slots=1, prefetch=0, restart=restart), breaker=None), jitter=0.0)
    for number in range(40):
        request_id = submit(sim, number)
        while request_id in sim.tables.requests:
            lose(sim, request_id)
            sim.tick(0.001)
            if request_id in sim.tables.requests:
                sim.start(request_id)
    assert sim.pool().accepted == 40
    # The first ones met a bucket that was full to the brim.
    assert INITIAL + 1 < sim.pool().resent <= INITIAL + PER_ACCEPTED * 40
    assert any(sim.error(one).details["retry"] == "budget spent" for one in sim.replies)


def test_a_bucket_fills_with_what_is_accepted_and_no_further_than_its_brim() -> None:
    budget = RetryBudget(slots=1)
    assert [budget.spend(1, 0) for _ in range(11)] == [True] * 10 + [False]
    assert not budget.spend(1, 4)
    assert budget.spend(1, 5)
    assert [budget.spend(1, 10**6) for _ in range(11)] == [True] * 10 + [False]


def test_a_large_message_overdraws_the_bucket_once() -> None:
    budget = RetryBudget(slots=1)
    assert budget.spend(100, 0)
    assert not budget.spend(1, 400)  # ten short of what it owes, and one
    assert budget.spend(1, 455)


@pytest.mark.parametrize(("resends", "limit_s"), [(0, 0.1), (1, 0.2), (2, 0.4), (5, 3.2), (6, 5.0), (50, 5.0)])
def test_pauses_are_drawn_from_nothing_to_a_limit_that_doubles(resends: int, limit_s: float) -> None:
    assert pause_s(resends, lambda: 0.0) == 0.0
    assert pause_s(resends, lambda: 0.5) == pytest.approx(limit_s / 2)
    assert pause_s(resends, lambda: 0.999) < limit_s
