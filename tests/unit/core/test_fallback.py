from __future__ import annotations

import itertools
from dataclasses import replace

from bridge.protocol import messages as wire
from bridge.protocol.errors import BridgeError, encode_error
from pools.config import BreakerConfig, PoolConfig
from pools.core.events import Exited, Resize
from tests.support.fleet import Sim, pool

OPEN_S = 10.0
_numbers = itertools.count()


def primary(fallback: str | None = "spare", operations: dict[str, str] | None = None) -> PoolConfig:
    """Return a pool whose breakers open at the second failure."""
    config = BreakerConfig(window=10, min_calls=2, failure_rate=0.5, open_s=OPEN_S)
    return replace(pool(), breaker=config, fallback=fallback, fallback_operations=operations or {})


def ask(sim: Sim, operation: str, pool: str = "") -> int:
    """Send a request that is like no other: none of them is found to be poison."""
    return sim.submit(operation, payload=str(next(_numbers)).encode(), pool=pool)


def break_(sim: Sim, operation: str, name: str = "general") -> None:
    """Have an operation's breaker open."""
    for _ in range(2):
        request_id = ask(sim, operation, pool=name)
        sim.start(request_id)
        worker, _ = sim.attempt(request_id)
        sim.die(worker.worker_id)
        sim.boot(sim.launches()[-1])


def where(sim: Sim, request_id: int) -> tuple[str, str]:
    """Return the pool and the operation of a request's attempt."""
    _, attempt = sim.attempt(request_id)
    return attempt.pool, attempt.operation


def test_nobody_makes_room_for_what_is_in_quarantine_where_it_would_run_instead() -> None:
    config = replace(pool(size=0), fallback="spare", fallback_operations={"slow": "fast"})
    sim = Sim(config, pool("spare", slots=1, prefetch=0, max_queue=1), poison_deaths=1)
    bad = sim.submit("fast", payload=b"bad", pool="spare")
    sim.start(bad)
    sim.die("spare-1.1")
    sim.boot("spare-1.2")
    sim.submit("fast", pool="spare")
    waits = sim.submit("fast", pool="spare", priority=wire.PRIORITY_LOW)
    assert sim.error(sim.submit("slow", payload=b"bad", priority=wire.PRIORITY_HIGH)).code == "POISON_REQUEST"
    assert sim.queued("spare") == [waits]


def test_another_pool_runs_what_a_breaker_refuses() -> None:
    sim = Sim(primary(), pool("spare"))
    break_(sim, "crash")
    request_id = ask(sim, "crash")
    assert where(sim, request_id) == ("spare", "crash")
    sim.reply(request_id)
    reply = sim.replies[request_id]
    assert (reply.status, reply.pool, reply.fallback_used) == (wire.OK, "spare", True)
    other = ask(sim, "echo")
    assert where(sim, other) == ("general", "echo")
    sim.reply(other)
    assert not sim.replies[other].fallback_used
    assert sim.fleet.stats(sim.now)["requests"]["rejected"] == 0


def test_the_pool_itself_takes_its_probes_and_what_comes_after() -> None:
    sim = Sim(primary(), pool("spare"))
    break_(sim, "crash")
    sim.tick(OPEN_S)
    probe = ask(sim, "crash")
    assert where(sim, probe) == ("general", "crash")
    beside = ask(sim, "crash")
    assert where(sim, beside) == ("spare", "crash")
    sim.reply(probe)
    assert not sim.replies[probe].fallback_used
    assert where(sim, ask(sim, "crash")) == ("general", "crash")


def test_another_operation_of_the_same_pool_stands_in() -> None:
    sim = Sim(primary(None, {"crash": "calm"}))
    break_(sim, "crash")
    assert where(sim, ask(sim, "crash")) == ("general", "calm")


def test_another_operation_runs_where_it_is_at_home() -> None:
    sim = Sim(primary(None, {"crash": "calm"}), pool("spare"), homes={"calm": "spare"})
    break_(sim, "crash")
    assert where(sim, ask(sim, "crash")) == ("spare", "calm")


def test_another_operation_runs_in_the_fallback_pool_if_there_is_one() -> None:
    sim = Sim(primary("spare", {"crash": "calm"}), pool("spare"))
    break_(sim, "crash")
    assert where(sim, ask(sim, "crash")) == ("spare", "calm")


def test_an_operation_without_a_stand_in_is_refused() -> None:
    sim = Sim(primary(None, {"crash": "calm"}))
    break_(sim, "other")
    error = sim.error(ask(sim, "other"))
    assert error.code == "CIRCUIT_OPEN"
    assert "fallback" not in error.details


def test_a_pool_without_workers_falls_back() -> None:
    sim = Sim(primary(), pool("spare"))
    sim.handle(Resize("general", 0))
    assert where(sim, ask(sim, "echo")) == ("spare", "echo")


def test_a_pool_that_cannot_boot_falls_back() -> None:
    sim = Sim(primary(), pool("spare"), ready=False)
    sim.hello()
    sim.say("general-1.1", wire.BootFailed(payload=encode_error(BridgeError("INTERNAL", "no such module"))))
    sim.die("general-1.1", Exited(1))
    sim.boot("spare-1.1")
    assert where(sim, ask(sim, "echo")) == ("spare", "echo")
    sim.handle(Resize("spare", 0))
    error = sim.error(ask(sim, "echo"))
    assert error.code == "UNAVAILABLE"
    assert "no such module" in error.message
    assert "spare is off" in error.details["fallback"]
    assert "fallback" not in (sim.pool().boot_error or error).details  # every refusal is made anew


def test_a_fallback_has_no_fallback() -> None:
    sim = Sim(primary(), replace(primary("third"), name="spare"), pool("third"))
    break_(sim, "crash")
    break_(sim, "crash", "spare")
    error = sim.error(ask(sim, "crash"))
    assert error.code == "CIRCUIT_OPEN"
    assert error.details["pool"] == "general"
    assert error.details["fallback"].startswith("CIRCUIT_OPEN: crash in pool spare")
    assert sim.fleet.stats(sim.now)["requests"]["rejected"] == 1


def test_two_pools_that_are_each_others_fallback_do_not_go_in_circles() -> None:
    sim = Sim(primary(), replace(primary("general"), name="spare"))
    break_(sim, "crash")
    break_(sim, "crash", "spare")
    assert sim.error(ask(sim, "crash")).details["pool"] == "general"
    assert sim.error(ask(sim, "crash", pool="spare")).details["pool"] == "spare"


def test_a_full_fallback_refuses_for_the_pool() -> None:
    sim = Sim(primary(), pool("spare", max_queue=1))
    break_(sim, "crash")
    taken = [ask(sim, "crash") for _ in range(4)]  # two run, one is held, one waits
    assert not sim.replies.keys() & set(taken)
    error = sim.error(ask(sim, "crash"))
    assert error.code == "CIRCUIT_OPEN"
    assert error.details["fallback"].startswith("OVERLOADED: ")


def test_what_runs_in_the_fallback_counts_there() -> None:
    sim = Sim(primary(), replace(primary(None), name="spare"))
    break_(sim, "crash")
    before = sim.pool().outcomes
    for _ in range(2):
        request_id = ask(sim, "crash")
        sim.start(request_id)
        worker, _ = sim.attempt(request_id)
        sim.die(worker.worker_id)
        sim.boot(sim.launches()[-1])
        assert sim.replies[request_id].fallback_used
    assert sim.pool().outcomes == before
    assert "crash in pool spare" in sim.error(ask(sim, "crash")).details["fallback"]
