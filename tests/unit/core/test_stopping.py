"""The fleet's end, and its timers."""

from __future__ import annotations

from bridge.protocol import messages as wire
from pools.core.events import Drain, DrainWorker, Dump, Exited
from pools.core.leaving import STOP_GRACE_S
from tests.support.fleet import Sim, pool


def stops(sim: Sim) -> int:
    return sum(1 for _, message in sim.to_workers if type(message) is wire.Stop)


def test_an_idle_fleet_stops_at_once() -> None:
    sim = Sim(pool(size=2))
    sim.handle(Drain(30.0))
    assert stops(sim) == 2
    assert {worker.state for worker in sim.tables.workers.values()} == {"draining"}
    sim.die("general-1.1", Exited(0))
    assert sim.tables.workers
    sim.die("general-2.1", Exited(0))
    assert sim.fleet.stopped
    assert sim.launches() == ["general-1.1", "general-2.1"]
    assert [log.level for log in sim.logs("worker_exited")] == ["info", "info"]
    assert all(log.fields["intended"] for log in sim.logs("worker_exited"))


def test_what_is_accepted_finishes_before_the_workers_stop() -> None:
    sim = Sim(pool(slots=1, prefetch=0))
    running, waiting = sim.submit(), sim.submit()
    sim.handle(Drain(30.0))
    sim.handle(Drain(60.0))
    sim.reply(running)
    sim.tick()
    assert not stops(sim)
    sim.reply(waiting)
    sim.tick()
    assert stops(sim) == 1
    sim.run_until(sim.now + 1.0)
    assert not sim.kills()


def test_a_second_drain_can_only_shorten_the_first() -> None:
    sim = Sim(pool(slots=1, prefetch=0))
    running = sim.submit()
    sim.handle(Drain(3600.0))
    sim.handle(Drain(1.0))
    sim.run_until(sim.now + 1.0)
    assert sim.error(running).code == "CANCELLED"
    assert stops(sim) == 1


def test_a_worker_that_dies_while_draining_is_replaced_for_what_is_left() -> None:
    sim = Sim()
    request_id = sim.submit()
    sim.handle(Drain(30.0))
    sim.die()
    sim.boot("general-1.2")
    sim.reply(request_id)
    assert sim.replies[request_id].status == wire.OK
    sim.tick()
    assert stops(sim) == 1


def test_when_the_budget_is_spent_everything_is_settled_and_the_workers_stop() -> None:
    sim = Sim(pool(slots=2, prefetch=0))
    running, unstarted, queued = sim.submit(), sim.submit(), sim.submit()
    sim.start(running)
    sim.handle(Drain(5.0))
    sim.run_until(sim.now + 5.0)
    errors = [sim.error(request_id) for request_id in (running, unstarted, queued)]
    assert [error.code for error in errors] == ["CANCELLED"] * 3
    assert [error.retryable for error in errors] == [
        False,
        False,
        True,
    ]  # only what never left the queue surely did not run
    assert not any(sim.cancel_replies(request_id) for request_id in (running, unstarted, queued))
    assert sim.fleet.stats(sim.now)["requests"]["cancelled"] == 3
    assert stops(sim) == 1
    assert not sim.tables.requests
    sim.run_until(sim.now + STOP_GRACE_S + 0.1)
    assert sim.kills() == [("general-1.1", "did not stop within 2 s")]
    sim.die()
    assert sim.fleet.stopped


def test_a_cancellation_that_is_under_way_when_the_budget_is_spent_is_answered() -> None:
    sim = Sim()
    request_id = sim.submit()
    sim.start(request_id)
    sim.cancel(request_id)
    sim.handle(Drain(1.0))
    sim.run_until(sim.now + 1.0)
    assert sim.error(request_id).code == "CANCELLED"
    assert sim.cancel_replies(request_id) == [("running", "asked")]
    assert sim.fleet.stats(sim.now)["requests"]["cancelled"] == 1


def test_a_worker_that_has_not_booted_is_killed_and_one_that_boots_is_told() -> None:
    sim = Sim(pool(size=3), ready=False)
    sim.hello("general-2.1")
    sim.boot("general-3.1")
    sim.handle(Drain(1.0))
    assert sim.kills() == [("general-1.1", "stopped before it had booted")]
    assert stops(sim) == 2
    sim.say("general-2.1", wire.Ready(slots=2))
    assert sim.entry("general-2.1").state == "draining"
    sim.handle(wire.Hello(role="worker", worker_id="general-1.1"), b"late")
    assert not sim.fleet.knows_worker(b"late")
    sim.run_until(sim.now + STOP_GRACE_S)
    assert sorted(name for name, _ in sim.kills()) == ["general-1.1", "general-2.1", "general-3.1"]  # each once


def test_whoever_leaves_already_when_the_fleet_ends_has_no_longer_than_the_others() -> None:
    sim = Sim(pool(size=3, heartbeat_limit_s=2.0, grace_s=30.0))
    sim.handle(DrainWorker("general-1.1"))
    for _ in range(3):
        sim.run_until(sim.now + 1.0)
        for worker_id in ("general-1.1", "general-3.1"):
            sim.say(worker_id, wire.Heartbeat())
    assert sim.effects_of(Dump) == [Dump("general-2.1")]  # it writes its stacks as the end comes
    sim.handle(Drain(1.0))
    assert stops(sim) == 2
    sim.run_until(sim.now + STOP_GRACE_S)
    assert sim.kills() == [
        ("general-2.1", "no heartbeat for 2 s"),
        ("general-1.1", "did not stop within 2 s"),
        ("general-3.1", "did not stop within 2 s"),
    ]
    sim.bury_killed()
    assert sim.fleet.stopped


def test_a_restart_that_was_waiting_does_not_happen_after_the_end() -> None:
    sim = Sim(ready=False)
    sim.die(reason=Exited(1))
    sim.handle(Drain(1.0))
    assert sim.fleet.stopped
    sim.run_until(sim.now + 60.0)
    assert sim.launches() == ["general-1.1"]


# --- timers -------------------------------------------------------------------------------------------


def test_the_next_timer_is_the_earliest_of_deadlines_and_timers() -> None:
    sim = Sim()
    assert sim.fleet.next_timer() == sim.now + 0.5  # heartbeats are looked at twice a second
    sim.submit(deadline_ms=200.0)
    due = sim.fleet.next_timer()
    assert due is not None
    assert sim.now + 0.2 <= due <= sim.now + 0.22
    sim.submit(deadline_ms=5000.0)
    assert sim.fleet.next_timer() == due
    sim.tick(0.5)
    assert sim.fleet.next_timer() == sim.now + 0.5


def test_without_a_deadline_or_a_timer_nothing_is_due() -> None:
    sim = Sim()
    sim.tables.timers.clear()
    assert sim.fleet.next_timer() is None
    sim.submit(deadline_ms=200.0)
    assert sim.fleet.next_timer() is not None
