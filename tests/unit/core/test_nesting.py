from __future__ import annotations

from typing import Any

import pytest

from bridge.protocol import messages as wire
from bridge.protocol.errors import CANCELLED, INVALID_REQUEST
from pools.core.events import ClientGone, Drain, MemoryRead, Signalled
from pools.core.nesting import MAX_DEPTH
from tests.support.fleet import Sim, pool

MANY = 10**9


def refusal(sim: Sim, request_id: int) -> tuple[str, str]:
    error = sim.error(request_id)
    return error.code, error.message


def chain(sim: Sim, length: int) -> list[int]:
    """Return a request and its only child, and its, each paused but the last."""
    ids = [sim.submit()]
    while len(ids) < length:
        sim.pause(ids[-1])
        ids.append(sim.nest(ids[-1]))
    return ids


# --- who may ask -----------------------------------------------------------------------------------------


def test_a_nested_request_is_one_deeper_of_the_highest_class_and_has_no_more_time() -> None:
    sim = Sim(pool(slots=4))
    parent = sim.submit(deadline_ms=5000.0)
    sim.now += 2.0
    claims: dict[str, Any] = {"depth": 7, "priority": wire.PRIORITY_LOW, "principal": "mallory"}
    child = sim.nest(parent, deadline_ms=60_000.0, **claims)
    shorter = sim.nest(parent, deadline_ms=500.0)
    unlimited = sim.nest(parent)
    attempt = sim.attempt(child)[1]
    assert (attempt.depth, attempt.priority, attempt.principal) == (1, wire.PRIORITY_HIGH, "default")
    assert attempt.parent_request_id == parent
    found = [sim.attempt(request_id)[1].deadline_ms for request_id in (child, shorter, unlimited)]
    assert found == pytest.approx([3000.0, 500.0, 3000.0])


def test_without_a_deadline_of_the_parents_the_childs_own_counts() -> None:
    sim = Sim(pool("general", slots=3), pool("neural", default_deadline_s=9.0))
    parent = sim.submit()
    for wanted_ms, where, found_ms in ((None, "", None), (700.0, "", 700.0), (None, "neural", 9000.0)):
        child = sim.nest(parent, pool=where, deadline_ms=wanted_ms)
        assert sim.attempt(child)[1].deadline_ms == (None if found_ms is None else pytest.approx(found_ms))


def test_what_no_deadline_is_stays_none() -> None:
    sim = Sim()
    parent = sim.submit(deadline_ms=5000.0)
    for wrong in (float("nan"), -1.0, 0.0):
        assert sim.error(sim.nest(parent, deadline_ms=wrong)).details["path"] == "deadline_s"


def test_calls_are_nested_eight_deep_and_no_deeper() -> None:
    sim = Sim(pool(slots=1))
    ids = chain(sim, 1 + MAX_DEPTH)
    assert [sim.attempt(request_id)[1].depth for request_id in ids] == list(range(1 + MAX_DEPTH))
    code, text = refusal(sim, sim.nest(ids[-1]))
    assert code == INVALID_REQUEST
    assert "nested 9 deep; at most 8" in text
    for request_id in reversed(ids):
        if request_id is not ids[-1]:
            sim.resume(request_id)
        sim.reply(request_id)
    assert all(sim.replies[request_id].status == wire.OK for request_id in ids)
    assert not sim.tables.children


def test_a_parent_is_one_that_runs_in_the_clients_own_worker() -> None:
    sim = Sim(pool(size=2, slots=1, prefetch=0))
    mine, others, queued = (sim.submit() for _ in range(3))
    sim.start(mine)
    sim.start(others)
    inside = sim.inside(sim.attempt(mine)[0].worker_id)
    for parent_id in (others, queued):
        code, text = refusal(sim, sim.submit(peer=inside, parent_request_id=parent_id))
        assert (code, "does not run in this process" in text) == (INVALID_REQUEST, True)
    outside = sim.connect(9, worker_id="general-1.9")
    for peer in (outside, sim.client):
        assert sim.error(sim.submit(peer=peer, parent_request_id=mine)).details["path"] == "parent_request_id"
    assert sim.submit(peer=inside, parent_request_id=mine) in sim.tables.requests


def test_a_parent_must_have_begun() -> None:
    sim = Sim()
    parent = sim.submit()
    inside = sim.inside("general-1.1")
    assert sim.error(sim.submit(peer=inside, parent_request_id=parent)).code == INVALID_REQUEST
    sim.start(parent)
    assert sim.submit(peer=inside, parent_request_id=parent) in sim.tables.requests


def test_a_nested_request_is_made_for_its_parents_principal() -> None:
    sim = Sim()
    parent = sim.submit(peer=sim.connect(2, "alice"))
    sim.start(parent)
    code, text = refusal(sim, sim.nest(parent))
    assert code == INVALID_REQUEST
    assert "runs for 'alice', not 'default'" in text
    inside = sim.connect(3, "alice", worker_id="general-1.1")
    assert sim.submit(peer=inside, parent_request_id=parent) in sim.tables.requests


def test_who_serves_a_dead_workers_programs_has_no_part_in_its_successors() -> None:
    sim = Sim()
    parent = sim.submit(flags=wire.FLAG_IDEMPOTENT)
    left = sim.inside("general-1.1")
    sim.start(parent)
    sim.die("general-1.1")
    sim.tick(1.0)
    sim.boot("general-1.2")
    sim.tick(1.0)
    sim.start(parent)
    code, text = refusal(sim, sim.submit(peer=left, parent_request_id=parent))
    assert (code, "does not run in this process" in text) == (INVALID_REQUEST, True)
    assert sim.submit(peer=sim.inside("general-1.2"), parent_request_id=parent) in sim.tables.requests


def test_who_serves_no_workers_programs_finds_no_parent_in_one_without_a_pid() -> None:
    sim = Sim(ready=False)
    sim.handle(wire.Hello(role="worker", worker_id="general-1.1"), sim.process().peer)
    sim.say("general-1.1", wire.Ready(slots=1))
    assert sim.entry().pid == 0
    parent = sim.submit()
    sim.start(parent)
    assert sim.error(sim.submit(peer=sim.connect(2), parent_request_id=parent)).code == INVALID_REQUEST
    assert sim.nest(parent) in sim.tables.requests


def test_a_parent_that_has_ended_or_was_cancelled_gets_no_more_children() -> None:
    sim = Sim()
    parent = sim.submit()
    inside = sim.inside("general-1.1")
    sim.start(parent)
    sim.cancel(parent)
    assert "was cancelled" in refusal(sim, sim.submit(peer=inside, parent_request_id=parent))[1]
    sim.reply(parent)
    for parent_id in (parent, 12345):
        code, text = refusal(sim, sim.submit(peer=inside, parent_request_id=parent_id))
        assert (code, text) == (CANCELLED, "the program that asked for this has ended")


def test_refused_children_are_counted() -> None:
    sim = Sim()
    sim.submit(parent_request_id=MANY, rows=3)
    sim.submit(parent_request_id=MANY, pool="nowhere")
    assert sim.fleet.stats(sim.now)["requests"]["rejected"] == 3


def test_a_control_operation_may_be_asked_for_from_inside() -> None:
    sim = Sim()
    parent = sim.submit()
    sim.nest(parent, "dspool.stats")
    assert [message.operation for _, message in sim.control] == ["dspool.stats"]


# --- who ends with whom ----------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["reply", "error", "deadline", "cancel", "force", "client gone", "worker lost"])
def test_children_end_with_their_parent(end: str) -> None:
    sim = Sim(pool("general", slots=1), pool("neural", slots=1, prefetch=0, grace_s=1.0))
    parent = sim.submit(deadline_ms=10_000.0)
    sim.pause(parent)
    running, handed, queued = (sim.nest(parent, pool="neural", rows=rows) for rows in (1, 1, 3))
    sim.start(running)
    assert sim.queued("neural") == [queued]
    if end == "reply":
        sim.reply(parent)
    elif end == "error":
        sim.reply_error(parent, "REMOTE_ERROR")
    elif end == "deadline":
        sim.tick(10.1)
    elif end == "client gone":
        sim.handle(ClientGone(), sim.client)
    elif end == "worker lost":
        sim.die("general-1.1")
    else:
        sim.cancel(parent, force=end == "force")
    assert sim.error(queued).code == "DEADLINE_EXCEEDED" if end == "deadline" else CANCELLED
    sim.answer_recall(handed, started=False)
    assert handed in sim.replies
    [cancel] = sim.sent_to(sim.process("neural-1.1").peer, wire.Cancel)
    assert cancel.request_id == running
    if end in ("cancel", "client gone"):  # it has time to end by itself; as it does, its children have none left
        assert running in sim.tables.requests
        sim.reply_error(parent, CANCELLED)
    sim.tick(1.5)
    assert "neural-1.1" in dict(sim.kills())
    sim.tick(5.0)  # the parent that was cancelled by force has its own grace
    sim.bury_killed()
    assert running in sim.replies
    assert not sim.tables.children
    assert not sim.tables.requests


def test_what_a_program_that_has_ended_asked_for_is_not_begun() -> None:
    sim = Sim(pool(slots=1, prefetch=0))
    parent = sim.submit()
    first, second = (sim.nest(parent) for _ in range(2))
    assert sim.queued() == [second]
    sim.reply(parent)  # there is a place for it now
    assert sim.error(second).code == CANCELLED
    assert not sim.replies[second].epoch
    sim.answer_recall(first, started=False)


def test_children_that_end_together_begin_nothing_for_each_other() -> None:
    sim = Sim(pool("general"), pool("neural", slots=1, prefetch=None))
    parent = sim.submit()
    for number in range(8):
        sim.reply(sim.submit("quick", pool="neural", idempotency_key=str(number)), run_ms=0.01)
    while not sim.queued("neural"):
        sim.submit("work", pool="neural", priority=wire.PRIORITY_HIGH)  # of what nobody knows yet it takes few
    first = sim.nest(parent, "work", pool="neural", idempotency_key="k")
    second = sim.nest(parent, "quick", pool="neural")
    sim.submit("work", pool="neural", idempotency_key="k")
    assert sim.queued("neural")[:2] == [first, second]
    sim.cancel(parent)
    assert [sim.error(one).code for one in (first, second)] == [CANCELLED] * 2
    assert not any(sim.replies[one].epoch for one in (first, second))


def test_children_of_children_end_too() -> None:
    sim = Sim(pool(slots=1))
    ids = chain(sim, 4)
    sim.start(ids[-1])
    sim.cancel(ids[0])
    for request_id in ids:
        assert sim.sent_to(sim.process().peer, wire.Cancel)[ids.index(request_id)].request_id == request_id
    sim.reply_error(ids[0], CANCELLED)
    assert all(entry.cancel == 2 for entry in sim.tables.requests.values())  # by force from now on
    for request_id in ids[1:]:
        sim.reply_error(request_id, CANCELLED)
    assert not sim.tables.requests
    assert not sim.tables.children


def test_a_child_that_ends_leaves_its_parent_alone() -> None:
    sim = Sim(pool(slots=2))
    parent = sim.submit()
    children = [sim.nest(parent) for _ in range(2)]
    sim.reply(children[0])
    assert list(sim.tables.children[parent]) == children[1:]
    sim.cancel(children[1], peer=sim.inside("general-1.1"))
    sim.reply_error(children[1], CANCELLED)
    assert not sim.tables.children
    sim.reply(parent)
    assert sim.replies[parent].status == wire.OK


def test_the_children_of_an_attempt_that_was_lost_do_not_work_for_the_next_one() -> None:
    sim = Sim(pool("general"), pool("neural", prefetch=0))
    parent = sim.submit(flags=wire.FLAG_IDEMPOTENT)
    sim.pause(parent)
    old = sim.nest(parent, pool="neural")
    sim.start(old)
    sim.die("general-1.1", Signalled(11))
    assert sim.sent_to(sim.process("neural-1.1").peer, wire.Cancel)
    sim.boot("general-1.2")
    sim.tick(1.0)
    new = sim.nest(parent, pool="neural")
    sim.reply_error(old, CANCELLED)
    assert list(sim.tables.children[parent]) == [new]
    sim.reply(new)
    sim.reply(parent)
    assert sim.replies[parent].status == wire.OK


def test_what_a_parent_has_asked_for_may_still_come_while_the_fleet_drains() -> None:
    sim = Sim()
    parent = sim.submit()
    sim.handle(Drain(10.0))
    assert sim.error(sim.submit()).code == "UNAVAILABLE"
    child = sim.nest(parent)
    sim.reply(child)
    sim.reply(parent)
    assert sim.replies[child].status == sim.replies[parent].status == wire.OK


# --- a full pool -----------------------------------------------------------------------------------------


def test_a_full_pool_does_not_wait_for_itself() -> None:
    sim = Sim(pool(slots=1, prefetch=0, max_queue=2))
    parents = [sim.submit() for _ in range(3)]
    assert sim.error(sim.submit()).code == "OVERLOADED"
    waits: dict[int, set[int]] = {}
    while sim.tables.requests:
        running = next(one.request_id for one in sim.entry().attempts.values() if not one.paused)
        if running in parents and running not in waits:
            sim.pause(running)
            waits[running] = {sim.nest(running) for _ in range(2)}
            continue
        sim.reply(running)
        for parent, children in waits.items():
            if running in children:
                children.remove(running)
                if not children:
                    sim.resume(parent)
    assert len(waits) == 3
    assert [sim.replies[parent].status for parent in parents] == [wire.OK] * 3
    assert sim.fleet.stats(sim.now)["pools"]["general"]["completed"] == 9


def test_nested_requests_go_before_all_others() -> None:
    sim = Sim(pool(slots=1, prefetch=0))
    parent = sim.submit()
    high = [sim.submit(priority=wire.PRIORITY_HIGH) for _ in range(12)]
    children = [sim.nest(parent) for _ in range(12)]
    assert len(sim.queued()) == 23  # the first high one has the credit that high ones have
    sim.pause(parent)
    served: list[int] = []
    while len(served) < 14:
        running = next(one.request_id for one in sim.entry().attempts.values() if not one.paused)
        sim.reply(running)
        served.append(running)
    assert served == [high[0], *children, high[1]]


def test_the_steps_by_age_are_not_taken_by_nested_ones() -> None:
    """What is nested goes first each time; of the others still each eighth goes by age."""
    sim = Sim(pool(slots=1, prefetch=0))
    parent = sim.submit()
    sim.pause(parent)
    running = sim.submit()
    low = [sim.submit(priority=wire.PRIORITY_LOW) for _ in range(3)]
    sim.now += 100.0
    high = [sim.submit(priority=wire.PRIORITY_HIGH) for _ in range(20)]
    served: list[int] = []
    while len(served) < 17:
        if running in (*low, *high):
            served.append(running)
            sim.nest(parent)
        sim.reply(running)
        running = next(one.request_id for one in sim.entry().attempts.values() if not one.paused)
    assert [request_id in low for request_id in served].count(True) == 2


def test_a_worker_that_has_lent_many_slots_begins_nothing_but_nested_ones() -> None:
    sim = Sim(pool(slots=1, prefetch=0))
    parents = [sim.submit() for _ in range(9)]
    for parent in parents[:4]:
        sim.pause(parent)
    assert sim.queued() == parents[4:]
    child = sim.nest(parents[0])
    assert sim.attempt(child)
    sim.reply(child)
    assert sim.queued() == parents[4:]
    sim.resume(parents[0])
    sim.reply(parents[0])
    assert sim.queued() == parents[5:]


def test_a_pool_grows_where_its_workers_may_begin_nothing() -> None:
    sim = Sim(pool(slots=1, prefetch=0, max_size=2))
    parents = [sim.submit() for _ in range(6)]
    for parent in parents[:4]:
        sim.pause(parent)
    sim.tick(2.0)
    assert sim.pool().size == 2


def test_children_find_a_place_beyond_the_queue_but_not_without_end() -> None:
    sim = Sim(pool(slots=1, prefetch=0, max_queue=2))
    parent = sim.submit()
    for _ in range(2):
        sim.submit()
    assert sim.attempt(sim.nest(parent))
    assert sim.nest(parent, rows=1000) in sim.queued()
    assert sim.error(sim.nest(parent, rows=100)).code == "OVERLOADED"
    assert sim.nest(parent, rows=10) in sim.queued()
    assert sim.error(sim.submit()).code == "OVERLOADED"


def test_a_pool_without_a_queue_serves_what_its_own_work_asks_for() -> None:
    sim = Sim(pool(slots=1, prefetch=0, max_queue=0))
    parent = sim.submit()
    children = [sim.nest(parent) for _ in range(3)]
    assert sim.queued() == children[1:]
    sim.pause(parent)
    for child in children:
        sim.reply(child)
    assert sim.pool().completed == 3


def test_a_principal_with_all_its_rows_under_way_may_ask_for_as_many() -> None:
    sim = Sim(pool(slots=2), principal_rows=3)
    parents = [sim.submit() for _ in range(3)]
    assert sim.error(sim.submit()).code == "OVERLOADED"
    for _ in range(3):
        assert sim.nest(parents[0]) in sim.tables.requests
    assert sim.error(sim.nest(parents[0])).code == "OVERLOADED"


def test_nested_ones_are_never_pushed_out_or_shed_for_their_age() -> None:
    sim = Sim(pool(slots=1, prefetch=0, max_queue=4))
    parent = sim.submit(deadline_ms=100_000.0)
    children = [sim.nest(parent, deadline_ms=8000.0) for _ in range(5)]
    other = sim.connect(2, "bob")
    assert sim.error(sim.submit(peer=other, priority=wire.PRIORITY_HIGH)).code == "OVERLOADED"
    sim.pause(parent)
    for child in children[:2]:
        sim.now += 3.0
        sim.reply(child)
    for child in children[2:]:
        sim.reply(child)
    assert all(sim.replies[child].status == wire.OK for child in children)


def test_a_pause_of_admission_holds_for_nested_ones_too() -> None:
    sim = Sim()
    parent = sim.submit()
    sim.handle(MemoryRead(0.95))
    assert sim.error(sim.nest(parent)).code == "OVERLOADED"


# --- keys ------------------------------------------------------------------------------------------------


def test_children_work_on_for_others_when_their_parents_caller_has_given_up() -> None:
    sim = Sim(pool(slots=4))
    parent = sim.submit(idempotency_key="k")
    sim.pause(parent)
    child = sim.nest(parent)
    follower = sim.submit(idempotency_key="k")
    sim.cancel(parent)
    assert sim.error(parent).code == CANCELLED
    assert child in sim.tables.requests
    assert not sim.sent_to(sim.process().peer, wire.Cancel)
    second = sim.submit(peer=sim.inside("general-1.1"), parent_request_id=parent)
    for request_id in (child, second):
        sim.reply(request_id)
    third = sim.submit(peer=sim.inside("general-1.1"), parent_request_id=parent)
    sim.reply(parent, payload=b"done")
    assert sim.replies[follower].payload == b"done"
    sim.answer_recall(third, started=False)
    assert sim.error(third).code == CANCELLED


def test_children_end_with_the_last_that_wanted_the_work() -> None:
    sim = Sim(pool(slots=4))
    parent = sim.submit(idempotency_key="k")
    child = sim.nest(parent)
    sim.start(child)
    follower = sim.submit(idempotency_key="k")
    sim.cancel(parent)
    sim.cancel(follower)
    assert {message.request_id for message in sim.sent_to(sim.process().peer, wire.Cancel)} == {parent, child}


def test_a_nested_call_with_the_key_of_what_it_is_nested_in_is_refused() -> None:
    sim = Sim(pool(slots=1))
    parent = sim.submit(idempotency_key="k")
    sim.pause(parent)
    child = sim.nest(parent, "other")
    sim.pause(child)
    code, text = refusal(sim, sim.nest(child, idempotency_key="k"))
    assert code == INVALID_REQUEST
    assert "nested in" in text


def test_nor_do_two_calls_wait_for_each_others_keys() -> None:
    sim = Sim(pool(slots=4))
    one, two = (sim.submit(idempotency_key=key) for key in "ab")
    follower = sim.nest(one, idempotency_key="b")
    error = sim.error(sim.nest(two, idempotency_key="a"))
    assert error.details["path"] == "idempotency_key"
    other = sim.nest(two, idempotency_key="c")
    sim.reply(other)
    sim.reply(two)
    assert sim.replies[follower].status == wire.OK


def test_what_a_nested_call_follows_is_as_urgent_as_it() -> None:
    """Or else it would wait behind parents that are not begun before this one has ended."""
    sim = Sim(pool(slots=1, prefetch=0))
    parents = [sim.submit() for _ in range(4)]
    for parent in parents:
        sim.pause(parent)
    runner = sim.submit("shared", idempotency_key="k")
    assert sim.queued() == [runner]  # the worker has lent too many slots
    follower = sim.nest(parents[0], "shared", idempotency_key="k")
    sim.reply(runner)
    assert sim.replies[follower].status == wire.OK


def test_a_run_is_not_nested_in_who_waits_for_it() -> None:
    sim = Sim(pool(slots=1, prefetch=0))
    ids = chain(sim, MAX_DEPTH)
    sim.pause(ids[-1])
    runner = sim.submit("shared", idempotency_key="k")
    assert sim.queued() == [runner]
    sim.nest(ids[-1], "shared", idempotency_key="k")
    sim.pause(runner)
    assert sim.nest(runner) in sim.tables.requests


def test_what_shared_a_key_is_not_kept_in_a_circle() -> None:
    sim = Sim()
    request_id = sim.submit(idempotency_key="k")
    runner = sim.tables.requests[request_id]
    sim.submit(idempotency_key="k")
    assert runner.keyed is not None
    sim.reply(request_id)
    assert runner.keyed is None
