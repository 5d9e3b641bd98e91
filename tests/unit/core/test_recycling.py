"""Workers that have served long enough are replaced, one at a time, their spares first."""

from __future__ import annotations

import pytest

from bridge.protocol import messages as wire
from pools.core.events import Exited
from tests.support.fleet import Sim, pool


def cause(sim: Sim, worker_id: str) -> str:
    [row] = [row for row in sim.fleet.workers(sim.now) if row["id"] == worker_id]
    return str(row["exit"]["cause"])


def serve(sim: Sim, requests: int) -> None:
    for _ in range(requests):
        sim.reply(sim.submit())


@pytest.mark.parametrize(("jitter", "least"), [(0.0, 900), (0.5, 1000), (0.9999, 1100)])
def test_requests_recycle_a_tenth_sooner_or_later(jitter: float, least: int) -> None:
    sim = Sim(pool(max_requests=1000), jitter=jitter)
    serve(sim, least - 1)
    sim.run_until(sim.now + 1.0)
    assert sim.launches() == ["general-1.1"]
    serve(sim, 4)
    sim.run_until(sim.now + 1.0)
    assert sim.launches() == ["general-1.1", "general-1.2"]
    serve(sim, 1)  # it serves on
    sim.boot("general-1.2")
    sim.die("general-1.1", Exited(0))
    assert cause(sim, "general-1.1") == f"recycled: {least + 3:,} requests"
    assert sim.fleet.ready
    assert sim.pool().restarts.count == 0


def test_age_recycles() -> None:
    sim = Sim(pool(max_age_s=100.0, heartbeat_limit_s=1e9), jitter=0.5)
    sim.run_until(sim.now + 99.0)
    assert sim.launches() == ["general-1.1"]
    sim.run_until(sim.now + 2.0)
    assert sim.launches() == ["general-1.1", "general-1.2"]
    sim.boot("general-1.2")
    sim.die("general-1.1", Exited(0))
    assert cause(sim, "general-1.1") == "recycled: 100 s old"


def grow(sim: Sim, worker_id: str, *megabytes: int) -> None:
    for mb in megabytes:
        sim.say(worker_id, wire.Heartbeat(rss_bytes=mb << 20))
    sim.run_until(sim.now + 1.0)


def test_memory_recycles_one_that_has_grown() -> None:
    sim = Sim(pool(memory_limit_mb=100), jitter=0.5)
    grow(sim, "general-1.1", 40)
    serve(sim, 1)
    grow(sim, "general-1.1", 99)
    assert sim.launches() == ["general-1.1"]
    grow(sim, "general-1.1", 100)
    sim.boot("general-1.2")
    sim.die("general-1.1", Exited(0))
    assert cause(sim, "general-1.1") == "recycled: 100 MiB of memory"
    assert not sim.logs("worker_large_at_birth")


def test_workers_that_are_born_large_are_not_recycled_for_ever() -> None:
    sim = Sim(pool(size=2, memory_limit_mb=100), jitter=0.5)
    for worker_id in ("general-1.1", "general-2.1"):
        grow(sim, worker_id, 120)
    serve(sim, 2)
    for worker_id in ("general-1.1", "general-2.1"):
        grow(sim, worker_id, 179)
    assert len(sim.launches()) == 2  # whoever took its place would be as large
    [log] = sim.logs("worker_large_at_birth")
    assert (log.fields["rss_mb"], log.fields["memory_limit_mb"], log.fields["limit_is_mb"]) == (120, 100, 180)
    grow(sim, "general-2.1", 180)
    assert sim.launches()[-1] == "general-2.2"


def test_birth_ends_when_a_worker_is_given_something() -> None:
    sim = Sim(pool(memory_limit_mb=100), jitter=0.5, ready=False)
    sim.hello()
    grow(sim, "general-1.1", 30)
    waiting = sim.submit()
    sim.say("general-1.1", wire.Ready(slots=2))
    sim.reply(waiting)
    grow(sim, "general-1.1", 99)  # grown by then, not born with it
    assert sim.launches() == ["general-1.1"]
    grow(sim, "general-1.1", 100)
    assert sim.launches() == ["general-1.1", "general-1.2"]


def test_a_worker_that_was_never_heard_before_it_served_has_its_pools_limit() -> None:
    sim = Sim(pool(memory_limit_mb=100), jitter=0.5)
    serve(sim, 1)
    grow(sim, "general-1.1", 120)
    assert sim.launches() == ["general-1.1", "general-1.2"]


def test_without_limits_nobody_is_recycled() -> None:
    sim = Sim(pool(heartbeat_limit_s=1e9))
    serve(sim, 5)
    sim.say("general-1.1", wire.Heartbeat(rss_bytes=1 << 40))
    sim.run_until(sim.now + 10_000.0)
    assert sim.launches() == ["general-1.1"]


def test_one_at_a_time_in_each_pool() -> None:
    sim = Sim(pool("general", size=3, max_age_s=10.0, heartbeat_limit_s=1e9), pool("neural", size=1, max_age_s=10.0))
    sim.run_until(sim.now + 12.0)
    assert sim.launches()[4:] == ["general-1.2", "neural-1.2"]
    sim.boot("general-1.2")
    sim.run_until(sim.now + 2.0)
    assert "general-2.2" not in sim.launches()  # the old one is still there
    sim.die("general-1.1", Exited(0))
    assert sim.launches()[-1] == "general-2.2"
    assert len(sim.pool().ready) == 3


def test_a_spare_that_cannot_boot_is_tried_again_after_a_while() -> None:
    sim = Sim(pool(max_age_s=10.0, heartbeat_limit_s=1e9))
    sim.run_until(sim.now + 12.0)
    for incarnation, least_s in ((2, 0.0), (3, 0.1), (4, 0.3), (5, 0.9)):
        if incarnation > 2:
            begun = sim.now
            while f"general-1.{incarnation}" not in sim.launches():
                sim.run_until(sim.now + 0.1)
            assert sim.now - begun >= least_s
        sim.die(f"general-1.{incarnation}", Exited(1))
    assert sim.pool().ready
    sim.reply(sim.submit())


def test_limits_differ_between_workers() -> None:
    values = iter([0.1, 0.9] * 10)
    sim = Sim(pool(size=2), jitter=0.5)
    sim.tables.random = lambda: next(values)
    for worker_id in ("general-1.1", "general-2.1"):
        sim.die(worker_id)
    tolerances = [worker.tolerance for worker in sim.pool().workers]
    assert tolerances == pytest.approx([0.92, 1.08])


def test_work_that_needs_more_than_the_limit_does_not_end_one_worker_after_the_other() -> None:
    sim = Sim(pool(memory_limit_mb=100), jitter=0.5)
    for life in (1, 2):
        grow(sim, f"general-1.{life}", 40)
        serve(sim, 1)
        grow(sim, f"general-1.{life}", 200)
        if life == 1:
            sim.boot("general-1.2")
            sim.die("general-1.1", Exited(0))
    assert sim.launches() == ["general-1.1", "general-1.2"]
    until = sim.now + 30.0
    while sim.now < until:
        grow(sim, "general-1.2", 200)
    assert sim.launches()[2:] == ["general-1.3"]


def test_one_that_is_being_replaced_does_not_take_the_turn_of_another_that_is_as_large() -> None:
    sim = Sim(pool(size=2, memory_limit_mb=100), jitter=0.5)
    for worker_id in ("general-1.1", "general-2.1"):
        sim.say(worker_id, wire.Heartbeat(rss_bytes=40 << 20))
    serve(sim, 2)
    for worker_id in ("general-1.1", "general-2.1"):
        sim.say(worker_id, wire.Heartbeat(rss_bytes=200 << 20))
    sim.run_until(sim.now + 2.0)
    assert sim.launches()[2:] == ["general-1.2"]
    boots_until = sim.now + 40.0  # its spare takes longer than a turn
    while sim.now < boots_until:
        for worker_id in ("general-1.1", "general-1.2", "general-2.1"):
            sim.say(worker_id, wire.Heartbeat(rss_bytes=(200 << 20) * worker_id.endswith(".1")))
        sim.run_until(sim.now + 1.0)
    assert sim.fleet.replacing("general") == ["general-1.1", "general-2.1"]
