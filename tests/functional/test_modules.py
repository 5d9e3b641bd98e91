"""DSPy's modules as operations: answers, inputs, options, signatures, language models."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from bridge.protocol.values import Prediction
from bridge.worker.call import Call, CallStopped
from bridge.worker.operations import Operations
from tests.support.operations import built, refused, run

QA: dict[str, Any] = {"signature": "question -> answer", "inputs": {"question": "what is up?"}}


@pytest.fixture(scope="module")
def ops() -> Iterator[Operations]:
    with built() as operations:
        yield operations


def test_predict_answers_and_is_counted(ops: Operations) -> None:
    call = Call(1, 1, "dspy.Predict")
    answer = run(ops, "dspy.Predict", QA, call=call)
    assert isinstance(answer, Prediction)
    assert list(answer) == ["answer"]
    assert (call.lm_calls, call.tokens > 0) == (1, True)


def test_chain_of_thought_types_its_outputs(ops: Operations) -> None:
    args = {"signature": "text: str -> colour: Literal['red', 'blue'], n: int", "inputs": {"text": "the blue one, 7"}}
    answer = run(ops, "dspy.ChainOfThought", args)
    assert list(answer) == ["reasoning", "colour", "n"]
    assert (answer.colour, answer.n) == ("blue", 7)


def test_options_reach_the_prompt_and_the_model(ops: Operations) -> None:
    options = {"instructions": "Answer in one word.", "temperature": 0.5, "config": {"max_tokens": 50}}
    assert run(ops, "dspy.Predict", {**QA, "options": options}).answer


def test_react_calls_a_tool_by_import_path(ops: Operations, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = 'def weather(city: str) -> str:\n    """Tell the weather of a city."""\n    return "sunny"\n'
    (tmp_path / "tools_for_react.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    args = {
        "signature": "question -> answer",
        "inputs": {"question": "what is the weather of the city Rome?"},
        "options": {"tools": ["tools_for_react:weather"], "max_iters": 3},
    }
    answer = run(ops, "dspy.ReAct", args)
    assert answer.trajectory["observation_0"] == "sunny"
    assert answer.answer


def test_best_of_n_returns_the_best(ops: Operations) -> None:
    call = Call(1, 1, "dspy.BestOfN")
    options = {"module": "dspy.ChainOfThought", "N": 3, "reward": "filled:answer", "threshold": 2.0}
    assert run(ops, "dspy.BestOfN", {**QA, "options": options}, call=call).answer
    assert call.lm_calls == 3


@pytest.mark.parametrize("reward", ["concise:answer", "FILE:shortest"])
def test_rewards_by_name_and_by_import_path(ops: Operations, tmp_path: Path, reward: str) -> None:
    file = tmp_path / "rewards.py"
    file.write_text("def shortest(inputs, prediction):\n    return -len(prediction.answer) + len(inputs['question'])\n")
    options = {"N": 2, "threshold": 100, "reward": reward.replace("FILE", str(file))}
    assert run(ops, "dspy.BestOfN", {**QA, "options": options}).answer


@pytest.mark.parametrize("n", [1, 2, 5])
def test_best_of_n_raises_when_every_attempt_fails(ops: Operations, n: int) -> None:
    options = {"N": n, "reward": "filled:anser"}
    for _ in range(2):
        error = refused(ops, "dspy.BestOfN", {**QA, "options": options})
        assert "no field 'anser'" in error.message


def test_a_metric_that_needs_a_label_is_no_reward(ops: Operations) -> None:
    message = refused(ops, "dspy.BestOfN", {**QA, "options": {"reward": "exact:answer"}}).message
    for part in ("has none", "filled:FIELD", "concise:FIELD", "import path"):
        assert part in message


# DSPy's own module uses an argument that it has deprecated.
@pytest.mark.filterwarnings("ignore:The 'prefix' argument:DeprecationWarning")
def test_multi_chain_comparison(ops: Operations) -> None:
    completions = [{"reasoning": "it is short", "answer": "a"}, {"rationale": "it is long", "answer": "b"}]
    args = {**QA, "inputs": {**QA["inputs"], "completions": completions}, "options": {"M": 2}}
    assert run(ops, "dspy.MultiChainComparison", args).answer
    for wrong in (completions[:1], "x", [{"answer": "a"}, {"answer": "b"}]):
        bad = {**args, "inputs": {**QA["inputs"], "completions": wrong}}
        assert refused(ops, "dspy.MultiChainComparison", bad).details["path"].startswith("inputs.completions")


def test_one_module_serves_many_threads(ops: Operations) -> None:
    def ask(number: int) -> Any:
        args = {"signature": "number: int -> same: int", "inputs": {"number": number}}
        return run(ops, "dspy.Predict", args).same

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(80))) == list(range(80))


@pytest.mark.parametrize(
    ("inputs", "problems"),
    [
        ({}, ["inputs.question is missing", "inputs.n is missing"]),
        ({"question": "x", "n": 1, "m": 2}, ["no inputs.m"]),
        ({"qestion": "x", "n": "many"}, ["inputs.question is missing", "did you mean question", "must be an integer"]),
        ({"question": 5, "n": 1}, ["inputs.question must be a string, got int (5)"]),
        ({"question": "x", "n": 1, "tags": ["a", 3]}, ["inputs.tags[1] must be a string"]),
        (["x"], ["are a mapping"]),
        (None, ["are a mapping"]),
    ],
)
def test_every_problem_of_the_inputs_is_told(ops: Operations, inputs: Any, problems: list[str]) -> None:
    signature = "question: str, n: int, tags: Optional[list[str]] -> answer"
    error = refused(ops, "dspy.Predict", {"signature": signature, "inputs": inputs})
    assert error.code == "INVALID_REQUEST"
    assert error.details["path"].startswith("inputs")
    for problem in problems:
        assert problem in error.message


@pytest.mark.parametrize(
    ("kind", "options", "path"),
    [
        ("dspy.Predict", {"temprature": 1}, "options.temprature"),
        ("dspy.Predict", {"config": {"foo": 1}}, "options.config.foo"),
        ("dspy.Predict", {"tools": []}, "options.tools"),
        ("dspy.Predict", {"temperature": {1, 2}}, "options"),
        ("dspy.Predict", "x", "options"),
        ("dspy.ReAct", {"max_iters": 0}, "options.max_iters"),
        ("dspy.ReAct", {"tools": ["nowhere"]}, "options.tools[0]"),
        ("dspy.ReAct", {"tools": ["os:sep"]}, "options.tools[0]"),
        ("dspy.ReAct", {"tools": ["os.path:basname"]}, "options.tools[0]"),
        ("dspy.ReAct", {"tools": ["os.path:isdir", "os.path:isdir"]}, "options.tools[1]"),
        ("dspy.BestOfN", {}, "options.reward"),
        ("dspy.BestOfN", {"reward": "best"}, "options.reward"),
        ("dspy.BestOfN", {"reward": "exact:answer"}, "options.reward"),
        ("dspy.BestOfN", {"reward": "filled:answer", "N": "3"}, "options.N"),
        ("dspy.BestOfN", {"reward": "filled:answer", "module": "dspy.Refine"}, "options.module"),
        ("dspy.BestOfN", {"reward": "filled:answer", "tools": []}, "options.tools"),
        ("dspy.BestOfN", {"reward": "filled:answer", "fail_count": -1}, "options.fail_count"),
        ("dspy.Refine", {}, "options.reward"),
        ("dspy.Refine", {"reward": "os.path:exists", "adapter": "two_step"}, "options.adapter"),
        ("dspy.Refine", {"reward": "math:sqrt"}, "options.reward"),
        ("dspy.MultiChainComparison", {"M": 0}, "options.M"),
        ("dspy.ReActV2", {"max_iters": "3"}, "options.max_iters"),
        ("dspy.ReActV2", {"tools": ["os.path:isdir", "os.path:isdir"]}, "options.tools[1]"),
        ("dspy.Predict", {"adapter": "jsn"}, "options.adapter"),
        ("dspy.Predict", {"adapter": ["json"]}, "options.adapter"),
        ("dspy.Predict", {"json_fallback": 1}, "options.json_fallback"),
        ("dspy.Predict", {"adapter": "xml", "json_fallback": True}, "options.json_fallback"),
        ("dspy.Predict", {"extraction_lm": "default"}, "options.extraction_lm"),
    ],
)
def test_options_are_checked(ops: Operations, kind: str, options: Any, path: str) -> None:
    error = refused(ops, kind, {**QA, "options": options})
    assert (error.code, error.details["path"]) == ("INVALID_REQUEST", path)


@pytest.mark.parametrize(
    ("kind", "text", "column"),
    [
        ("dspy.Predict", "question: strr -> answer", 11),
        ("dspy.Predict", "question -> model_validate", 13),
        ("dspy.ReAct", "trajectory -> answer", 1),
        ("dspy.ReActV2", "history -> answer", 1),
        ("dspy.ReActV2", "question -> history", 1),
    ],
)
def test_signature_errors_have_a_place(ops: Operations, kind: str, text: str, column: int) -> None:
    error = refused(ops, kind, {"signature": text, "inputs": {}})
    assert error.code == "SIGNATURE_ERROR"
    assert (error.details["line"], error.details["column"]) == (1, column)


def test_a_signature_imports_nothing(ops: Operations, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "named_in_a_signature.py").write_text("class X: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    error = refused(ops, "dspy.Predict", {"signature": "a: named_in_a_signature.X -> b", "inputs": {"a": 1}})
    assert error.code == "SIGNATURE_ERROR"
    assert "named_in_a_signature" not in sys.modules


def test_language_models_by_name(ops: Operations) -> None:
    assert refused(ops, "dspy.Predict", QA, lm="defualt").code == "NOT_FOUND"
    error = refused(ops, "dspy.Predict", QA, lm="failing")
    assert (error.code, error.retryable) == ("LM_ERROR", True)


def test_a_deadline_stops_a_slow_language_model(ops: Operations) -> None:
    began = time.monotonic()
    with pytest.raises(CallStopped) as caught:
        run(ops, "dspy.Predict", QA, lm="slow", deadline=began + 0.1)
    assert caught.value.error.code == "DEADLINE_EXCEEDED"
    assert time.monotonic() - began < 5
