"""A coordinator that stood still reads what lay there before it judges anybody by it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pools.core.events import Drain, DrainWorker, Exited, Restart
from pools.core.tables import READ_S
from tests.support.fleet import Sim, pool


def out_of_time(sim: Sim) -> int:
    """A call that has been asked to stop, half a second before its worker is killed."""
    request_id = sim.submit(deadline_ms=1000.0)
    sim.start(request_id)
    sim.run_until(sim.now + 1.1)
    return request_id


def test_a_worker_that_answered_meanwhile_is_not_killed() -> None:
    sim = Sim(pool(grace_s=0.5))
    late = out_of_time(sim)
    beside = sim.submit()
    sim.stand_still(1.5)
    sim.reply(late)  # it lay there
    sim.run_until(sim.now + 5.0)
    assert not sim.kills()
    sim.reply(beside)
    assert sim.tables.fenced == 1


def test_a_worker_that_did_not_answer_is_killed_a_moment_later() -> None:
    sim = Sim(pool(grace_s=0.5))
    out_of_time(sim)
    sim.stand_still(1.5)
    sim.run_until(sim.now + READ_S - 0.01)
    assert not sim.pool().workers[0].kill_why
    sim.run_until(sim.now + 0.02)
    assert "did not stop within 0.5 s" in sim.pool().workers[0].kill_why


def drained(sim: Sim) -> None:
    sim.handle(DrainWorker("general-1.1"))


def stopped(sim: Sim) -> None:
    sim.handle(Drain(60.0))


@pytest.mark.parametrize("stop", [drained, stopped])
def test_a_worker_that_left_meanwhile_is_not_killed(stop: Callable[[Sim], None]) -> None:
    sim = Sim(pool(grace_s=0.5))
    stop(sim)
    sim.stand_still(3.0)
    assert not sim.kills()
    assert not sim.entry().kill_why
    sim.die("general-1.1", Exited(0))
    sim.run_until(sim.now + 5.0)
    assert not sim.kills()


def test_work_that_ended_meanwhile_is_not_overdue() -> None:
    sim = Sim(pool(grace_s=0.5))
    request_id = sim.submit()
    sim.start(request_id)
    sim.handle(Restart("general-1.1", grace_s=0.5))
    sim.boot("general-1.2")
    sim.stand_still(3.0)
    assert not sim.entry().kill_why
    sim.reply(request_id)
    assert sim.replies[request_id].status == 0
    sim.die("general-1.1", Exited(0))
    sim.run_until(sim.now + 5.0)
    assert not sim.kills()


def test_standing_still_again_before_all_was_read_is_standing_still() -> None:
    sim = Sim(pool(grace_s=0.5))
    late = out_of_time(sim)
    sim.stand_still(1.5)
    sim.stand_still(1.5)
    sim.reply(late)
    sim.run_until(sim.now + 5.0)
    assert not sim.kills()


def test_what_is_out_of_time_ends_at_once() -> None:
    sim = Sim()
    request_id = sim.submit(deadline_ms=100.0)
    sim.stand_still(10.0)
    assert sim.error(request_id).code == "DEADLINE_EXCEEDED"
