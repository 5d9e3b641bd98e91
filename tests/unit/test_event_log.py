"""The event log: its numbers over runs, what is kept, who waits for news, and readers that miss nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from bridge.protocol.errors import BridgeError
from bridge.protocol.messages import Reply
from bridge.protocol.values import decode_value
from bridge.worker.call import Call
from orchestrator.client.events import FleetEvent, Reading
from orchestrator.coordinator import event_log
from orchestrator.coordinator.event_log import MAX_EVENTS, Event, EventLog, plain
from orchestrator.coordinator.event_polls import MAX_WAIT_S, EventPolls
from orchestrator.coordinator.run_counter import FILE_NAME, RunCounter
from orchestrator.errors import Cancelled, InvalidRequest, StorageError, Unavailable
from orchestrator.services.events import Events
from orchestrator.services.store import Store, store_path

ANN, BOB = b"ann", b"bob"
NOW = 100.0


class World:
    """A data directory, the coordinators that one after the other use it, and its store if it is opened."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.store: Store | None = None
        self.problem: StorageError | None = None
        self.services = Events(self._keeper)
        self.start()

    def _keeper(self) -> Store:
        if self.problem is not None:
            raise self.problem
        assert self.store is not None
        return self.store

    def start(self) -> None:
        self.log = EventLog(RunCounter.begin(self.folder))
        self.log.begin()
        self.polls = EventPolls(self.log, lambda: self.store is not None)

    def stop(self) -> None:
        self.log.end()
        self.log.hand_over()

    def tell(self, count: int) -> None:
        for number in range(count):
            self.log.tell("happened", quiet=True, number=number)

    def save(self) -> None:
        """Save what the store has not got, as the coordinator does."""
        if self.store is None:
            self.store = Store.open(store_path(self.folder))
        while self.log.saved < self.log.last:
            batch = self.log.read(self.log.saved, 500, 1 << 20)
            self.services.operations()["events.save"](batch, cast(Call, None))
            self.log.saved = batch[-1].seq

    def answer(self, call: Any) -> Any:
        """Do what a client's call asks for."""
        if call.operation == "events.read":
            return self.services.operations()["events.read"](call.args, cast(Call, None))
        [(peer, reply)] = self.polls.ask(ANN, 1, {**call.args, "wait_s": 0}, NOW)
        assert peer == ANN
        return decode_value(reply.payload or b"")

    def read(self, after: int = 0) -> list[FleetEvent]:
        """Return all that there is, as a client reads it."""
        return list(self.go_on(Reading(after, follow=False)))

    def go_on(self, reading: Reading) -> Iterator[FleetEvent]:
        while not reading.over:
            try:
                yield from reading.take(self.answer(reading.ask()))
            except StorageError as error:
                yield from reading.failed(error, ended=False)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    if made.store is not None:
        made.store.close()


def names(events: list[FleetEvent]) -> list[str]:
    return [event.event for event in events]


def numbers(events: list[FleetEvent]) -> list[tuple[int, int]]:
    """Return run and number of events."""
    return [divmod(event.seq, 1 << 32) for event in events]


# --- the counter of runs ----------------------------------------------------------------------------


def test_runs_are_counted_and_hand_over_what_they_say(tmp_path: Path) -> None:
    first = RunCounter.begin(tmp_path)
    assert (first.number, first.previous, first.was_killed, first.tail) == (1, 0, False, [])
    first.end([[1, 2.0, "happened", "info", {}]])
    second = RunCounter.begin(tmp_path)
    assert (second.number, second.previous, second.was_killed) == (2, 1, False)
    assert second.tail == [[1, 2.0, "happened", "info", {}]]


def test_a_run_that_did_not_end_in_order_is_known(tmp_path: Path) -> None:
    RunCounter.begin(tmp_path)
    second = RunCounter.begin(tmp_path)
    assert (second.number, second.previous, second.was_killed) == (2, 1, True)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"run": 0}', '{"run": true}', '{"run": 3, "tail": [1]}', "\xff"])
def test_where_the_counter_cannot_be_read_the_clock_counts(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE_NAME).write_text(text, encoding="latin-1")
    lost = RunCounter.begin(tmp_path)
    assert lost.number > 1_000_000
    assert (lost.previous, lost.was_killed, lost.tail) == (0, True, [])
    assert RunCounter.begin(tmp_path).number == lost.number + 1


def test_where_the_counter_cannot_be_kept_the_clock_counts(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).mkdir()
    run = RunCounter.begin(tmp_path)
    assert run.number > 1_000_000
    with pytest.raises(OSError, match="director"):
        run.end([])
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]


def test_a_run_goes_above_one_that_is_known_from_elsewhere(tmp_path: Path) -> None:
    run = RunCounter.begin(tmp_path)
    run.go_above(7)
    assert (run.number, json.loads((tmp_path / FILE_NAME).read_bytes())) == (8, {"run": 8})
    run.go_above(3)
    run.end([])
    assert RunCounter.begin(tmp_path).number == 9


# --- what is kept -----------------------------------------------------------------------------------


def test_events_are_numbered_without_a_gap(world: World) -> None:
    world.tell(3)
    events = world.read()
    assert numbers(events) == [(1, 1), (1, 2), (1, 3), (1, 4)]
    assert names(events) == ["coordinator_started", "happened", "happened", "happened"]
    assert [event.fields for event in events[1:]] == [{"number": 0}, {"number": 1}, {"number": 2}]
    assert world.read(events[-2].seq) == events[-1:]
    assert world.read(events[-1].seq) == []


def test_the_log_is_bounded_in_number_and_in_bytes(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.tell(MAX_EVENTS + 500)
    assert len(world.log) == MAX_EVENTS
    assert world.log.first == world.log.last - MAX_EVENTS + 1
    monkeypatch.setattr(event_log, "_MAX_BYTES", 100_000)
    for _ in range(200):
        world.log.tell("large", quiet=True, why="x" * 5_000)
    assert 30 < len(world.log) < 50


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (math.inf, "inf"), (1 << 80, str(1 << 80)), (b"\0", "b'\\x00'"), ("a\0b", "a?b"), ("\ud800", "?"), ("ä", "ä"),
        ((1, {2}), [1, [2]]), ({1: None}, {"1": None}), (True, True), (1.5, 1.5), ([[[[[1]]]]], [[[["[1]"]]]]),
    ],
    ids=lambda value: ascii(value)[:20],
)  # fmt: skip
def test_fields_are_plain(value: Any, found: Any) -> None:
    assert plain(value) == found
    json.dumps(plain(value), allow_nan=False).encode()


def test_fields_are_bounded() -> None:
    text = plain("a" * 10_000 + "the end")
    assert len(text) < 2_100
    assert text.endswith("the end")
    assert len(plain(list(range(1_000)))) == 32


def test_an_answer_has_a_size(world: World) -> None:
    for _ in range(10):
        world.log.tell("large", quiet=True, why="x" * 1_500)
    assert len(world.log.read(0, 1_000, 5_000)) == 4
    assert len(world.log.read(0, 1_000, 0)) == 1
    assert len(world.log.read(0, 3, 1 << 20)) == 3


# --- a store that is ahead of the counter -----------------------------------------------------------


def test_events_of_this_run_come_behind_those_that_the_store_has(world: World, tmp_path: Path) -> None:
    for _ in range(2):
        world.tell(2)
        world.save()
        world.stop()
        world.start()
    world.save()
    kept = world.read()
    other = World(tmp_path / "new")  # another data directory, with this store
    other.store = world.store
    other.log.go_above(kept[-1].seq >> 32)
    other.tell(1)
    other.save()
    found = other.read()
    assert found[: len(kept)] == kept
    assert numbers(found[len(kept) :]) == [(4, 1), (4, 2), (4, 3)]
    assert names(found[len(kept) :]) == ["coordinator_started", "run_renumbered", "happened"]
    assert other.read(kept[-1].seq) == found[len(kept) :]
    assert other.log.saved == other.log.last
    other.store = None


def test_what_earlier_runs_left_is_not_mistaken_for_what_the_store_has(world: World) -> None:
    world.tell(3)
    world.stop()
    world.start()
    world.log.go_above(world.log.run - 1)
    assert numbers(world.read())[0] == (1, 1), "a store that is not ahead changes nothing"
    world.log.go_above(5)
    found = world.read()
    assert [run for run, _ in numbers(found)] == [6] * 3
    assert names(found) == ["coordinator_started", "run_renumbered", "events_lost"]
    assert found[2].fields["why"].startswith("5 events of earlier runs")


# --- readers, over everything that happens ----------------------------------------------------------


def test_a_slow_reader_is_told_what_it_missed(world: World) -> None:
    reading = Reading(0, follow=True)
    first = reading.take(world.answer(reading.ask()))
    world.tell(MAX_EVENTS + 10)
    lost, *rest = reading.take(world.answer(reading.ask()))
    assert (lost.event, lost.level) == ("events_lost", "warning")
    assert rest[0].seq == world.log.first == lost.seq + 1
    assert str(first[-1].seq) in lost.fields["why"]
    # Who goes on from there is told nothing twice.
    assert names(world.read(lost.seq))[0] == "happened"


def test_what_is_older_than_the_log_comes_from_the_store_first(world: World) -> None:
    world.tell(1_200)
    world.save()
    world.tell(MAX_EVENTS - 100)
    world.save()
    assert world.log.first > (1 << 32) + 1_000
    reading, events = Reading(0, follow=False), []
    for number, event in enumerate(world.go_on(reading)):
        events.append(event)
        if number in (100, 5_000):
            # It goes on meanwhile: what leaves the log is not in the store yet, or is.
            world.tell(300)
            world.save()
    assert numbers(events) == [(1, number) for number in range(1, MAX_EVENTS + 1_702)]
    assert "events_lost" not in names(events)


@pytest.mark.parametrize("stored", [False, True])
def test_the_next_run_has_what_the_last_one_said(world: World, stored: bool) -> None:
    world.tell(2)
    if stored:
        world.save()
    seen = world.read()
    world.tell(3)
    world.stop()
    world.start()
    world.tell(1)
    assert numbers(world.read(seen[-1].seq)) == [(1, 4), (1, 5), (1, 6), (1, 7), (2, 1), (2, 2)]
    assert names(world.read(seen[-1].seq))[3:5] == ["coordinator_stopped", "coordinator_started"]
    assert numbers(world.read()) == [*((1, number) for number in range(1, 8)), (2, 1), (2, 2)]


def test_all_that_is_not_in_the_store_is_handed_over_but_not_all_that_is(world: World) -> None:
    world.tell(3_000)
    world.stop()
    world.start()
    assert len(world.log) == 3_003
    world.save()
    world.tell(10)
    world.stop()
    world.start()
    assert len(world.log) == 1_001
    assert len(world.read()) == 3_003 + 10 + 2


def test_after_a_crash_readers_are_told_that_something_is_missing(world: World) -> None:
    world.tell(2)
    world.save()
    seen = world.read()
    world.tell(3)
    world.start()
    events = world.read(seen[-1].seq)
    assert names(events) == ["coordinator_started", "events_lost"]
    assert events[1].fields["of_run"] == 1
    assert numbers(events) == [(2, 1), (2, 2)]
    assert world.read(events[-1].seq) == []
    assert names(world.read()) == [*names(seen), "coordinator_started", "events_lost"]


def test_who_slept_over_a_run_is_told_what_is_missing(world: World) -> None:
    seen = world.read()
    for _ in range(2):
        world.start()
    lost, *rest = world.read(seen[-1].seq)
    assert lost.event == "events_lost"
    assert numbers(rest)[0] == (3, 1)


@pytest.mark.parametrize("after", [(1 << 32) + 2, 5 << 32, (1 << 63) - 1])
@pytest.mark.parametrize("stored", [False, True])
def test_a_number_that_was_never_given_begins_anew(world: World, after: int, stored: bool) -> None:
    if stored:
        world.save()
    lost, *rest = world.read(after)
    assert (lost.event, names(rest)) == ("events_lost", ["coordinator_started"])
    assert "another data directory" in lost.fields["why"]


@pytest.mark.parametrize("after", [-1, 1 << 63, True, "1", 1.0, None])
def test_what_is_no_number_of_an_event_is_refused(after: Any) -> None:
    with pytest.raises(InvalidRequest, match="after must be the number of an event") as refused:
        Reading(after, follow=True)
    assert refused.value.details["path"] == "after"


def test_the_first_number_of_a_run_is_a_place_to_begin_at(world: World) -> None:
    world.stop()
    world.start()
    assert numbers(world.read(2 << 32)) == [(2, 1)]
    assert numbers(world.read(5)) == [(1, 1), (1, 2), (2, 1)]


def test_a_store_that_cannot_be_read_hides_nothing_else(world: World) -> None:
    world.save()
    world.tell(MAX_EVENTS)
    world.problem = StorageError("the file is damaged", retryable=False)
    reading = Reading(0, follow=False)
    lost, *rest = world.go_on(reading)
    assert lost.event == "events_lost"
    assert "the file is damaged" in lost.fields["why"]
    assert lost.seq + 1 == rest[0].seq == world.log.first
    assert len(rest) == MAX_EVENTS


def test_a_services_process_that_comes_back_is_waited_for(world: World) -> None:
    world.save()
    world.tell(MAX_EVENTS)
    world.save()
    reading = Reading(0, follow=False)
    assert reading.take(world.answer(reading.ask())) == []
    assert reading.ask().operation == "events.read"
    assert reading.failed(Unavailable("it comes back", retryable=True), ended=False) == []
    assert 0 < reading.pause_s < 1
    assert numbers(list(world.go_on(reading))) == [(1, number) for number in range(1, MAX_EVENTS + 2)]
    assert reading.pause_s == 0


@pytest.mark.parametrize(("error", "ended"), [(Unavailable("it died"), True), (Cancelled("closed"), False)])
def test_the_end_of_the_connection_is_the_readers_end(world: World, error: Any, ended: bool) -> None:
    world.save()
    world.tell(MAX_EVENTS)
    reading = Reading(0, follow=True)
    reading.take(world.answer(reading.ask()))
    with pytest.raises(type(error)):
        reading.failed(error, ended=ended)


def test_the_store_keeps_the_newest(world: World) -> None:
    world.services = Events(world._keeper, retention=50)
    world.tell(5_000)
    world.save()
    assert world.store is not None
    assert world.store.events.first_seq() > (1 << 32) + 4_000
    assert world.store.events.last_seq() == world.log.last


def test_reading_the_store_is_bounded(world: World) -> None:
    for _ in range(1_500):
        world.log.tell("large", quiet=True, why="x" * 1_500)
    world.save()
    read = world.services.operations()["events.read"]
    found = read({"limit": 1_000}, cast(Call, None))
    assert found["more"]
    assert 500 < len(found["events"]) < 800
    with pytest.raises(BridgeError, match="after"):
        read({"after": -1}, cast(Call, None))


# --- who waits --------------------------------------------------------------------------------------


def polled(answers: list[tuple[bytes, Reply]]) -> list[tuple[bytes, int, list[str]]]:
    found = [(peer, reply.request_id, decode_value(reply.payload or b"")) for peer, reply in answers]
    return [(peer, request, [Event(*row).event for row in answer["events"]]) for peer, request, answer in found]


def test_who_waits_is_answered_by_the_next_event(world: World) -> None:
    last = world.log.last
    for peer, request in ((ANN, 1), (BOB, 2)):
        assert world.polls.ask(peer, request, {"after": last, "wait_s": 20}, NOW) == []
    assert len(world.polls) == 2
    heard = [world.polls.have_news]
    world.tell(2)
    heard.append(world.polls.have_news)
    assert polled(world.polls.answer_all()) == [(ANN, 1, ["happened"] * 2), (BOB, 2, ["happened"] * 2)]
    assert [*heard, world.polls.have_news] == [False, True, False]
    assert len(world.polls) == 0
    # Who comes later has news at once.
    assert polled(world.polls.ask(ANN, 3, {"after": last, "wait_s": 20}, NOW)) == [(ANN, 3, ["happened"] * 2)]


def test_who_waits_for_nothing_is_answered_when_its_time_is_over(world: World) -> None:
    last = world.log.last
    world.polls.ask(ANN, 1, {"after": last, "wait_s": 5.0}, NOW)
    world.polls.ask(BOB, 2, {"after": last, "wait_s": 1e9}, NOW)
    assert world.polls.expire(NOW + 4.9) == []
    assert polled(world.polls.expire(NOW + 5.0)) == [(ANN, 1, [])]
    assert polled(world.polls.expire(NOW + MAX_WAIT_S)) == [(BOB, 2, [])]


def test_of_one_client_only_so_many_wait(world: World) -> None:
    last = world.log.last
    for request in range(1, 9):
        assert world.polls.ask(ANN, request, {"after": last, "wait_s": 20}, NOW) == []
    assert polled(world.polls.ask(ANN, 9, {"after": last, "wait_s": 20}, NOW)) == [(ANN, 1, [])]
    assert world.polls.ask(BOB, 10, {"after": last, "wait_s": 20}, NOW) == []
    assert len(world.polls) == 9
    world.polls.forget(ANN)
    world.tell(1)
    assert polled(world.polls.answer_all()) == [(BOB, 10, ["happened"])]


@pytest.mark.parametrize(
    "args",
    [{"after": -1}, {"after": "1"}, {"limit": 2.0}, {"wait_s": -1}, {"wait_s": math.nan}, {"wait_s": "1"}],
    ids=str,
)
def test_bad_questions_are_refused(world: World, args: dict[str, Any]) -> None:
    with pytest.raises(BridgeError, match=f"^{next(iter(args))}: "):
        world.polls.ask(ANN, 1, args, NOW)
