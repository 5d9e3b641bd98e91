"""Sessions that outlive the coordinator: answers wait until what they changed is kept."""

from __future__ import annotations

from typing import Any

import pytest

from bridge.protocol import messages as wire
from bridge.protocol.errors import BridgeError
from pools.config import SessionsConfig
from pools.core.events import (
    Drain,
    ExpireSession,
    SaveBatch,
    SessionImage,
    SessionRestored,
    SessionsSaved,
    SessionsSynced,
    SessionsUnsaved,
)  # fmt: skip
from tests.support.fleet import Sim, pool
from tests.support.in_session import answer, brought, call, found, open_session, waits


def durable(*, synced: bool = True, **config: Any) -> Sim:
    sim = Sim(pool(size=2, slots=2), sessions=SessionsConfig(durable=True, **config))
    if synced:
        sim.handle(SessionsSynced())
    return sim


def take(sim: Sim) -> SaveBatch:
    batch = sim.fleet.take_unsaved(sim.now)
    assert batch is not None
    return batch


def image(**fields: object) -> SessionImage:
    return SessionImage(**{"principal": "default", "id": "s", "generation": 7 << 32 | 1, "seq": 3, "ttl_s": 60.0,
                           "affinity": "hint", "on_loss": "restore", **fields})  # type: ignore[arg-type]  # fmt: skip


def test_an_answer_waits_until_its_change_is_kept() -> None:
    sim = durable()
    request_id = call(sim)
    answer(sim, request_id, state=b"S", turn=b"T")
    assert request_id not in sim.replies
    assert sim.fleet.stats(sim.now)["requests"]["settled"] == 1
    batch = take(sim)
    [kept] = batch.images
    assert (kept.principal, kept.id, kept.seq, kept.state, [turn for _, turn in kept.turns]) == (
        "default", "s", 1, b"S", [b"T"],
    )  # fmt: skip
    assert not sim.fleet.unsaved_sessions
    assert request_id not in sim.replies
    sim.handle(SessionsSaved(batch.token))
    assert sim.replies[request_id].status == wire.OK


def test_the_next_call_does_not_wait_and_only_what_is_new_is_kept() -> None:
    sim = durable()
    first, second = call(sim), call(sim)
    answer(sim, first, state=b"S", turn=b"1")
    batch = take(sim)
    assert not waits(sim, second)
    answer(sim, second, turn=b"2")
    sim.handle(SessionsSaved(batch.token))
    assert first in sim.replies
    assert second not in sim.replies
    batch = take(sim)
    [kept] = batch.images
    assert (kept.state, [turn for _, turn in kept.turns], kept.seq) == (None, [b"2"], 2)
    sim.handle(SessionsSaved(batch.token))
    assert second in sim.replies


def test_where_nothing_can_be_kept_no_answer_waits() -> None:
    sim = durable()
    first, other = call(sim), call(sim, "other")
    answer(sim, first, state=b"S", turn=b"1")
    batch = take(sim)
    answer(sim, other)
    sim.handle(SessionsUnsaved(batch.token, "down"))
    assert {first, other} <= sim.replies.keys()
    second = call(sim)
    answer(sim, second, turn=b"2")
    assert second in sim.replies
    again = take(sim)  # nothing of it is forgotten
    assert {each.id for each in again.images} == {"s", "other"}
    kept = next(each for each in again.images if each.id == "s")
    assert (kept.state, [turn for _, turn in kept.turns]) == (b"S", [b"1", b"2"])
    sim.handle(SessionsSaved(again.token))
    third = call(sim)
    answer(sim, third)
    assert third not in sim.replies  # they wait again
    sim.handle(SessionsSaved(take(sim).token))
    assert third in sim.replies


@pytest.mark.parametrize("is_out", [False, True], ids=["waiting", "on its way"])
def test_no_answer_waits_beyond_its_deadline(is_out: bool) -> None:
    sim = durable()
    hurried, other = call(sim, deadline_ms=500.0), call(sim, "other", deadline_ms=5_000.0)
    answer(sim, hurried, state=b"S")
    answer(sim, other, state=b"T")
    batch = take(sim) if is_out else None
    due = sim.fleet.next_timer()
    assert due is not None
    assert due <= sim.now + 0.52
    sim.tick(0.4)
    assert hurried not in sim.replies
    sim.tick(0.12)
    assert sim.replies[hurried].status == wire.OK
    assert other not in sim.replies
    sim.handle(SessionsSaved((batch or take(sim)).token))
    assert sim.replies[other].status == wire.OK  # and the first one, as `Sim` sees to, is not answered again
    sim.tick(10.0)
    assert sim.tables.saves is not None
    assert sim.tables.saves.next_due() is None


def test_an_answer_that_changed_nothing_waits_for_nothing() -> None:
    sim = durable()
    answer(sim, call(sim), state=b"S")
    looked = call(sim, operation="session.get")
    answer(sim, looked, turn=None)
    assert looked in sim.replies
    holder, in_line = call(sim), call(sim, deadline_ms=50.0)
    sim.tick(0.2)
    assert sim.error(in_line).code == "DEADLINE_EXCEEDED"
    answer(sim, holder, turn=b"2")
    assert holder not in sim.replies


def test_the_end_of_a_session_is_answered_when_it_is_kept() -> None:
    sim = durable()
    open_session(sim)
    sim.handle(SessionsSaved(take(sim).token))

    def expire(request_id: int) -> bool:
        sim.handle(ExpireSession("default", "s", answer=wire.Reply(request_id=request_id)), sim.client)
        return request_id in sim.replies

    assert not expire(71)
    [kept] = (batch := take(sim)).images
    assert kept.ended
    assert 71 not in sim.replies
    sim.handle(SessionsSaved(batch.token))
    assert 71 in sim.replies
    open_session(sim)
    assert expire(72), "the store had nothing of it"
    open_session(sim)
    sim.handle(SessionsUnsaved(take(sim).token, "full"))
    assert expire(73), "nothing can be kept"


def test_of_what_has_ended_nothing_is_held_but_that_it_has() -> None:
    sim = durable()
    asked = call(sim)
    answer(sim, asked, state=b"S" * 1000)
    session, batch = found(sim), take(sim)
    sim.handle(ExpireSession("default", "s"))
    assert (session.size, len(session.turns), sim.tables.sessions.bytes) == (0, 0, 0)
    sim.handle(SessionsUnsaved(batch.token, "full"))
    [kept] = take(sim).images
    assert (kept.ended, kept.state, kept.turns, kept.seq) == (True, None, (), 2)


def test_what_came_and_went_between_two_saves_is_forgotten() -> None:
    sim = durable()
    for n in range(100):
        asked = call(sim, f"s{n}")
        answer(sim, asked, state=b"S")
        assert asked not in sim.replies
        sim.handle(ExpireSession("default", f"s{n}"))
        assert asked in sim.replies
    assert sim.fleet.take_unsaved(sim.now) is None
    assert not sim.tables.saves.waits


@pytest.mark.parametrize("batch_of_the_end", ["none", "fails", "is on its way"])
def test_what_the_store_may_have_under_a_name_is_removed_with_the_last_of_that_name(batch_of_the_end: str) -> None:
    sim = durable()
    open_session(sim)
    sim.handle(SessionsSaved(take(sim).token))
    sim.handle(ExpireSession("default", "s"))
    batch = take(sim) if batch_of_the_end != "none" else None
    last = open_session(sim)
    if batch is not None and batch_of_the_end == "fails":
        sim.handle(SessionsUnsaved(batch.token, "full"))
    sim.handle(ExpireSession("default", "s"))
    if batch is not None and batch_of_the_end == "is on its way":
        sim.handle(SessionsUnsaved(batch.token, "full"))
    [kept] = take(sim).images
    assert kept.ended
    assert kept.generation == last.generation - (batch_of_the_end == "is on its way")


def test_no_more_begin_than_can_be_forgotten() -> None:
    sim = durable(max=5)
    for n in range(11):
        open_session(sim, f"s{n}")
        sim.handle(SessionsUnsaved(take(sim).token, "full"))  # it may have been kept all the same
        sim.handle(ExpireSession("default", f"s{n}"))
    with pytest.raises(BridgeError, match="still to be kept") as refused:
        open_session(sim)
    assert (refused.value.code, refused.value.retryable) == ("OVERLOADED", True)
    sim.handle(SessionsSaved(take(sim).token))
    open_session(sim)


def test_opening_and_ending_are_kept_too() -> None:
    sim = durable()
    session = open_session(sim)
    assert [(each.id, each.seq, each.ended) for each in take(sim).images] == [("s", 0, False)]
    sim.handle(ExpireSession("default", "s"))
    assert [(each.generation, each.seq, each.ended) for each in take(sim).images] == [(session.generation, 1, True)]
    open_session(sim, ttl_s=1.0)
    take(sim)
    sim.tick(1.6)
    assert [each.ended for each in take(sim).images] == [True]
    assert sim.fleet.take_unsaved(sim.now) is None


def test_a_session_that_began_anew_is_kept_as_the_new_one() -> None:
    sim = durable()
    first = call(sim)
    answer(sim, first, state=b"old")
    sim.handle(ExpireSession("default", "s"))
    second = call(sim)
    answer(sim, second, state=b"new")
    batch = take(sim)
    [kept] = batch.images
    assert (kept.generation, kept.state, kept.ended) == (found(sim).generation, b"new", False)
    sim.handle(SessionsSaved(batch.token))
    assert {first, second} <= sim.replies.keys()


def test_batches_are_bounded() -> None:
    sim = durable(max_bytes=4 << 20)
    for n in range(300):
        open_session(sim, f"s{n}")
    assert [len(take(sim).images), len(take(sim).images)] == [256, 44]
    for n in range(3):
        answer(sim, call(sim, f"s{n}"), state=b"x" * (3 << 20))
    assert [len(take(sim).images), len(take(sim).images)] == [2, 1]


def test_until_they_are_restored_no_session_begins() -> None:
    sim = durable(synced=False)
    expire = ExpireSession("default", "s")
    assert (sim.error(call(sim)).code, sim.error(call(sim)).retryable) == ("UNAVAILABLE", True)
    for asked in (lambda: sim.fleet.session("default", "s", 7 << 32 | 1, sim.now), lambda: sim.handle(expire),
                  lambda: sim.fleet.sessions("default", sim.now, 10)):  # fmt: skip
        with pytest.raises(BridgeError, match="being restored") as told:
            asked()
        assert told.value.code == "UNAVAILABLE"
    sim.reply(sim.submit())  # others go on
    sim.handle(SessionsSynced("store.sqlite3 is corrupt"))
    assert "store.sqlite3 is corrupt" in sim.error(call(sim)).message
    sim.handle(SessionRestored(image(state=b"S", turns=((41, b"1"), (42, b"2")), first_turn=41, calls=2)))
    sim.handle(SessionsSynced())
    sim.handle(SessionsSynced("it broke later"))
    request_id = call(sim, generation=7 << 32 | 1)
    assert brought(sim, request_id) == (b"S", [b"1", b"2"])
    answer(sim, request_id, turn=b"3")
    [kept] = take(sim).images
    assert (kept.seq, kept.state, kept.turns, kept.first_turn) == (4, None, ((43, b"3"),), 41)


@pytest.mark.parametrize(("limits", "why"), [
    ({"max": 2}, "there are 2 sessions (limit 2)"),
    ({"max_bytes": 40, "total_bytes": 70}, "all sessions together would hold 90 bytes (limit 70)"),
])  # fmt: skip
def test_no_more_is_restored_than_there_may_be(limits: dict[str, int], why: str) -> None:
    sim = durable(synced=False, **limits)
    for n in range(4):
        sim.handle(SessionRestored(image(id=f"s{n}", state=b"x" * 20, turns=((1, b"y" * 10),))))
    sim.handle(SessionsSynced())
    assert [row["id"] for row in sim.fleet.sessions("default", sim.now, 10)] == ["s0", "s1"]
    sim.tick(0.6)
    [told] = sim.logs("sessions_not_restored")
    assert (told.level, told.fields["count"], told.fields["why"]) == ("warning", 2, why)
    sim.tick(0.6)
    assert len(sim.logs("sessions_not_restored")) == 1
    sim.handle(ExpireSession("default", "s0"))
    open_session(sim, "s3")
    sim.handle(ExpireSession("default", "s3"))
    assert {(each.id, each.ended) for each in take(sim).images} == {("s0", True), ("s3", True)}, "the store has it"


def test_what_is_restored_late_takes_nobodys_place() -> None:
    sim = durable()
    answer(sim, call(sim), state=b"mine")
    sim.handle(SessionRestored(image(state=b"stored")))
    assert found(sim).state == b"mine"


def test_a_restored_session_has_waited_already() -> None:
    sim = durable()
    sim.handle(SessionRestored(image(ttl_s=10.0, idle_s=9.0)))
    sim.tick(1.6)
    assert not sim.tables.sessions.by_key


def test_what_is_lost_with_its_worker_is_lost_with_the_coordinator() -> None:
    sim = durable()
    sim.handle(SessionRestored(image(on_loss="fail", state=b"S")))
    assert sim.error(call(sim)).details == {"reason": "restarted", "session": "s"}
    open_session(sim, on_loss="restore")
    request_id = call(sim)
    assert brought(sim, request_id) == (b"", [])


@pytest.mark.parametrize("kept", [True, False])
def test_the_end_waits_for_what_is_to_be_kept(kept: bool) -> None:
    sim = durable()
    request_id = call(sim)
    answer(sim, request_id)
    sim.handle(Drain(2.0))
    sim.tick(0.1)
    assert not sim.tables.stopping
    if kept:
        sim.handle(SessionsSaved(take(sim).token))
    else:
        take(sim)
        sim.tick(2.1)  # no word came
    assert request_id in sim.replies
    assert sim.tables.stopping
