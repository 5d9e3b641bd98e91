from __future__ import annotations

from typing import Any

import pytest

from bridge.protocol.errors import BridgeError
from bridge.protocol.messages import FLAG_IDEMPOTENT, Request
from pools.config import RestartConfig
from pools.core import isolation
from pools.core.events import DropLetter, PardonLetter
from pools.core.poison import MAX_LETTERS, MAX_SUSPECTS, SUSPECT_S, Poison, fingerprint, shape
from tests.support.fleet import Sim, deployed, pool

BAD, GOOD = b"bad", b"good"


def start(sim: Sim, payload: bytes = BAD, **fields: Any) -> int:
    request_id = sim.submit("work", payload=payload, **fields)
    sim.start(request_id)
    return request_id


def lose(sim: Sim, request_id: int) -> None:
    """Have the worker of a request die while it runs, and boot its successor."""
    worker, _ = sim.attempt(request_id)
    before = set(sim.tables.workers)
    sim.die(worker.worker_id)
    for worker_id in sorted(sim.tables.workers.keys() - before):
        sim.boot(worker_id)


def quarantined(sim: Sim) -> str:
    """Have a request kill two workers; return its dead letter's id."""
    lose(sim, start(sim))
    last = start(sim)
    lose(sim, last)
    letter = sim.error(last).details["dead_letter"]
    assert isinstance(letter, str)
    return letter


def test_the_second_death_is_one_too_many() -> None:
    sim = Sim(poison_deaths=2)
    first = start(sim)
    lose(sim, first)
    assert sim.error(first).code == "WORKER_LOST"
    second = start(sim)
    lose(sim, second)
    error = sim.error(second)
    assert (error.code, error.retryable) == ("POISON_REQUEST", False)
    assert error.details["deaths"] == 2
    assert error.details["causes"] == ["signal 9", "signal 9"]
    [row] = sim.fleet.dead_letters(sim.now)
    assert (row["id"], row["operation"], row["bytes"]) == (error.details["dead_letter"], "work", 3)
    assert sim.error(sim.submit("work", payload=BAD)).code == "POISON_REQUEST"
    assert sim.fleet.dead_letters(sim.now)[0]["requests"] == 2
    assert sim.fleet.stats(sim.now)["quarantined"] == 1
    assert sim.submit("work", payload=GOOD) in sim.tables.requests
    assert sim.submit("other", payload=BAD) in sim.tables.requests


def test_a_resend_counts_as_well_as_a_new_request() -> None:
    sim = Sim(poison_deaths=2)
    request_id = start(sim, flags=FLAG_IDEMPOTENT)
    lose(sim, request_id)
    sim.tick(0.2)
    sim.start(request_id)
    lose(sim, request_id)
    assert sim.error(request_id).code == "POISON_REQUEST"
    assert sim.replies[request_id].attempt == 2


def test_a_suspect_runs_alone_while_others_serve() -> None:
    sim = Sim(pool(size=2, slots=2, prefetch=0), poison_deaths=2)
    lose(sim, start(sim))
    busy = [start(sim, GOOD) for _ in range(2)]
    suspect = sim.submit("work", payload=BAD)
    assert sim.tables.requests[suspect].state == "waiting"
    [reserved] = [worker for worker in sim.pool().ready if worker.reserved]
    later = start(sim, GOOD)
    assert sim.attempt(later)[0].worker_id != reserved.worker_id
    alone = next(one for one in busy if sim.attempt(one)[0].worker_id == reserved.worker_id)
    sim.reply(alone)
    assert sim.attempt(suspect)[0].worker_id == reserved.worker_id
    waiting = sim.submit("work", payload=GOOD)
    assert sim.tables.requests[waiting].state == "queued"
    sim.reply(suspect)
    assert not reserved.reserved
    assert not sim.tables.poison
    assert not sim.tables.wary
    assert sim.attempt(waiting)[0].worker_id == reserved.worker_id


def test_what_a_reserved_worker_has_not_begun_is_asked_back() -> None:
    sim = Sim(pool(slots=2, prefetch=2), poison_deaths=2)
    lose(sim, start(sim))
    begun, early = start(sim, GOOD), sim.submit("work", payload=GOOD)
    suspect = sim.submit("work", payload=BAD)
    sim.answer_recall(early, started=False)
    assert sim.queued() == [early]
    sim.reply(begun)
    assert next(iter(sim.process("general-1.2").attempts.values())).request_id == suspect
    assert sim.queued() == [early]
    sim.reply(suspect)
    sim.reply(early)


def test_equal_suspects_run_one_after_the_other_until_one_ends_well() -> None:
    sim = Sim(pool(slots=8, prefetch=0), poison_deaths=2)
    lose(sim, start(sim))
    suspects = [sim.submit("work", payload=BAD) for _ in range(4)]
    assert [one for one in suspects if sim.tables.requests[one].state == "dispatched"] == suspects[:1]
    sim.reply(suspects[0])
    assert all(sim.tables.requests[one].state == "dispatched" for one in suspects[1:])


def test_an_answer_elsewhere_clears_a_suspect() -> None:
    sim = Sim(pool(size=3, slots=1, prefetch=0), poison_deaths=2)
    there = [start(sim) for _ in range(3)]
    lose(sim, there[0])
    waiting = sim.submit("work", payload=BAD)
    assert sim.tables.requests[waiting].state == "dispatched"  # alone, on the new worker
    sim.start(waiting)
    sim.reply(there[1])
    assert not sim.tables.poison
    assert [log.fields["alone"] for log in sim.logs("suspect_cleared")] == [False]
    lose(sim, waiting)  # by chance again: its first death
    assert sim.error(waiting).code == "WORKER_LOST"
    [suspect] = sim.tables.poison.suspects.values()
    assert suspect.deaths == 1


def test_an_answer_before_the_death_clears_nobody() -> None:
    sim = Sim(pool(size=2, slots=1, prefetch=0), poison_deaths=2)
    first, second = start(sim), start(sim)
    sim.reply(second)
    lose(sim, first)
    assert len(sim.tables.poison.suspects) == 1


def test_in_a_pool_of_one_worker_others_have_a_turn_between_two_suspects() -> None:
    sim = Sim(pool(size=1, slots=1, prefetch=0), poison_deaths=3)
    lose(sim, start(sim))
    first, second, other = (sim.submit("work", payload=payload) for payload in (BAD, BAD, GOOD))
    assert sim.tables.requests[first].epoch
    sim.start(first)
    sim.cancel(first)
    sim.reply_error(first, "CANCELLED")  # it stays a suspect
    assert sim.tables.requests[other].epoch
    assert not sim.tables.requests[second].epoch
    sim.reply(other)
    assert sim.tables.requests[second].epoch


def test_a_suspect_that_comes_when_others_are_due_leaves_them_the_worker() -> None:
    sim = Sim(pool(size=1, slots=2, prefetch=0), poison_deaths=3)
    lose(sim, start(sim))
    first = start(sim)
    sim.cancel(first)
    sim.reply_error(first, "CANCELLED")  # it stays a suspect, and has had its turn
    busy, suspect, other = (sim.submit("work", payload=payload) for payload in (GOOD, BAD, GOOD))
    assert sim.tables.requests[busy].epoch
    assert sim.queued() == [other]
    another = sim.submit("work", payload=BAD)
    assert sim.tables.requests[other].epoch
    assert not any(sim.tables.requests[one].epoch for one in (suspect, another))


def test_the_rest_of_a_hand_is_not_dealt_to_who_runs_a_suspect() -> None:
    sim = Sim(pool(size=1, slots=1, prefetch=None), poison_deaths=3)
    for _ in range(8):
        sim.reply(sim.submit("quick"), run_ms=0.01)  # a worker is dealt many of them in a row
    lose(sim, start(sim))
    first = start(sim)
    sim.pause(first)
    quick = sim.submit("quick")
    second = sim.submit("work", payload=BAD)
    sim.reply(quick, run_ms=0.01)
    assert sim.tables.requests[second].epoch
    another = sim.submit("quick")
    assert not sim.tables.requests[another].epoch
    sim.reply(second)
    assert sim.tables.requests[another].epoch


def test_a_suspect_that_failed_like_others_ended_well() -> None:
    sim = Sim(poison_deaths=2)
    lose(sim, start(sim))
    request_id = sim.submit("work", payload=BAD)
    sim.reply_error(request_id, "REMOTE_ERROR")
    assert not sim.tables.poison


def test_a_suspect_that_was_out_of_time_in_its_worker_stays_one() -> None:
    sim = Sim(poison_deaths=2)
    lose(sim, start(sim))
    sim.reply_error(sim.submit("work", payload=BAD, deadline_ms=1.0), "DEADLINE_EXCEEDED")  # it never began
    assert len(sim.tables.poison.suspects) == 1


def test_a_suspect_that_was_stopped_stays_one() -> None:
    sim = Sim(poison_deaths=2)
    lose(sim, start(sim))
    request_id = start(sim)
    sim.cancel(request_id)
    sim.reply_error(request_id, "CANCELLED")
    assert len(sim.tables.poison.suspects) == 1
    again = start(sim)
    lose(sim, again)
    assert sim.error(again).code == "POISON_REQUEST"


def test_company_at_a_death_raises_suspicion_and_no_more() -> None:
    sim = Sim(pool(size=2, slots=8, prefetch=0), poison_deaths=2)
    there = [start(sim, b"%d" % number) for number in range(16)]
    lose(sim, there[0])
    lost = [one for one in there if one in sim.replies]
    assert [sim.error(one).code for one in lost] == ["WORKER_LOST"] * 8
    assert {suspect.deaths for suspect in sim.tables.poison.suspects.values()} == {1}
    rest = [one for one in there if one not in sim.replies]
    lose(sim, rest[0])  # what ran there died in company too
    assert not sim.tables.poison.letters
    assert len(sim.tables.poison.suspects) == 16


def test_deaths_at_one_instant_are_one_suspicion() -> None:
    sim = Sim(pool(size=2, slots=1, prefetch=0), poison_deaths=2)
    first, second = start(sim), start(sim)
    sim.tick(0.1)
    lose(sim, first)
    lose(sim, second)  # under way when suspicion was raised: both may have been killed from outside
    assert sim.error(second).code == "WORKER_LOST"
    assert sim.fleet.dead_letters(sim.now) == []
    third = start(sim)
    lose(sim, third)
    assert sim.error(third).code == "POISON_REQUEST"


def test_several_of_the_same_are_no_company() -> None:
    sim = Sim(pool(size=2, slots=2, prefetch=0), poison_deaths=2)
    there = [start(sim) for _ in range(4)]
    lose(sim, there[0])
    assert not sim.tables.poison.letters
    lose(sim, next(one for one in there if one not in sim.replies))
    assert len(sim.tables.poison.letters) == 1


def test_what_waits_in_the_queue_is_taken_out_of_it() -> None:
    sim = Sim(pool(size=2, slots=1, prefetch=1), poison_deaths=2)
    first = start(sim)
    start(sim, GOOD)
    early, other = sim.submit("work", payload=GOOD), sim.submit("work", payload=BAD)
    queued = sim.submit("work", payload=BAD)
    held_at = sim.attempt(other)[0].worker_id
    assert held_at == "general-2.1"
    assert sim.attempt(early)[0].worker_id == "general-1.1"
    lose(sim, first)
    sim.answer_recall(other, started=False)  # the other worker gives it back unbegun
    states = {sim.tables.requests[one].state for one in (other, queued)}
    assert states <= {"waiting", "dispatched"}
    running = [one for one in (other, queued) if sim.tables.requests[one].state == "dispatched"]
    assert len(running) <= 1


def test_quarantine_ends_what_waits() -> None:
    sim = Sim(poison_deaths=2)
    lose(sim, start(sim))
    last, *waiting = [sim.submit("work", payload=BAD) for _ in range(4)]
    sim.start(last)
    lose(sim, last)
    assert [sim.error(one).code for one in (last, *waiting)] == ["POISON_REQUEST"] * 4
    assert sim.fleet.dead_letters(sim.now)[0]["requests"] == 4


@pytest.mark.parametrize("silent", [True, False])
def test_ends_that_the_fleet_brought_about_are_no_deaths_of_the_request(silent: bool) -> None:
    sim = Sim(pool(heartbeat_limit_s=2.0 if silent else 60.0, grace_s=1.0), poison_deaths=2)
    start(sim, deadline_ms=None if silent else 1000.0)
    sim.tick(4.0)
    assert sim.kills()
    sim.bury_killed()
    assert bool(sim.tables.poison.suspects) == silent  # its silence is what it ran


def test_what_never_started_is_no_suspect() -> None:
    sim = Sim(poison_deaths=2)
    sim.submit("work", payload=BAD)
    sim.die("general-1.1")
    assert not sim.tables.poison


def test_the_memory_of_a_death_fades() -> None:
    sim = Sim(pool(heartbeat_limit_s=10_000.0), poison_deaths=2)
    lose(sim, start(sim))
    assert sim.pool().seclusion is not None
    sim.tick(SUSPECT_S + 1.0)
    assert not sim.tables.poison
    assert not sim.tables.poison.operations
    assert sim.pool().seclusion is None


def test_admission_asks_about_dead_letters_where_an_operation_has_had_some() -> None:
    sim = Sim(poison_deaths=2)
    sim.reply(sim.submit("work", payload=GOOD))
    letter = quarantined(sim)
    for operation in ("work", "other"):
        sim.reply(sim.submit(operation, payload=GOOD))
    assert {operation for operation, _, _ in sim.tables.routes} == {"other"}
    assert not sim.tables.wary
    assert sim.error(sim.submit("work", payload=BAD)).code == "POISON_REQUEST"
    sim.handle(DropLetter(letter))
    sim.reply(sim.submit("work", payload=GOOD))
    assert {operation for operation, _, _ in sim.tables.routes} == {"other", "work"}


def test_zero_deaths_turn_it_off() -> None:
    sim = Sim(poison_deaths=0)
    for _ in range(3):
        request_id = start(sim)
        lose(sim, request_id)
        assert sim.error(request_id).code == "WORKER_LOST"
    assert not sim.tables.poison


def test_a_dropped_letter_is_forgotten() -> None:
    sim = Sim(poison_deaths=2)
    letter = quarantined(sim)
    sim.handle(DropLetter(letter))
    assert sim.fleet.dead_letters(sim.now) == []
    assert not sim.tables.wary
    lost = start(sim)
    lose(sim, lost)
    assert sim.error(lost).code == "WORKER_LOST"
    with pytest.raises(BridgeError, match="unknown dead letter"):
        sim.handle(DropLetter(letter))


def test_a_pardoned_letter_has_one_chance() -> None:
    sim = Sim(poison_deaths=2)
    letter = quarantined(sim)
    sim.handle(PardonLetter(letter))
    again = start(sim)
    lose(sim, again)
    assert sim.error(again).code == "POISON_REQUEST"
    sim.handle(PardonLetter(letter))
    sim.reply(start(sim))
    assert not sim.tables.poison


def test_a_program_that_is_deployed_anew_is_another_one() -> None:
    sim = Sim(poison_deaths=2)
    quarantined(sim)
    sim.handle(deployed("work"))
    assert sim.submit("work", payload=BAD) in sim.tables.requests


def test_a_suspect_whose_pool_loses_its_workers_is_told() -> None:
    sim = Sim(pool(restart=RestartConfig(type="temporary"), size=2, slots=1), poison_deaths=2)
    lost = start(sim)
    blocking = start(sim, GOOD)
    sim.die(sim.attempt(lost)[0].worker_id)
    waiting = sim.submit("work", payload=BAD)
    assert sim.tables.requests[waiting].state == "waiting"
    sim.die(sim.attempt(blocking)[0].worker_id)
    assert sim.error(waiting).code == "UNAVAILABLE"


def test_fingerprints_tell_apart_what_differs() -> None:
    requests = [
        Request(operation="a", payload=b"bc"),
        Request(operation="ab", payload=b"c"),
        Request(operation="a", payload=b"bc", lm="x"),
        Request(operation="a", payload=b"xbc"),
        Request(operation="b", payload=b"bc"),
    ]
    prints = [fingerprint(request, 0) for request in requests] + [fingerprint(requests[0], 1)]
    assert len(set(prints)) == len(prints)
    assert fingerprint(requests[0], 0) == fingerprint(Request(operation="a", payload=b"bc", principal="me"), 0)


class Counted:
    """Counts whose arguments are read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.read: list[bytes | None] = []
        monkeypatch.setattr(isolation, "fingerprint", self._fingerprint)

    def _fingerprint(self, message: Request, version: int) -> bytes:
        self.read.append(message.payload)
        return fingerprint(message, version)


def test_only_what_looks_like_a_suspect_or_a_dead_letter_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    sim = Sim(poison_deaths=2)
    counted = Counted(monkeypatch)
    others = {"payload": b"0" * 1000}, {"payload": BAD, "lm": "default"}, {"payload": b""}

    def read() -> list[bytes | None]:
        counted.read.clear()
        for fields in others:
            sim.reply(sim.submit("work", **fields))
        sim.reply(sim.submit("other", payload=BAD))
        found, counted.read = counted.read, []
        return found

    assert read() == []
    lose(sim, start(sim))
    assert counted.read == [BAD]
    assert read() == []
    sim.reply(sim.submit("work", payload=b"abc"))  # as long as the suspect
    assert set(counted.read) == {b"abc"}
    last = start(sim)
    lose(sim, last)
    assert sim.tables.poison.letters
    assert read() == []
    assert sim.error(sim.submit("work", payload=BAD)).code == "POISON_REQUEST"
    assert set(counted.read) == {BAD}


def test_shapes_are_forgotten_with_the_last_that_had_them() -> None:
    poison = Poison(2)
    requests = [Request(operation="a", payload=payload) for payload in (b"1", b"2", b"33")]
    one, two, longer = (fingerprint(request, 0) for request in requests)
    looks = [shape(request, 0) for request in requests]
    assert looks[0] == looks[1] != looks[2]

    def known() -> list[bool]:
        return [poison.may_know(looks[0]), poison.may_know(looks[2])]

    poison.died(one, "signal 9", alone=True, sent_at=0.0, now=1.0)
    assert known() == [True, False]
    poison.died(one, "signal 9", alone=True, sent_at=0.0, now=1.0)
    poison.died(two, "signal 9", alone=False, sent_at=0.0, now=1.0)
    letter = poison.quarantine(one, requests[0], "general", "me")
    poison.died(longer, "signal 9", alone=False, sent_at=0.0, now=2.0)
    assert known() == [True, True]
    assert poison.clear(two)
    assert not poison.clear(two)
    assert known() == [True, True]
    poison.pardon(letter.letter_id, 3.0)
    poison.expire(2.0 + SUSPECT_S)
    assert known() == [True, False]
    poison.quarantine(one, requests[0], "general", "me")
    poison.drop(letter.letter_id)
    assert known() == [False, False]
    assert not poison


def test_suspects_and_letters_are_bounded() -> None:
    poison = Poison(2)
    for number in range(MAX_SUSPECTS + 5):
        poison.died(b"%d" % number, "signal 9", alone=False, sent_at=0.0, now=1.0)
    assert len(poison.suspects) == MAX_SUSPECTS
    assert b"4" not in poison.suspects
    for number in range(MAX_LETTERS + 2):
        print_ = b"letter %d" % number
        poison.died(print_, "signal 9", alone=True, sent_at=0.0, now=1.0)
        poison.quarantine(print_, Request(operation="a", payload=b"1"), "general", "me")
    assert len(poison.letters) == MAX_LETTERS
    large = b"0" * (40 * 1024 * 1024)
    for number in range(2):
        print_ = b"large %d" % number
        poison.died(print_, "signal 9", alone=True, sent_at=0.0, now=1.0)
        poison.quarantine(print_, Request(operation="a", payload=large), "general", "me")
    assert list(poison.letters) == [b"large 1"]
