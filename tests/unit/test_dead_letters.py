from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from bridge.protocol.errors import decode_error
from bridge.protocol.messages import Reply
from bridge.protocol.values import encode_value
from orchestrator.coordinator.dead_letters import DeadLetters
from pools.core.events import ClientConnected, Drain, MemoryRead, Resize
from tests.support.fleet import Sim, pool

BAD = encode_value({"n": 1})
SELF = b""
OWN_ID = 1


@pytest.fixture
def sim() -> Sim:
    """A fleet with one dead letter, ann's, and a worker that is ready in each of two pools."""
    limits: dict[str, Any] = {"slots": 1, "prefetch": 0, "heartbeat_limit_s": 1000.0}
    sim = Sim(pool(**limits), pool("other", **limits), poison_deaths=2)
    sim.handle(ClientConnected(0, "coordinator"), SELF)
    ann = sim.connect(2, "ann")
    for number in range(2):
        request_id = sim.submit("work", payload=BAD, peer=ann)
        sim.start(request_id)
        sim.die(f"general-1.{number + 1}")
        sim.boot(f"general-1.{number + 2}")
    return sim


@pytest.fixture
def letters(sim: Sim) -> DeadLetters:
    return DeadLetters(sim.fleet)


def rows(sim: Sim) -> list[dict[str, Any]]:
    return sim.fleet.dead_letters(sim.now)


def requeue(sim: Sim, letters: DeadLetters, **fields: Any) -> None:
    message = letters.requeue({"id": rows(sim)[0]["id"]}, OWN_ID, sim.now)
    assert rows(sim) == []
    sim.handle(replace(message, **fields), SELF)


def told(sim: Sim, letters: DeadLetters) -> Reply:
    """Return what who requeued it is told."""
    return letters.ended(sim.replies[OWN_ID], sim.now)


@pytest.mark.parametrize(
    ("trouble", "code"),
    [(MemoryRead(0.95), "OVERLOADED"), (Drain(10.0), "UNAVAILABLE"), (Resize("general", 0), "UNAVAILABLE")],
    ids=["memory", "draining", "off"],
)
def test_what_is_refused_once_more_is_in_quarantine_again(
    sim: Sim, letters: DeadLetters, trouble: Any, code: str
) -> None:
    before = rows(sim)
    sim.handle(trouble)
    requeue(sim, letters)
    assert decode_error(told(sim, letters).payload or b"").code == code
    assert rows(sim) == before
    assert sim.error(sim.submit("work", payload=BAD)).code in ("POISON_REQUEST", code)


def test_what_nobody_had_time_to_run_is_in_quarantine_again_and_ends_what_waits_with_it(
    sim: Sim, letters: DeadLetters
) -> None:
    sim.submit()
    requeue(sim, letters, deadline_ms=100.0)
    equal = sim.submit("work", payload=BAD)
    assert sim.tables.requests[equal].state == "waiting"
    sim.tick(0.2)
    assert decode_error(told(sim, letters).payload or b"").code == "DEADLINE_EXCEEDED"
    sim.tick()
    assert sim.error(equal).code == "POISON_REQUEST"
    assert len(rows(sim)) == 1
    assert not sim.queued()


def test_what_ran_once_more_is_not_put_back(sim: Sim, letters: DeadLetters) -> None:
    requeue(sim, letters)
    sim.reply_error(OWN_ID, "REMOTE_ERROR")
    assert decode_error(told(sim, letters).payload or b"").code == "REMOTE_ERROR"
    assert rows(sim) == []
    assert not sim.tables.poison


def test_what_is_cleared_by_an_equal_one_meanwhile_is_not_put_back(sim: Sim, letters: DeadLetters) -> None:
    blocking = sim.submit()
    requeue(sim, letters, deadline_ms=1000.0)
    sim.reply(sim.submit("work", payload=BAD, pool="other"))
    sim.tick(1.1)
    assert decode_error(told(sim, letters).payload or b"").code == "DEADLINE_EXCEEDED"
    assert rows(sim) == []
    sim.reply(blocking)
    sim.reply(sim.submit("work", payload=BAD))


def test_what_kills_once_more_is_the_letter_of_whose_request_it_was(sim: Sim, letters: DeadLetters) -> None:
    requeue(sim, letters)
    sim.start(OWN_ID)
    sim.die("general-1.3")
    assert decode_error(told(sim, letters).payload or b"").code == "POISON_REQUEST"
    [row] = rows(sim)
    assert (row["principal"], row["deaths"]) == ("ann", 3)
