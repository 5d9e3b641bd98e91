"""Calls in sessions: whose turn it is, where they run, what they leave behind."""

from __future__ import annotations

from typing import Any

import pytest

from bridge.protocol import messages as wire
from bridge.protocol.errors import BridgeError
from pools.config import SessionsConfig
from pools.core.events import (
    BootFailed,
    ClientGone,
    Drain,
    DrainWorker,
    ExpireSession,
    OpenSession,
    Restart,
    Signalled,
)  # fmt: skip
from pools.core.sessions import MAX_LINE
from tests.support.fleet import Sim, pool
from tests.support.in_session import answer, at, brought, call, found, open_session, waits


def two(**config: Any) -> Sim:
    """Return a fleet of two workers, one slot each, nothing handed over early."""
    return Sim(pool(size=2, slots=1, prefetch=0), sessions=SessionsConfig(**config))


# --- turns ------------------------------------------------------------------------------------------


def test_calls_of_a_session_run_one_at_a_time_and_in_order() -> None:
    sim = two()
    first, second, third = (call(sim) for _ in range(3))
    assert at(sim, first)
    assert waits(sim, second)
    assert waits(sim, third)
    answer(sim, first)
    assert not waits(sim, second)
    assert waits(sim, third)
    answer(sim, second)
    answer(sim, third)
    assert {sim.replies[each].status for each in (first, second, third)} == {wire.OK}
    assert not found(sim).busy


def test_two_first_calls_at_once_agree_on_one_worker() -> None:
    sim = two()
    first, second = call(sim), call(sim)
    home = at(sim, first)
    answer(sim, first)
    assert at(sim, second) == home


def test_a_session_whose_first_call_queued_is_bound_to_who_ran_it() -> None:
    sim = two()
    blockers = [sim.submit(), sim.submit()]
    first = call(sim)
    assert waits(sim, first)
    sim.reply(blockers[1])
    home = at(sim, first)
    answer(sim, first)
    sim.reply(blockers[0])
    assert [at_and_answer(sim) for _ in range(5)] == [home] * 5


def at_and_answer(sim: Sim, session: str = "s") -> str:
    request_id = call(sim, session)
    where = at(sim, request_id)
    answer(sim, request_id)
    return where


def test_a_hundred_calls_run_on_one_worker_and_bring_the_session_once() -> None:
    sim = two()
    worker = at_and_answer(sim)
    for _ in range(99):
        request_id = call(sim)
        assert brought(sim, request_id) is None
        assert at(sim, request_id) == worker
        answer(sim, request_id)
    assert found(sim).calls.count == 100
    assert found(sim).seq == 100


def test_the_caller_gets_the_value_without_the_session() -> None:
    sim = two()
    request_id = call(sim, payload=b"args")
    _, attempt = sim.attempt(request_id)
    assert attempt.payload is not None
    assert attempt.payload.startswith(b"args")
    assert attempt.session == "default\0s"
    answer(sim, request_id, state=b"S", value=b"value")
    reply = sim.replies[request_id]
    assert (reply.payload, reply.session) == (b"value", None)


def test_a_call_that_failed_changes_no_state_but_leaves_its_turn() -> None:
    sim = two()
    answer(sim, call(sim), state=b"good", turn=b"one")
    answer(sim, call(sim), state=b"bad", turn=b"two", error="REMOTE_ERROR")
    session = found(sim)
    assert session.state == b"good"
    assert [turn for _, turn in session.turns] == [b"one", b"two"]
    assert session.calls.metrics()["success_rate"] == 0.5


def test_a_late_answer_moves_the_session_on_and_passes_the_turn() -> None:
    sim = two()
    first = call(sim, deadline_ms=100.0)
    sim.start(first)
    second = call(sim)
    sim.tick(1.0)
    assert sim.error(first).code == "DEADLINE_EXCEEDED"
    assert waits(sim, second)  # its attempt is out
    answer(sim, first, state=b"late")
    assert brought(sim, second) is None
    assert found(sim).state == b"late"
    assert found(sim).calls.count == 1
    assert found(sim).calls.good == 0


@pytest.mark.parametrize("how", ["cancel", "deadline", "bye"])
def test_who_waits_for_its_turn_can_leave(how: str) -> None:
    sim = two()
    other = sim.connect(2)
    first = call(sim)
    second = call(sim, peer=other, deadline_ms=500.0 if how == "deadline" else None)
    third = call(sim)
    if how == "cancel":
        sim.cancel(second, peer=other)
        assert sim.cancel_replies(second) == [("queued", "dequeued")]
    elif how == "bye":
        sim.handle(ClientGone(), other)
    else:
        sim.tick(1.0)
    assert second in sim.replies
    answer(sim, first)
    assert not waits(sim, third)
    answer(sim, third)


def test_a_call_that_is_cancelled_before_it_began_leaves_no_session() -> None:
    sim = two()
    blockers = [sim.submit(), sim.submit()]
    first = call(sim)
    sim.cancel(first)
    assert sim.error(first).code == "CANCELLED"
    assert not sim.tables.sessions.by_key
    for blocker in blockers:
        sim.reply(blocker)


def test_the_line_of_one_session_is_bounded_and_takes_no_room_in_the_queue() -> None:
    sim = Sim(pool(size=1, slots=1, prefetch=0, max_queue=2))
    ids = [call(sim) for _ in range(MAX_LINE + 1)]
    assert sim.error(call(sim)).code == "OVERLOADED"
    blocked = [sim.submit(), sim.submit()]
    assert sim.error(sim.submit()).code == "OVERLOADED"  # by the queue
    for request_id in ids:
        while waits(sim, request_id):
            sim.reply(blocked.pop(0))
        answer(sim, request_id)
    assert found(sim).calls.count == len(ids)


def test_a_pool_that_cannot_boot_answers_all_that_wait() -> None:
    sim = Sim(pool(size=1, slots=1, prefetch=0), ready=False)
    ids = [call(sim) for _ in range(100)]
    sim.hello()
    sim.exited("general-1.1", BootFailed(b""))
    assert {sim.error(each).code for each in ids} == {"UNAVAILABLE"}
    assert not sim.tables.sessions.by_key


def test_a_client_that_leaves_ends_its_line_without_beginning_it() -> None:
    sim = two()
    other = sim.connect(2)
    ids = [call(sim, peer=other) for _ in range(3)]
    before = len(sim.sent_to(sim.process("general-1.1").peer, wire.Request))
    sim.handle(ClientGone(), other)
    after = len(sim.sent_to(sim.process("general-1.1").peer, wire.Request))
    assert before == after
    assert all(each in sim.replies for each in ids[1:])


# --- where they run ------------------------------------------------------------------------------------


def busy(sim: Sim, worker: str) -> int:
    """Fill a worker of one slot with something else; return that request."""
    for _ in range(4):
        request_id = sim.submit()
        if at(sim, request_id) == worker:
            return request_id
        sim.reply(request_id)
    raise AssertionError(f"{worker} is given nothing")


def test_a_hint_is_for_its_worker_and_no_reason_to_wait() -> None:
    sim = two()
    home = at_and_answer(sim)
    blocker = busy(sim, home)
    request_id = call(sim)
    assert at(sim, request_id) != home
    assert brought(sim, request_id) == (b"", [b"turn"])
    # The one before has nothing of it any more, and is told so.
    assert sim.sent_to(sim.process(home).peer, wire.SessionEnd) == [
        wire.SessionEnd(session="default\0s", generation=found(sim).generation)
    ]
    moved = at(sim, request_id)
    answer(sim, request_id)
    sim.reply(blocker)
    assert at_and_answer(sim) == moved


def test_a_strict_call_waits_for_its_worker_and_holds_up_nobody() -> None:
    sim = two()
    open_session(sim, affinity="strict_queue")
    home = at_and_answer(sim)
    blocker = busy(sim, home)
    request_id = call(sim)
    assert waits(sim, request_id)
    others = [sim.submit(), sim.submit()]
    assert at(sim, others[0]) != home
    sim.reply(others[0])
    assert at(sim, others[1]) != home  # the strict call has waited longer for its own
    sim.reply(blocker)
    assert at(sim, request_id) == home
    answer(sim, request_id)


def test_the_line_of_a_worker_and_the_queue_go_by_age() -> None:
    sim = Sim(pool(size=1, slots=1, prefetch=0))
    open_session(sim, affinity="strict_queue")
    at_and_answer(sim)
    blocker = sim.submit()
    order = []
    for n in range(6):
        sim.now += 0.001
        order.append(call(sim, "s") if n == 0 else sim.submit() if n % 2 else call(sim, f"other-{n}"))
    sim.reply(blocker)
    ran = []
    for _ in order:
        [running] = sim.process().attempts.values()
        ran.append(running.request_id)
        if running.session:
            answer(sim, running.request_id)
        else:
            sim.reply(running.request_id)
    assert ran == order


def test_strict_fail_fast_says_so_where_it_would_wait() -> None:
    sim = two()
    open_session(sim, affinity="strict_fail_fast")
    first = call(sim)
    error = sim.error(call(sim))
    assert (error.code, error.retryable) == ("WORKER_BUSY", True)
    home = at(sim, first)
    answer(sim, first)
    blocker = busy(sim, home)
    assert sim.error(call(sim)).details == {"worker": home, "session": "s"}
    sim.reply(blocker)
    assert at_and_answer(sim) == home


def test_in_another_pool_a_session_goes_along() -> None:
    sim = Sim(pool(slots=1), pool("neural", slots=1))
    answer(sim, call(sim), state=b"S")
    elsewhere = call(sim, pool="neural")
    assert brought(sim, elsewhere) == (b"S", [b"turn"])
    answer(sim, elsewhere, state=b"T")
    own = call(sim, operation="session.set")
    assert at(sim, own) == "neural-1.1"
    answer(sim, own, state=b"U", turn=None)
    assert not sim.replies[own].fallback_used
    back = call(sim)
    assert brought(sim, back) == (b"U", [b"turn", b"turn"])
    answer(sim, back)
    assert found(sim).calls.count == 3


def test_where_a_session_is_says_nothing_of_where_others_go() -> None:
    sim = Sim(pool(slots=1), pool("neural", slots=1))
    answer(sim, call(sim, "s", pool="neural"), state=b"S")
    for session, there in (("s", "neural-1.1"), ("t", "general-1.1"), ("s", "neural-1.1")):
        own = call(sim, session, operation="session.set")
        assert at(sim, own) == there
        answer(sim, own, state=b"U", turn=None)


def test_a_call_that_comes_back_unstarted_is_sent_with_the_whole_session_again() -> None:
    sim = Sim(pool(size=1, slots=1, prefetch=1))
    blocker = sim.submit()
    request_id = call(sim)
    sim.cancel(blocker)
    sim.handle(Restart("general"))
    sim.boot("general-1.2")
    sim.answer_recall(request_id, started=False)
    assert at(sim, request_id) == "general-1.2"
    assert brought(sim, request_id) == (b"", [])


# --- loss -------------------------------------------------------------------------------------------------


def test_restore_goes_on_elsewhere_with_state_and_history() -> None:
    sim = two()
    answer(sim, call(sim), state=b"S", turn=b"one")
    home = found(sim).at
    assert home is not None
    running, waiting = call(sim), call(sim)
    sim.start(running)
    sim.die(home.worker_id)
    assert sim.error(running).code == "WORKER_LOST"
    assert brought(sim, waiting) == (b"S", [b"one"])
    answer(sim, waiting)
    assert found(sim).restored == 1


def test_a_resend_keeps_the_turn() -> None:
    sim = two()
    first = call(sim, flags=wire.FLAG_IDEMPOTENT)
    second = call(sim)
    sim.start(first)
    sim.die(at(sim, first))
    assert waits(sim, first)
    assert waits(sim, second)
    sim.tick(1.0)
    answer(sim, first)
    answer(sim, second)
    assert found(sim).seq == 2


def test_a_call_is_not_sent_again_into_a_session_that_is_lost() -> None:
    sim = two()
    open_session(sim, on_loss="fail")
    answer(sim, call(sim), state=b"S")
    running = call(sim, flags=wire.FLAG_IDEMPOTENT)
    sim.start(running)
    sim.die(at(sim, running))
    sim.tick(1.0)
    assert sim.error(running).code == "WORKER_LOST"
    assert "lost" in sim.error(running).details["retry"]
    sim.tick(1.0)
    assert [log.fields for log in sim.logs("sessions_lost")] == [{"count": 1}]


@pytest.mark.parametrize("how", ["died", "drained", "restarted"])
def test_fail_loses_the_session_with_its_worker(how: str) -> None:
    sim = two()
    session = open_session(sim, on_loss="fail")
    answer(sim, call(sim), state=b"S")
    home = at(sim, running := call(sim))
    waiting = call(sim)
    if how == "died":
        sim.start(running)
        sim.die(home)
        assert sim.error(running).code == "WORKER_LOST"
    else:
        sim.start(running)
        sim.handle(DrainWorker(home) if how == "drained" else Restart(home))
        if how == "restarted":
            sim.boot(sim.launches()[-1])
        answer(sim, running)
        assert sim.replies[running].status == wire.OK
    assert sim.error(waiting).code == "SESSION_LOST"
    assert sim.error(call(sim)).code == "SESSION_LOST"
    assert sim.error(call(sim, generation=session.generation)).details["reason"] == "worker_lost"
    again = open_session(sim)
    assert (again.generation, again.state) != (session.generation, b"S")
    answer(sim, call(sim))


@pytest.mark.parametrize("how", ["first", "moved"])
@pytest.mark.parametrize("on_loss", ["fail", "restore"])
def test_a_session_is_where_a_call_that_brought_it_has_begun(on_loss: str, how: str) -> None:
    sim = two()
    open_session(sim, on_loss=on_loss)
    if how == "moved":
        answer(sim, call(sim), state=b"S")
        busy(sim, "general-1.1")
    running, waiting = call(sim), call(sim)
    assert brought(sim, running) is not None
    sim.start(running)
    sim.die(at(sim, running))
    assert sim.error(running).code == "WORKER_LOST"
    if on_loss == "fail":
        assert sim.error(waiting).code == sim.error(call(sim)).code == "SESSION_LOST"
        return
    sim.boot(sim.launches()[-1])
    assert brought(sim, waiting) == (b"S" if how == "moved" else b"", [b"turn"] if how == "moved" else [])
    assert found(sim).restored == 1


def test_a_session_is_not_lost_with_a_worker_that_had_not_begun_it() -> None:
    sim = two()
    open_session(sim, on_loss="fail")
    request_id = call(sim)
    home = at(sim, request_id)
    sim.die(home)
    assert at(sim, request_id) != home
    answer(sim, request_id, state=b"S")
    assert (found(sim).state, found(sim).restored) == (b"S", 0)


def test_strict_calls_of_a_worker_that_leaves_go_elsewhere() -> None:
    sim = two()
    open_session(sim, affinity="strict_queue")
    home = at_and_answer(sim)
    blocker = busy(sim, home)
    request_id = call(sim)
    assert waits(sim, request_id)
    sim.start(blocker)
    sim.handle(DrainWorker(home))
    assert at(sim, request_id) != home
    answer(sim, request_id)
    sim.reply(blocker)


def test_a_worker_that_does_not_have_the_session_is_sent_it_again() -> None:
    sim = two()
    answer(sim, call(sim), state=b"S")
    sim.reply(call(sim))  # without a change: it has none
    request_id = call(sim)
    assert brought(sim, request_id) == (b"S", [b"turn"])
    answer(sim, request_id)


def test_what_cannot_be_read_of_a_session_is_an_error_and_changes_nothing() -> None:
    sim = two()
    answer(sim, call(sim), state=b"S")
    request_id = call(sim)
    sim.reply(request_id, payload=b"xx", session=wire.SessionChange(2, tail=9))
    assert sim.error(request_id).code == "INTERNAL"
    assert found(sim).state == b"S"


# --- beginnings and ends ------------------------------------------------------------------------------------


def test_a_session_expires_when_nobody_uses_it() -> None:
    sim = two()
    session = open_session(sim, ttl_s=1.0)
    request_id = call(sim)
    sim.tick(3.0)  # it runs
    waiting = call(sim)
    answer(sim, request_id)
    sim.tick(3.0)
    answer(sim, waiting)
    worker = session.at
    assert worker is not None
    sim.tick(0.9)
    answer(sim, call(sim, generation=session.generation))
    sim.tick(1.6)
    assert not sim.tables.sessions.by_key
    assert sim.sent_to(sim.process(worker.worker_id).peer, wire.SessionEnd)
    assert sim.error(call(sim, generation=session.generation)).details == {"reason": "expired", "session": "s"}
    fresh = call(sim)
    assert brought(sim, fresh) == (b"", [])
    answer(sim, fresh)
    assert found(sim).generation > session.generation


def test_a_session_is_gone_at_its_time_whether_that_was_seen_to_or_not() -> None:
    sim = two()
    session = open_session(sim, ttl_s=1.0)
    sim.now += 1.001
    assert sim.fleet.sessions("default", sim.now, 10) == []
    assert sim.error(call(sim, generation=session.generation)).details["reason"] == "expired"


def test_opening_again_attaches_and_changes_what_is_given() -> None:
    sim = two()
    session = open_session(sim, ttl_s=5.0)
    answer(sim, call(sim), state=b"S")
    assert open_session(sim, affinity="strict_queue") is session
    assert session.options == (5.0, "strict_queue", "restore")
    assert session.state == b"S"
    open_session(sim, ttl_s=0.5)
    sim.tick(1.1)
    assert not sim.tables.sessions.by_key


def test_who_ends_a_session_ends_what_waits_in_it() -> None:
    sim = two()
    session = open_session(sim)
    running, waiting = call(sim), call(sim)
    sim.handle(ExpireSession("default", "s", session.generation))
    assert sim.error(waiting).details["reason"] == "ended"
    fresh = call(sim)  # a new one of that name runs beside what still runs of the old one
    answer(sim, running, state=b"old")
    answer(sim, fresh, state=b"new")
    assert found(sim).state == b"new"
    with pytest.raises(BridgeError) as lost:
        sim.handle(ExpireSession("default", "s", session.generation))
    assert lost.value.code == "SESSION_LOST"
    with pytest.raises(BridgeError) as unknown:
        sim.handle(ExpireSession("default", "other"))
    assert unknown.value.code == "NOT_FOUND"


def test_tenants_with_the_same_id_never_meet() -> None:
    sim = two()
    mallory = sim.connect(7, "mallory")
    answer(sim, call(sim), state=b"S")
    theirs = call(sim, peer=mallory)
    assert brought(sim, theirs) == (b"", [])
    answer(sim, theirs, state=b"M")
    assert found(sim).state == b"S"
    assert found(sim, "s", "mallory").state == b"M"
    assert [row["id"] for row in sim.fleet.sessions("mallory", sim.now, 10)] == ["s"]
    error = sim.error(call(sim, peer=mallory, generation=found(sim).generation))
    assert error.code == "SESSION_LOST"


def test_quotas() -> None:
    sim = two(max=4)
    other = sim.connect(2, "other")
    open_session(sim, "theirs", principal="other", ttl_s=1.0)
    for n in range(2):
        answer(sim, call(sim, f"s{n}"))
    assert sim.error(call(sim, "s2")).code == "OVERLOADED"  # half of all, and somebody else has some
    with pytest.raises(BridgeError) as refused:
        sim.handle(OpenSession("default", "s2"))
    assert refused.value.code == "OVERLOADED"
    answer(sim, call(sim, "more", peer=other))
    assert sim.error(call(sim, "third", peer=sim.connect(3, "third"))).code == "OVERLOADED"
    sim.now += 1.1
    answer(sim, call(sim, "third", peer=sim.connect(4, "third")))  # one of them has expired


def test_a_session_holds_so_much_and_the_oldest_turns_go_first() -> None:
    sim = two(max_bytes=100, history=3)
    for n in range(5):
        answer(sim, call(sim), turn=b"%d" % n)
    assert [turn for _, turn in found(sim).turns] == [b"2", b"3", b"4"]
    answer(sim, call(sim), state=b"x" * 90, turn=b"y" * 9)
    assert [len(turn) for _, turn in found(sim).turns] == [1, 9]
    assert sim.tables.sessions.bytes == found(sim).size == 100


def test_all_sessions_together_hold_so_much() -> None:
    sim = two(total_bytes=100)
    answer(sim, call(sim, "large"), state=b"x" * 120)
    open_refused = sim.error(call(sim, "new"))
    assert open_refused.code == "OVERLOADED"
    assert sim.error(call(sim, "large")).code == "OVERLOADED"
    sim.handle(ExpireSession("default", "large"))
    assert sim.tables.sessions.bytes == 0
    answer(sim, call(sim, "new"))


def test_metrics_tell_how_calls_get_on() -> None:
    sim = two()
    for run_ms in [100.0] * 10 + [50.0] * 10:
        answer(sim, call(sim), run_ms=run_ms)
    metrics = found(sim).calls.metrics()
    assert metrics == {"count": 20, "mean_ms": 75.0, "p95_ms": 100.0, "success_rate": 1.0, "trend": "improving"}
    for run_ms in [200.0] * 10:
        answer(sim, call(sim), run_ms=run_ms)
    assert found(sim).calls.metrics()["trend"] == "degrading"
    assert open_session(sim, "other").calls.metrics()["count"] == 0


# --- bad input ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"rows": 2}, "session"),
        ({"idempotency_key": "k"}, "idempotency_key"),
        ({"session": "x" * 201}, "session"),
        ({"session": "a\0b"}, "session"),
        ({"in_session": wire.InSession(0, 7)}, "in_session"),
        ({"in_session": wire.InSession(0, 0, snapshot=True)}, "in_session"),
        ({"in_session": wire.InSession(0, 0, tail=1)}, "in_session"),
        ({"session": "", "in_session": wire.InSession(1)}, "in_session"),
        ({"worker": "general-1.1"}, "worker"),
        ({"session": "", "worker": "general-1.1"}, "worker"),
    ],
)
def test_bad_input(fields: dict[str, Any], path: str) -> None:
    sim = two()
    sim.reply(sim.submit("qa"))  # its route is known
    error = sim.error(sim.submit("qa", **{"session": "s", **fields}))
    assert (error.code, error.details["path"]) == ("INVALID_REQUEST", path)
    assert not sim.tables.sessions.by_key


@pytest.mark.parametrize(
    "options",
    [{"ttl_s": 0.0}, {"ttl_s": float("nan")}, {"affinity": "strict"}, {"on_loss": ""}, {"id": ""}, {"id": "\ud800"}],
)
def test_bad_options(options: dict[str, Any]) -> None:
    sim = two()
    with pytest.raises(BridgeError) as refused:
        sim.handle(OpenSession(**{"principal": "default", "id": "s", **options}))
    assert refused.value.code == "INVALID_REQUEST"


def test_a_program_does_not_wait_for_its_own_session() -> None:
    sim = Sim(pool(size=1, slots=4))
    outer = call(sim, "a")
    inner = sim.nest(outer, session="b")
    error = sim.error(sim.nest(outer, session="a"))
    assert (error.code, error.details["path"]) == ("INVALID_REQUEST", "session")
    assert sim.error(sim.nest(inner, session="a")).code == "INVALID_REQUEST"
    answer(sim, inner)
    answer(sim, outer)


def test_two_programs_do_not_wait_for_each_others_sessions() -> None:
    sim = Sim(pool(size=1, slots=4))
    one, other = call(sim, "a"), call(sim, "b")
    waiting = sim.nest(one, session="b")
    assert waits(sim, waiting)
    assert sim.error(sim.nest(other, session="a")).code == "INVALID_REQUEST"
    answer(sim, other)
    answer(sim, waiting)
    answer(sim, one)


# --- the rest of the fleet ----------------------------------------------------------------------------------------


def test_the_end_of_the_fleet_cuts_the_line_off() -> None:
    sim = two()
    running, waiting = call(sim), call(sim)
    sim.start(running)
    sim.handle(Drain(1.0))
    assert sim.error(call(sim)).code == "UNAVAILABLE"
    sim.tick(1.1)
    assert {sim.error(each).code for each in (running, waiting)} == {"CANCELLED"}


def test_a_suspect_runs_alone_also_in_a_session() -> None:
    sim = Sim(pool(size=2, slots=1, prefetch=0), poison_deaths=2)
    for code in ("WORKER_LOST", "POISON_REQUEST"):
        request_id = call(sim, payload=b"bad")
        sim.start(request_id)
        sim.die(at(sim, request_id), Signalled(11))
        assert sim.error(request_id).code == code
        sim.tick(1.0)
        for name in [name for name, one in sim.tables.workers.items() if one.state == "launching"]:
            sim.boot(name)
    assert sim.error(call(sim, payload=b"bad")).code == "POISON_REQUEST"
    answer(sim, call(sim, payload=b"good"))


def test_a_request_for_one_worker_waits_for_it() -> None:
    sim = two()
    inside = sim.connect(0, "coordinator")
    blocker = busy(sim, "general-1.1")
    request_id = sim.submit("programs.warm", peer=inside, worker="general-1.1")
    assert waits(sim, request_id)
    sim.reply(blocker)
    assert at(sim, request_id) == "general-1.1"
    sim.reply(request_id)
    assert sim.error(sim.submit("programs.warm", peer=inside, worker="general-9.1")).code == "UNAVAILABLE"
    blocker = busy(sim, "general-2.1")
    lost = sim.submit("programs.warm", peer=inside, worker="general-2.1")
    sim.start(blocker)
    sim.die("general-2.1")
    assert sim.error(lost).code == "UNAVAILABLE"


def test_a_suspect_of_a_session_that_is_lost_does_not_run() -> None:
    sim = Sim(pool(size=3, slots=1, prefetch=0), poison_deaths=2)
    open_session(sim, on_loss="fail")
    answer(sim, call(sim), state=b"S")
    home = found(sim).at
    assert home is not None
    killer = call(sim, "other", payload=b"bad")
    sim.start(killer)
    blockers = [sim.submit(), sim.submit()]
    sim.die(at(sim, killer), Signalled(11))
    suspect = call(sim, payload=b"bad")
    assert waits(sim, suspect)
    blocked = next(each for each in blockers if at(sim, each) == home.worker_id)
    sim.start(blocked)
    sim.die(home.worker_id)
    other = next(each for each in blockers if each != blocked)
    sim.reply(other)
    assert sim.error(suspect).code == "SESSION_LOST"
