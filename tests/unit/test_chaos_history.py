"""The judge of histories: each broken promise is seen, and nothing else."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.chaos.history import (
    OK,
    Call,
    Outcome,
    Pause,
    Recorder,
    read,
    read_effects,
    violations,
    worst_late_s,
)


def call(call_id: str = "a-1", *outcomes: Outcome, **fields: object) -> Call:
    made = Call(call_id, "a", call_id, sent_at_s=100.0, deadline_s=2.0, outcomes=list(outcomes))
    return replace(made, **fields)  # type: ignore[arg-type]


def ok(answer: str = "a-1", at_s: float = 100.1) -> Outcome:
    return Outcome(OK, at_s, answer=answer)


def lost(executed: str = "maybe", at_s: float = 100.1) -> Outcome:
    return Outcome("WORKER_LOST", at_s, executed=executed)


def rules(*calls: Call, effects: dict[str, int] | None = None, **known: object) -> list[str]:
    by_id = {each.call_id: each for each in calls}
    assert len(by_id) == len(calls)
    found = violations(by_id, Counter(effects or {}), **known)  # type: ignore[arg-type]
    return [each.rule for each in found]


def test_a_good_history_is_good() -> None:
    calls = [
        call("a-1", ok()),
        call("a-2", lost("no")),
        call("a-3", lost("maybe")),
        call("a-4", lost("maybe")),
        call("a-5", Outcome("DEADLINE_EXCEEDED", 102.9)),
        call("a-6", ok("a-6"), has_effect=False),
        call("a-7", ok("a-7"), idempotent=True),
    ]
    assert rules(*calls, effects={"a-1": 1, "a-3": 1, "a-7": 3}) == []


@pytest.mark.parametrize(
    ("broken", "effects", "rule"),
    [
        (call("a-1"), {}, "one outcome"),
        (call("a-1", ok(), ok()), {"a-1": 1}, "one outcome"),
        (call("a-1", lost(), ok()), {"a-1": 1}, "one outcome"),
        (call("a-1", ok("a-2")), {"a-1": 1}, "its own answer"),
        (call("a-1", Outcome(OK, 100.1)), {"a-1": 1}, "its own answer"),
        (call("a-1", ok(at_s=103.01)), {"a-1": 1}, "told in time"),
        (call("a-1", Outcome("DEADLINE_EXCEEDED", 103.01)), {}, "told in time"),
        (call("a-1", ok()), {"a-1": 2}, "at most so often"),
        (call("a-1", lost()), {"a-1": 2}, "at most so often"),
        (call("a-1", ok(), idempotent=True), {"a-1": 4}, "at most so often"),
        (call("a-1", ok()), {}, "an answer was worked for"),
        (call("a-1", ok(), idempotent=True), {}, "an answer was worked for"),
        (call("a-1", lost("no")), {"a-1": 1}, "no means no"),
        (call("a-1", ok()), {"a-1": 1, "b-9": 1}, "known work"),
    ],
)  # fmt: skip
def test_every_broken_promise_is_seen(broken: Call, effects: dict[str, int], rule: str) -> None:
    assert rules(broken, effects=effects) == [rule]


def test_nobody_tells_a_client_that_is_gone() -> None:
    assert rules(call("a-1"), effects={"a-1": 1}, vanished=["a"]) == []
    assert rules(call("a-1"), effects={"a-1": 2}, vanished=["a"]) == ["at most so often"]
    assert rules(call("a-1", ok(), ok()), effects={"a-1": 1}, vanished=["a"]) == ["one outcome"]


def test_what_a_stopped_client_saw_late_is_late_by_what_it_did_not_sleep() -> None:
    late = call("a-1", ok(at_s=104.5))
    assert rules(late, effects={"a-1": 1}, pauses=[Pause("a", 101.0, 104.4)]) == []
    assert rules(late, effects={"a-1": 1}, pauses=[Pause("a", 101.0, 102.0)]) == ["told in time"]
    assert rules(late, effects={"a-1": 1}, pauses=[Pause("b", 101.0, 104.4)]) == ["told in time"]
    assert rules(late, effects={"a-1": 1}, pauses=[Pause("a", 90.0, 99.0)]) == ["told in time"]


def test_calls_of_one_key_are_judged_together() -> None:
    shared = {"token": "k", "idempotent": True}
    answered = [call(f"a-{number}", ok("k"), **shared) for number in range(4)]
    assert rules(*answered, effects={"k": 1}) == []
    assert rules(*answered, effects={"k": 3}) == []
    assert rules(*answered, effects={"k": 4}) == ["at most so often"]
    # One that failed may have been tried again by the next.
    assert rules(call("b-1", lost(), **shared), *answered, effects={"k": 4}) == []
    assert rules(call("b-1", lost("no"), **shared), *answered, effects={"k": 1}) == []


def test_a_history_is_read_as_it_was_written(tmp_path: Path) -> None:
    file = tmp_path / "a.history"
    recorder = Recorder(file)
    first, second = call("a-1", ok()), call("a-2", lost("no"), idempotent=True, token="k", has_effect=False)
    for each in (first, second):
        recorder.sent(each)
        for outcome in each.outcomes:
            recorder.settled(each.call_id, outcome)
    recorder.close()
    assert read([file]) == ({"a-1": first, "a-2": second}, [])


def test_outcomes_of_nothing_and_calls_sent_twice_are_seen(tmp_path: Path) -> None:
    file = tmp_path / "a.history"
    recorder = Recorder(file)
    recorder.sent(call("a-1"))
    recorder.sent(call("a-1"))
    recorder.settled("a-2", ok())
    recorder.close()
    assert [each.rule for each in read([file])[1]] == ["one id each", "one outcome"]


def test_effects_are_counted(tmp_path: Path) -> None:
    file = tmp_path / "effects"
    assert read_effects(file) == {}
    file.write_text("a-1\na-2\na-1\n")
    assert read_effects(file) == {"a-1": 2, "a-2": 1}


def test_the_latest_outcome_is_told() -> None:
    assert worst_late_s([]) == 0.0
    assert worst_late_s([call("a-1", ok())]) == 0.0
    assert worst_late_s([call("a-1", ok()), call("a-2", ok(at_s=102.5))]) == 0.5
