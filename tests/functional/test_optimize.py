"""The operation `optimize`, and the states that it makes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bridge.worker.call import Call, CallStopped
from bridge.worker.operations import Operations
from tests.support.operations import built, deploying, refused, run

ROOT = Path(__file__).parents[2]

TARGET = {"module": "dspy.Predict", "signature": "word: str -> kind: Literal['fruit', 'tool', 'animal']"}
WORDS = {
    "fruit": "apple pear cherry plum peach quince melon grape",
    "tool": "hammer wrench pliers chisel spanner sander mallet grinder",
    "animal": "horse donkey rabbit badger weasel beaver otter monkey",
}
ROWS = [{"word": f"{word} {kind[::-1]}", "kind": kind} for kind, words in WORDS.items() for word in words.split()]


ARGS = {"program": {"target": TARGET}, "trainset": ROWS, "metric": "exact:kind"}


@pytest.fixture(scope="module")
def ops() -> Iterator[Operations]:
    with built() as operations:
        yield operations


@pytest.fixture
def deploy(ops: Operations) -> Iterator[Callable[..., None]]:
    with deploying(ops) as define:
        yield define


def optimized(ops: Operations, call: Call | None = None, **more: Any) -> Any:
    args = {"program": {"target": TARGET}, "optimizer": "LabeledFewShot", "trainset": ROWS, "metric": "exact:kind"}
    return run(ops, "optimize", {**args, **more}, call=call)


def test_a_state_changes_what_a_program_answers(ops: Operations, deploy: Any) -> None:
    result = optimized(ops)
    deploy("kinds", target=TARGET)
    plain = [run(ops, "kinds", {"word": row["word"]}).kind == row["kind"] for row in ROWS]
    deploy("kinds", version=2, target=TARGET, state=result["program"])
    trained = [run(ops, "kinds", {"word": row["word"]}).kind == row["kind"] for row in ROWS]
    assert sum(trained) > sum(plain)


def test_the_state_of_another_program_is_refused(ops: Operations) -> None:
    state = optimized(ops)["program"]
    other = {"module": "dspy.Predict", "signature": "word: str, more: str -> kind: str"}
    assert "another signature" in refused(ops, "programs.load", {"target": other, "state": state}).message
    thought = {**TARGET, "module": "dspy.ChainOfThought"}
    assert "another program" in refused(ops, "programs.load", {"target": thought, "state": state}).message
    wrongs: list[Any] = [
        "x",
        {},
        {"signature": 5},
        {"signature": {}},
        {**state, "signature": {"fields": []}},
        {**state, "demos": 5},
    ]
    for wrong in wrongs:
        assert refused(ops, "programs.load", {"target": TARGET, "state": wrong}).code == "INVALID_REQUEST"


def test_a_language_model_in_a_state_is_not_loaded(ops: Operations) -> None:
    state = optimized(ops)["program"]
    state["lm"] = {"model": "openai/gpt-4o", "api_base": "http://127.0.0.1:1"}
    assert run(ops, "programs.load", {"target": TARGET, "state": state})["outputs"] == ["kind"]


@pytest.mark.parametrize(
    ("optimizer", "params"),
    [
        ("LabeledFewShot", {"k": 12}),
        ("BootstrapFewShot", {"max_bootstrapped_demos": 2, "max_labeled_demos": 12}),
        ("BootstrapFewShotWithRandomSearch", {"num_candidate_programs": 2, "num_threads": 2}),
    ],
)
def test_optimizers_lift_the_score_and_tell_about_it(ops: Operations, optimizer: str, params: Any) -> None:
    events: list[tuple[str, dict[str, Any]]] = []
    call = Call(1, 1, "optimize", emit=lambda kind, fields: events.append((kind, dict(fields))))
    result = optimized(ops, call, optimizer=optimizer, params=params)
    assert result["score"] > result["baseline_score"]
    assert (result["train_rows"], result["validation_rows"]) == (19, 5)
    assert result["usage"]["lm_calls"] == call.lm_calls > 0
    assert (result["stopped"], result["errors"]) == (None, 0)
    assert result["candidates"][0]["score"] == result["score"]
    assert {one["name"] for one in result["candidates"]} >= {"unoptimized", result["chosen"]}
    msgspec.json.encode(result["program"])

    kinds = [kind for kind, _ in events]
    assert (kinds[0], kinds[-1]) == ("started", "finished")
    assert kinds.count("candidate") == len(result["candidates"])
    progress = [fields for kind, fields in events if kind == "progress"]
    assert {"baseline", "evaluate"} <= {fields["phase"] for fields in progress}
    assert any(fields["done"] == fields["total"] == 5 for fields in progress)
    assert all(fields["candidate"] <= fields["candidates"] for fields in progress)


def test_the_bundled_tickets_are_learned(ops: Operations, deploy: Any) -> None:
    folder = ROOT / "examples" / "tickets"
    rows = {part: _rows(folder / f"{part}.jsonl") for part in ("train", "validation", "test")}
    target = f"{folder}/program.py:TicketRouter"
    result = optimized(
        ops, program={"target": target}, optimizer="BootstrapFewShot", metric="exact:team",
        trainset=rows["train"], valset=rows["validation"],
    )  # fmt: skip

    def accuracy(version: int, state: Any) -> float:
        deploy("router", version, target=target, state=state)
        right = [run(ops, "router", {"ticket": row["ticket"]}).team == row["team"] for row in rows["test"]]
        return 100.0 * sum(map(bool, right)) / len(right)

    assert accuracy(2, result["program"]) >= accuracy(1, None) + 20


def _rows(file: Path) -> list[dict[str, Any]]:
    return [msgspec.json.decode(line) for line in file.read_bytes().splitlines()]


def test_the_threads_of_an_optimizer_are_counted(ops: Operations) -> None:
    call = Call(1, 1, "optimize")
    params = {"num_candidate_programs": 1, "max_bootstrapped_demos": 1, "max_labeled_demos": 2}
    result = optimized(ops, call, optimizer="BootstrapFewShotWithRandomSearch", params=params)
    assert len(result["candidates"]) == 5
    assert call.lm_calls >= 5 * 5


def test_an_optimization_is_determined_by_its_seed(ops: Operations) -> None:
    def programs(seed: int) -> Any:
        result = optimized(ops, optimizer="BootstrapFewShot", seed=seed, params={"max_labeled_demos": 6})
        return {name: result[name] for name in ("program", "score", "baseline_score")}

    assert programs(1) == programs(1)
    assert programs(1)["program"] != programs(2)["program"]


def test_a_metric_by_import_path(ops: Operations, tmp_path: Path) -> None:
    (tmp_path / "metric.py").write_text(
        "def two(example, prediction):\n    return example.kind == prediction.kind\n"
        "def three(example, prediction, trace=None):\n    return 0.5\n"
        "def text(example, prediction):\n    return 'good'\n"
        "def broken(example, prediction):\n    raise KeyError('oh')\n"
    )
    assert optimized(ops, metric=f"{tmp_path}/metric.py:two")["score"] > 0
    assert optimized(ops, metric=f"{tmp_path}/metric.py:three")["score"] == 50.0
    error = refused(ops, "optimize", {**ARGS, "metric": f"{tmp_path}/metric.py:text"})
    assert (error.code, "must return a number" in error.message) == ("REMOTE_ERROR", True)
    with pytest.raises(KeyError):
        optimized(ops, metric=f"{tmp_path}/metric.py:broken")


def test_an_optimization_of_a_deployed_program(ops: Operations, deploy: Any) -> None:
    deploy("kinds", target=TARGET)
    assert optimized(ops, program="kinds")["score"] > 0
    assert refused(ops, "optimize", {**ARGS, "program": "kindz"}).details["suggestions"] == ["kinds"]


@pytest.mark.parametrize(
    ("more", "path"),
    [
        ({"params": {"k": 3}}, "params.k"),
        ({"params": {"max_rounds": 0}}, "params.max_rounds"),
        ({"params": {"num_threads": 1.5}}, "params.num_threads"),
        ({"metric": "accuracy"}, "metric"),
        ({"metric": "exact:"}, "metric"),
        ({"metric": "exact:team"}, "trainset[0].team"),
        ({"trainset": []}, "trainset"),
        ({"trainset": "rows.jsonl"}, "trainset"),
        ({"trainset": ROWS[:1]}, "trainset"),
        ({"trainset": [*ROWS[:3], {"wrd": "x", "kind": "tool"}]}, "trainset[3].word"),
        ({"trainset": [ROWS[0], 7]}, "trainset[1]"),
        ({"valset": []}, "valset"),
        ({"valset": [{"word": "x"}]}, "valset[0].kind"),
        ({"seed": -1}, "seed"),
        ({"budget": {"cals": 5}}, "budget.cals"),
        ({"budget": {"calls": "many"}}, "budget.calls"),
        ({"budget": {"seconds": -1}}, "budget.seconds"),
        ({"budget": {"calls": 2}}, "budget.calls"),
        ({"program": {}}, "program.target"),
        ({"extra": 1}, "extra"),
    ],
)
def test_wrong_arguments_of_an_optimization(ops: Operations, more: dict[str, Any], path: str) -> None:
    error = refused(ops, "optimize", {**ARGS, **more})
    assert (error.code, error.details["path"]) == ("INVALID_REQUEST", path)


def test_an_unknown_optimizer(ops: Operations) -> None:
    error = refused(ops, "optimize", {**ARGS, "optimizer": "BootstrapFewShots"})
    assert (error.code, error.details["suggestions"][0]) == ("NOT_FOUND", "BootstrapFewShot")


@pytest.mark.parametrize("calls", [5, 8, 14])
def test_a_budget_of_calls_is_kept_and_the_best_so_far_returned(ops: Operations, calls: int) -> None:
    call = Call(1, 1, "optimize")
    result = optimized(ops, call, optimizer="BootstrapFewShotWithRandomSearch", budget={"calls": calls})
    assert result["stopped"] == "calls"
    assert call.lm_calls <= calls
    assert result["score"] >= result["baseline_score"]
    assert run(ops, "programs.load", {"target": TARGET, "state": result["program"]})


def test_a_budget_of_seconds_is_kept(ops: Operations, tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(
        "import time\ndef metric(example, prediction):\n    time.sleep(0.02)\n    return 1.0\n"
    )
    params = {"num_candidate_programs": 1000, "num_threads": 1}
    result = optimized(
        ops, optimizer="BootstrapFewShotWithRandomSearch", metric=f"{tmp_path}/slow.py:metric",
        budget={"seconds": 0.5}, params=params,
    )  # fmt: skip
    assert result["stopped"] == "seconds"
    assert result["seconds"] < 5


@pytest.mark.parametrize("optimizer", ["BootstrapFewShot", "BootstrapFewShotWithRandomSearch"])
def test_cancelling_an_optimization_stops_it(ops: Operations, optimizer: str) -> None:
    def emit(kind: str, fields: Any) -> None:
        if kind == "progress" and fields["phase"] == "bootstrap":
            call.cancel()

    call = Call(1, 1, "optimize", emit=emit)
    with pytest.raises(CallStopped) as caught:
        optimized(ops, call, optimizer=optimizer, params={"max_bootstrapped_demos": 3})
    assert caught.value.error.code == "CANCELLED"


def test_a_deadline_stops_an_optimization(ops: Operations) -> None:
    call = Call(1, 1, "optimize", lm="slow", deadline=time.monotonic() + 0.2)
    with pytest.raises(CallStopped) as caught:
        optimized(ops, call)
    assert caught.value.error.code == "DEADLINE_EXCEEDED"


def test_a_language_model_that_fails_is_no_score_of_zero(ops: Operations) -> None:
    error = refused(ops, "optimize", ARGS, lm="failing")
    assert error.code == "LM_ERROR"
