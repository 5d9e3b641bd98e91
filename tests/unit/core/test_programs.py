"""Programs in the fleet: what a name means, who knows which version, hot swaps, what is forgotten and when."""

from __future__ import annotations

import pytest

from bridge.protocol import messages as wire
from bridge.protocol.messages import FLAG_IDEMPOTENT
from pools.config import BreakerConfig, PoolConfig
from pools.core.events import Drain, DrainWorker, ProgramSet, ProgramsSynced, ServedVersion
from tests.support.fleet import Sim, deployed, pool, undeployed


def told(sim: Sim, worker_id: str = "general-1.1") -> list[tuple[int, bytes, list[str]]]:
    """Return what a worker was told of programs: version, payload, aliases."""
    found = sim.sent_to(sim.process(worker_id).peer, wire.Program)
    return [(one.program_version, one.payload or b"", list(one.aliases)) for one in found]


def program(aliases: dict[str, int], *versions: int, where: str = "general") -> ProgramSet:
    served = tuple(ServedVersion(number, where, f"v{number}".encode()) for number in versions)
    return ProgramSet("qa", served, aliases)


def asked(sim: Sim, request_id: int) -> str:
    """Return what the worker was asked for."""
    return sim.attempt(request_id)[1].operation


def busy(**fields: object) -> PoolConfig:
    """Return a pool whose one worker takes one attempt at a time."""
    return pool(slots=1, prefetch=0, **fields)  # type: ignore[arg-type]


# --- names ------------------------------------------------------------------------------------------------


def test_names_mean_what_their_aliases_do() -> None:
    sim = Sim(pool("general", slots=9), pool("neural"))
    sim.handle(program({"live": 7, "canary": 8}, 7, 8))
    names = ("qa", "qa@live", "qa@canary", "qa@7", "qa@8")
    assert [asked(sim, sim.submit(name)) for name in names] == ["qa@7", "qa@7", "qa@8", "qa@7", "qa@8"]


def test_versions_may_be_at_home_in_different_pools() -> None:
    sim = Sim(pool("general"), pool("neural"))
    versions = (ServedVersion(1, "general", b"1"), ServedVersion(2, "neural", b"2"))
    sim.handle(ProgramSet("qa", versions, {"live": 1, "canary": 2}))
    assert sim.attempt(sim.submit("qa"))[0].worker_id == "general-1.1"
    assert sim.attempt(sim.submit("qa@canary"))[0].worker_id == "neural-1.1"


@pytest.mark.parametrize("name", ["qa@6", "qa@9", "qa@beta", "qa@", "nobody@live", "nobody@1"])
def test_what_no_alias_leads_to_is_not_found(name: str) -> None:
    sim = Sim()
    sim.handle(program({"live": 6}, 6))
    sim.handle(program({"live": 7}, 7, 8))
    error = sim.error(sim.submit(name))
    assert error.code == "NOT_FOUND"
    assert ("give the version one" in error.message) == name.startswith("qa")


def test_a_program_without_a_live_version_is_called_by_its_aliases_alone() -> None:
    sim = Sim()
    sim.handle(program({"canary": 1}, 1))
    error = sim.error(sim.submit("qa"))
    assert error.code == "NOT_FOUND"
    assert "qa@canary" in error.message
    assert asked(sim, sim.submit("qa@canary")) == "qa@1"


def test_a_home_that_is_not_configured_is_named() -> None:
    sim = Sim()
    sim.handle(program({"live": 1}, 1, where="gpu"))
    error = sim.error(sim.submit("qa"))
    assert (error.code, "gpu" in error.message) == ("NOT_FOUND", True)
    assert asked(sim, sim.submit("qa", pool="general")) == "qa@1"


def test_until_programs_are_known_a_name_that_nobody_knows_is_asked_for_again() -> None:
    sim = Sim()
    sim.tables.programs.awaited = True
    for name in ("qa", "qa@3"):
        assert sim.error(sim.submit(name)).code == "UNAVAILABLE"
    assert asked(sim, sim.submit("echo")) == "echo"
    sim.handle(program({"live": 3}, 3))
    assert asked(sim, sim.submit("qa")) == "qa@3"
    sim.handle(ProgramsSynced(frozenset({"qa"})))
    assert sim.error(sim.submit("other@3")).code == "NOT_FOUND"
    assert asked(sim, sim.submit("other")) == "other"  # a worker says what there is


@pytest.mark.parametrize(("instead", "runs"), [("qa@canary", "qa@2"), ("qa", "qa@1"), ("qa@nothing", "")])
def test_a_stand_in_may_be_a_program_and_is_of_the_version_that_it_means_then(instead: str, runs: str) -> None:
    config = PoolConfig(
        name="general", size=1, slots=9, default_deadline_s=None, heartbeat_limit_s=15.0,
        breaker=BreakerConfig(window=2, min_calls=2), fallback_operations={"slow": instead},
    )  # fmt: skip
    sim = Sim(config, pool("neural"))
    sim.handle(program({"live": 1, "canary": 2}, 1, 2, where="neural"))
    for worker_id in ("general-1.1", "general-1.2"):
        sim.start(sim.submit("slow"))
        sim.die(worker_id)
        sim.boot(sim.launches()[-1])
    request_id = sim.submit("slow")
    if runs:
        assert asked(sim, request_id) == runs
    else:
        assert sim.error(request_id).code == "CIRCUIT_OPEN"
        assert "NOT_FOUND" in str(sim.error(request_id).details["fallback"])


# --- hot swap -----------------------------------------------------------------------------------------------


def test_a_request_is_of_the_version_that_was_live_as_it_was_accepted() -> None:
    sim = Sim(busy())
    sim.handle(program({"live": 1}, 1))
    running, waiting = sim.submit("qa"), sim.submit("qa", rows=3)
    sim.handle(program({"live": 2}, 2))
    after = sim.submit("qa")
    assert asked(sim, running) == "qa@1"
    sim.reply(running)
    assert asked(sim, waiting) == "qa@1"
    sim.reply(waiting, status=wire.ROWS)
    assert asked(sim, after) == "qa@2"


def test_a_resend_and_what_was_given_back_are_of_the_same_version() -> None:
    sim = Sim(pool(size=2, slots=1, prefetch=0))
    sim.handle(program({"live": 1}, 1))
    repeated = sim.submit("qa", flags=FLAG_IDEMPOTENT)
    sim.start(repeated)
    sim.handle(program({"live": 2}, 2))
    sim.die(sim.attempt(repeated)[0].worker_id)
    sim.run_until(sim.now + 1.0)
    assert asked(sim, repeated) == "qa@1"
    sim.reply(repeated)


def test_who_follows_under_a_key_keeps_its_own_version() -> None:
    sim = Sim(busy())
    sim.handle(program({"live": 1}, 1))
    first = sim.submit("qa", idempotency_key="k")
    sim.start(first)
    sim.handle(program({"live": 2}, 2))
    second = sim.submit("qa", idempotency_key="k")
    assert sim.tables.requests[second].runs == "qa@2"
    sim.reply(first)
    assert sim.replies[second].status == wire.OK


def test_routes_lead_to_the_new_version_at_once() -> None:
    sim = Sim(pool(slots=9))
    sim.handle(program({"live": 1}, 1))
    assert [asked(sim, sim.submit("qa")) for _ in range(2)] == ["qa@1", "qa@1"]
    sim.handle(program({"live": 2}, 2))
    assert [asked(sim, sim.submit("qa")) for _ in range(2)] == ["qa@2", "qa@2"]
    routes = dict(sim.tables.routes)
    sim.handle(program({"live": 2}, 2))
    assert sim.tables.routes == routes  # nothing has changed


# --- what workers know ------------------------------------------------------------------------------------


def test_workers_are_told_what_is_new_and_nothing_twice() -> None:
    sim = Sim(pool("general", size=2), pool("neural"))
    sim.handle(program({"live": 1}, 1))
    sim.handle(program({"live": 1}, 1))
    sim.handle(program({"live": 1, "canary": 1}, 1))
    for process in sim.processes.values():
        assert told(sim, process.worker_id) == [(1, b"v1", ["live"]), (1, b"v1", ["canary", "live"])]


def test_a_version_that_lost_an_alias_to_another_is_not_sent_again() -> None:
    sim = Sim()
    sim.handle(program({"live": 1, "old": 1}, 1))
    sim.handle(program({"live": 2, "old": 1}, 1, 2))
    assert told(sim) == [(1, b"v1", ["live", "old"]), (2, b"v2", ["live"])]
    sim.handle(program({"live": 1, "old": 1}, 1))  # back, and nothing runs the second one
    assert told(sim)[2:] == [(1, b"v1", ["live", "old"]), (2, b"", [])]


def test_an_alias_that_is_gone_is_told() -> None:
    sim = Sim()
    sim.handle(program({"live": 1, "canary": 1}, 1))
    sim.handle(program({"live": 1}, 1))
    assert told(sim)[1:] == [(1, b"v1", ["live"])]


def test_a_version_may_be_known_before_a_name_leads_to_it() -> None:
    sim = Sim()
    sim.handle(program({"live": 1}, 1))
    sim.handle(program({"live": 1}, 1, 2))
    assert told(sim)[1:] == [(2, b"v2", [])]
    assert sim.error(sim.submit("qa@2")).code == "NOT_FOUND"
    sim.handle(program({"live": 1}, 1))
    assert told(sim)[2:] == [(2, b"", [])]


def test_a_version_with_other_content_takes_the_place_of_the_one_before() -> None:
    sim = Sim()
    sim.handle(deployed("qa", 2, payload=b"one"))
    sim.handle(deployed("qa", 2, payload=b"two"))
    assert told(sim) == [(2, b"one", ["live"]), (2, b"two", ["live"])]


def test_a_worker_learns_every_version_that_may_still_run_when_it_is_ready() -> None:
    sim = Sim(busy(size=1))
    sim.handle(program({"live": 1}, 1))
    running, waiting = sim.submit("qa"), sim.submit("qa")
    sim.start(running)
    sim.handle(program({"live": 2}, 2))
    sim.die("general-1.1")
    sim.hello("general-1.2")
    assert not told(sim, "general-1.2")
    sim.say("general-1.2", wire.Ready(slots=1))
    assert sorted(told(sim, "general-1.2")) == [(1, b"v1", []), (2, b"v2", ["live"])]
    assert asked(sim, waiting) == "qa@1"
    kinds = [type(message) for peer, message in sim.to_workers if peer == sim.process("general-1.2").peer]
    assert kinds == [wire.Program, wire.Program, wire.Request]


def test_an_old_version_is_forgotten_when_nothing_is_of_it_any_more() -> None:
    sim = Sim(busy())
    sim.handle(program({"live": 1}, 1))
    running, waiting = sim.submit("qa"), sim.submit("qa")
    sim.handle(program({"live": 2}, 2))
    sim.tick(1.1)
    sim.reply(running)
    sim.tick(1.1)
    assert (1, b"", []) not in told(sim)
    sim.reply(waiting)
    sim.tick(1.1)
    assert told(sim)[-1] == (1, b"", [])
    assert sim.tables.programs.leaving == set()
    assert list(sim.tables.programs.versions) == ["qa@2"]


def test_a_version_is_kept_for_an_attempt_whose_caller_was_answered() -> None:
    sim = Sim(busy())
    sim.handle(program({"live": 1}, 1))
    late = sim.submit("qa", deadline_ms=500.0)
    sim.start(late)
    sim.handle(program({"live": 2}, 2))
    sim.tick(2.1)
    assert late in sim.replies
    assert (1, b"", []) not in told(sim)
    sim.reply(late)
    sim.tick(1.1)
    assert told(sim)[-1] == (1, b"", [])


def test_an_old_version_that_is_wanted_again_stays() -> None:
    sim = Sim(busy())
    sim.handle(program({"live": 1}, 1))
    running = sim.submit("qa")
    sim.handle(program({"live": 2}, 2))
    sim.handle(program({"live": 1}, 1))
    sim.reply(running)
    sim.tick(1.1)
    assert asked(sim, sim.submit("qa")) == "qa@1"
    assert list(sim.tables.programs.versions) == ["qa@1"]


def test_a_program_that_is_gone_is_nobodys_name_while_its_last_call_runs() -> None:
    sim = Sim(busy())
    sim.handle(program({"live": 1}, 1))
    running = sim.submit("qa")
    sim.handle(undeployed("qa"))
    assert told(sim)[1:] == [(1, b"v1", [])]
    assert sim.error(sim.submit("qa@1")).code == "NOT_FOUND"
    sim.reply(running)
    sim.tick(1.1)
    assert told(sim)[2:] == [(1, b"", [])]
    sim.handle(undeployed("qa"))
    assert len(told(sim)) == 3


def test_a_draining_worker_keeps_what_it_runs() -> None:
    sim = Sim(busy(size=2))
    sim.handle(program({"live": 1}, 1))
    running = sim.submit("qa")
    worker_id = sim.attempt(running)[0].worker_id
    sim.start(running)
    sim.handle(DrainWorker(worker_id))
    sim.handle(program({"live": 2}, 2))
    sim.tick(1.1)
    assert "qa@1" in sim.tables.programs.versions
    sim.reply(running)
    sim.tick(1.1)
    assert "qa@1" not in sim.tables.programs.versions


# --- the sync -----------------------------------------------------------------------------------------------


def test_what_a_sync_does_not_name_is_gone() -> None:
    sim = Sim()
    sim.handle(deployed("qa", 3))
    sim.handle(deployed("old", 1))
    sim.handle(ProgramsSynced(frozenset({"qa"})))
    assert asked(sim, sim.submit("qa")) == "qa@3"
    assert set(sim.tables.programs.served) == {"qa", "qa@live", "qa@3"}
    assert [log.fields for log in sim.logs("programs_synced")] == [{"programs": 1}]


def test_changes_are_told_to_the_operator_but_for_those_of_the_first_sync() -> None:
    sim = Sim()
    sim.handle(program({"live": 1}, 1))
    sim.handle(ProgramsSynced(frozenset({"qa"})))
    assert not sim.logs("program_deployed")
    sim.handle(program({"live": 2, "canary": 2}, 2))
    sim.handle(program({"live": 2}, 2))
    sim.handle(undeployed("qa"))
    assert [log.fields["version"] for log in sim.logs("program_deployed")] == [2]
    assert [(log.fields["alias"], log.fields["before"]) for log in sim.logs("alias_moved")] == [
        ("live", 1), ("canary", None),
    ]  # fmt: skip
    assert len(sim.logs("alias_removed")) == len(sim.logs("program_undeployed")) == 1


def test_a_thousand_programs_that_are_synced_again_cost_nothing() -> None:
    sim = Sim()
    for number in range(1000):
        sim.handle(deployed(f"p{number}", 1))
    sim.submit("p7")
    before = len(sim.to_workers)
    for number in range(1000):
        sim.handle(deployed(f"p{number}", 1))
    sim.handle(ProgramsSynced(frozenset(f"p{number}" for number in range(1000))))
    assert len(sim.to_workers) == before
    assert ("p7", "", "") in sim.tables.routes


def test_a_fleet_at_its_end_still_runs_old_versions() -> None:
    sim = Sim(busy())
    sim.handle(program({"live": 1}, 1))
    running, waiting = sim.submit("qa"), sim.submit("qa")
    sim.handle(program({"live": 2}, 2))
    sim.handle(Drain(10.0))
    sim.reply(running)
    assert asked(sim, waiting) == "qa@1"
