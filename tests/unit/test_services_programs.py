"""Programs in the services process, by themselves: turns, listing, the configuration's, what two versions differ in."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from bridge.protocol.errors import CANCELLED, OVERLOADED, BridgeError
from bridge.worker.call import Call, CallStopped
from orchestrator.services.programs.diff import diff
from orchestrator.services.programs.operations import Programs
from orchestrator.services.programs.turns import Turns
from orchestrator.services.store import Store, VersionDraft, VersionRow

SOON_S = 5.0


def call(number: int = 1) -> Call:
    return Call(number, number, "programs.deploy")


# --- turns --------------------------------------------------------------------------------------------


def test_turns_of_one_name_are_taken_in_their_order_and_those_of_others_at_once() -> None:
    turns, order, hold, there = Turns(), list[str](), threading.Event(), threading.Event()

    def take(name: str, who: str, waits: bool = False) -> None:
        with turns.of(name, call()):
            there.set()
            if waits:
                assert hold.wait(SOON_S)
            order.append(who)

    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(take, "qa", "first", True)
        assert there.wait(SOON_S)
        pool.submit(take, "other", "other").result(SOON_S)
        rest = []
        for number in range(2):
            rest.append(pool.submit(take, "qa", f"then {number}"))
            while len(turns._lines["qa"]) < number + 2:
                assert not rest[-1].done()
        hold.set()
        for one in (first, *rest):
            one.result(SOON_S)
    assert order == ["other", "first", "then 0", "then 1"]
    assert not turns._lines


def test_who_gives_up_waiting_leaves_the_turn_to_the_next() -> None:
    turns, stopped = Turns(), call(2)
    with ThreadPoolExecutor(2) as pool:

        def wait(mine: Call) -> str:
            with turns.of("qa", mine):
                return "had it"

        with turns.of("qa", call(1)):
            gives_up = pool.submit(wait, stopped)
            while len(turns._lines["qa"]) < 2:
                assert not gives_up.done()
            last = pool.submit(wait, call(3))
            while len(turns._lines["qa"]) < 3:
                assert not last.done()
            stopped.stop(BridgeError(CANCELLED, "cancelled"))
            assert isinstance(gives_up.exception(SOON_S), CallStopped)
            assert not last.done()
        assert last.result(SOON_S) == "had it"
    assert not turns._lines


def test_a_turn_ends_with_what_was_raised_in_it() -> None:
    turns = Turns()
    with pytest.raises(ZeroDivisionError), turns.of("qa", call()):
        raise ZeroDivisionError
    with turns.of("qa", None):
        assert list(turns._lines) == ["qa"]


def test_too_many_turns_are_refused() -> None:
    turns = Turns()
    taken = [turns.of(f"p{number}", None) for number in range(32)]
    for one in taken:
        one.__enter__()
    with pytest.raises(BridgeError) as caught, turns.of("one more", call()):
        pass
    assert (caught.value.code, caught.value.retryable) == (OVERLOADED, True)
    for one in taken:
        one.__exit__(None, None, None)
    with turns.of("one more", call()):
        pass


# --- listing ------------------------------------------------------------------------------------------


def test_a_listing_is_one_look_at_the_store(tmp_path: Path) -> None:
    with Store.open(tmp_path / "store.sqlite3") as store:
        for name, alias in (("a", "live"), ("b", "live"), ("c", "canary")):
            for number in range(1, 4):
                draft = VersionDraft(name=name, sha256=f"{name}{number}", pool="general", target="m:QA")
                store.programs.add_version(draft, alias)
        store.programs.set_alias("a", "live", 2)
        store.programs.set_alias("b", "stable", 1)
        nobody: Any = None  # is told of a look
        programs = Programs(lambda: store, nobody, {})
        looks: list[object] = []
        event.listen(store._database._engine, "begin", looks.append)
        rows = programs.operations()["programs.list"](None, call())
        assert len(looks) == 1
    assert [(row["name"], row["version"], row["aliases"], row["versions"]) for row in rows] == [
        ("a", 2, {"live": 2}, 3), ("b", 3, {"live": 3, "stable": 1}, 3), ("c", 3, {"canary": 3}, 3),
    ]  # fmt: skip


# --- the configuration's ------------------------------------------------------------------------------


def test_what_the_configuration_deployed_last_and_what_came_after_that_is_known(tmp_path: Path) -> None:
    def draft(content: str, by: str = "configuration", size: int = 1) -> VersionDraft:
        config = {"sizes": (size,)}
        return VersionDraft(name="qa", sha256=content, pool="general", target="m:QA", deployed_by=by, config=config)

    with Store.open(tmp_path / "store.sqlite3") as store:
        known, add = store.programs.known, store.programs.add_version
        assert known(draft("a")) is None
        add(draft("a", by="me"), "live")
        assert known(draft("a")) is None, "nothing was deployed by the configuration so far"
        add(draft("b"), "live")
        add(draft("c", by="me"), "live")
        assert (known(draft("b")), known(draft("c")), known(draft("c", size=2))) == (2, 3, None)
        assert known(draft("a")) is None, "what is configured again after something else is new"
        store.programs.remove("qa")
        assert known(draft("b")) is None


# --- diff -----------------------------------------------------------------------------------------------


def version(number: int, **fields: Any) -> VersionRow:
    return VersionRow(**{"name": "qa", "version": number, "sha256": "s", "pool": "general", "target": "m:QA", **fields})


def predictor(instructions: str, *demos: dict[str, Any], fields: tuple[str, ...] = ("q", "a")) -> dict[str, Any]:
    listed = [{"name": name, "prefix": f"{name}:", "description": name} for name in fields]
    return {"signature": {"instructions": instructions, "fields": listed}, "demos": list(demos)}


def test_versions_of_equal_content_are_the_same() -> None:
    state = {"one": predictor("Answer.", {"q": "1"})}
    found = diff(version(1, state=state, note="a"), version(2, state=state, note="b", deployed_by="me"))
    assert found == {"name": "qa", "a": 1, "b": 2, "same": True}


def test_what_differs_is_told_by_predictor() -> None:
    a = {"one": predictor("Answer.", {"q": "1"}, {"q": "2"}), "gone": predictor("x")}
    b = {"one": predictor("Explain.", {"q": "2"}, {"q": "3"}, fields=("q", "b")), "new": predictor("y")}
    found = diff(version(1, state=a), version(2, state=b))
    assert not found["same"]
    assert found["predictors"] == {"added": ["new"], "removed": ["gone"]}
    assert found["instructions"] == {"one": ["Answer.", "Explain."]}
    assert [[one["name"] for one in side] for side in found["fields"]["one"]] == [["q", "a"], ["q", "b"]]
    assert found["demos"] == {"one": {"added": [{"q": "3"}], "removed": [{"q": "1"}]}}
    assert "target" not in found


def test_a_program_that_is_one_predictor_has_no_name_of_its_own_for_it() -> None:
    found = diff(version(1, state=predictor("a")), version(2, state=predictor("b")))
    assert found["instructions"] == {"": ["a", "b"]}


def test_what_a_program_was_when_it_was_loaded_counts_where_it_has_no_state() -> None:
    found = diff(version(1, predictors={"one": predictor("a")}), version(2, predictors={"one": predictor("b")}))
    assert found["instructions"] == {"one": ["a", "b"]}
    assert diff(version(1), version(2, predictors={"one": predictor("b")}))["predictors"]["added"] == ["one"]


@pytest.mark.parametrize(
    ("field", "a", "b"),
    [
        ("target", "m:QA", {"module": "dspy.Predict", "signature": "a -> b"}), ("pool", "general", "neural"),
        ("config", None, {"size": 2}), ("signature", "", "a -> b"), ("inputs", ["a"], ["a", "b"]),
        ("outputs", [], ["c"]),
    ],
)  # fmt: skip
def test_what_else_differs_is_told_with_both_values(field: str, a: Any, b: Any) -> None:
    found = diff(version(1, **{field: tuple(a) if isinstance(a, list) else a}), version(2, **{field: b}))
    assert found == {"name": "qa", "a": 1, "b": 2, "same": False, field: [a, b]}


def test_other_source_is_told() -> None:
    assert diff(version(1, source_sha256="x"), version(2, source_sha256="y"))["source"] is True
