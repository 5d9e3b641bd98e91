"""Durable sessions on their way into the store: one batch at a time, tried again, and once more at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bridge.protocol import messages as wire
from bridge.protocol.values import decode_value, encode_value
from orchestrator.coordinator.asking import SELF, Asking
from orchestrator.coordinator.event_log import EventLog
from orchestrator.coordinator.run_counter import RunCounter
from orchestrator.coordinator.saving import SavingSessions
from pools.config import SessionsConfig
from pools.core.events import Drain, SessionsSynced
from pools.services import INNER, SERVICES
from tests.support.fleet import Sim, pool
from tests.support.in_session import answer, call

HOMES = dict.fromkeys(INNER, SERVICES.name)


class House:
    """A fleet with services and durable sessions, and the shell's part of what is asked of them."""

    def __init__(self, folder: Path) -> None:
        self.sim = Sim(
            pool(size=1, slots=8), SERVICES, homes=HOMES, inner=INNER, sessions=SessionsConfig(durable=True)
        )  # fmt: skip
        asking = Asking(self.sim.fleet, self.sim.now)
        self.events = EventLog(RunCounter.begin(folder))
        self.saving = SavingSessions(self.sim.fleet, asking, self.events)
        self._asking = asking
        self._heard = 0
        self.life = 0
        asking.ask("events.save", b"", lambda reply, now: None, self.sim.now)  # which launches them
        self.boot()
        self.sim.handle(SessionsSynced())

    def boot(self) -> None:
        self.life += 1
        self.sim._collect()
        self.sim.boot(self.services)
        for request in self.asked("events.save"):
            self.sim.reply(request.request_id)
        self.hear()

    @property
    def services(self) -> str:
        return f"services-1.{self.life}"

    def turn(self) -> None:
        """Do what the reactor does in each turn."""
        if self.sim.fleet.unsaved_sessions:
            self.saving.go_on(self.sim.now)
        self.sim._collect()
        self.hear()

    def hear(self) -> None:
        sent, self._heard = self.sim.to_clients[self._heard :], len(self.sim.to_clients)
        for peer, message in sent:
            if peer == SELF:
                self._asking.hear(message, self.sim.now)
        self.sim._collect()

    def asked(self, operation: str = "sessions.save") -> list[wire.Request]:
        attempts = self.sim.process(self.services).attempts.values()
        return [attempt for attempt in attempts if attempt.operation == operation]

    def change(self, session: str = "s", **change: Any) -> int:
        """Have a call change a session; return its request's id."""
        request_id = call(self.sim, session)
        answer(self.sim, request_id, **(change or {"state": b"S", "turn": b"T"}))
        return request_id

    def end(self, code: str = "", refused: list[dict[str, str]] | None = None) -> None:
        """Have the services process answer what it was asked for."""
        [request] = self.asked()
        if code:
            self.sim.reply_error(request.request_id, code)
        else:
            self.sim.reply(request.request_id, payload=encode_value({"refused": refused or []}))
        self.hear()


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def test_what_changes_while_a_batch_is_on_its_way_goes_with_the_next_one(house: House) -> None:
    first = house.change("a")
    house.turn()
    [batch] = house.asked()
    others = [house.change(name) for name in ("b", "c")]
    house.turn()
    assert house.asked() == [batch]
    assert first not in house.sim.replies
    house.end()
    assert first in house.sim.replies
    assert not set(others) & set(house.sim.replies)
    house.turn()
    [batch] = house.asked()
    assert {row["id"] for row in decode_value(batch.payload or b"")["sessions"]} == {"b", "c"}
    house.end()
    assert set(others) <= set(house.sim.replies)


def test_a_store_that_fails_holds_no_answer_and_is_tried_again_a_moment_later(house: House) -> None:
    first = house.change("a")
    house.turn()
    house.end("STORAGE")
    assert first in house.sim.replies
    assert house.sim.fleet.sessions_problem
    second = house.change("a")
    assert second in house.sim.replies, "nothing can be kept: no answer waits for it"
    house.turn()
    assert house.asked() == []
    house.sim.tick(1.1)
    assert "sessions_not_kept" in {issue["name"] for issue in house.sim.fleet.health(house.sim.now)["issues"]}
    house.turn()
    house.end()
    assert house.sim.fleet.sessions_problem == ""
    assert not house.sim.fleet.unsaved_sessions


def test_what_could_not_be_kept_is_tried_at_once_when_the_process_is_back(house: House) -> None:
    request = house.change("a")
    house.turn()
    house.sim.die(house.services)
    house.turn()
    assert request in house.sim.replies
    house.boot()
    house.turn()
    house.end()
    assert not house.sim.fleet.unsaved_sessions


def test_a_store_that_hangs_holds_no_answer_for_long(house: House) -> None:
    request = house.change("a")
    house.turn()
    house.sim.tick(2.2)
    house.hear()
    assert request in house.sim.replies


def test_the_end_waits_for_what_could_not_be_kept_and_for_the_process_that_keeps_it(house: House) -> None:
    house.change("a")
    house.turn()
    house.sim.handle(Drain(30.0))
    house.sim.die(house.services)  # its death is seen only now
    house.turn()
    house.sim.tick(0.6)
    assert not house.sim.tables.stopping
    house.boot()
    house.turn()
    house.end()
    house.sim.tick(0.6)
    assert house.sim.tables.stopping


def test_the_one_more_try_is_not_spent_on_a_process_that_is_dead_already(house: House) -> None:
    house.change("a")
    house.turn()
    house.end("STORAGE")
    house.sim.handle(Drain(30.0))  # while it seems to live
    house.turn()
    assert house.asked()
    house.sim.die(house.services)
    house.turn()
    house.sim.tick(0.6)
    assert not house.sim.tables.stopping
    house.boot()
    house.turn()
    house.end()
    house.sim.tick(0.6)
    assert house.sim.tables.stopping
    assert not house.sim.fleet.unsaved_sessions


def test_of_what_cannot_be_stored_an_event_tells(house: House) -> None:
    request = house.change("a")
    house.turn()
    house.end(refused=[{"principal": "default", "session": "a", "why": "no text"}])
    assert request in house.sim.replies
    assert not house.sim.fleet.unsaved_sessions
    told = [event for event in house.events.read(0, 100, 1 << 20) if event.event == "session_not_kept"]
    assert [(event.level, event.fields) for event in told] == [
        ("error", {"principal": "default", "session": "a", "why": "no text"})
    ]


def test_the_end_does_not_wait_for_a_store_that_fails(house: House) -> None:
    house.change("a")
    house.turn()
    house.end("STORAGE")
    house.sim.handle(Drain(30.0))
    house.turn()
    house.end("STORAGE")
    house.turn()
    assert house.asked() == [], "it was tried once more"
    house.sim.tick(0.6)
    assert house.sim.tables.stopping


def test_of_what_was_not_kept_by_the_end_an_event_tells(house: House) -> None:
    house.saving.end()
    house.change("a")
    house.turn()
    house.change("b")  # while the process that keeps them hangs
    house.saving.end()
    assert [(event.event, event.level, event.fields["count"]) for event in house.events.read(0, 9, 1 << 20)] == [
        ("sessions_not_kept", "warning", 2)
    ]
