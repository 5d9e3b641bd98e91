"""Admission pauses while memory is short, and resumes when there is enough of it again."""

from __future__ import annotations

import pytest

from bridge.protocol import messages as wire
from pools.core.events import Drain, Exited, MemoryRead
from tests.support.fleet import Sim, pool


def memory(sim: Sim) -> dict[str, object]:
    return dict(sim.fleet.stats(sim.now)["memory"])


@pytest.mark.parametrize("known", [True, False])
def test_nothing_new_is_accepted_while_memory_is_short(known: bool) -> None:
    sim = Sim()
    if known:
        sim.reply(sim.submit())
    sim.handle(MemoryRead(0.93))
    error = sim.error(sim.submit(rows=2))
    assert error.code == "OVERLOADED"
    assert error.message.startswith("memory is 93 % used; ")
    assert error.details["retry_after_s"] == 1.0
    assert error.retryable
    assert sim.fleet.stats(sim.now)["requests"]["rejected"] == 2
    assert memory(sim) == {"used": 0.93, "paused": True}


def test_admission_pauses_at_90_percent_and_resumes_below_85() -> None:
    sim = Sim()
    assert memory(sim) == {"used": None, "paused": False}
    paused = []
    for used in (0.5, 0.8999, 0.90, 0.99, 0.89, 0.85, 0.8499, 0.89, 0.91):
        sim.handle(MemoryRead(used))
        paused.append(memory(sim)["paused"])
    assert paused == [False, False, True, True, True, True, False, False, True]
    assert len(sim.logs("admission_paused")) == 2
    assert len(sim.logs("admission_resumed")) == 1
    sim.handle(MemoryRead(0.2))
    sim.reply(sim.submit())


def test_what_is_accepted_goes_on() -> None:
    sim = Sim(pool(slots=1, prefetch=0))
    running, queued = sim.submit(), sim.submit()
    sim.handle(MemoryRead(0.99))
    sim.reply(running)
    sim.reply(queued)
    assert sim.replies[running].status == sim.replies[queued].status == wire.OK


def test_what_could_never_be_accepted_is_told_so_first() -> None:
    sim = Sim()
    sim.handle(MemoryRead(0.99))
    assert sim.error(sim.submit(pool="nowhere")).code == "NOT_FOUND"
    assert sim.error(sim.submit(rows=0)).code == "INVALID_REQUEST"
    sim.submit("dspool.stats")
    assert len(sim.control) == 1  # who operates it is answered


def test_a_worker_too_large_is_replaced_all_the_same_its_spare_first() -> None:
    sim = Sim(pool(memory_limit_mb=200))
    sim.say("general-1.1", wire.Heartbeat(rss_bytes=100 << 20))
    sim.reply(sim.submit())
    sim.handle(MemoryRead(0.95))
    sim.say("general-1.1", wire.Heartbeat(rss_bytes=300 << 20))
    sim.run_until(sim.now + 1.0)
    assert sim.launches() == ["general-1.1", "general-1.2"]
    sim.boot("general-1.2")
    sim.die("general-1.1", Exited(0))
    assert sim.fleet.ready


def test_memory_that_comes_back_does_not_end_a_shutdown() -> None:
    sim = Sim()
    running = sim.submit()
    sim.handle(MemoryRead(0.95))
    sim.handle(Drain(30.0))
    assert sim.error(sim.submit()).code == "UNAVAILABLE"
    sim.handle(MemoryRead(0.5))
    assert sim.error(sim.submit()).code == "UNAVAILABLE"
    sim.reply(running)
