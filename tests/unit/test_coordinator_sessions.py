"""The control operations about sessions, and sessions as the store keeps them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bridge.protocol.errors import BridgeError
from bridge.protocol.messages import OK, Reply
from bridge.wallclock import unix_now
from orchestrator.coordinator.event_log import EventLog
from orchestrator.coordinator.internal import Internal
from orchestrator.coordinator.run_counter import RunCounter
from orchestrator.coordinator.sessions import Sessions, image_of, save_rows
from pools.config import SessionsConfig
from pools.core.events import SessionImage, SessionRestored, SessionsSynced
from tests.support.fleet import Sim, pool
from tests.support.in_session import answer, brought, call, found

NOW = 1_700_000_000.0


def ask(sim: Sim, operation: str, peer: bytes | None = None, **args: Any) -> Any:
    sessions, peer = Sessions(sim.fleet), sim.client if peer is None else peer
    if operation == "session_expire":
        was_there = sessions.expire(peer, args, sim.now, Reply(request_id=7))
        sim._collect()
        return was_there
    return sessions.operations[operation](peer, args, sim.now)


def test_opening_attaches_and_says_whether_it_began() -> None:
    sim = Sim()
    first = ask(sim, "session_open", id="s", ttl_s=60, affinity="strict_queue")
    again = ask(sim, "session_open", id="s", on_loss="fail")
    assert (first["created"], again["created"]) == (True, False)
    assert again["generation"] == first["generation"]
    assert (again["ttl_s"], again["affinity"], again["on_loss"]) == (60, "strict_queue", "fail")


def test_a_session_is_shown_as_it_is_kept() -> None:
    sim = Sim()
    answer(sim, call(sim), state=b"S", turn=b"T", run_ms=5.0)
    shown = ask(sim, "session", id="s")
    assert (shown["state"], shown["turns"], shown["worker"], shown["calls"]) == (b"S", [b"T"], "general-1.1", 1)
    assert shown["metrics"]["mean_ms"] == 5.0
    listed = ask(sim, "sessions")
    [row] = listed["sessions"]
    assert listed["total"] == 1
    assert {**shown, "turns": 1} == {**row, "metrics": shown["metrics"], "state": b"S"}


def test_a_part_is_shown_without_the_others() -> None:
    sim = Sim()
    answer(sim, call(sim), state=b"S" * 1000, turn=b"T" * 1000)
    row = ask(sim, "sessions")["sessions"][0]
    assert ask(sim, "session", id="s", parts=[]) == row
    assert ask(sim, "session", id="s", parts=["state"]) == {**row, "state": b"S" * 1000}
    assert ask(sim, "session", id="s", parts=["turns"]) == {**row, "turns": [b"T" * 1000]}
    assert ask(sim, "session", id="s", parts=["metrics"])["metrics"]["count"] == 1


def test_of_others_sessions_nothing_is_said() -> None:
    sim = Sim()
    answer(sim, call(sim))
    other = sim.connect(2, "other")
    assert ask(sim, "sessions", other) == {"sessions": [], "total": 0}
    assert ask(sim, "session_expire", other, id="s") is False
    with pytest.raises(BridgeError) as unknown:
        ask(sim, "session", other, id="s")
    assert unknown.value.code == "NOT_FOUND"
    assert found(sim)


def test_ending_says_whether_it_was_there() -> None:
    sim = Sim()
    generation = ask(sim, "session_open", id="s")["generation"]
    assert ask(sim, "session_expire", id="s", generation=generation) is True
    assert sim.replies.pop(7).status == OK
    assert ask(sim, "session_expire", id="s", generation=generation) is False
    assert 7 not in sim.replies
    with pytest.raises(BridgeError) as lost:
        ask(sim, "session", id="s", generation=generation)
    assert lost.value.details["reason"] == "ended"


@pytest.mark.parametrize(
    ("operation", "args", "path"),
    [
        ("session_open", {}, "id"),
        ("session_open", {"id": 3}, "id"),
        ("session_open", {"id": "s", "ttl_s": "1"}, "ttl_s"),
        ("session_open", {"id": "s", "ttl_s": True}, "ttl_s"),
        ("session_open", {"id": "s", "ttl_s": 1e300}, "ttl_s"),
        ("session_open", {"id": "s", "affinity": 1}, "affinity"),
        ("session_open", {"id": "s", "on_loss": "never"}, "on_loss"),
        ("session_open", {"id": "x" * 1000}, "session"),
        ("session", {"id": "s", "generation": "1"}, "generation"),
        ("session", {"id": "s", "parts": "state"}, "parts"),
        ("session", {"id": "s", "parts": ["state", "more"]}, "parts"),
        ("session", {"id": "s", "parts": [["state"]]}, "parts"),
        ("session_expire", {"id": None}, "id"),
    ],
)
def test_bad_arguments(operation: str, args: dict[str, Any], path: str) -> None:
    with pytest.raises(BridgeError) as refused:
        ask(Sim(), operation, **args)
    assert (refused.value.code, refused.value.details["path"]) == ("INVALID_REQUEST", path)


def test_what_is_saved_comes_back() -> None:
    config = SessionsConfig(durable=True)
    sim = Sim(pool(), sessions=config)
    sim.handle(SessionsSynced())
    for n in range(3):
        answer(sim, call(sim), state=b"S%d" % n, turn=b"T%d" % n, run_ms=float(n))
    batch = sim.fleet.take_unsaved(sim.now)
    assert batch is not None
    [row] = save_rows(batch.images, NOW)
    again = Sim(pool(), sessions=config, run=2)
    again.handle(SessionRestored(image_of({**row, "touched_at": NOW - 5.0}, NOW)))
    again.handle(SessionsSynced())
    restored, before = found(again), found(sim)
    assert restored.calls.metrics() == before.calls.metrics()
    assert (restored.generation, restored.seq, restored.state) == (before.generation, 3, b"S2")
    assert again.fleet.sessions("default", again.now, 10)[0]["idle_s"] == 5.0
    request_id = call(again, generation=before.generation)
    assert brought(again, request_id) == (b"S2", [b"T0", b"T1", b"T2"])
    answer(again, request_id)
    new = call(again, "another")
    assert found(again, "another").generation != before.generation
    answer(again, new)


def test_one_that_cannot_be_read_keeps_no_other_from_being_restored(tmp_path: Path) -> None:
    sim = Sim(pool(), sessions=SessionsConfig(durable=True))
    good, bad = (save_rows([SessionImage("default", name, 1, 1, 60.0, "hint", "restore")], NOW)[0] for name in "ab")
    for row in (good, bad):
        row["touched_at"] = unix_now()
    rows = [{**bad, "options": {}}, "no row", good]
    events = EventLog(RunCounter.begin(tmp_path))
    restore = Internal(sim.fleet, events, durable=True, programs=()).operations["session_restore"]
    assert restore({"rows": rows, "last": True}, sim.now) is False
    assert [row["id"] for row in ask(sim, "sessions")["sessions"]] == ["a"]
    sim.tick(0.6)
    [told] = sim.logs("sessions_not_restored")
    assert told.fields["count"] == 2
    assert "cannot be read" in told.fields["why"]


@pytest.mark.parametrize(
    "change", [{"id": 3}, {"generation": True}, {"turns": [[1]]}, {"options": None}, {"options": {}}, {"state": "text"}]
)
def test_what_cannot_be_read_of_the_store_is_refused(change: dict[str, Any]) -> None:
    image = SessionImage("default", "s", 1, 1, 60.0, "hint", "restore", state=b"")
    [row] = save_rows([image], NOW)
    assert image_of(row, NOW) == image
    with pytest.raises(BridgeError) as refused:
        image_of({**row, **change}, NOW)
    assert refused.value.code == "INVALID_REQUEST"
