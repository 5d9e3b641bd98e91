from __future__ import annotations

import pytest

from bridge.protocol import messages as wire
from pools.core.deadlines import WIDTH_S
from pools.core.events import ClientGone, Dump, WorkerDied
from pools.core.leaving import DUMP_S
from tests.support.fleet import Sim, pool


def cancels(sim: Sim, worker_id: str = "general-1.1") -> list[int]:
    return [message.request_id for message in sim.sent_to(sim.process(worker_id).peer, wire.Cancel)]


def recalls(sim: Sim, worker_id: str = "general-1.1") -> list[int]:
    return [message.request_id for message in sim.sent_to(sim.process(worker_id).peer, wire.Recall)]


def cancelled_count(sim: Sim) -> int:
    return int(sim.fleet.stats(sim.now)["requests"]["cancelled"])


# --- by the client ------------------------------------------------------------------------------------


@pytest.mark.parametrize("force", [False, True])
def test_queued_work_is_dequeued_at_once(force: bool) -> None:
    sim = Sim(pool(slots=1, prefetch=0))
    sim.submit()
    waiting = sim.submit(rows=2)
    sim.cancel(waiting, force=force)
    assert sim.error(waiting).code == "CANCELLED"
    assert sim.cancel_replies(waiting) == [("queued", "dequeued")]
    assert cancelled_count(sim) == 2
    assert not recalls(sim)
    assert not cancels(sim)


def test_what_has_not_started_is_recalled_once_and_dequeued_when_it_comes_back() -> None:
    sim = Sim()
    request_id = sim.submit()
    sim.cancel(request_id)
    sim.cancel(request_id)
    assert recalls(sim) == [request_id]
    assert request_id not in sim.replies
    sim.answer_recall(request_id, started=False)
    assert sim.error(request_id).code == "CANCELLED"
    assert sim.cancel_replies(request_id) == [("queued", "dequeued")]
    assert sim.entry().held == 0


def test_what_has_started_is_asked_to_stop() -> None:
    sim = Sim()
    request_id = sim.submit()
    sim.start(request_id)
    sim.cancel(request_id)
    assert cancels(sim) == [request_id]
    assert sim.sent_to(sim.process().peer, wire.Cancel)[0].epoch == 1
    assert request_id not in sim.replies
    sim.reply_error(request_id, "CANCELLED")
    assert sim.error(request_id).code == "CANCELLED"
    assert sim.cancel_replies(request_id) == [("running", "cooperative")]
    assert cancelled_count(sim) == 1


def test_what_started_meanwhile_is_asked_to_stop_then() -> None:
    sim = Sim()
    request_id = sim.submit()
    sim.cancel(request_id)
    sim.answer_recall(request_id, started=True)
    assert cancels(sim) == [request_id]
    sim.reply(request_id)
    assert sim.replies[request_id].status == wire.OK
    assert sim.cancel_replies(request_id) == [("finished", "none")]
    assert cancelled_count(sim) == 0


def test_a_reply_that_crosses_a_recall_wins() -> None:
    sim = Sim()
    request_id = sim.submit()
    sim.cancel(request_id)
    sim.reply(request_id)
    assert sim.cancel_replies(request_id) == [("finished", "none")]
    sim.say("general-1.1", wire.Started(request_id=request_id, epoch=1))  # its answer to the Recall
    assert not cancels(sim)


def test_work_that_failed_by_itself_was_not_cancelled() -> None:
    sim = Sim()
    request_id = sim.submit()
    sim.start(request_id)
    sim.cancel(request_id)
    sim.reply_error(request_id, "REMOTE_ERROR")
    assert sim.error(request_id).code == "REMOTE_ERROR"
    assert sim.cancel_replies(request_id) == [("finished", "none")]
    assert cancelled_count(sim) == 0


def test_a_plain_cancellation_leaves_the_work_its_time() -> None:
    sim = Sim(pool(grace_s=5.0, heartbeat_limit_s=1e9))
    request_id = sim.submit()
    sim.start(request_id)
    sim.cancel(request_id)
    sim.run_until(sim.now + 100.0)
    assert not sim.kills()
    sim.cancel(request_id, force=True)  # it may be followed by force
    sim.run_until(sim.now + 5.0)
    assert [worker_id for worker_id, _ in sim.kills()] == ["general-1.1"]


def test_force_kills_what_does_not_stop_within_the_grace_period() -> None:
    sim = Sim(pool(grace_s=5.0))
    request_id = sim.submit()
    sim.start(request_id)
    sim.cancel(request_id, force=True)
    sim.run_until(sim.now + 4.9)
    assert not sim.kills()
    sim.run_until(sim.now + 0.1)
    assert sim.kills() == [("general-1.1", "echo did not stop within 5 s of being asked")]
    assert not sim.effects_of(Dump)  # asked for by somebody who knows: at once, nothing to find out
    sim.run_until(sim.now + 1.0)
    sim.die()
    assert sim.error(request_id).code == "CANCELLED"
    assert sim.cancel_replies(request_id) == [("running", "killed")]
    assert cancelled_count(sim) == 1


def test_force_spares_a_worker_that_stopped_in_time() -> None:
    sim = Sim(pool(grace_s=5.0))
    request_id = sim.submit()
    sim.start(request_id)
    sim.cancel(request_id, force=True)
    sim.reply_error(request_id, "CANCELLED")
    sim.run_until(sim.now + 10.0)
    assert not sim.kills()


def test_force_holds_while_a_recall_is_out() -> None:
    sim = Sim(pool(grace_s=5.0))
    request_id = sim.submit()
    sim.cancel(request_id)
    sim.cancel(request_id, force=True)
    sim.answer_recall(request_id, started=True)
    sim.run_until(sim.now + 5.0)
    assert [worker_id for worker_id, _ in sim.kills()] == ["general-1.1"]


def test_force_is_not_taken_back_by_a_plain_cancellation() -> None:
    sim = Sim(pool(grace_s=5.0))
    request_id = sim.submit()
    sim.cancel(request_id, force=True)
    sim.cancel(request_id)
    sim.answer_recall(request_id, started=True)
    sim.run_until(sim.now + 5.0)
    assert [worker_id for worker_id, _ in sim.kills()] == ["general-1.1"]


def test_what_its_worker_kept_is_asked_to_stop_whatever_the_page_says() -> None:
    sim = Sim()
    request_id = sim.submit()
    sim.say("general-1.1", wire.Started(request_id=request_id, epoch=1))
    sim.cancel(request_id)
    assert (recalls(sim), cancels(sim)) == ([], [request_id])


def test_two_that_do_not_stop_kill_their_worker_once() -> None:
    sim = Sim(pool(grace_s=5.0))
    for _ in range(2):
        request_id = sim.submit()
        sim.start(request_id)
        sim.cancel(request_id, force=True)
    sim.run_until(sim.now + 6.0)
    assert len(sim.kills()) == 1


def test_neighbours_of_killed_work_are_lost_not_cancelled() -> None:
    sim = Sim(pool(grace_s=1.0))
    request_id, neighbour = sim.submit(), sim.submit()
    sim.start(request_id)
    sim.start(neighbour)
    sim.cancel(request_id, force=True)
    sim.run_until(sim.now + 1.0)
    sim.die()
    error = sim.error(neighbour)
    assert error.code == "WORKER_LOST"
    assert error.details["cause"] == "echo did not stop within 1 s of being asked"
    assert sim.cancel_replies(neighbour) == []


def test_a_worker_that_crashed_was_not_killed_for_the_cancellation() -> None:
    sim = Sim()
    request_id = sim.submit()
    sim.start(request_id)
    sim.cancel(request_id, force=True)
    sim.die()
    assert sim.error(request_id).code == "WORKER_LOST"
    assert sim.cancel_replies(request_id) == [("finished", "none")]


def test_cancelled_work_that_provably_never_ran_is_dequeued_when_its_worker_dies() -> None:
    sim = Sim()
    request_id = sim.submit()
    for worker_id in ("general-1.1", "general-1.2"):
        if worker_id != "general-1.1":
            sim.boot(worker_id)
        assert sim.attempt(request_id)[0].worker_id == worker_id
        if worker_id == "general-1.2":
            sim.cancel(request_id)
        sim.die(worker_id)
    assert sim.error(request_id).code == "CANCELLED"
    assert sim.cancel_replies(request_id) == [("queued", "dequeued")]


@pytest.mark.parametrize("whose", ["unknown", "finished", "another client's"])
def test_what_cannot_be_cancelled_is_finished(whose: str) -> None:
    sim = Sim()
    other = sim.connect(2)
    request_id = sim.submit()
    if whose == "finished":
        sim.reply(request_id)
    if whose == "unknown":
        sim.cancel(request_id + 1)
        assert sim.cancel_replies(request_id + 1) == [("finished", "none")]
    elif whose == "another client's":
        sim.cancel(request_id, peer=other)
        assert [answer.stage for answer in sim.sent_to(other, wire.CancelReply)] == ["finished"]
        assert not recalls(sim)
        assert request_id in sim.tables.requests
    else:
        sim.cancel(request_id)
        assert sim.cancel_replies(request_id) == [("finished", "none")]


# --- deadlines ------------------------------------------------------------------------------------------------


def test_queued_work_out_of_time_never_runs() -> None:
    sim = Sim(pool(slots=1, prefetch=0))
    sim.submit()
    waiting = sim.submit(deadline_ms=1000.0)
    sim.run_until(sim.now + 1.0 + WIDTH_S)
    error = sim.error(waiting)
    assert (error.code, error.details) == ("DEADLINE_EXCEEDED", {"stage": "queued"})
    assert not sim.pool().queue
    assert not recalls(sim)


def test_a_deadline_is_noticed_at_most_a_bucket_late_and_never_early() -> None:
    sim = Sim()
    begun = sim.now
    request_id = sim.submit(deadline_ms=1000.0)
    sim.tick(1.0)
    assert request_id not in sim.replies
    due = sim.fleet.next_timer()
    assert due is not None
    assert due <= begun + 1.0 + WIDTH_S
    sim.run_until(due)
    assert sim.replies[request_id].total_ms <= 1000.0 + WIDTH_S * 1000.0 + 1e-6


def test_unstarted_work_out_of_time_is_settled_at_once_and_recalled() -> None:
    sim = Sim(pool(slots=1, prefetch=0))
    late = sim.submit(deadline_ms=100.0)
    waiting = sim.submit()
    sim.tick(0.2)
    assert sim.error(late).details["stage"] == "queued"
    assert recalls(sim) == [late]
    assert sim.entry().held == 1  # its credit stays with the worker until it answers
    sim.answer_recall(late, started=False)
    assert sim.attempt(waiting)


def test_running_work_out_of_time_is_settled_at_once_asked_and_killed_after_the_grace_period() -> None:
    sim = Sim(pool(grace_s=5.0))
    request_id = sim.submit(deadline_ms=100.0)
    sim.start(request_id)
    sim.tick(0.2)
    assert sim.error(request_id).details["stage"] == "running"
    assert cancels(sim) == [request_id]
    assert sim.entry().held == 1
    sim.run_until(sim.now + 5.0)
    assert sim.effects_of(Dump) == [Dump("general-1.1")]
    assert not sim.kills()  # it writes its stacks first
    sim.run_until(sim.now + DUMP_S)
    assert [worker_id for worker_id, _ in sim.kills()] == ["general-1.1"]
    sim.die()
    assert sim.pool().failed == 1


def test_work_out_of_time_that_started_during_the_recall_is_stopped() -> None:
    sim = Sim(pool(grace_s=5.0))
    request_id = sim.submit(deadline_ms=100.0)
    sim.tick(0.2)
    sim.answer_recall(request_id, started=True)
    assert cancels(sim) == [request_id]
    sim.reply(request_id)
    sim.run_until(sim.now + 10.0)
    assert not sim.kills()
    assert sim.tables.fenced == 1


def test_a_deadline_answers_a_cancellation_that_is_under_way() -> None:
    sim = Sim()
    request_id = sim.submit(deadline_ms=100.0)
    sim.start(request_id)
    sim.cancel(request_id)
    sim.tick(0.2)
    assert sim.error(request_id).code == "DEADLINE_EXCEEDED"
    assert sim.cancel_replies(request_id) == [("finished", "none")]


def test_a_deadline_after_a_kept_recall_says_running() -> None:
    sim = Sim()
    request_id = sim.submit(deadline_ms=100.0)
    sim.say("general-1.1", wire.Started(request_id=request_id, epoch=1))
    sim.tick(0.2)
    assert sim.error(request_id).details["stage"] == "running"


def test_work_that_came_back_keeps_its_deadline() -> None:
    sim = Sim()
    request_id = sim.submit(deadline_ms=1000.0)
    sim.die()
    sim.tick(1.1)
    assert sim.error(request_id).details["stage"] == "queued"
    assert sim.replies[request_id].queue_ms == pytest.approx(1000.0, abs=25.0)
    assert sim.replies[request_id].worker == ""


def test_a_deadline_between_death_and_burial_is_settled_once() -> None:
    sim = Sim()
    request_id = sim.submit(deadline_ms=100.0)
    sim.start(request_id)
    sim.handle(WorkerDied("general-0.0"))  # somebody else
    sim.died()
    sim.now += 0.2
    sim.process().dead = True
    sim.tick()
    assert sim.error(request_id).code == "DEADLINE_EXCEEDED"
    sim.exited()
    assert sim.pool().failed == 1


def test_settled_work_leaves_no_deadline() -> None:
    sim = Sim(pool(default_deadline_s=60.0))
    for _ in range(10):
        sim.reply(sim.submit())
    assert len(sim.tables.deadlines) == 0


# --- clients that leave -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("farewell", [wire.Bye(), ClientGone()])
def test_the_work_of_a_client_that_left_is_cancelled(farewell: wire.Bye | ClientGone) -> None:
    sim = Sim(pool(slots=2, prefetch=1))
    other = sim.connect(2)
    running, unstarted = sim.submit(), sim.submit()
    kept = sim.submit(peer=other)
    queued = sim.submit()
    sim.start(running)
    sim.handle(farewell, sim.client)
    assert sim.client not in sim.tables.clients
    assert sim.error(queued).code == "CANCELLED"
    assert recalls(sim) == [unstarted]
    assert cancels(sim) == [running]
    assert kept in sim.tables.requests
    sim.answer_recall(unstarted, started=False)
    sim.reply_error(running, "CANCELLED")
    assert set(sim.tables.requests) == {kept}
    sim.handle(farewell, sim.client)  # it leaves but once
    sim.handle(farewell, b"stranger")


def test_a_client_without_work_just_leaves() -> None:
    sim = Sim()
    sim.handle(wire.Bye(), sim.client)
    assert not sim.tables.clients


def test_a_client_that_has_left_cancels_nothing_more() -> None:
    sim = Sim()
    request_id = sim.submit()
    sim.handle(wire.Bye(), sim.client)
    said, told = len(sim.to_workers), len(sim.to_clients)
    sim.cancel(request_id, force=True)
    assert (len(sim.to_workers), len(sim.to_clients)) == (said, told)
