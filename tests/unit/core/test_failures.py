"""Requests that fail are events: all of a few, some of many."""

from __future__ import annotations

from typing import Any

from bridge.protocol.errors import BridgeError, encode_error
from bridge.protocol.messages import ERROR
from pools.core.events import Log
from pools.core.sampling import Sample
from tests.support.fleet import START_S, Sim, pool


def told(sim: Sim) -> list[dict[str, Any]]:
    logs = [effect for effect in sim.effects if isinstance(effect, Log) and effect.event == "request_failed"]
    assert all(log.quiet for log in logs)
    return [log.fields for log in logs]


def test_a_sample_tells_of_a_few_and_counts_the_rest() -> None:
    sample = Sample(3, 2.0)
    assert [sample.take(START_S) for _ in range(5)] == [True, True, True, False, False]
    assert sample.untold() == 2
    assert sample.untold() == 0
    assert [sample.take(START_S + 1.0) for _ in range(3)] == [True, True, False]
    assert [sample.take(START_S + 100.0) for _ in range(4)] == [True, True, True, False]
    assert sample.untold() == 2


def test_a_request_that_fails_is_told_with_what_it_was() -> None:
    sim = Sim()
    error = BridgeError("REMOTE_ERROR", "ValueError: no", details={"type": "ValueError", "remote_traceback": "no"})
    request_id = sim.submit("qa")
    sim.reply(request_id, status=ERROR, payload=encode_error(error))
    [fields] = told(sim)
    assert fields == {
        "request_id": request_id, "operation": "qa", "pool": "general", "principal": "default", "code": "REMOTE_ERROR",
        "type": "ValueError", "worker": "general-1.1", "attempt": 1, "total_ms": 0.0,
    }  # fmt: skip


def test_one_that_never_ran_has_no_worker() -> None:
    sim = Sim(pool(slots=1, prefetch=0))
    sim.submit("slow")
    sim.submit("late", deadline_ms=50.0)
    sim.tick(1.0)
    [fields] = told(sim)
    assert (fields["operation"], fields["code"], fields["worker"]) == ("late", "DEADLINE_EXCEEDED", None)


def test_what_ends_well_or_is_cancelled_is_no_failure() -> None:
    sim = Sim(pool(slots=1, prefetch=0))
    running, queued = sim.submit(), sim.submit()
    sim.cancel(queued)
    sim.reply(running)
    assert told(sim) == []


def test_of_many_some_are_told_and_none_is_forgotten() -> None:
    sim = Sim(pool(slots=1, prefetch=0))
    sim.submit("slow")
    for _ in range(100):
        sim.submit("late", deadline_ms=50.0)
    sim.tick(1.0)
    assert len(told(sim)) == 20
    sim.submit("late", deadline_ms=50.0)
    sim.tick(1.0)
    assert told(sim)[20]["others"] == 80
