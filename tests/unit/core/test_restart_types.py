"""Which ends call for a restart: permanent, transient, temporary; and which pools nobody serves any more."""

from __future__ import annotations

from typing import Literal

import pytest

from pools.config import RestartConfig
from pools.core.events import DrainWorker, Exited, ExitReason, Resize, Restart, Signalled, Vanished
from pools.core.leaving import DUMP_S
from tests.support.fleet import Sim, pool

Kind = Literal["permanent", "transient", "temporary"]


@pytest.mark.parametrize(
    ("kind", "reason", "again"),
    [
        ("permanent", Exited(0), True),
        ("permanent", Exited(1), True),
        ("permanent", Signalled(11), True),
        ("transient", Exited(0), False),
        ("transient", Exited(1), True),
        ("transient", Signalled(9), True),
        ("transient", Vanished(), True),
        ("temporary", Exited(0), False),
        ("temporary", Exited(1), False),
        ("temporary", Signalled(11), False),
    ],
)
def test_the_end_of_a_worker_calls_for_a_restart_or_not(kind: Kind, reason: ExitReason, again: bool) -> None:
    sim = Sim(pool(size=2, restart=RestartConfig(type=kind)))
    sim.die("general-1.1", reason)
    sim.run_until(sim.now + 120.0) if not again else None
    assert (sim.launches()[2:] == ["general-1.2"]) is again
    assert len(sim.logs("worker_not_restarted")) == (0 if again else 1)
    assert sim.pool().restarts.count == int(again)


def test_a_transient_worker_that_was_killed_for_cause_is_started_again() -> None:
    sim = Sim(pool(restart=RestartConfig(type="transient"), heartbeat_limit_s=2.0))
    sim.run_until(sim.now + 3.0 + DUMP_S)
    assert sim.kills()
    sim.die(reason=Exited(0))  # it left in the same moment
    assert sim.launches()[-1] == "general-1.2"


@pytest.mark.parametrize(("kind", "again"), [("permanent", True), ("transient", True), ("temporary", False)])
def test_a_failed_boot_is_no_normal_end(kind: Kind, again: bool) -> None:
    sim = Sim(pool(size=2, restart=RestartConfig(type=kind)), ready=False)
    sim.boot("general-2.1")
    sim.die("general-1.1", Exited(0))
    sim.run_until(sim.now + 60.0)
    assert ("general-1.2" in sim.launches()) is again


def test_a_pool_whose_workers_all_ended_says_so_until_it_is_restarted() -> None:
    sim = Sim(pool(slots=1, prefetch=0, restart=RestartConfig(type="temporary")))
    running, queued = sim.submit(), sim.submit()
    sim.start(running)
    sim.die(reason=Exited(3))
    assert sim.error(running).code == "WORKER_LOST"
    for request_id in (queued, sim.submit()):
        error = sim.error(request_id)
        assert (error.code, error.retryable) == ("UNAVAILABLE", True)
        assert "general-1.1 ended: exit code 3; temporary workers are not started again" in error.message
    sim.run_until(sim.now + 60.0)
    assert sim.launches() == ["general-1.1"]
    sim.handle(Restart("general"))
    sim.boot("general-1.2")
    assert sim.attempt(sim.submit())[0].worker_id == "general-1.2"


def test_a_temporary_pool_that_never_booted_answers_with_the_cause_and_can_be_tried_again() -> None:
    sim = Sim(pool(restart=RestartConfig(type="temporary")), ready=False)
    sim.die(reason=Exited(1), log_tail=("no such module",))
    assert "no such module" in sim.error(sim.submit()).message
    sim.run_until(sim.now + 60.0)
    assert sim.launches() == ["general-1.1"]
    sim.handle(Restart("general-1.1"))
    sim.boot("general-1.2")
    sim.reply(sim.submit())


@pytest.mark.parametrize("kind", ["permanent", "transient", "temporary"])
@pytest.mark.parametrize("reason", [Exited(0), Signalled(9)])
@pytest.mark.parametrize("event", [DrainWorker("general-2.1"), Resize("general", 1)])
def test_a_worker_that_was_stopped_on_purpose_stays_stopped(
    kind: Kind, reason: ExitReason, event: DrainWorker | Resize
) -> None:
    sim = Sim(pool(size=2, restart=RestartConfig(type=kind)))
    sim.handle(event)
    sim.die("general-2.1", reason)
    sim.run_until(sim.now + 120.0)
    assert sim.launches() == ["general-1.1", "general-2.1"]
    assert sim.pool().restarts.count == 0
    [log] = sim.logs("worker_exited")
    assert log.fields["intended"] is True
