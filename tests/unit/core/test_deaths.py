"""What a dead worker held: started slots decide."""

from __future__ import annotations

from bridge.protocol import messages as wire
from pools.core.entries import SLOT_WORDS
from tests.support.fleet import Sim, pool


def test_what_started_is_lost_and_what_did_not_runs_elsewhere() -> None:
    sim = Sim(pool(size=2, slots=1, prefetch=2))
    ids = [sim.submit() for _ in range(4)]
    dead = [r for r in ids if sim.attempt(r)[0].worker_id == "general-1.1"]
    sim.start(dead[0])
    sim.die("general-1.1")
    error = sim.error(dead[0])
    assert (error.code, error.retryable) == ("WORKER_LOST", True)
    assert error.details == {"cause": "signal 9", "signal": 9, "executed": "maybe", "worker": "general-1.1"}
    assert sim.attempt(dead[1])[0].worker_id == "general-2.1"
    sim.reply(dead[1])
    assert sim.replies[dead[1]].attempt == 1
    assert sim.replies[dead[1]].worker == "general-2.1"


def test_what_comes_back_of_a_dead_worker_keeps_its_order_ahead_of_the_queue() -> None:
    sim = Sim(pool(slots=1, prefetch=2))
    ids = [sim.submit() for _ in range(5)]
    sim.die()
    assert sim.queued() == ids


def test_a_kept_attempt_of_a_dead_worker_is_lost_whatever_the_page_says() -> None:
    sim = Sim()
    request_id = sim.submit()
    sim.say("general-1.1", wire.Started(request_id=request_id, epoch=1))
    sim.die()
    assert sim.error(request_id).details["executed"] == "maybe"


def test_a_word_of_a_later_epoch_cannot_exclude_an_earlier_one() -> None:
    sim = Sim()
    request_id = sim.submit()
    sim.process().page[1] = 1 + SLOT_WORDS
    sim.executed.add(request_id)
    sim.die()
    assert sim.error(request_id).details["executed"] == "maybe"


def test_a_word_of_an_earlier_epoch_proves_that_it_never_ran() -> None:
    sim = Sim()
    for _ in range(SLOT_WORDS):
        sim.reply(sim.submit())
    request_id = sim.submit()
    assert sim.attempt(request_id)[1].epoch == SLOT_WORDS + 1
    assert sim.process().page[1] == 1
    sim.die()
    assert request_id in sim.queued()


def test_without_a_page_nothing_can_be_excluded() -> None:
    sim = Sim()
    sim.entry().slots_page = ()
    request_id = sim.submit()
    sim.executed.add(request_id)
    sim.die()
    assert sim.error(request_id).details["executed"] == "maybe"


def test_a_request_that_two_workers_died_with_is_not_handed_to_a_third() -> None:
    sim = Sim()
    request_id = sim.submit()
    sim.die()
    sim.boot("general-1.2")
    assert sim.attempt(request_id)[0].worker_id == "general-1.2"
    sim.die("general-1.2")
    error = sim.error(request_id)
    assert (error.code, error.details["executed"]) == ("WORKER_LOST", "no")
    assert "ran" not in error.message


def test_a_chunk_is_lost_whole() -> None:
    sim = Sim(pool(slots=4))
    chunk = sim.submit(rows=4)
    sim.start(chunk)
    sim.die()
    assert sim.error(chunk).code == "WORKER_LOST"
    assert sim.pool().failed == 4


def test_a_reply_that_was_on_its_way_when_its_worker_died_counts() -> None:
    sim = Sim()
    request_id = sim.submit()
    sim.start(request_id)
    worker, attempt = sim.attempt(request_id)
    sim.died()
    del worker.attempts[attempt.epoch]
    sim.say("general-1.1", wire.Reply(request_id=request_id, epoch=attempt.epoch))
    sim.exited()
    assert sim.replies[request_id].status == wire.OK
