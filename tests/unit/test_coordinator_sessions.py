"""The control operations about sessions, and sessions as the store keeps them."""

from __future__ import annotations

from typing import Any

import pytest

from bridge.protocol.errors import BridgeError
from orchestrator.coordinator.sessions import Sessions, image_of, save_rows
from pools.config import SessionsConfig
from pools.core.events import SessionImage, SessionRestored, SessionsSynced
from tests.support.fleet import Sim, pool
from tests.support.in_session import answer, brought, call, found

NOW = 1_700_000_000.0


def ask(sim: Sim, operation: str, peer: bytes | None = None, **args: Any) -> Any:
    return Sessions(sim.fleet).operations[operation](sim.client if peer is None else peer, args, sim.now)


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
    assert ask(sim, "session_expire", id="s", generation=generation) is False
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
