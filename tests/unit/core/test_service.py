"""What operators ask: resize, drain, restart."""

from __future__ import annotations

import pytest

from bridge.protocol import messages as wire
from bridge.protocol.errors import BridgeError
from pools.core.events import Drain, DrainWorker, Dump, Exited, Resize, Restart, Signalled
from pools.core.leaving import DUMP_S
from tests.support.fleet import Sim, pool


def told_to_stop(sim: Sim, worker_id: str) -> bool:
    return bool(sim.sent_to(sim.process(worker_id).peer, wire.Stop))


def row_of(sim: Sim, worker_id: str) -> dict[str, object]:
    return next(row for row in sim.fleet.workers(sim.now) if row["id"] == worker_id)


def refused(sim: Sim, event: Resize | DrainWorker | Restart) -> BridgeError:
    with pytest.raises(BridgeError) as caught:
        sim.handle(event)
    return caught.value


def both_at_work(sim: Sim) -> dict[str, list[int]]:
    """Submit until two workers of two slots and one more are full; return what each holds, in order."""
    held: dict[str, list[int]] = {}
    for _ in range(6):
        request_id = sim.submit()
        held.setdefault(sim.attempt(request_id)[0].worker_id, []).append(request_id)
    for ids in held.values():
        sim.start(ids[0])
        sim.start(ids[1])
    return held


# --- resize -------------------------------------------------------------------------------------------


def test_a_pool_grows_at_once() -> None:
    sim = Sim()
    sim.handle(Resize("general", 3))
    assert sim.launches() == ["general-1.1", "general-2.1", "general-3.1"]
    assert sim.fleet.pools(sim.now)[0]["size"] == 3
    sim.boot("general-2.1")
    sim.boot("general-3.1")
    assert sim.fleet.ready


def test_a_pool_shrinks_by_its_highest_places_which_finish_what_they_run() -> None:
    sim = Sim(pool(size=2))
    held = both_at_work(sim)
    first, second, unstarted = held["general-2.1"]
    waiting = sim.submit()
    sim.handle(Resize("general", 1))
    assert sim.fleet.stats(sim.now)["pools"]["general"]["size"] == 1
    assert [recall.request_id for recall in sim.process("general-2.1").recalls] == [unstarted]
    assert row_of(sim, "general-2.1")["state"] == "draining"
    assert row_of(sim, "general-2.1")["leaving"] == "the pool was resized to 1"
    sim.answer_recall(unstarted, started=False)
    assert sim.queued() == [unstarted, waiting]
    sim.reply(first)
    assert waiting in sim.queued()  # it is given nothing new
    assert not told_to_stop(sim, "general-2.1")
    sim.reply(second)
    assert told_to_stop(sim, "general-2.1")
    sim.die("general-2.1", Exited(0))
    assert row_of(sim, "general-2.1")["exit"]["cause"] == "the pool was resized to 1"  # type: ignore[index]
    for request_id in held["general-1.1"]:
        sim.reply(request_id)
    assert sim.attempt(unstarted)[0].worker_id == sim.attempt(waiting)[0].worker_id == "general-1.1"
    assert sim.replies[first].status == sim.replies[second].status == wire.OK
    assert sim.launches() == ["general-1.1", "general-2.1"]


def test_a_place_that_comes_back_has_its_next_incarnation_while_the_last_one_still_works() -> None:
    sim = Sim(pool(size=2, slots=1, prefetch=0))
    running = [sim.submit(), sim.submit()]
    for request_id in running:
        sim.start(request_id)
    sim.handle(Resize("general", 1))
    sim.handle(Resize("general", 2))
    assert sim.launches()[-1] == "general-2.2"
    sim.boot("general-2.2")
    assert sim.attempt(sim.submit())[0].worker_id == "general-2.2"
    [own] = [r for r in running if sim.attempt(r)[0].worker_id == "general-2.1"]
    sim.reply(own)
    sim.die("general-2.1", Exited(0))
    assert sim.launches()[-1] == "general-2.2"


def test_a_pool_of_no_workers_is_off_and_says_how_it_is_switched_on() -> None:
    sim = Sim(pool(slots=1, prefetch=0))
    running, queued = sim.submit(), sim.submit()
    sim.start(running)
    sim.handle(Resize("general", 0))
    for request_id in (queued, sim.submit()):
        assert "is off (size 0)" in sim.error(request_id).message
    sim.reply(running)
    assert sim.replies[running].status == wire.OK
    sim.die(reason=Exited(0))
    sim.handle(Resize("general", 1))
    sim.boot("general-1.2")
    sim.reply(sim.submit())


def test_a_worker_that_boots_as_its_pool_shrinks_is_stopped() -> None:
    sim = Sim(pool(size=3), ready=False)
    sim.boot("general-1.1")
    sim.hello("general-2.1")
    sim.handle(Resize("general", 1))
    assert told_to_stop(sim, "general-2.1")
    assert sim.kills() == [("general-3.1", "stopped before it had booted")]
    sim.say("general-2.1", wire.Ready(slots=2))
    sim.die("general-2.1", Exited(0))
    sim.die("general-3.1")
    assert not sim.logs("worker_boot_failed")
    assert sim.fleet.ready


# --- drain --------------------------------------------------------------------------------------------


def test_a_drained_worker_finishes_and_its_place_stays_empty_until_it_is_restarted() -> None:
    sim = Sim(pool(size=2))
    held = both_at_work(sim)
    first, second, unstarted = held["general-1.1"]
    sim.handle(DrainWorker("general-1.1"))
    sim.handle(DrainWorker("general-1.1"))  # once is enough
    sim.answer_recall(unstarted, started=True)  # it had begun after all
    for request_id in (first, second, unstarted):
        assert not told_to_stop(sim, "general-1.1")
        sim.reply(request_id)
    assert told_to_stop(sim, "general-1.1")
    sim.die("general-1.1", Exited(0))
    assert row_of(sim, "general-1.1")["exit"]["cause"] == "drained"  # type: ignore[index]
    sim.run_until(sim.now + 10.0)
    assert sim.launches() == ["general-1.1", "general-2.1"]
    sim.handle(Restart("general-1.1"))
    assert sim.launches()[-1] == "general-1.2"
    sim.boot("general-1.2")
    assert sim.fleet.ready


def test_draining_has_no_limit_but_those_that_hold_anyway() -> None:
    sim = Sim(pool(heartbeat_limit_s=15.0))
    request_id = sim.submit()
    sim.start(request_id)
    sim.handle(DrainWorker("general-1.1"))
    for _ in range(100):
        sim.run_until(sim.now + 10.0)
        sim.say("general-1.1", wire.Heartbeat())
    assert not sim.kills()
    sim.run_until(sim.now + 17.0)
    assert sim.kills() == [("general-1.1", "no heartbeat for 15 s")]


def test_an_idle_worker_stops_at_once_and_is_killed_if_it_does_not() -> None:
    sim = Sim(pool(size=2, grace_s=5.0))
    sim.handle(DrainWorker("general-2.1"))
    assert told_to_stop(sim, "general-2.1")
    sim.run_until(sim.now + 5.0)
    assert sim.effects_of(Dump) == [Dump("general-2.1")]
    sim.run_until(sim.now + DUMP_S)
    assert sim.kills() == [("general-2.1", "did not stop within 5 s")]
    sim.die("general-2.1")
    assert sim.launches() == ["general-1.1", "general-2.1"]


def test_a_pool_whose_workers_are_all_drained_answers_at_once() -> None:
    sim = Sim(pool(slots=1, prefetch=1))
    running, unstarted = sim.submit(), sim.submit()
    sim.start(running)
    sim.handle(DrainWorker("general-1.1"))
    assert sim.error(sim.submit()).message.startswith("pool general has no worker in service (drained)")
    sim.answer_recall(unstarted, started=False)
    sim.run_until(sim.now + 1.0)
    assert sim.error(unstarted).code == "UNAVAILABLE"
    sim.reply(running)
    assert sim.replies[running].status == wire.OK


def test_a_draining_worker_that_crashes_is_told_apart_from_one_that_was_done() -> None:
    sim = Sim(pool(size=2))
    request_id = sim.submit()
    sim.start(request_id)
    sim.handle(DrainWorker("general-1.1"))
    sim.die("general-1.1", Signalled(11))
    assert sim.error(request_id).details["cause"] == "signal 11"
    assert row_of(sim, "general-1.1")["exit"]["cause"] == "signal 11"  # type: ignore[index]
    assert sim.launches() == ["general-1.1", "general-2.1"]


# --- restart ------------------------------------------------------------------------------------------


def test_a_restarted_worker_serves_until_its_spare_is_ready() -> None:
    sim = Sim(pool(slots=1, prefetch=0))
    sim.handle(Restart("general-1.1"))
    assert sim.launches() == ["general-1.1", "general-1.2"]
    assert sim.fleet.replacing("general") == sim.fleet.replacing("general-1.1") == ["general-1.1"]
    request_id = sim.submit()
    assert sim.attempt(request_id)[0].worker_id == "general-1.1"
    sim.start(request_id)
    sim.boot("general-1.2")
    assert row_of(sim, "general-1.1")["leaving"] == "restarted"
    assert sim.attempt(sim.submit())[0].worker_id == "general-1.2"
    assert not told_to_stop(sim, "general-1.1")
    sim.reply(request_id)
    assert told_to_stop(sim, "general-1.1")
    sim.die("general-1.1", Exited(0))
    assert row_of(sim, "general-1.1")["exit"]["cause"] == "restarted"  # type: ignore[index]
    assert sim.fleet.replacing("general") == []
    assert sim.pool().restarts.count == 0
    assert sim.fleet.ready


def test_a_pool_is_restarted_one_by_one_and_never_has_fewer_workers_than_its_size() -> None:
    sim = Sim(pool(size=3))
    sim.handle(Restart("general"))
    for number in (1, 2, 3):
        assert sim.launches()[3:] == [f"general-{place}.2" for place in range(1, number + 1)]
        assert len(sim.tables.workers) == 4
        assert len(sim.pool().ready) == 3
        sim.boot(f"general-{number}.2")
        assert len(sim.pool().ready) == 3
        sim.run_until(sim.now + 0.5)
        sim.die(f"general-{number}.1", Exited(0))
    assert [worker.worker_id for worker in sim.pool().workers] == [f"general-{place}.2" for place in (1, 2, 3)]
    assert not sim.pool().wishes


def test_work_that_does_not_end_in_the_time_that_a_restart_leaves_it_is_lost() -> None:
    sim = Sim()
    request_id = sim.submit()
    sim.start(request_id)
    sim.handle(Restart("general-1.1", grace_s=3.0))
    sim.boot("general-1.2")
    sim.run_until(sim.now + 3.0 + DUMP_S)
    assert sim.kills() == [("general-1.1", "restarted: its work did not end within 3 s")]
    sim.die("general-1.1")
    assert sim.error(request_id).code == "WORKER_LOST"
    assert sim.launches() == ["general-1.1", "general-1.2"]


def test_a_spare_that_fails_leaves_the_old_ones_in_service() -> None:
    sim = Sim(pool(size=2))
    sim.handle(Restart("general"))
    sim.die("general-1.2", Exited(1))
    assert len(sim.logs("worker_replacement_failed")) == 1
    sim.run_until(sim.now + 10.0)
    assert len(sim.launches()) == 3  # what stopped this one would stop the next
    assert len(sim.pool().ready) == 2
    sim.handle(Restart("general-2.1"))
    assert sim.launches()[-1] == "general-2.2"


def test_a_worker_that_dies_before_its_spare_is_ready_is_followed_by_it() -> None:
    sim = Sim()
    sim.handle(Restart("general-1.1"))
    sim.die("general-1.1")
    sim.boot("general-1.2")
    assert sim.launches() == ["general-1.1", "general-1.2"]
    assert sim.fleet.ready
    sim.reply(sim.submit())


def test_a_spare_that_dies_after_it_took_its_place_is_replaced_as_any_worker() -> None:
    sim = Sim()
    request_id = sim.submit()
    sim.start(request_id)
    sim.handle(Restart("general-1.1"))
    sim.boot("general-1.2")
    sim.die("general-1.2")
    assert sim.launches()[-1] == "general-1.3"
    sim.boot("general-1.3")
    sim.reply(request_id)
    sim.die("general-1.1", Exited(0))
    assert [worker.worker_id for worker in sim.pool().workers] == ["general-1.3"]


def test_a_worker_that_has_not_booted_is_restarted_without_ceremony() -> None:
    sim = Sim(ready=False)
    sim.hello()
    sim.handle(Restart("general-1.1"))
    assert told_to_stop(sim, "general-1.1")
    assert sim.launches() == ["general-1.1", "general-1.2"]
    sim.die("general-1.1", Exited(0))
    assert not sim.logs("worker_boot_failed")


@pytest.mark.parametrize("event", [DrainWorker("general-1.1"), Resize("general", 0)])
def test_a_worker_that_is_taken_out_of_service_needs_no_spare(event: DrainWorker | Resize) -> None:
    sim = Sim()
    sim.handle(Restart("general-1.1"))
    sim.hello("general-1.2")
    sim.handle(event)
    assert told_to_stop(sim, "general-1.1")
    assert told_to_stop(sim, "general-1.2")
    for worker_id in ("general-1.1", "general-1.2"):
        sim.die(worker_id, Exited(0))
    sim.run_until(sim.now + 60.0)
    assert sim.launches() == ["general-1.1", "general-1.2"]


# --- refusals -----------------------------------------------------------------------------------------


def test_what_is_not_there_is_not_found_with_advice() -> None:
    sim = Sim(pool(size=2))
    error = refused(sim, Resize("genral", 3))
    assert (error.code, error.details["suggestions"]) == ("NOT_FOUND", ["general"])
    error = refused(sim, DrainWorker("general-2.2"))
    assert error.code == "NOT_FOUND"
    assert "general-2.1" in error.details["suggestions"]
    assert refused(sim, Restart("general-9.9")).code == "NOT_FOUND"


@pytest.mark.parametrize("size", [-1, 1025])
def test_a_pool_has_0_to_1024_workers(size: int) -> None:
    error = refused(Sim(), Resize("general", size))
    assert (error.code, error.details["path"]) == ("INVALID_REQUEST", "size")


@pytest.mark.parametrize("grace_s", [-1.0, float("nan"), float("inf")])
def test_a_grace_period_is_a_time(grace_s: float) -> None:
    assert refused(Sim(), Restart("general", grace_s)).details["path"] == "grace_s"


def test_who_has_a_successor_cannot_be_restarted() -> None:
    sim = Sim()
    sim.die()
    sim.boot("general-1.2")
    assert "general-1.2 has taken the place of general-1.1" in refused(sim, Restart("general-1.1")).message


def test_a_spare_is_left_alone_until_it_has_its_place() -> None:
    sim = Sim()
    sim.handle(Restart("general-1.1"))
    for event in (DrainWorker("general-1.2"), Restart("general-1.2")):
        assert "is the spare of general-1.1" in refused(sim, event).message
    sim.boot("general-1.2")
    sim.handle(DrainWorker("general-1.2"))
    assert row_of(sim, "general-1.2")["leaving"] == "drained"


def test_a_place_beyond_the_size_must_be_resized_first() -> None:
    sim = Sim(pool(size=2))
    sim.handle(Resize("general", 1))
    sim.die("general-2.1", Exited(0))
    assert "resize it" in refused(sim, Restart("general-2.1")).message
    sim.handle(Resize("general", 0))
    assert "resize it" in refused(sim, Restart("general")).message


def test_a_fleet_that_shuts_down_takes_no_orders() -> None:
    sim = Sim()
    sim.submit()
    sim.handle(Drain(30.0))
    for event in (Resize("general", 2), DrainWorker("general-1.1"), Restart("general")):
        assert refused(sim, event).code == "UNAVAILABLE"


def test_a_fleet_that_ends_forgets_what_was_to_be_replaced() -> None:
    sim = Sim(pool(size=2))
    sim.handle(Restart("general"))
    sim.hello("general-1.2")
    sim.handle(Drain(1.0))
    for worker_id in ("general-1.1", "general-1.2", "general-2.1"):
        assert told_to_stop(sim, worker_id)
        sim.die(worker_id, Exited(0))
    assert sim.fleet.stopped
