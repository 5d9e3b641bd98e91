"""Durable sessions at the side of the store: saved whole or not at all, handed over in parts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete

from bridge.protocol.errors import INVALID_REQUEST, BridgeError
from bridge.protocol.values import decode_value, encode_value
from bridge.wallclock import unix_now
from bridge.worker.call import Call, CallStopped
from orchestrator.coordinator.sessions import image_of, save_rows
from orchestrator.services.sessions import Sessions
from orchestrator.services.store import Store
from orchestrator.services.store.schema import sessions

CALL = Call(1, 1, "sessions.save")


class Coordinator:
    """Takes what is handed over; `wants` calls of it at most."""

    def __init__(self, wants: int = 100) -> None:
        self.calls: list[tuple[int, bool]] = []
        self.rows: list[Mapping[str, Any]] = []
        self._wants = wants

    def restore_sessions(self, rows: Sequence[Mapping[str, Any]], *, last: bool) -> bool:
        self.calls.append((len(rows), last))
        self.rows += decode_value(encode_value([dict(row) for row in rows]))
        return len(self.calls) < self._wants


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store.open(tmp_path / "store.sqlite3")
    yield opened
    opened.close()


def row(name: str, *, state: bytes | None = b"state", seq: int = 2, idle_s: float = 1.0, **more: Any) -> dict[str, Any]:
    return {
        "principal": "anna", "id": name, "generation": 1 << 33, "seq": seq, "ttl_s": 60.0,
        "options": {"affinity": "hint", "on_loss": "restore"}, "state": state, "calls": 2, "stats": b"stats",
        "touched_at": unix_now() - idle_s, "turns": [[7, b"seven"], [9, b"nine"]], "first_turn": 7, "ended": False,
        **more,
    }  # fmt: skip


def save(store: Store, *rows: dict[str, Any]) -> Any:
    args = decode_value(encode_value({"sessions": list(rows)}))
    return Sessions(lambda: store, Coordinator()).operations()["sessions.save"](args, CALL)


def handed_over(store: Store, wants: int = 100) -> Coordinator:
    coordinator = Coordinator(wants)
    Sessions(lambda: store, coordinator).sync(store)
    return coordinator


def test_what_is_saved_is_handed_over(store: Store) -> None:
    assert save(store, row("one"), row("two", state=None)) == {"saved": 2, "refused": []}
    save(store, row("one", seq=3, state=None, turns=[[12, b"twelve"]], first_turn=9))
    coordinator = handed_over(store)
    assert coordinator.calls == [(2, True)]
    one, two = (image_of(found, unix_now()) for found in coordinator.rows)
    assert (one.id, one.seq, one.state, one.turns) == ("one", 3, b"state", ((9, b"nine"), (12, b"twelve")))
    assert (two.id, two.state, two.first_turn, two.calls, two.stats) == ("two", None, 7, 2, b"stats")
    assert 1.0 <= one.idle_s < 10.0
    assert save_rows([one], 0.0)[0].keys() == row("one").keys()


def test_what_ended_or_has_expired_is_not(store: Store) -> None:
    save(store, row("ended"), row("expired", idle_s=61.0), row("there", idle_s=59.0))
    save(store, row("ended", seq=3, ended=True))
    assert [found["id"] for found in handed_over(store).rows] == ["there"]


def test_many_are_handed_over_in_parts_as_long_as_they_are_wanted(store: Store) -> None:
    save(store, *(row(f"s{number:03}", turns=[]) for number in range(600)))
    coordinator = handed_over(store)
    assert coordinator.calls == [(256, False), (256, False), (88, True)]
    assert [found["id"] for found in coordinator.rows] == [f"s{number:03}" for number in range(600)]
    assert handed_over(store, wants=1).calls == [(256, False)]


def test_large_ones_are_handed_over_a_few_at_a_time(store: Store) -> None:
    save(store, *(row(f"s{number}", state=b"x" * (1 << 20)) for number in range(6)))
    assert [last for _, last in handed_over(store).calls] == [False, True]


def test_of_none_the_end_is_told(store: Store) -> None:
    assert handed_over(store).calls == [(0, True)]


def test_what_cannot_be_stored_keeps_nobody_out(store: Store) -> None:
    save(store, row("known", seq=1))
    bad = row("bad", principal="evil\0")
    done = save(store, row("one"), bad, row("two"), row("known", seq=2, state=b"new"), row("known", seq=3, ttl_s={}))
    assert done["saved"] == 3
    assert [(one["principal"], one["session"]) for one in done["refused"]] == [("evil\0", "bad"), ("anna", "known")]
    assert "NUL" in done["refused"][0]["why"]
    assert {found["id"]: found["state"] for found in handed_over(store).rows} == {
        "one": b"state", "two": b"state", "known": b"new",
    }  # fmt: skip


def test_a_save_that_nobody_waits_for_any_more_is_none(store: Store) -> None:
    save(store, row("s", seq=1), row("bad", seq=1))
    late = Call(2, 2, "sessions.save")
    args = {"sessions": [row("s", seq=2, turns=())]}
    operation = Sessions(lambda: store, Coordinator()).operations()["sessions.save"]

    def save_late() -> str:
        try:
            operation(args, late)
        except CallStopped as stopped:
            return stopped.error.code
        return "saved"

    # It waits for its turn to write; its caller gives up, and has kept meanwhile that the session has ended.
    with ThreadPoolExecutor(1) as threads:
        with store._database.write() as connection:
            waiting = threads.submit(save_late)
            late.cancel()
            connection.execute(delete(sessions))
        assert waiting.result(10.0) == "CANCELLED"
    assert store.sessions.count() == 0


@pytest.mark.parametrize("bad", [{}, {"id": "x"}, {**row("x"), "more": 1}])
def test_what_is_no_session_is_refused(store: Store, bad: dict[str, Any]) -> None:
    with pytest.raises(BridgeError) as caught:
        save(store, row("fine"), bad)
    assert caught.value.code == INVALID_REQUEST
    assert handed_over(store).rows == []
