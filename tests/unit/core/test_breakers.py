from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest

from bridge.protocol import messages as wire
from bridge.protocol.errors import BridgeError, encode_error
from pools.config import BreakerConfig, PoolConfig
from pools.core import breakers
from pools.core.events import DrainWorker, Restart
from tests.support.fleet import Sim, pool

OPEN_S = 10.0
OUT_OF_TIME = encode_error(BridgeError("DEADLINE_EXCEEDED", "late", details={"stage": "running"}))
_numbers = itertools.count()


def guarded(name: str = "general", **fields: Any) -> PoolConfig:
    """Return a pool whose breakers open at the fourth failure."""
    config = BreakerConfig(window=20, min_calls=4, failure_rate=0.5, open_s=OPEN_S, probes=1)
    return replace(pool(name, **fields), breaker=config)


def run(sim: Sim, operation: str = "echo", **reply: Any) -> int:
    """Have a request answered."""
    request_id = sim.submit(operation)
    sim.reply(request_id, **reply)
    return request_id


def begin(sim: Sim, operation: str = "echo", **fields: Any) -> int:
    """Have a request start that is like no other: none of them is found to be poison."""
    request_id = sim.submit(operation, payload=str(next(_numbers)).encode(), **fields)
    sim.start(request_id)
    return request_id


def bury(sim: Sim, request_id: int) -> None:
    """Have the worker of a request die; its successor is ready."""
    worker, _ = sim.attempt(request_id)
    sim.die(worker.worker_id)
    sim.boot(sim.launches()[-1])


def lose(sim: Sim, operation: str = "crash", times: int = 1) -> None:
    """Have requests end with their workers."""
    for _ in range(times):
        request_id = begin(sim, operation)
        bury(sim, request_id)
        assert sim.error(request_id).code == "WORKER_LOST"


def refused(sim: Sim, operation: str) -> BridgeError | None:
    """Return the refusal that a request meets now; one that is accepted is cancelled."""
    request_id = sim.submit(operation)
    if request_id in sim.replies:
        return sim.error(request_id)
    sim.cancel(request_id)
    if request_id not in sim.replies:
        sim.answer_recall(request_id, started=False)
    return None


def row(sim: Sim, operation: str = breakers.POOL, name: str = "general") -> dict[str, Any]:
    [pool_row] = [one for one in sim.fleet.pools(sim.now) if one["pool"] == name]
    [found] = [one for one in pool_row["breakers"] if one["operation"] == operation]
    return dict(found)


def events(sim: Sim, event: str) -> list[tuple[object, object]]:
    return [(log.fields["pool"], log.fields["operation"]) for log in sim.logs(event)]


def tripped(*operations: str) -> Sim:
    """Return a fleet in which so many operations failed, one after the other, until their breakers opened."""
    sim = Sim(guarded())
    run(sim)
    for operation in operations:
        lose(sim, operation, 4)
    return sim


# --- which one opens ------------------------------------------------------------------------------------


def test_an_operation_that_fails_alone_is_refused_alone() -> None:
    sim = tripped("crash")
    error = refused(sim, "crash")
    assert error is not None
    assert (error.code, error.retryable) == ("CIRCUIT_OPEN", True)
    assert error.details == {"retry_after_s": OPEN_S, "pool": "general", "operation": "crash"}
    assert "4 of its last 4" in error.message
    assert refused(sim, "echo") is None
    assert events(sim, "breaker_opened") == [("general", "crash")]
    assert sim.fleet.stats(sim.now)["pools"]["general"]["breaker"] == "open"
    assert row(sim)["state"] == "closed"
    assert row(sim, "crash") == {
        "operation": "crash", "state": "open", "failures": 4, "outcomes": 4, "opens": 1, "retry_after_s": OPEN_S,
    }  # fmt: skip


def test_a_pool_is_refused_whole_when_several_of_its_operations_fail() -> None:
    sim = Sim(guarded())
    for operation in ("one", "two", "three", "one"):
        lose(sim, operation)
    error = refused(sim, "echo")
    assert error is not None
    assert error.details["operation"] == breakers.POOL
    assert events(sim, "breaker_opened") == [("general", breakers.POOL)]
    assert (row(sim)["failures"], row(sim)["outcomes"]) == (4, 4)


def test_a_pool_that_mostly_works_is_not_refused() -> None:
    sim = Sim(guarded())
    for operation in ("one", "two", "three", "four", "five", "six"):
        for _ in range(2):
            run(sim)
        lose(sim, operation)
    assert not sim.logs("breaker_opened")
    assert (row(sim)["failures"], row(sim)["outcomes"]) == (6, 18)


def test_another_pool_is_not_touched() -> None:
    sim = Sim(guarded(), guarded("other"))
    lose(sim, "crash", 4)
    assert refused(sim, "crash") is not None
    request_id = sim.submit("crash", pool="other")
    sim.reply(request_id)
    assert sim.replies[request_id].status == wire.OK


def test_without_breakers_nothing_is_refused() -> None:
    sim = Sim(replace(pool(), breaker=None))
    lose(sim, "crash", 15)
    assert refused(sim, "crash") is None
    assert sim.fleet.stats(sim.now)["pools"]["general"]["breaker"] == "off"
    assert sim.fleet.pools(sim.now)[0]["breakers"] == []


# --- what counts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", ["REMOTE_ERROR", "INVALID_REQUEST", "LM_ERROR", "NOT_FOUND"])
def test_what_a_worker_answers_is_no_failure(code: str) -> None:
    sim = Sim(guarded())
    for _ in range(50):
        sim.reply_error(sim.submit("crash"), code)
    assert not sim.logs("breaker_opened")
    assert (row(sim)["failures"], row(sim)["outcomes"]) == (0, 20)


def test_a_deadline_that_passes_while_it_runs_is_a_failure() -> None:
    sim = Sim(guarded(size=4, grace_s=100.0, default_deadline_s=1.0))
    for _ in range(4):
        begin(sim, "hang")
    sim.tick(1.1)
    assert events(sim, "breaker_opened") == [("general", "hang")]


@pytest.mark.parametrize("told_by", ["coordinator", "worker"])
def test_a_deadline_that_nested_requests_share_counts_for_the_outermost_alone(told_by: str) -> None:
    sim = Sim(guarded(slots=8, grace_s=100.0))
    for operation in ("outer", "inner", "other"):
        run(sim, operation, run_ms=1.0)
    for _ in range(2):
        outer = begin(sim, "outer", deadline_ms=1000.0)
        nested = [sim.nest(outer, operation) for operation in ("inner", "inner", "other", "other")]
        for request_id in nested:
            sim.start(request_id)
        if told_by == "worker":
            sim.tick(0.9)
            for request_id in nested:
                sim.reply(request_id, status=wire.ERROR, payload=OUT_OF_TIME, run_ms=999.0)
        sim.tick(1.1)
        assert {sim.error(request_id).code for request_id in (outer, *nested)} == {"DEADLINE_EXCEEDED"}
    assert not sim.logs("breaker_opened")
    assert row(sim)["failures"] == 2


def test_a_deadline_of_a_nested_requests_own_counts() -> None:
    sim = Sim(guarded(slots=8, grace_s=100.0))
    run(sim, "inner", run_ms=1.0)
    outer = begin(sim, "outer", deadline_ms=60_000.0)
    for _ in range(4):
        sim.start(sim.nest(outer, "inner", deadline_ms=500.0))
    sim.tick(0.6)
    assert events(sim, "breaker_opened") == [("general", "inner")]


def test_a_run_that_a_nested_request_hurries_on_is_judged_by_its_own_deadline() -> None:
    sim = Sim(guarded(slots=1, prefetch=0, grace_s=100.0))
    run(sim, "slow", run_ms=1.0)
    outer = begin(sim, "outer")
    runner = sim.submit("slow", idempotency_key="k", deadline_ms=1000.0)
    sim.nest(outer, "slow", idempotency_key="k")
    sim.start(runner)
    sim.tick(1.1)
    assert sim.error(runner).details["stage"] == "running"
    assert row(sim)["failures"] == 1


@pytest.mark.parametrize("measured", [False, True])
def test_impatient_callers_open_no_breaker(measured: bool) -> None:
    sim = Sim(guarded(slots=1, heartbeat_limit_s=10_000.0))
    for _ in range(20 if measured else 0):
        run(sim, "slow", run_ms=1000.0)
    for _ in range(40):
        request_id = begin(sim, "slow", deadline_ms=50.0)
        sim.tick(0.08)
        assert sim.error(request_id).details["stage"] == "running"
        sim.reply(request_id, status=wire.ERROR, payload=OUT_OF_TIME, run_ms=52.0)
    assert refused(sim, "slow") is None
    assert sim.pool().credits.of("slow").median_ms == (1000.0 if measured else None)
    assert not sim.logs("breaker_opened")


def test_what_does_not_stop_at_a_callers_deadline_is_a_failure_once() -> None:
    sim = Sim(guarded(grace_s=0.5))
    for n in range(4):
        assert row(sim)["failures"] == n
        request_id = begin(sim, "hang", deadline_ms=100.0)
        sim.tick(0.2)
        assert row(sim)["failures"] == n  # it may be the caller who was in a hurry
        sim.tick(0.6)
        bury(sim, request_id)
    assert events(sim, "breaker_opened") == [("general", "hang")]


def test_a_deadline_that_counted_does_not_count_again_as_the_worker_is_killed() -> None:
    sim = Sim(guarded(grace_s=0.5, default_deadline_s=0.1))
    request_id = begin(sim, "hang")
    sim.tick(0.2)
    assert row(sim)["failures"] == 1
    sim.tick(0.6)
    bury(sim, request_id)
    assert row(sim)["failures"] == 1


def test_a_breaker_that_opens_refuses_what_no_worker_has_had() -> None:
    sim = Sim(guarded(slots=1, prefetch=0))
    lose(sim, times=3)
    deadly = [sim.submit("crash", payload=b"%d" % n) for n in range(20)]
    other = sim.submit("echo")
    sim.start(deadly[0])
    bury(sim, deadly[0])
    assert [sim.error(request_id).code for request_id in deadly] == ["WORKER_LOST"] + ["CIRCUIT_OPEN"] * 19
    assert sim.error(deadly[1]).details == {"retry_after_s": OPEN_S, "pool": "general", "operation": "crash"}
    sim.reply(other)
    assert len(sim.pool().dead) == 4
    assert row(sim, "crash")["failures"] == 4


def test_a_breaker_that_opens_takes_nothing_back_that_a_worker_has() -> None:
    sim = Sim(guarded(size=2, slots=1, prefetch=0))
    lose(sim, times=3)
    first, second = begin(sim, "crash"), begin(sim, "crash")
    bury(sim, first)
    assert events(sim, "breaker_opened") == [("general", "crash")]
    sim.reply(second, payload=b"well")
    assert sim.replies[second].payload == b"well"


def test_a_large_error_is_not_read_whole() -> None:
    sim = Sim(guarded())
    many = encode_error(BridgeError("DEADLINE_EXCEEDED", "", details={"stage": "running", "more": ["x" * 1000] * 100}))
    for _ in range(4):
        sim.reply(sim.submit("slow"), status=wire.ERROR, payload=many)
    assert not sim.logs("breaker_opened")
    assert (row(sim)["failures"], row(sim)["outcomes"]) == (0, 4)


def test_a_deadline_below_the_usual_run_time_is_none() -> None:
    sim = Sim(guarded(size=4, grace_s=100.0))
    for _ in range(4):
        run(sim, "slow", run_ms=5000.0)
    for _ in range(8):
        begin(sim, "slow", deadline_ms=1000.0)
    sim.tick(1.1)
    assert not sim.logs("breaker_opened")
    assert row(sim)["outcomes"] == 4


@pytest.mark.parametrize(("stage", "opens"), [("running", True), ("queued", False)])
def test_a_deadline_that_the_worker_saw_counts_alike(stage: str, opens: bool) -> None:
    sim = Sim(guarded())
    payload = encode_error(BridgeError("DEADLINE_EXCEEDED", "late", details={"stage": stage}))
    for _ in range(4):
        sim.reply(sim.submit("slow"), status=wire.ERROR, payload=payload)
    assert bool(sim.logs("breaker_opened")) == opens


def test_what_did_not_run_or_was_cancelled_counts_for_nothing() -> None:
    sim = Sim(guarded())
    held = [sim.submit("crash", deadline_ms=1000.0) for _ in range(3)]
    sim.tick(1.1)
    for request_id in held:
        sim.answer_recall(request_id, started=False)
    assert {sim.error(request_id).details["stage"] for request_id in held} == {"queued"}
    for _ in range(6):
        request_id = begin(sim, "crash")
        sim.cancel(request_id)
        sim.reply_error(request_id, "CANCELLED")
    unstarted = sim.submit("crash", payload=b"unstarted")
    for _ in range(2):
        sim.die(sim.launches()[-1])
        sim.boot(sim.launches()[-1])
    assert sim.error(unstarted).details["executed"] == "no"
    assert (row(sim)["failures"], row(sim)["outcomes"]) == (0, 0)


def test_a_death_that_an_operator_ordered_is_no_failure() -> None:
    sim = Sim(guarded(grace_s=1.0))
    for _ in range(5):
        worker_id = sim.launches()[-1]
        request_id = begin(sim, "long")
        sim.handle(Restart(worker_id, grace_s=2.0))
        sim.boot(sim.launches()[-1])
        sim.tick(2.5)
        assert worker_id in dict(sim.kills())
        sim.die(worker_id)
        assert sim.error(request_id).details["executed"] == "maybe"
    assert row(sim)["failures"] == 0


def test_a_death_that_a_forced_cancellation_caused_is_no_failure() -> None:
    sim = Sim(guarded(grace_s=1.0))
    for _ in range(5):
        beside, stuck = begin(sim, "long"), begin(sim, "stuck")
        sim.cancel(stuck, force=True)
        sim.tick(1.5)
        bury(sim, beside)
        assert sim.error(beside).code == "WORKER_LOST"
    assert row(sim)["failures"] == 0


def test_a_drained_worker_that_crashes_by_itself_is_a_failure() -> None:
    sim = Sim(guarded(size=2))
    request_id = begin(sim, "crash")
    worker, _ = sim.attempt(request_id)
    sim.handle(DrainWorker(worker.worker_id))
    sim.die(worker.worker_id)
    assert row(sim)["failures"] == 1


def test_every_attempt_that_is_lost_counts() -> None:
    sim = Sim(guarded())
    first, second = begin(sim, "one"), begin(sim, "two")
    bury(sim, first)
    assert sim.error(second).code == "WORKER_LOST"
    assert (row(sim)["failures"], row(sim)["outcomes"]) == (2, 2)


def test_who_waits_as_its_worker_dies_has_not_failed() -> None:
    sim = Sim(guarded(slots=1, prefetch=0))
    for _ in range(4):
        waiting = begin(sim, "parent")
        sim.pause(waiting)
        bury(sim, begin(sim, "crash"))
        assert sim.error(waiting).details["executed"] == "maybe"
    assert {one["operation"] for one in sim.fleet.pools(sim.now)[0]["breakers"]} == {breakers.POOL, "crash"}
    assert (row(sim)["failures"], row(sim)["outcomes"], row(sim)["state"]) == (4, 4, "closed")
    assert refused(sim, "parent") is None


def test_who_went_on_before_its_worker_died_has_failed() -> None:
    sim = Sim(guarded(slots=1))
    parent = begin(sim, "parent")
    sim.pause(parent)
    sim.resume(parent)
    bury(sim, parent)
    assert row(sim, "parent")["failures"] == 1


def test_a_request_of_many_rows_is_one_outcome() -> None:
    sim = Sim(guarded())
    sim.reply(sim.submit(rows=100), status=wire.ROWS)
    assert row(sim)["outcomes"] == 1


# --- half open ------------------------------------------------------------------------------------------


def test_a_probe_that_succeeds_closes_it() -> None:
    sim = tripped("crash")
    sim.tick(OPEN_S)
    assert row(sim, "crash")["state"] == "half_open"
    probe = begin(sim, "crash")
    assert events(sim, "breaker_half_open") == [("general", "crash")]
    error = refused(sim, "crash")
    assert error is not None
    assert error.code == "CIRCUIT_OPEN"
    assert 0 < error.details["retry_after_s"] <= OPEN_S
    sim.reply(probe)
    assert events(sim, "breaker_closed") == [("general", "crash")]
    assert refused(sim, "crash") is None
    lose(sim, "crash", 3)  # the window is empty
    assert len(sim.logs("breaker_opened")) == 1
    lose(sim, "crash")
    assert len(sim.logs("breaker_opened")) == 2


def test_a_probe_that_raises_closes_it_too() -> None:
    sim = tripped("crash")
    sim.tick(OPEN_S)
    sim.reply_error(sim.submit("crash"), "REMOTE_ERROR")
    assert events(sim, "breaker_closed") == [("general", "crash")]


def test_a_probe_that_fails_opens_it_again() -> None:
    sim = tripped("crash")
    sim.tick(OPEN_S)
    lose(sim, "crash")
    error = refused(sim, "crash")
    assert error is not None
    assert error.details["retry_after_s"] == OPEN_S
    assert row(sim, "crash")["opens"] == 2


@pytest.mark.parametrize("how", ["killed", "killed as it waited", "cancelled", "out of time", "silent"])
def test_a_probe_without_an_outcome_frees_its_slot(how: str) -> None:
    sim = tripped("crash")
    sim.tick(OPEN_S)
    probe = begin(sim, "crash", deadline_ms=None if how != "out of time" else 500.0)
    assert refused(sim, "crash") is not None
    match how:
        case "killed":
            bury(sim, probe)
            sim.tick(OPEN_S)
        case "killed as it waited":
            sim.pause(probe)
            bury(sim, probe)
            assert row(sim, "crash")["state"] == "half_open"
        case "cancelled":
            sim.cancel(probe)
            sim.reply_error(probe, "CANCELLED")
        case "out of time":
            sim.tick(0.6)
        case "silent":
            for _ in range(3):
                sim.tick(10.0)
                for worker_id in sim.tables.workers:
                    sim.say(worker_id, wire.Heartbeat())
    assert refused(sim, "crash") is None


@pytest.mark.parametrize("paused", [True, False])
def test_a_probe_that_is_sent_again_is_not_kept_out_by_itself(paused: bool) -> None:
    """Its attempt says nothing: it waited, or an operator ordered the end of its worker."""
    sim = tripped("crash")
    sim.tick(OPEN_S)
    probe = begin(sim, "crash", flags=wire.FLAG_IDEMPOTENT)
    worker, attempt = sim.attempt(probe)
    if paused:
        sim.pause(probe)
    else:
        sim.handle(Restart(worker.worker_id, grace_s=2.0))
        sim.boot(sim.launches()[-1])
        sim.tick(2.5)
        assert worker.worker_id in dict(sim.kills())
    bury(sim, probe)
    sim.tick(1.0)
    assert sim.attempt(probe)[1].epoch > attempt.epoch
    assert refused(sim, "crash") is not None  # it is the probe again
    sim.reply(probe)
    assert events(sim, "breaker_closed") == [("general", "crash")]


def test_a_probe_that_is_to_be_sent_again_lets_another_through_meanwhile() -> None:
    sim = tripped("crash")
    sim.tick(OPEN_S)
    lost = begin(sim, "crash", flags=wire.FLAG_IDEMPOTENT)
    sim.pause(lost)
    bury(sim, lost)
    probe = begin(sim, "crash")
    sim.tick(1.0)
    assert "retry" in sim.error(lost).details
    sim.reply(probe)
    assert refused(sim, "crash") is None


def test_a_probe_that_comes_late_still_closes_it() -> None:
    sim = tripped("crash")
    sim.tick(OPEN_S)
    slow = begin(sim, "crash")
    for _ in range(4):
        sim.tick(10.0)
        for worker_id in sim.tables.workers:
            sim.say(worker_id, wire.Heartbeat())
    sim.reply(slow)
    assert events(sim, "breaker_closed") == [("general", "crash")]


def test_a_probe_of_a_pool_may_be_any_operation() -> None:
    sim = Sim(guarded())
    for operation in ("one", "two", "three", "four"):
        lose(sim, operation)
    sim.tick(OPEN_S)
    probe = begin(sim)
    assert refused(sim, "echo") is not None
    sim.reply(probe)
    assert refused(sim, "echo") is None
    assert events(sim, "breaker_closed") == [("general", breakers.POOL)]


# --- late outcomes --------------------------------------------------------------------------------------


def test_what_was_accepted_before_it_opened_changes_nothing() -> None:
    sim = Sim(guarded(size=6, slots=1))
    good, bad, later = begin(sim, "crash"), begin(sim, "crash"), begin(sim, "crash")
    for _ in range(4):
        bury(sim, begin(sim, "crash"))
    assert row(sim, "crash")["state"] == "open"
    sim.reply(good)
    assert row(sim, "crash")["state"] == "open"
    sim.tick(OPEN_S)
    probe = begin(sim, "crash")
    bury(sim, bad)
    assert row(sim, "crash")["state"] == "half_open"
    sim.reply(probe)
    before = row(sim)["failures"], row(sim)["outcomes"]
    bury(sim, later)
    assert "crash" not in [one["operation"] for one in sim.fleet.pools(sim.now)[0]["breakers"]]
    assert (row(sim)["failures"], row(sim)["outcomes"]) == (before[0] + 1, before[1] + 1)  # it was never open


# --- what it costs --------------------------------------------------------------------------------------


def test_what_is_healthy_is_not_asked_about() -> None:
    sim = tripped("crash")
    request_id = sim.submit("echo")
    assert not sim.tables.requests[request_id].watched
    assert ("echo", "", "") in sim.tables.routes
    assert ("crash", "", "") not in sim.tables.routes


def test_a_pool_has_so_many_breakers_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(breakers, "MAX_BREAKERS", 4)
    sim = Sim(guarded())
    run(sim)
    lose(sim, "crash", 4)
    for n in range(6):
        for _ in range(10):
            run(sim)
        lose(sim, f"operation {n}")
    assert list(sim.pool().breakers) == ["crash", breakers.POOL, "operation 4", "operation 5"]
    assert refused(sim, "crash") is not None
