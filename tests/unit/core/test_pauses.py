from __future__ import annotations

import pytest

from bridge.protocol import messages as wire
from pools.core.events import DrainWorker, Exited, Signalled
from tests.support.fleet import Sim, pool


def books(sim: Sim, worker_id: str = "general-1.1") -> tuple[int, int, int, int]:
    """Return what a worker holds, how many of its attempts are paused, and what its pool has lent and has over."""
    worker = sim.entry(worker_id)
    return worker.held, worker.paused, worker.pool.lent, worker.pool.over


def test_a_paused_attempt_makes_room_for_another() -> None:
    sim = Sim(pool(slots=2, prefetch=0))
    many, one, queued = sim.submit(rows=3), sim.submit(), sim.submit()
    assert sim.queued() == [one, queued]
    sim.pause(many)
    assert books(sim) == (2, 1, 3, 0)
    assert not sim.queued()
    stats = sim.fleet.stats(sim.now)
    general = stats["pools"]["general"]
    assert (general["in_flight"], general["paused"], general["busy"]) == (5, 3, 1)
    [row] = sim.fleet.workers(sim.now)
    assert (row["in_flight"], row["paused"]) == (5, 1)


def test_one_that_goes_on_counts_again_whatever_its_worker_holds() -> None:
    sim = Sim(pool(slots=2, prefetch=0))
    many, _, _ = sim.submit(rows=3), sim.submit(), sim.submit()
    sim.pause(many)
    sim.resume(many)
    assert books(sim) == (5, 0, 0, 1)
    sim.reply(many)
    assert books(sim) == (2, 0, 0, 0)


def test_a_pause_said_twice_or_of_nothing_changes_nothing() -> None:
    sim = Sim(pool(size=2, slots=2, prefetch=0))
    mine, other = sim.submit(), sim.submit()
    epoch = sim.attempt(other)[1].epoch
    for _ in range(2):
        sim.pause(mine)
    assert books(sim) == (0, 1, 1, 0)
    for message in (
        wire.Pause(request_id=other, epoch=epoch),  # it is with another worker
        wire.Pause(request_id=other, epoch=1),
        wire.Pause(request_id=mine, epoch=99),
        wire.Resume(request_id=mine, epoch=99),
        wire.Resume(request_id=other, epoch=1),
    ):
        sim.say("general-1.1", message)
    assert books(sim) == (0, 1, 1, 0)
    for _ in range(2):
        sim.resume(mine)
    assert books(sim) == (1, 0, 0, 0)
    sim.handle(wire.Pause(request_id=mine, epoch=1), b"a stranger")
    assert books(sim) == (1, 0, 0, 0)


@pytest.mark.parametrize("resumed", [False, True])
@pytest.mark.parametrize("settled", ["", "deadline", "cancel", "force"])
def test_a_paused_attempt_leaves_the_books_right_however_it_ends(settled: str, resumed: bool) -> None:
    sim = Sim(pool(slots=2, prefetch=0))
    many = sim.submit(rows=3, deadline_ms=5000.0)
    others = [sim.submit(rows=2) for _ in range(2)]
    sim.pause(many)
    if settled == "deadline":
        sim.tick(5.1)
        assert many in sim.replies
    elif settled:
        sim.cancel(many, force=settled == "force")
    assert books(sim) == (2, 1, 3, 0)
    if resumed:
        sim.resume(many)
        assert books(sim) == (5, 0, 0, 1)
    sim.reply(many)
    assert books(sim) == (2, 0, 0, 0)
    sim.reply(others[0])
    sim.reply(others[1])
    assert books(sim) == (0, 0, 0, 0)


@pytest.mark.parametrize("reason", [Signalled(9), Exited(1)])
def test_the_death_of_a_worker_with_paused_attempts_leaves_the_books_right(reason: Exited | Signalled) -> None:
    sim = Sim(pool(slots=1, prefetch=1))
    paused, again = sim.submit(), sim.submit(flags=wire.FLAG_IDEMPOTENT)
    held, _ = sim.submit(), sim.submit()
    sim.pause(paused)
    sim.pause(again)
    sim.start(held)
    sim.die(reason=reason)
    assert (sim.pool().lent, sim.pool().over) == (0, 0)
    assert sim.error(paused).code == "WORKER_LOST"
    sim.boot("general-1.2")
    sim.tick(1.0)
    assert sim.attempt(again)
    assert books(sim, "general-1.2") == (2, 0, 0, 1)
    sim.pause(again)
    sim.reply(again)
    assert sim.pool().lent == 0


def test_a_killed_worker_takes_its_paused_attempts_along() -> None:
    sim = Sim(pool(slots=1, grace_s=1.0))
    request_id = sim.submit()
    sim.pause(request_id)
    sim.cancel(request_id, force=True)
    sim.tick(1.1)
    sim.bury_killed()
    assert sim.error(request_id).code == "CANCELLED"
    assert (sim.pool().lent, sim.pool().in_flight) == (0, 0)


def test_a_worker_that_leaves_waits_for_its_paused_attempts() -> None:
    sim = Sim(pool(size=2, slots=1, prefetch=0))
    request_id = sim.submit()
    name = sim.attempt(request_id)[0].worker_id
    sim.pause(request_id)
    sim.handle(DrainWorker(name))
    assert not sim.sent_to(sim.process(name).peer, wire.Stop)
    sim.resume(request_id)
    sim.reply(request_id)
    assert sim.sent_to(sim.process(name).peer, wire.Stop)


def test_an_idle_worker_is_not_given_what_is_paused() -> None:
    sim = Sim(pool(size=2, slots=1, prefetch=3))
    ids = [sim.submit("slow") for _ in range(6)]
    by_worker: dict[str, list[int]] = {}
    for request_id in ids:
        by_worker.setdefault(sim.attempt(request_id)[0].worker_id, []).append(request_id)
    one, two = by_worker.values()
    sim.now += 1.0
    sim.pause(one[0])
    for request_id in one[1:]:
        sim.start(request_id)
    sim.start(two[0])
    sim.now += 1.0
    for request_id in one[1:]:
        sim.reply(request_id, run_ms=1000.0)
    recalled = [recall.request_id for recall in sim.sent_to(sim.attempt(two[0])[0].peer, wire.Recall)]
    assert recalled
    assert set(recalled) <= set(two[1:])
    assert not sim.sent_to(sim.attempt(one[0])[0].peer, wire.Recall)


def test_a_pause_lets_an_idle_slot_be_filled_from_a_fuller_worker() -> None:
    sim = Sim(pool(size=2, slots=1, prefetch=1))
    ids = [sim.submit("slow") for _ in range(4)]
    name = sim.attempt(ids[0])[0].worker_id
    mine = [one for one in ids if sim.attempt(one)[0].worker_id == name]
    others = [one for one in ids if one not in mine]
    sim.start(others[0])
    sim.now += 1.0
    for request_id in mine:
        sim.pause(request_id)
    assert [recall.request_id for recall in sim.sent_to(sim.attempt(others[0])[0].peer, wire.Recall)] == others[1:]
    sim.answer_recall(others[1], started=False)
    assert sim.attempt(others[1])[0].worker_id == name


def test_paused_work_is_none_that_a_pool_grows_for_or_keeps_its_size_for() -> None:
    sim = Sim(pool(size=1, max_size=3, slots=1, prefetch=0))
    ids = [sim.submit() for _ in range(3)]
    for request_id in ids:
        sim.pause(request_id)
    sim.tick(5.0)
    assert sim.pool().size == 1
    sim.resume(ids[0])
    queued = sim.submit()
    sim.tick(2.0)
    assert sim.pool().size == 2
    sim.boot("general-2.1")
    sim.reply(queued)
    sim.tick(90.0)
    assert sim.pool().size == 1
    assert sim.pool().in_flight == 3


# --- suspects --------------------------------------------------------------------------------------------


def test_who_waits_is_no_suspect_when_its_worker_dies() -> None:
    sim = Sim(pool(slots=1, prefetch=0), poison_deaths=2)
    waiting = sim.submit("parent")
    sim.pause(waiting)
    bad = sim.submit("bad", payload=b"x")
    sim.start(bad)
    sim.die()
    assert list(sim.tables.poison.operations) == ["bad"]


def test_suspects_that_wait_for_each_other_are_run_all_the_same() -> None:
    sim = Sim(pool(slots=1, prefetch=0), poison_deaths=3)
    for operation in ("parent", "child"):
        sim.start(sim.submit(operation))
        sim.die(f"general-1.{len(sim.processes)}")
        sim.tick(5.0)
        sim.boot(f"general-1.{len(sim.processes)}")
    assert sim.tables.poison.operations == {"parent", "child"}
    parent = sim.submit("parent")
    name = sim.attempt(parent)[0].worker_id
    child = sim.nest(parent, "child")
    innocent = sim.nest(parent, "other")
    seclusion = sim.pool().seclusion
    assert seclusion is not None
    assert list(seclusion.waiting) == [child]
    sim.pause(parent)
    sim.reply(innocent)  # between two suspects whatever else waits has its turn
    assert sim.attempt(child)[0].worker_id == name
    sim.reply(child)
    sim.resume(parent)
    sim.reply(parent)
    assert not sim.tables.poison


@pytest.mark.parametrize("size", [1, 2])
def test_a_suspect_that_goes_on_is_given_no_company(size: int) -> None:
    """While it waits its worker serves others where nobody else does: whom it waits for may be among them."""
    sim = Sim(pool(size=size, slots=4, prefetch=0), poison_deaths=3)
    sim.start(sim.submit("bad"))
    sim.die("general-1.1")
    sim.tick(5.0)
    sim.boot("general-1.2")
    suspect = sim.submit("bad")
    name = sim.attempt(suspect)[0].worker_id
    sim.pause(suspect)
    first = sim.submit()
    assert (sim.attempt(first)[0].worker_id == name) == (size == 1)
    sim.resume(suspect)
    later = sim.submit()
    assert later in sim.queued() or sim.attempt(later)[0].worker_id != name
    sim.reply(suspect)
    assert sim.attempt(later)
    assert not sim.entry(name).reserved
