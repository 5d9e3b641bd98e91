"""Every pool is brought to its size, whatever got lost; a degraded pool heals by probing."""

from __future__ import annotations

from bridge.protocol import messages as wire
from pools.config import RestartConfig
from pools.core.events import Dump, Exited, Kill, Resize, Restart, Signalled, WorkerDied, WorkerLaunched
from pools.core.leaving import DUMP_S
from pools.core.lifecycle import BOOT_LIMIT_S, LAUNCH_LOST_S
from tests.support.fleet import Sim, pool

SLOW = RestartConfig(backoff_s=(1.0, 8.0))


def state(sim: Sim) -> tuple[str, str | None]:
    row = sim.fleet.stats(sim.now)["pools"]["general"]
    return row["state"], row["why"]


def test_a_place_whose_timer_was_lost_is_filled_all_the_same() -> None:
    sim = Sim(pool(restart=RestartConfig(max_restarts=0, backoff_s=(0.5, 0.5))))
    sim.die()
    sim.tables.timers = [timer for timer in sim.tables.timers if "check" in repr(timer[2])]
    assert sim.launches() == ["general-1.1"]
    sim.run_until(sim.now + 1.0)
    assert sim.launches() == ["general-1.1", "general-1.2"]


def test_a_launch_of_which_nothing_is_heard_is_given_up_and_tried_again() -> None:
    sim = Sim(ready=False)
    sim.run_until(sim.now + BOOT_LIMIT_S + 2.0)
    assert sim.effects_of(Dump) == [Dump("general-1.1")]
    assert sim.kills() == [("general-1.1", "did not boot within 300 s")]
    sim.run_until(sim.now + LAUNCH_LOST_S - BOOT_LIMIT_S + 5.0)
    assert sim.launches() == ["general-1.1", "general-1.2"]
    sim.handle(WorkerLaunched("general-1.1", pid=7))  # and then it comes after all
    assert sim.effects[-1] == Kill("general-1.1", "nobody waits for it any more")
    sim.boot("general-1.2")
    sim.reply(sim.submit())


def test_the_reconciler_respects_the_backoff() -> None:
    sim = Sim(pool(size=2, restart=RestartConfig(max_restarts=0, backoff_s=(20.0, 20.0))))
    sim.die("general-1.1")
    for _ in range(19):
        sim.run_until(sim.now + 1.0)
        sim.say("general-2.1", wire.Heartbeat())
    assert sim.launches() == ["general-1.1", "general-2.1"]
    sim.run_until(sim.now + 1.0)
    assert sim.launches()[-1] == "general-1.2"


def test_a_degraded_pool_is_probed_by_one_launch_at_a_time_and_restored_by_the_first_ready() -> None:
    sim = Sim(pool(size=3, restart=SLOW), ready=False)
    assert state(sim) == ("ok", None)
    for number in (1, 2, 3):
        sim.die(f"general-{number}.1", Exited(1), log_tail=("ImportError: no model",))
    how, why = state(sim)
    assert how == "degraded"
    assert "ImportError: no model" in str(why)
    assert len(sim.logs("pool_degraded")) == 1
    assert sim.error(sim.submit()).code == "UNAVAILABLE"
    for incarnation, wait_s in ((2, 4.0), (3, 8.0), (4, 8.0)):
        sim.run_until(sim.now + wait_s - 0.01)
        assert f"general-1.{incarnation}" not in sim.launches()
        sim.run_until(sim.now + 0.02)
        assert sim.launches()[-1] == f"general-1.{incarnation}"
        assert len(sim.tables.workers) == 1  # a probe, not a crowd
        if incarnation < 4:
            sim.die(f"general-1.{incarnation}", Exited(1))
    assert len(sim.logs("pool_degraded")) == 1
    sim.boot("general-1.4")
    assert state(sim) == ("ok", None)
    assert len(sim.logs("pool_healed")) == 1
    assert sim.launches()[-2:] == ["general-2.2", "general-3.2"]  # all at once
    sim.boot("general-2.2")
    sim.boot("general-3.2")
    assert sim.fleet.ready


def test_a_probe_that_hangs_is_not_doubled_each_second() -> None:
    sim = Sim(pool(size=2, restart=SLOW), ready=False)
    sim.die("general-1.1", Exited(1))
    sim.die("general-2.1", Exited(1))
    sim.run_until(sim.now + 60.0)
    assert sim.launches() == ["general-1.1", "general-2.1", "general-1.2"]


def test_a_boot_that_was_under_way_may_heal_the_pool_as_well() -> None:
    sim = Sim(pool(size=2, restart=SLOW), ready=False)
    sim.die("general-1.1", Exited(1))
    sim.run_until(sim.now + 1.0)
    sim.die("general-1.2", Exited(1))
    assert state(sim)[0] == "degraded"
    sim.boot("general-2.1")
    assert state(sim)[0] == "ok"
    assert sim.launches()[-1] == "general-1.3"


def test_whoever_mended_the_cause_need_not_wait_for_the_probe() -> None:
    sim = Sim(pool(restart=RestartConfig(backoff_s=(30.0, 30.0))), ready=False)
    sim.die(reason=Exited(1))
    sim.handle(Restart("general"))
    assert sim.launches() == ["general-1.1", "general-1.2"]


def test_a_degraded_pool_that_is_switched_off_is_not_probed() -> None:
    sim = Sim(pool(restart=SLOW), ready=False)
    sim.die(reason=Exited(1))
    sim.handle(Resize("general", 0))
    sim.run_until(sim.now + 60.0)
    assert sim.launches() == ["general-1.1"]
    assert "is off" in sim.error(sim.submit()).message


def test_a_worker_that_is_killed_for_cause_writes_its_stacks_first_and_is_given_nothing() -> None:
    sim = Sim(pool(heartbeat_limit_s=2.0))
    sim.run_until(sim.now + 2.5)
    assert sim.effects_of(Dump) == [Dump("general-1.1")]
    assert not sim.kills()
    request_id = sim.submit()
    assert request_id in sim.queued()
    assert sim.fleet.workers(sim.now)[0]["leaving"] == "no heartbeat for 2 s"
    sim.run_until(sim.now + DUMP_S)
    assert sim.kills() == [("general-1.1", "no heartbeat for 2 s")]
    sim.die(stacks=("Thread 0x1", '  File "a.py", line 1 in hang'))
    [row] = [row for row in sim.fleet.workers(sim.now) if row["state"] == "exited"]
    assert row["exit"]["stacks"] == ["Thread 0x1", '  File "a.py", line 1 in hang']
    sim.boot("general-1.2")
    sim.reply(request_id)


def test_a_worker_that_ends_while_it_writes_its_stacks_is_not_killed() -> None:
    sim = Sim(pool(heartbeat_limit_s=2.0))
    sim.run_until(sim.now + 2.5)
    sim.die(reason=Signalled(12))
    sim.run_until(sim.now + 1.0)
    assert not sim.kills()
    [row] = [row for row in sim.fleet.workers(sim.now) if row["state"] == "exited"]
    assert row["exit"]["cause"] == "no heartbeat for 2 s"


def test_a_probe_does_not_take_a_place_that_waits_after_a_crash() -> None:
    restart = RestartConfig(max_restarts=0, window_s=10.0, backoff_s=(4.0, 4.0))
    sim = Sim(pool(size=2, restart=restart), ready=False, jitter=0.9999)
    sim.boot("general-1.1")
    sim.die("general-2.1", Exited(1))  # it could not boot
    sim.run_until(sim.now + 4.1)
    sim.processes["general-1.1"].dead = True
    sim.handle(WorkerDied("general-1.1"))
    sim.die("general-2.2", Exited(1))  # nor could its next life, and nobody serves
    assert state(sim)[0] == "degraded"
    sim.run_until(sim.now + 3.9)
    sim.die("general-1.1", Exited(1))
    sim.run_until(sim.now + 0.2)
    assert sim.launches()[2:] == ["general-2.2", "general-2.3"]
