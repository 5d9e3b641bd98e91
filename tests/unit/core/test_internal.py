"""The coordinator's own process among the workers of users."""

from __future__ import annotations

from typing import Any

import pytest

from bridge.protocol import messages as wire
from bridge.protocol.errors import BridgeError
from pools.config import PoolConfig, RestartConfig
from pools.core.events import ClientConnected, Drain, DrainWorker, ProgramSet, Resize, Restart, ServedVersion
from tests.support.fleet import Sim, pool

OWN = b""
SERVICES = PoolConfig(
    name="services", internal=True, size=1, slots=2, prefetch=0, default_deadline_s=120.0, heartbeat_limit_s=30.0,
    breaker=None, restart=RestartConfig(max_restarts=20, window_s=30.0, backoff_s=(0.1, 2.0)),
)  # fmt: skip
HOMES = {"programs.list": "services", "programs.deploy": "services", "sessions.save": "services"}


def fleet(*, booted: bool = False, **limits: Any) -> Sim:
    sim = Sim(pool(), SERVICES, homes=HOMES, inner=frozenset({"sessions.save"}), **limits)
    if booted:
        asked = sim.submit("programs.list")
        sim.boot("services-1.1")
        sim.reply(asked)
    return sim


def own(sim: Sim) -> bytes:
    """Return the address of the coordinator's own requests."""
    if OWN not in sim.tables.clients:
        sim._next_id[OWN] = 0
        sim.handle(ClientConnected(0, "coordinator"), OWN)
    return OWN


# --- its life -------------------------------------------------------------------------------------


def test_it_is_launched_when_it_is_first_needed_and_its_first_requests_wait() -> None:
    sim = fleet()
    sim.tick(5.0)
    assert "services-1.1" not in sim.processes
    assert sim.fleet.internal_state("services") == "off"
    first, second = sim.submit("programs.list"), sim.submit("programs.list")
    assert sim.launches() == ["general-1.1", "services-1.1"]
    assert sim.fleet.internal_state("services") == "booting"
    sim.boot("services-1.1")
    sim.reply(first)
    sim.reply(second)
    assert sim.fleet.internal_state("services") == "ready"


def test_it_can_be_launched_at_the_start_and_keeps_a_start_waiting_until_it_is_ready_or_could_not_boot() -> None:
    sim = Sim(pool(), SERVICES, homes=HOMES, ready=False)
    sim.tables.pools["services"].asked = True
    sim.tick(1.0)
    sim.boot("general-1.1")
    before = sim.fleet.ready
    sim.hello("services-1.1")
    sim.say("services-1.1", wire.BootFailed(payload=b""))
    sim.die("services-1.1")
    assert (before, sim.fleet.ready) == (False, True)
    assert sim.fleet.boot_error is None


def test_while_it_is_down_it_refuses_at_once_and_works_again_after() -> None:
    sim = fleet(booted=True)
    sim.died("services-1.1")
    refused = sim.submit("programs.list")
    error = sim.error(refused)
    assert (error.code, error.retryable) == ("UNAVAILABLE", True)
    assert 0 < error.details["retry_after_s"] <= 2.0
    assert sim.fleet.internal_state("services") == "down"
    sim.exited("services-1.1")
    sim.boot("services-1.2")
    asked = sim.submit("programs.list")
    sim.reply(asked)
    assert sim.replies[asked].status == wire.OK


def test_what_it_held_and_what_waited_behind_that_ends_as_unavailable_never_as_lost() -> None:
    sim = fleet(booted=True)
    asked = [sim.submit("programs.deploy", flags=wire.FLAG_IDEMPOTENT) for _ in range(4)]
    sim.start(asked[0])
    sim.die("services-1.1")
    errors = [sim.error(one) for one in asked]
    assert {error.code for error in errors} == {"UNAVAILABLE"}
    assert all(error.retryable for error in errors)
    assert [error.details.get("executed") for error in errors] == ["maybe", "no", None, None]
    assert errors[0].details["signal"] == 9
    assert not sim.tables.requests


def test_its_deaths_make_no_dead_letters_and_open_no_breakers() -> None:
    sim = fleet(booted=True, poison_deaths=2)
    for life in range(1, 6):
        asked = sim.submit("programs.deploy")
        sim.start(asked)
        sim.die(f"services-1.{life}")
        assert sim.error(asked).code == "UNAVAILABLE"
        sim.boot(f"services-1.{life + 1}")
    assert not sim.tables.poison.suspects
    assert not sim.tables.poison.letters
    asked = sim.submit("programs.deploy")
    sim.reply(asked)
    assert sim.replies[asked].status == wire.OK


def test_what_it_asks_for_itself_is_nobody_s_poison() -> None:
    sim = fleet(booted=True, poison_deaths=2)
    inside = sim.inside("services-1.1")
    for life in (1, 2, 3):
        deploy = sim.submit("programs.deploy")
        load = sim.nest(deploy, "programs.load", payload=b"the same")
        sim.start(load)
        sim.die(f"general-1.{life}")
        assert sim.error(load).code == "WORKER_LOST"
        sim.boot(f"general-1.{life + 1}")
        sim.reply(deploy)
    assert sim.insides["services-1.1"] == inside
    assert not sim.tables.poison.letters


def test_killed_again_and_again_it_is_restarted_within_its_intensity_and_heals() -> None:
    sim = fleet(booted=True)
    for life in range(1, 31):
        sim.die(f"services-1.{life}")
        sim.tick(2.5)  # backoff is at most 2 s
        assert f"services-1.{life + 1}" in sim.processes
        sim.boot(f"services-1.{life + 1}")
    assert sim.fleet.internal_pool("services", sim.now)["restarts"] == 30
    asked = sim.submit("programs.list")
    sim.reply(asked)
    assert sim.replies[asked].status == wire.OK


def test_killed_in_one_moment_thirty_times_it_waits_longer_each_time_and_heals() -> None:
    sim = fleet(booted=True)
    pauses = []
    for life in range(1, 31):
        sim.die(f"services-1.{life}")
        began = sim.now
        while f"services-1.{life + 1}" not in sim.processes:
            sim.tick(0.05)
        pauses.append(sim.now - began)
        sim.boot(f"services-1.{life + 1}")
    assert pauses[:20] == [0.0] * 20
    assert all(pause > 0.0 for pause in pauses[20:])
    assert max(pauses) <= 2.1
    asked = sim.submit("programs.list")
    sim.reply(asked)
    assert sim.replies[asked].status == wire.OK


def test_a_restart_ends_the_old_one_before_the_new_one_begins() -> None:
    sim = fleet(booted=True)
    held = sim.submit("programs.deploy")
    sim.start(held)
    sim.handle(Restart("services"))
    assert "services-1.2" not in sim.processes
    assert sim.error(sim.submit("programs.list")).code == "UNAVAILABLE"
    sim.reply(held)
    assert sim.sent_to(sim.process("services-1.1").peer, wire.Stop)
    sim.tick(1.5)
    assert "services-1.2" not in sim.processes, "beside its successor"
    sim.die("services-1.1")
    assert "services-1.2" in sim.processes


def test_a_restart_gives_what_runs_its_grace_and_no_more() -> None:
    sim = fleet(booted=True)
    held = sim.submit("programs.deploy")
    sim.start(held)
    sim.handle(Restart("services"))
    sim.tick(6.0)
    assert [worker for worker, _ in sim.kills()] == ["services-1.1"]
    sim.die("services-1.1")
    assert sim.error(held).code == "UNAVAILABLE"


def test_a_restart_launches_one_that_nobody_has_needed() -> None:
    sim = fleet()
    sim.handle(Restart("services"))
    assert "services-1.1" in sim.processes


# --- who may ask what -------------------------------------------------------------------------------


def test_it_is_no_pool_of_users() -> None:
    sim = fleet(booted=True)
    assert sim.fleet.pool_names() == ["general"]
    assert [row["pool"] for row in sim.fleet.pools(sim.now)] == ["general"]
    assert {row["pool"] for row in sim.fleet.workers(sim.now)} == {"general"}
    stats = sim.fleet.stats(sim.now)
    assert list(stats["pools"]) == ["general"]
    assert stats["requests"]["accepted"] == 0
    for operation in ("echo", "programs.list"):
        error = sim.error(sim.submit(operation, pool="services"))
        assert error.code == "NOT_FOUND"
        assert "general" in error.message


def test_it_is_neither_resized_nor_drained() -> None:
    sim = fleet(booted=True)
    for event in (Resize("services", 2), DrainWorker("services-1.1")):
        with pytest.raises(BridgeError):
            sim.handle(event)
    assert sim.fleet.internal_state("services") == "ready"


def test_what_is_inner_is_for_the_coordinator_alone() -> None:
    sim = fleet(booted=True)
    assert sim.error(sim.submit("sessions.save")).code == "NOT_FOUND"
    assert sim.error(sim.submit("sessions.save", peer=sim.inside("services-1.1"))).code == "NOT_FOUND"
    asked = sim.submit("sessions.save", peer=own(sim))
    sim.reply(asked)
    assert sim.replies[asked].status == wire.OK
    assert sim.error(sim.submit("sessions.save")).code == "NOT_FOUND", "no route of the coordinator's is another's"


def test_what_the_coordinator_asks_is_taken_while_the_fleet_drains_and_nothing_else_is() -> None:
    sim = fleet(booted=True)
    held = sim.submit()
    sim.handle(Drain(30.0))
    assert sim.error(sim.submit("programs.list")).code == "UNAVAILABLE"
    asked = sim.submit("sessions.save", peer=own(sim))
    sim.reply(held)
    assert not sim.tables.stopping
    sim.reply(asked)
    sim.tick()
    assert sim.tables.stopping


@pytest.mark.parametrize(
    "given",
    [
        {"idempotency_key": "k"}, {"session": "s"}, {"worker": "services-1.1"}, {"worker": "general-1.1"},
        {"in_session": wire.InSession()},
    ],
)  # fmt: skip
def test_its_operations_take_no_key_no_session_and_no_worker(given: dict[str, Any]) -> None:
    sim = fleet(booted=True)
    error = sim.error(sim.submit("programs.list", **given))
    assert error.code == "INVALID_REQUEST"
    assert error.details["path"] == next(iter(given))


def test_what_it_says_counts_while_it_lives_and_is_to_live() -> None:
    sim = fleet(booted=True)
    inside, outside = sim.inside("services-1.1"), sim.inside("general-1.1")
    assert sim.fleet.is_trusted(inside)
    assert not sim.fleet.is_trusted(outside)
    assert not sim.fleet.is_trusted(sim.client)
    assert not sim.fleet.is_trusted(b"a stranger")
    sim.died("services-1.1")
    assert not sim.fleet.is_trusted(inside)
    sim.exited("services-1.1")
    sim.boot("services-1.2")
    assert not sim.fleet.is_trusted(inside), "what the dead one left unread"
    assert sim.fleet.is_trusted(sim.inside("services-1.2"))


def test_one_that_is_to_be_killed_says_nothing_any_more() -> None:
    sim = fleet(booted=True)
    inside = sim.inside("services-1.1")
    sim.say("services-1.1", wire.Heartbeat())
    sim.tick(40.0)
    assert sim.entry("services-1.1").kill_why
    assert not sim.fleet.is_trusted(inside)


def test_it_is_told_of_no_programs() -> None:
    sim = fleet(booted=True)
    sim.handle(ProgramSet("qa", (ServedVersion(1, "general", b"spec"),), {"live": 1}))
    assert sim.sent_to(sim.process("general-1.1").peer, wire.Program)
    assert not sim.sent_to(sim.process("services-1.1").peer, wire.Program)
    sim.die("services-1.1")
    sim.boot("services-1.2")
    assert not sim.sent_to(sim.process("services-1.2").peer, wire.Program)


# --- its health --------------------------------------------------------------------------------------


def issues(sim: Sim) -> set[str]:
    return {issue["name"] for issue in sim.fleet.health(sim.now)["issues"]}


def test_that_it_is_down_for_long_and_what_is_wrong_with_the_store_are_issues() -> None:
    sim = fleet(booted=True)
    for life in range(1, 22):  # beyond its restart intensity: it waits
        sim.die(f"services-1.{life}")
        if f"services-1.{life + 1}" in sim.processes and life < 21:
            sim.boot(f"services-1.{life + 1}")
    sim.fleet.store_problem = "the store is read-only"
    sim.tick(7.0)
    assert {"services_down", "store_failed"} <= issues(sim)
    assert sim.fleet.health(sim.now)["status"] == "degraded"
    sim.boot(sim.launches()[-1])
    sim.fleet.store_problem = ""
    sim.tick(8.0)
    assert not {"services_down", "store_failed"} & issues(sim)


def test_that_it_cannot_boot_says_why_and_it_is_tried_again() -> None:
    sim = fleet()
    first = sim.submit("programs.list")
    sim.die("services-1.1")
    assert sim.error(first).message.startswith("the services process cannot be started (services-1.1): ")
    refused = sim.error(sim.submit("programs.list"))
    assert refused.code == "UNAVAILABLE"
    assert refused.details["retry_after_s"] > 0
    sim.tick(1.0)
    sim.boot("services-1.2")
    asked = sim.submit("programs.list")
    sim.reply(asked)
    assert sim.replies[asked].status == wire.OK
