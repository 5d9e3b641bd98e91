from __future__ import annotations

import pytest

from bridge.protocol import messages as wire
from bridge.protocol.errors import BridgeError, encode_error
from pools.config import RestartConfig
from pools.core.events import (
    Exited,
    ExitReason,
    Launch,
    LaunchFailed,
    ProtocolBroken,
    Signalled,
    Vanished,
    WorkerDied,
    WorkerExited,
    WorkerLaunched,
)
from pools.core.lifecycle import BOOT_LIMIT_S
from tests.support.fleet import Sim, pool

# --- birth --------------------------------------------------------------------------------------------


def test_every_place_is_launched_under_its_own_name() -> None:
    sim = Sim(pool("general", size=2), pool("neural"), ready=False)
    assert sim.effects_of(Launch) == [
        Launch("general-1.1", "general", 1, 1),
        Launch("general-2.1", "general", 2, 1),
        Launch("neural-1.1", "neural", 1, 1),
    ]
    assert not sim.fleet.ready


def test_a_worker_is_launched_says_hello_boots_and_is_ready() -> None:
    sim = Sim(ready=False)
    states = [sim.entry().state]
    sim.handle(WorkerLaunched("general-1.1", pid=77))
    assert sim.entry().peer == b""
    sim.handle(wire.Hello(role="worker", worker_id="general-1.1", pid=78), b"w")
    states.append(sim.entry().state)
    assert sim.fleet.knows_worker(b"w")
    assert sim.entry().peer == b"w"
    assert sim.entry().pid == 77  # what the launcher saw, not what it says
    sim.now += 0.9
    sim.handle(wire.Ready(slots=2), b"w")
    states.append(sim.entry().state)
    assert states == ["launching", "booting", "ready"]
    assert sim.entry().boot_ms == pytest.approx(900.0)
    assert sim.fleet.ready
    assert len(sim.logs("worker_ready")) == 1


def test_a_worker_that_says_hello_before_its_launch_is_known_says_its_pid() -> None:
    sim = Sim(ready=False)
    sim.handle(wire.Hello(role="worker", worker_id="general-1.1", pid=78), b"w")
    assert sim.entry().pid == 78


def test_what_strangers_say_changes_nothing() -> None:
    sim = Sim(ready=False)
    sim.handle(WorkerLaunched("general-9.9", pid=1))
    sim.handle(WorkerDied("general-9.9"))
    sim.handle(WorkerExited("general-9.9", Exited(0)))
    sim.handle(wire.Hello(role="worker", worker_id="general-9.9"), b"stranger")
    for message in (wire.Ready(slots=1), wire.Heartbeat(rss_bytes=1), wire.BootFailed(), ProtocolBroken("?")):
        sim.handle(message, b"stranger")
    assert not sim.fleet.knows_worker(b"stranger")
    assert sim.entry().state == "launching"
    assert sim.kills() == [("general-9.9", "nobody waits for it any more")]  # a process that nobody would ever bury
    assert sim.launches() == ["general-1.1"]


def test_a_second_hello_changes_nothing() -> None:
    sim = Sim()
    sim.handle(wire.Hello(role="worker", worker_id="general-1.1"), b"impostor")
    assert not sim.fleet.knows_worker(b"impostor")
    assert sim.entry().state == "ready"


def test_ready_before_hello_changes_nothing() -> None:
    sim = Sim(ready=False)
    sim.say("general-1.1", wire.Ready(slots=2))
    assert sim.entry().state == "launching"


def test_what_is_no_event_raises() -> None:
    sim = Sim()
    with pytest.raises(KeyError):
        sim.handle(wire.Welcome())


# --- death and restart --------------------------------------------------------------------------------


def test_a_crashed_worker_is_replaced_at_once_by_its_next_incarnation() -> None:
    sim = Sim(pool(size=2))
    sim.die("general-2.1")
    assert sim.launches()[-1] == "general-2.2"
    assert not sim.fleet.ready
    sim.boot("general-2.2")
    sim.die("general-2.2")
    assert sim.launches()[-1] == "general-2.3"
    assert sim.pool().restarts.count == 2


def test_a_dead_worker_is_given_nothing_more() -> None:
    sim = Sim()
    sim.died()
    request_id = sim.submit()
    assert request_id in sim.queued()
    sim.exited()
    sim.boot("general-1.2")
    assert sim.attempt(request_id)[0].worker_id == "general-1.2"


def test_a_worker_that_died_as_it_became_ready_is_given_nothing() -> None:
    sim = Sim(ready=False)
    request_id = sim.submit()
    sim.hello()
    sim.died()
    sim.say("general-1.1", wire.Ready(slots=2))  # it was still in the pipe
    assert request_id in sim.queued()
    assert not sim.fleet.ready
    sim.exited()
    assert sim.launches() == ["general-1.1", "general-1.2"]  # it had booted: a crash, at once
    sim.boot("general-1.2")
    assert sim.attempt(request_id)[0].worker_id == "general-1.2"


def test_a_crash_loop_waits_in_its_place_while_the_others_serve() -> None:
    sim = Sim(pool(size=2, restart=RestartConfig(max_restarts=2, window_s=30.0, backoff_s=(0.4, 30.0))))
    for incarnation in (1, 2, 3):
        if incarnation > 1:
            sim.boot(f"general-1.{incarnation}")
        sim.die(f"general-1.{incarnation}")
    assert sim.launches()[-1] == "general-1.3"
    assert len(sim.logs("worker_restart_delayed")) == 1
    assert sim.attempt(sim.submit())[0].worker_id == "general-2.1"
    sim.run_until(sim.now + 0.39)
    assert sim.launches()[-1] == "general-1.3"
    sim.run_until(sim.now + 0.01)
    assert sim.launches()[-1] == "general-1.4"


@pytest.mark.parametrize(
    ("reason", "text"),
    [
        (Exited(3), "exit code 3\nlast words"),
        (Signalled(11), "signal 11\nlast words"),
        (Vanished(), "gone, no report of how\nlast words"),
        (LaunchFailed("no such file: python9"), "no such file: python9"),
    ],
)
def test_a_pool_that_cannot_boot_answers_with_the_cause(reason: ExitReason, text: str) -> None:
    sim = Sim(ready=False)
    request_id = sim.submit()
    sim.die(reason=reason, log_tail=("last words",))
    error = sim.error(request_id)
    assert (error.code, error.retryable) == ("UNAVAILABLE", True)
    assert error.message == f"pool general cannot start its workers (general-1.1): {text}"
    assert sim.fleet.boot_error.message == error.message


def test_a_worker_that_says_why_it_cannot_boot_is_quoted() -> None:
    sim = Sim(ready=False)
    sim.hello()
    problem = BridgeError("INTERNAL", "ImportError: no dspy", details={"remote_traceback": "Traceback: ..."})
    sim.say("general-1.1", wire.BootFailed(payload=encode_error(problem)))
    sim.die(reason=Exited(1))
    error = sim.error(sim.submit())
    assert error.message.endswith("(general-1.1): ImportError: no dspy\nTraceback: ...")
    assert error.details["remote_traceback"] == "Traceback: ..."
    [row] = [row for row in sim.fleet.workers(sim.now) if row["state"] == "exited"]
    assert row["exit"]["kind"] == "boot_failed"


def test_a_failed_boot_waits_from_the_first_and_doubles() -> None:
    sim = Sim(pool(restart=RestartConfig(backoff_s=(0.1, 0.3))), ready=False)
    for incarnation, delay_s in ((1, 0.1), (2, 0.2), (3, 0.3), (4, 0.3)):
        sim.die(f"general-1.{incarnation}", Exited(1))
        assert sim.launches()[-1] == f"general-1.{incarnation}"
        sim.run_until(sim.now + delay_s + 1e-9)
        assert sim.launches()[-1] == f"general-1.{incarnation + 1}"


def test_one_failed_boot_is_no_broken_pool_while_others_may_boot() -> None:
    sim = Sim(pool(size=2), ready=False)
    request_id = sim.submit()
    sim.die("general-1.1", Exited(1))
    assert request_id in sim.queued()
    assert sim.submit() in sim.queued()
    sim.die("general-2.1", Exited(1))
    assert sim.error(request_id).code == "UNAVAILABLE"
    assert not sim.pool().queue


def test_a_ready_worker_makes_up_for_failed_boots() -> None:
    sim = Sim(ready=False)
    sim.die(reason=Exited(1))
    assert sim.fleet.boot_error is not None
    sim.run_until(sim.now + 1.0)
    sim.boot("general-1.2")
    assert sim.fleet.boot_error is None
    sim.die("general-1.2")  # crashes, and cannot boot again: its callers are told, its owner is not
    sim.die("general-1.3", Exited(1))
    assert sim.pool().boot_error is not None
    assert sim.fleet.boot_error is None


def test_failed_boots_beside_a_ready_worker_break_no_pool() -> None:
    sim = Sim(pool(size=2, slots=1, prefetch=0), ready=False)
    sim.boot("general-1.1")
    sim.submit()
    waiting = sim.submit()
    for incarnation in (1, 2, 3):
        sim.die(f"general-2.{incarnation}", Exited(1))
        sim.run_until(sim.now + 1.0)
    assert waiting in sim.queued()
    assert sim.fleet.pools(sim.now)[0]["state"] == "ok"


def test_the_backoff_of_failed_boots_begins_afresh_after_a_good_one() -> None:
    sim = Sim(pool(size=2, restart=RestartConfig(backoff_s=(0.1, 30.0))), ready=False)
    for incarnation in (1, 2, 3):
        sim.die(f"general-1.{incarnation}", Exited(1))
        sim.run_until(sim.now + 1.0)
    sim.boot("general-2.1")
    sim.die("general-1.4", Exited(1))
    assert [log.fields["delay_s"] for log in sim.logs("worker_restart_delayed")] == [0.1, 0.2, 0.4, 0.1]


def test_failed_boots_are_counted_in_a_row() -> None:
    sim = Sim(pool(size=2), ready=False)
    sim.die("general-1.1", Exited(1))
    sim.run_until(sim.now + 1.0)
    sim.boot("general-1.2")
    sim.boot("general-2.1")
    sim.die("general-1.2")
    sim.die("general-2.1")
    request_id = sim.submit()
    sim.die("general-1.3", Exited(1))
    assert request_id in sim.queued()  # the first of a new row, and the other place may boot


def test_what_a_dead_worker_gives_back_is_refused_when_none_can_boot() -> None:
    sim = Sim()
    request_id = sim.submit()
    sim.die()
    assert request_id in sim.queued()
    sim.die("general-1.2", Exited(1))
    assert sim.error(request_id).code == "UNAVAILABLE"


# --- silence ------------------------------------------------------------------------------------------


def test_a_silent_worker_is_killed_and_a_heard_one_is_not() -> None:
    sim = Sim(pool(size=2, heartbeat_limit_s=15.0))
    for _ in range(20):
        sim.run_until(sim.now + 1.0)
        sim.say("general-2.1", wire.Heartbeat(rss_bytes=123))
    assert sim.kills() == [("general-1.1", "no heartbeat for 15 s")]
    assert sim.entry("general-2.1").rss_bytes == 123
    sim.die("general-1.1")
    [row] = [row for row in sim.fleet.workers(sim.now) if row["state"] == "exited"]
    assert row["exit"]["cause"] == "no heartbeat for 15 s"


def test_nobody_was_silent_while_the_coordinator_stood_still() -> None:
    sim = Sim(pool(heartbeat_limit_s=15.0))
    sim.run_until(sim.now + 1.0)
    sim.stand_still(3600.0)
    assert not sim.kills()
    sim.run_until(sim.now + 14.0)
    assert not sim.kills()
    sim.run_until(sim.now + 3.0)
    assert len(sim.kills()) == 1


def test_a_process_that_is_being_launched_need_not_speak_but_must_boot_in_time() -> None:
    sim = Sim(pool(heartbeat_limit_s=15.0), ready=False)
    sim.run_until(sim.now + BOOT_LIMIT_S - 1.0)
    assert not sim.kills()
    sim.run_until(sim.now + 3.0)
    assert sim.kills() == [("general-1.1", "did not boot within 300 s")]
    sim.die()
    assert "did not boot within 300 s" in sim.error(sim.submit()).message


def test_a_worker_that_cannot_be_understood_is_killed_once() -> None:
    sim = Sim()
    for _ in range(2):
        sim.say("general-1.1", ProtocolBroken("bad field"))
    assert sim.kills() == [("general-1.1", "protocol error: bad field")]


def test_a_worker_is_killed_once_for_whatever_comes_first() -> None:
    sim = Sim(pool(heartbeat_limit_s=2.0, grace_s=1.0))
    request_id = sim.submit()
    sim.start(request_id)
    sim.cancel(request_id, force=True)
    sim.run_until(sim.now + 20.0)
    assert sim.kills() == [("general-1.1", "echo did not stop within 1 s of being asked")]
