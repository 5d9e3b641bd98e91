"""Pools with bounds: they grow while work waits, and shrink when fewer workers would have done for a minute."""

from __future__ import annotations

import pytest

from bridge.protocol import messages as wire
from bridge.protocol.errors import BridgeError
from pools.core.events import Drain, DrainWorker, Exited, MemoryRead, Resize
from pools.core.scaling import SHRINK_AFTER_S, SHRINK_EVERY_S
from tests.support.fleet import Sim, pool


def elastic(size: int = 1, max_size: int = 4, *, slots: int = 1, prefetch: int | None = 0, **fields: float) -> Sim:
    return Sim(pool(size=size, max_size=max_size, slots=slots, prefetch=prefetch, heartbeat_limit_s=1e9, **fields))  # type: ignore[arg-type]


def bury_those_told_to_stop(sim: Sim) -> None:
    for worker_id in [name for name, worker in sim.tables.workers.items() if worker.told_to_stop]:
        sim.die(worker_id, Exited(0))


def grown(sim: Sim, workers: int) -> Sim:
    """Have a pool grow step by step to so many workers, all of them idle at the end."""
    asked = [sim.submit() for _ in range(2 * workers)]
    while len(sim.pool().ready) < workers:
        sim.run_until(sim.now + 1.0)
        for worker_id in [name for name, worker in sim.tables.workers.items() if worker.state == "launching"]:
            sim.boot(worker_id)
    while asked:
        for request_id in [one for one in asked if sim.tables.requests[one].worker is not None]:
            sim.reply(request_id)
            asked.remove(request_id)
    return sim


def size(sim: Sim) -> int:
    return int(sim.fleet.stats(sim.now)["pools"]["general"]["size"])


# --- growth -------------------------------------------------------------------------------------------


def test_a_pool_grows_when_a_request_has_waited_for_half_a_second() -> None:
    sim = elastic()
    for _ in range(2):
        sim.submit()
    sim.run_until(sim.now + 0.49)
    assert sim.launches() == ["general-1.1"]
    sim.run_until(sim.now + 0.52)  # sizes are looked at twice a second
    assert sim.launches() == ["general-1.1", "general-2.1"]
    [log] = sim.logs("pool_grown")
    assert (log.fields["before"], log.fields["size"]) == (1, 2)
    assert str(log.fields["why"]).startswith("1 rows wait, the first for 0.5 s")
    assert sim.pool().restarts.count == 0
    assert sim.fleet.stats(sim.now)["pools"]["general"]["max_size"] == 4


def test_what_is_served_in_time_makes_no_pool_grow() -> None:
    sim = elastic()
    for _ in range(20):
        request_id, waiting = sim.submit(), sim.submit()
        sim.run_until(sim.now + 0.3)
        sim.reply(request_id)
        sim.reply(waiting)
    assert sim.launches() == ["general-1.1"]


@pytest.mark.parametrize(
    ("start", "queued", "slots", "workers"), [(2, 2, 1, 4), (2, 9, 1, 4), (2, 1, 1, 3), (2, 3, 2, 3), (2, 4, 2, 4)]
)
def test_a_pool_grows_by_what_the_queue_would_fill_and_at_most_doubles(
    start: int, queued: int, slots: int, workers: int
) -> None:
    sim = elastic(start, 100, slots=slots)
    for _ in range(start * slots + queued):
        sim.submit()
    sim.run_until(sim.now + 1.0)
    assert size(sim) == workers == len(sim.launches())


def test_a_pool_grows_no_further_while_somebody_boots_and_never_beyond_its_bound() -> None:
    sim = elastic(1, 3)
    asked = [sim.submit() for _ in range(40)]
    sim.run_until(sim.now + 5.0)
    assert size(sim) == 2
    sim.boot("general-2.1")
    sim.run_until(sim.now + 1.0)
    assert size(sim) == 3
    sim.boot("general-3.1")
    sim.run_until(sim.now + 5.0)
    assert size(sim) == 3
    assert all(request_id in sim.tables.requests for request_id in asked)


def test_what_a_worker_holds_and_has_not_begun_waits_too() -> None:
    sim = elastic(prefetch=2)
    running, first, second = (sim.submit() for _ in range(3))
    sim.start(running)
    assert not sim.pool().queue
    sim.run_until(sim.now + 1.0)
    assert sim.launches()[-1] == "general-2.1"
    sim.boot("general-2.1")
    # Nobody knows how long such a request runs, but this one has waited for long enough to be worth a message.
    assert [recall.request_id for recall in sim.process("general-1.1").recalls] == [second]
    sim.answer_recall(second, started=False)
    assert sim.attempt(second)[0].worker_id == "general-2.1"
    sim.run_until(sim.now + 1.0)
    assert size(sim) == 3  # one still waits, and every slot is taken
    sim.boot("general-3.1")
    sim.answer_recall(first, started=False)
    assert sim.attempt(first)[0].worker_id == "general-3.1"
    sim.run_until(sim.now + 5.0)
    assert size(sim) == 3


def test_a_pool_with_a_free_slot_does_not_grow() -> None:
    sim = elastic(2, 4, slots=1, prefetch=1)
    held = [sim.submit() for _ in range(4)]
    for request_id in held[:2]:
        sim.start(request_id)
    [idle] = {sim.attempt(held[0])[0].worker_id}
    for request_id in [one for one in held if sim.attempt(one)[0].worker_id == idle]:
        sim.reply(request_id)
    sim.run_until(sim.now + 3.0)  # the other one does not answer the Recall
    assert size(sim) == 2


def test_a_request_that_hangs_in_a_slot_is_no_reason_to_grow() -> None:
    sim = elastic(prefetch=2)
    sim.submit()  # never starts: its worker stands still
    sim.run_until(sim.now + 5.0)
    assert size(sim) == 1


def test_what_has_begun_does_not_wait_however_much_a_worker_holds() -> None:
    sim = elastic(prefetch=2)
    for request_id in [sim.submit() for _ in range(3)]:
        sim.start(request_id)
    sim.run_until(sim.now + 5.0)
    assert size(sim) == 1


def test_a_pool_that_cannot_boot_does_not_grow() -> None:
    sim = elastic(2, 4)
    for _ in range(6):
        sim.submit()
    for worker_id in ("general-1.1", "general-2.1"):
        sim.die(worker_id)
    for worker_id in ("general-1.2", "general-2.2"):
        sim.die(worker_id, Exited(1))
    sim.run_until(sim.now + 0.05)
    assert sim.fleet.stats(sim.now)["pools"]["general"]["state"] == "degraded"
    sim.run_until(sim.now + 5.0)
    assert size(sim) == 2


def test_a_fleet_that_shuts_down_does_not_grow() -> None:
    sim = elastic()
    for _ in range(5):
        sim.submit()
    sim.handle(Drain(30.0))
    sim.run_until(sim.now + 3.0)
    assert size(sim) == 1


def test_a_place_out_of_service_stays_it_when_its_pool_grows() -> None:
    sim = elastic(2, 4)
    sim.handle(DrainWorker("general-2.1"))
    bury_those_told_to_stop(sim)
    for _ in range(3):
        sim.submit()
    sim.run_until(sim.now + 1.0)
    assert sim.launches() == ["general-1.1", "general-2.1", "general-3.1"]
    sim.boot("general-3.1")
    sim.handle(DrainWorker("general-3.1"))
    sim.run_until(sim.now + 1.0)
    assert sim.launches()[-1] == "general-4.1"
    sim.boot("general-4.1")
    sim.submit()
    sim.run_until(sim.now + 3.0)
    assert size(sim) == 4
    assert len(sim.launches()) == 4


def test_a_place_that_was_drained_and_given_up_is_not_filled_again() -> None:
    sim = grown(elastic(1, 3), 3)
    sim.handle(DrainWorker("general-3.1"))
    bury_those_told_to_stop(sim)
    sim.run_until(sim.now + SHRINK_AFTER_S + 1.0)
    assert size(sim) == 1
    bury_those_told_to_stop(sim)
    for _ in range(9):
        sim.submit()
    sim.run_until(sim.now + 1.0)
    sim.boot("general-2.2")
    sim.run_until(sim.now + 3.0)
    assert size(sim) == 2  # the third place is all that is left, and nobody has put it back
    assert len(sim.logs("pool_grown")) == 3


# --- shrinking ----------------------------------------------------------------------------------------


def test_a_pool_gives_up_its_highest_worker_after_a_minute_and_the_next_ten_seconds_later() -> None:
    sim = grown(elastic(1, 4), 4)
    began = sim.now
    sim.run_until(began + SHRINK_AFTER_S - 1.0)
    assert size(sim) == 4
    sim.run_until(began + SHRINK_AFTER_S + 1.0)
    assert size(sim) == 3
    assert sim.sent_to(sim.process("general-4.1").peer, wire.Stop)
    bury_those_told_to_stop(sim)
    sim.run_until(began + SHRINK_AFTER_S + SHRINK_EVERY_S + 1.0)
    assert size(sim) == 2
    bury_those_told_to_stop(sim)
    sim.run_until(began + 300.0)
    bury_those_told_to_stop(sim)
    assert size(sim) == 1
    assert [worker.worker_id for worker in sim.pool().workers] == ["general-1.1"]
    assert [log.fields["size"] for log in sim.logs("pool_shrunk")] == [3, 2, 1]
    [row] = [row for row in sim.fleet.workers(sim.now) if row["id"] == "general-4.1"]
    assert row["exit"]["cause"] == "the pool shrank to 3: 1 of 4 workers would have done for 60 s"


def test_a_pool_keeps_the_workers_that_it_needed_once_in_the_last_minute() -> None:
    sim = grown(elastic(1, 4), 4)
    for _ in range(10):
        sim.run_until(sim.now + 29.0)
        busy = [sim.submit() for _ in range(3)]
        sim.run_until(sim.now + 1.0)
        for request_id in busy:
            sim.reply(request_id)
        bury_those_told_to_stop(sim)
    assert size(sim) == 3
    assert len(sim.launches()) == 4


def test_workers_that_leave_finish_what_they_run_and_a_pool_may_grow_meanwhile() -> None:
    sim = grown(elastic(1, 2), 2)
    first, second = sim.submit(), sim.submit()
    sim.start(first)
    sim.start(second)
    sim.handle(Resize("general", 1))
    sim.handle(Resize("general", 1, 2))
    waiting = sim.submit()
    sim.run_until(sim.now + 1.0)
    assert sim.launches()[-1] == "general-2.2"
    sim.boot("general-2.2")
    assert sim.attempt(waiting)[0].worker_id == "general-2.2"
    assert {sim.attempt(one)[0].worker_id for one in (first, second)} == {"general-1.1", "general-2.1"}
    for request_id in (first, second, waiting):
        sim.reply(request_id)
        assert sim.replies[request_id].status == wire.OK


def test_a_pool_with_a_drained_place_keeps_a_worker() -> None:
    sim = grown(elastic(1, 2), 2)
    sim.handle(DrainWorker("general-1.1"))
    bury_those_told_to_stop(sim)
    sim.run_until(sim.now + 200.0)
    assert size(sim) == 2
    assert [worker.worker_id for worker in sim.pool().ready] == ["general-2.1"]


def test_a_fixed_pool_never_changes() -> None:
    sim = Sim(pool(size=2, slots=1, prefetch=0, heartbeat_limit_s=1e9))
    for _ in range(20):
        sim.submit()
    sim.run_until(sim.now + 200.0)
    assert size(sim) == 2
    assert sim.fleet.stats(sim.now)["pools"]["general"]["max_size"] is None


# --- bounds by order ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("least", "most", "now_wanted", "listed"),
    [(1, 8, 3, 8), (5, 8, 5, 8), (1, 2, 2, 2), (2, None, 2, None), (0, None, 0, None)],
)
def test_a_resize_sets_bounds_and_the_nearest_size_within_them(
    least: int, most: int | None, now_wanted: int, listed: int | None
) -> None:
    sim = Sim(pool(size=3))
    sim.handle(Resize("general", least, most))
    row = sim.fleet.stats(sim.now)["pools"]["general"]
    assert (row["size"], row["max_size"]) == (now_wanted, listed)
    assert len(sim.pool().wanted) == now_wanted


def test_a_pool_that_is_given_bounds_keeps_what_it_has_for_a_minute() -> None:
    sim = Sim(pool(size=3, heartbeat_limit_s=1e9))
    sim.handle(Resize("general", 1, 8))
    sim.run_until(sim.now + SHRINK_AFTER_S - 1.0)
    assert size(sim) == 3
    sim.run_until(sim.now + 2.0)
    assert size(sim) == 2


@pytest.mark.parametrize(("least", "most"), [(3, 2), (0, 2), (1, 1025), (-1, 2), (1, -1)])
def test_bounds_that_make_no_sense_are_refused(least: int, most: int) -> None:
    sim = Sim(pool(size=2))
    with pytest.raises(BridgeError) as caught:
        sim.handle(Resize("general", least, most))
    assert (caught.value.code, caught.value.details["path"]) == ("INVALID_REQUEST", "size")
    assert size(sim) == 2


def test_a_pool_does_not_grow_while_memory_is_short() -> None:
    sim = elastic()
    for _ in range(5):
        sim.submit()
    sim.handle(MemoryRead(0.95))
    sim.run_until(sim.now + 3.0)
    assert size(sim) == 1
    sim.handle(MemoryRead(0.5))
    sim.run_until(sim.now + 0.6)
    assert size(sim) == 2


def test_what_a_deaf_worker_does_not_let_go_of_keeps_its_pool_large() -> None:
    sim = grown(elastic(1, 2, grace_s=1e6), 2)
    deaf = [sim.submit(deadline_ms=1000.0) for _ in range(2)]
    for request_id in deaf:
        sim.start(request_id)
    sim.run_until(sim.now + SHRINK_AFTER_S + SHRINK_EVERY_S + 10.0)
    assert all(sim.error(request_id).code == "DEADLINE_EXCEEDED" for request_id in deaf)
    assert not sim.pool().in_flight
    assert size(sim) == 2  # both are taken
    for request_id in deaf:
        sim.reply(request_id)
    sim.run_until(sim.now + SHRINK_AFTER_S + 1.0)
    assert size(sim) == 1


def test_nobody_waited_while_the_coordinator_stood_still() -> None:
    sim = elastic()
    for _ in range(2):
        sim.submit()
    sim.stand_still(10.0)
    sim.run_until(sim.now + 0.45)
    assert size(sim) == 1
    sim.run_until(sim.now + 0.6)
    assert size(sim) == 2
