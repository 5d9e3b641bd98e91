from __future__ import annotations

import pytest

from bridge.protocol import messages as wire
from pools.core.states import DISPATCHED, RUNNING
from tests.support.fleet import Sim, pool


def load(sim: Sim) -> dict[str, int]:
    return {worker.worker_id: worker.held for worker in sim.tables.workers.values()}


# --- who -----------------------------------------------------------------------------------------------


def test_requests_go_to_the_worker_that_holds_least() -> None:
    sim = Sim(pool(size=3, slots=4))
    for _ in range(7):
        sim.submit()
    assert sorted(load(sim).values()) == [2, 2, 3]
    sim.submit(rows=3)
    assert sorted(load(sim).values()) == [2, 3, 5]


def test_idle_workers_take_turns() -> None:
    sim = Sim(pool(size=3))
    served = []
    for _ in range(6):
        request_id = sim.submit()
        served.append(sim.attempt(request_id)[0].worker_id)
        sim.reply(request_id)
    assert served == ["general-1.1", "general-2.1", "general-3.1"] * 2


def test_the_queue_is_first_in_first_out() -> None:
    sim = Sim(pool(slots=1, prefetch=0))
    ids = [sim.submit() for _ in range(5)]
    order = []
    for _ in ids:
        [attempt] = sim.process().attempts.values()
        order.append(attempt.request_id)
        sim.reply(attempt.request_id)
    assert order == ids


def test_a_request_does_not_overtake_the_queue() -> None:
    sim = Sim(pool(slots=1, prefetch=0))
    first = sim.submit()
    waiting = sim.submit()
    late = sim.submit()
    sim.reply(first)
    assert sim.attempt(waiting)
    assert late in sim.queued()


def test_each_dispatch_gets_the_next_epoch() -> None:
    sim = Sim(pool("general"), pool("neural"))
    ids = [sim.submit(pool=name) for name in ("general", "neural", "general")]
    assert [sim.attempt(request_id)[1].epoch for request_id in ids] == [1, 2, 3]


def test_the_time_in_the_queue_comes_off_the_deadline() -> None:
    sim = Sim(pool(slots=1, prefetch=0))
    first = sim.submit()
    waiting = sim.submit(deadline_ms=5000.0)
    sim.now += 2.0
    sim.reply(first)
    assert sim.attempt(waiting)[1].deadline_ms == pytest.approx(3000.0)


# --- replies --------------------------------------------------------------------------------------------


def test_a_reply_is_completed_by_what_the_fleet_knows() -> None:
    sim = Sim(pool(slots=1, prefetch=0))
    first = sim.submit()
    request_id = sim.submit()
    sim.now += 1.0
    sim.reply(first)
    sim.now += 0.5
    sim.reply(
        request_id, payload=b"out", run_ms=400.0, lm_calls=2, tokens=30, cost_usd=0.01, cached=True,
        worker="liar", pool="liar", attempt=77, queue_ms=1.0, total_ms=1.0,
    )  # fmt: skip
    assert sim.replies[request_id] == wire.Reply(
        request_id=request_id, payload=b"out", epoch=2, run_ms=400.0, lm_calls=2, tokens=30, cost_usd=0.01,
        cached=True, worker="general-1.1", pool="general", attempt=1, queue_ms=1000.0, total_ms=1500.0,
    )  # fmt: skip


def test_each_reply_goes_to_its_own_client() -> None:
    sim = Sim()
    other = sim.connect(2)
    mine, theirs = sim.submit(), sim.submit(peer=other)
    sim.reply(theirs)
    sim.reply(mine)
    assert [reply.request_id for reply in sim.sent_to(sim.client, wire.Reply)] == [mine]
    assert [reply.request_id for reply in sim.sent_to(other, wire.Reply)] == [theirs]


@pytest.mark.parametrize(("status", "completed", "failed"), [(wire.OK, 1, 0), (wire.ROWS, 1, 0), (wire.ERROR, 0, 1)])
def test_what_counts_as_completed(status: int, completed: int, failed: int) -> None:
    sim = Sim()
    sim.reply(sim.submit(), status=status)
    assert (sim.pool().completed, sim.pool().failed) == (completed, failed)


def test_a_reply_is_fenced_unless_its_attempt_is_outstanding_at_that_worker() -> None:
    sim = Sim(pool(size=2))
    request_id = sim.submit()
    worker, attempt = sim.attempt(request_id)
    other = next(one for one in sim.processes.values() if one is not worker)
    right = wire.Reply(request_id=request_id, epoch=attempt.epoch)
    wrong = [
        (other.peer, right),
        (b"nobody", right),
        (worker.peer, wire.Reply(request_id=request_id, epoch=attempt.epoch + 1)),
        (worker.peer, wire.Reply(request_id=request_id, epoch=0)),
        (worker.peer, wire.Reply(request_id=request_id + 1, epoch=attempt.epoch)),
    ]
    for number, (peer, reply) in enumerate(wrong, start=1):
        sim.handle(reply, peer)
        assert sim.tables.fenced == number
        assert not sim.replies
    sim.reply(request_id)
    sim.handle(right, worker.peer)  # the same reply twice
    assert sim.tables.fenced == len(wrong) + 1
    assert sim.replies[request_id].status == wire.OK


def test_a_late_reply_frees_its_credit_and_counts_its_rows_as_fenced() -> None:
    sim = Sim(pool(slots=2, prefetch=0))
    late = sim.submit(rows=2, deadline_ms=100.0)
    waiting = sim.submit()
    sim.start(late)
    sim.tick(0.2)
    assert sim.error(late).code == "DEADLINE_EXCEEDED"
    assert waiting in sim.queued()  # the attempt keeps its credit
    sim.reply(late)
    assert sim.tables.fenced == 2
    assert sim.attempt(waiting)


# --- events -----------------------------------------------------------------------------------------------


def test_events_pass_to_callers_that_listen() -> None:
    sim = Sim()
    listening, deaf = sim.submit(flags=wire.FLAG_EVENTS), sim.submit()
    for request_id in (listening, deaf):
        worker, attempt = sim.attempt(request_id)
        sim.say(worker.worker_id, wire.Event(request_id=request_id, epoch=attempt.epoch, kind="token"))
    sim.say("general-1.1", wire.Event(request_id=listening, epoch=99))
    sim.handle(wire.Event(request_id=listening, epoch=1), b"nobody")
    assert [event.request_id for event in sim.sent_to(sim.client, wire.Event)] == [listening]


def test_events_of_a_settled_request_are_dropped() -> None:
    sim = Sim()
    request_id = sim.submit(flags=wire.FLAG_EVENTS, deadline_ms=10.0)
    sim.start(request_id)
    sim.tick(0.1)
    sim.say("general-1.1", wire.Event(request_id=request_id, epoch=1))
    assert not sim.sent_to(sim.client, wire.Event)


# --- recalls for idle workers ---------------------------------------------------------------------------------


def lopsided(run_ms: float) -> tuple[Sim, list[int], list[int]]:
    """Return two workers: the first holds three attempts, the second has one left; and their requests."""
    sim = Sim(pool(size=2, slots=1, prefetch=2))
    sim.reply(sim.submit(), run_ms=run_ms)  # the operation's time is known
    ids = [sim.submit() for _ in range(6)]
    held = {name: [r for r in ids if sim.attempt(r)[0].worker_id == name] for name in ("general-1.1", "general-2.1")}
    first, second = held["general-1.1"], held["general-2.1"]
    sim.start(first[0])
    for request_id in second[:-1]:
        sim.reply(request_id, run_ms=run_ms)
    return sim, first, second


def recalled(sim: Sim, worker_id: str) -> list[int]:
    return [recall.request_id for recall in sim.sent_to(sim.process(worker_id).peer, wire.Recall)]


def test_an_idle_worker_takes_the_attempt_that_a_loaded_one_would_start_last() -> None:
    sim, first, second = lopsided(run_ms=100.0)
    assert recalled(sim, "general-1.1") == []
    sim.reply(second[-1], run_ms=100.0)
    assert recalled(sim, "general-1.1") == [first[-1]]
    sim.answer_recall(first[-1], started=False)
    worker, attempt = sim.attempt(first[-1])
    assert worker.worker_id == "general-2.1"
    assert attempt.epoch > 7
    sim.reply(first[-1], run_ms=100.0)
    assert sim.replies[first[-1]].attempt == 1  # what never ran was no attempt
    assert recalled(sim, "general-1.1") == [first[-1], first[-2]]


@pytest.mark.parametrize(("waited_s", "worth"), [(0.004, False), (0.006, True)])
def test_what_has_never_run_is_worth_a_recall_by_how_long_it_has_waited(waited_s: float, worth: bool) -> None:
    sim = Sim(pool(size=2, slots=1, prefetch=2), ready=False)
    sim.boot("general-1.1")
    ids = [sim.submit("optimize") for _ in range(3)]
    sim.start(ids[0])
    sim.now += waited_s
    sim.boot("general-2.1")
    assert recalled(sim, "general-1.1") == ([ids[2]] if worth else [])


def test_what_was_recalled_before_can_be_recalled_again() -> None:
    sim, first, second = lopsided(run_ms=100.0)
    sim.reply(second[-1], run_ms=100.0)
    sim.answer_recall(first[-1], started=False)
    sim.cancel(first[-1])
    assert recalled(sim, "general-2.1") == [first[-1]]


@pytest.mark.parametrize(("slots", "back"), [(1, 1), (2, 2), (3, 2)])
def test_a_worker_that_becomes_ready_takes_what_a_loaded_one_holds_beyond_its_slots(slots: int, back: int) -> None:
    sim = Sim(pool(size=2, slots=slots, prefetch=2), ready=False)
    sim.boot("general-1.1")
    sim.reply(sim.submit(), run_ms=100.0)
    ids = [sim.submit() for _ in range(slots + 2)]
    for request_id in ids[:slots]:
        sim.start(request_id)
    sim.boot("general-2.1")
    assert recalled(sim, "general-1.1") == ids[::-1][:back]
    for request_id in ids[::-1][:back]:
        sim.answer_recall(request_id, started=False)
        assert sim.attempt(request_id)[0].worker_id == "general-2.1"


def test_a_worker_that_becomes_ready_takes_the_queue_first() -> None:
    sim = Sim(pool(size=2, slots=1, prefetch=2), ready=False)
    sim.boot("general-1.1")
    sim.reply(sim.submit(), run_ms=100.0)
    ids = [sim.submit() for _ in range(4)]
    sim.boot("general-2.1")
    assert sim.attempt(ids[3])[0].worker_id == "general-2.1"
    assert recalled(sim, "general-1.1") == []


def test_short_runs_are_not_worth_a_recall() -> None:
    sim, _, second = lopsided(run_ms=4.9)
    sim.reply(second[-1], run_ms=4.9)
    assert recalled(sim, "general-1.1") == []


def test_what_has_started_is_not_recalled() -> None:
    sim, first, second = lopsided(run_ms=100.0)
    for request_id in first:
        sim.start(request_id)
    sim.reply(second[-1], run_ms=100.0)
    assert recalled(sim, "general-1.1") == []


def test_what_is_being_recalled_is_not_recalled_again() -> None:
    sim, first, second = lopsided(run_ms=100.0)
    sim.cancel(first[-1])
    sim.reply(second[-1], run_ms=100.0)
    assert recalled(sim, "general-1.1") == [first[-1], first[-2]]


def test_a_worker_keeps_what_it_holds_within_its_slots() -> None:
    sim = Sim(pool(size=2, slots=2, prefetch=2))
    sim.reply(sim.submit(), run_ms=100.0)
    ids = [sim.submit() for _ in range(4)]
    second = [r for r in ids if sim.attempt(r)[0].worker_id == "general-2.1"]
    for request_id in second:
        sim.reply(request_id, run_ms=100.0)
    assert recalled(sim, "general-1.1") == []


def test_the_loaded_worker_does_not_take_from_itself() -> None:
    sim = Sim(pool(size=1, slots=1, prefetch=4))
    sim.reply(sim.submit(), run_ms=100.0)
    ids = [sim.submit(rows=2), sim.submit()]
    sim.reply(ids[1], run_ms=100.0)
    assert recalled(sim, "general-1.1") == []


def test_a_dead_worker_takes_nothing_from_the_living() -> None:
    sim, _, second = lopsided(run_ms=100.0)
    sim.process("general-2.1").dead = False
    sim.died("general-2.1")
    sim.process("general-2.1").dead = False  # its last words are still in the pipe
    worker, attempt = sim.attempt(second[-1])
    worker.dead = True
    sim.executed.add(second[-1])
    del worker.attempts[attempt.epoch]
    sim.say("general-2.1", wire.Reply(request_id=second[-1], epoch=attempt.epoch, run_ms=100.0))
    assert sim.replies[second[-1]].status == wire.OK
    assert recalled(sim, "general-1.1") == []


def test_a_kept_attempt_is_running_and_may_be_recalled_no_more() -> None:
    sim, first, second = lopsided(run_ms=100.0)
    sim.reply(second[-1], run_ms=100.0)
    sim.answer_recall(first[-1], started=True)
    assert sim.tables.requests[first[-1]].state == RUNNING
    assert sim.tables.requests[first[-2]].state == DISPATCHED
    fenced = sim.tables.fenced
    sim.say("general-1.1", wire.Recalled(request_id=first[-1], epoch=sim.attempt(first[-1])[1].epoch))
    assert sim.tables.fenced == fenced + 1  # it cannot be both
    sim.reply(first[-1])
    assert sim.replies[first[-1]].status == wire.OK


def test_answers_about_attempts_that_nobody_has() -> None:
    sim = Sim()
    request_id = sim.submit()
    sim.say("general-1.1", wire.Recalled(request_id=request_id, epoch=99))
    sim.handle(wire.Recalled(request_id=request_id, epoch=1), b"nobody")
    assert sim.tables.fenced == 2
    sim.say("general-1.1", wire.Started(request_id=request_id, epoch=99))
    sim.handle(wire.Started(request_id=request_id, epoch=1), b"nobody")
    assert sim.tables.requests[request_id].state == DISPATCHED


def test_started_twice_is_started() -> None:
    sim = Sim()
    request_id = sim.submit()
    for _ in range(2):
        sim.say("general-1.1", wire.Started(request_id=request_id, epoch=1))
    assert sim.tables.requests[request_id].state == RUNNING


def test_what_comes_back_is_first_in_the_queue() -> None:
    sim = Sim(pool(slots=1, prefetch=1))
    ids = [sim.submit() for _ in range(4)]
    sim.say("general-1.1", wire.Ready())  # a second Ready changes nothing
    sim.cancel(ids[1])
    sim.answer_recall(ids[1], started=False)
    assert sim.queued() == [ids[3]]
    worker, attempt = sim.attempt(ids[2])
    del worker.attempts[attempt.epoch]
    sim.say("general-1.1", wire.Recalled(request_id=ids[2], epoch=attempt.epoch))
    assert sim.attempt(ids[2])  # dispatched again, before what waited behind it
    assert sim.queued() == [ids[3]]
