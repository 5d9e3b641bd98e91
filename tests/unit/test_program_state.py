"""States of programs: what is loaded, what is refused because its fields are others, what is kept."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import dspy
import pytest
from dspy.predict.parameter import Parameter

from bridge.protocol.errors import BridgeError
from bridge.worker import program_state


def predict(signature: Any = "question, context -> answer") -> Any:
    return dspy.Predict(signature)


def dumped(module: Any) -> dict[str, Any]:
    """Return a state as it comes out of a file."""
    state: dict[str, Any] = json.loads(json.dumps(module.dump_state()))
    return state


def refused(module: Any, state: Any) -> BridgeError:
    before = module.dump_state()
    with pytest.raises(BridgeError) as caught:
        program_state.load(module, state)
    assert module.dump_state() == before
    return caught.value


class Described(dspy.Signature):  # type: ignore[misc]
    """Answer."""

    question: str = dspy.InputField(desc="what is asked")
    context: str = dspy.InputField(desc="what is known")
    answer: str = dspy.OutputField(desc="in a word")


class Program(dspy.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.ask = dspy.ChainOfThought("question -> answer")
        self.judge = dspy.Predict("question, answer -> verdict: bool")


def test_a_state_comes_back_as_it_is_kept() -> None:
    taught = Program()
    taught.judge.demos = [{"question": "q", "answer": "a", "verdict": True}]
    taught.judge.signature = taught.judge.signature.with_instructions("Be strict.")
    own = Program()
    kept = program_state.load(own, {**dumped(taught), "metadata": {"dependency_versions": {}}})
    assert own.judge.signature.instructions == "Be strict."
    assert own.judge.demos == [{"question": "q", "answer": "a", "verdict": True}]
    assert [field["name"] for field in kept["judge"]["signature"]["fields"]] == ["question", "answer", "verdict"]
    assert sorted(kept) == ["ask.predict", "judge"]
    assert program_state.load(Program(), kept) == kept
    assert json.loads(json.dumps(kept)) == kept


def test_a_language_model_in_a_state_is_left_out() -> None:
    module = predict()
    module.lm = dspy.LM("openai/gpt-4o", api_key="secret")
    own = predict()
    assert program_state.load(own, dumped(module))["lm"] is None
    assert own.lm is None


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ("context, question -> answer", "its fields are context, question, answer"),
        ("query, context -> answer", "its fields are query, context, answer"),
        ("question, context -> reply", "its fields are question, context, reply"),
        ("question, answer -> context", "its fields are question, answer, context"),
        ("question -> answer", "it has 2 fields, this one 3 (question, context, answer)"),
        ("question, context, more -> answer", "it has 4 fields, this one 3"),
        ("Question, context -> answer", "its fields are Question, context, answer"),  # of the same prefix
    ],
)
def test_a_state_of_another_signature_is_refused(other: str, told: str) -> None:
    error = refused(predict(), dumped(predict(other)))
    assert error.code == "INVALID_REQUEST"
    assert error.details["path"].startswith("state")
    assert told in error.message


def test_the_path_of_the_first_field_that_does_not_fit() -> None:
    program = Program()
    state = dumped(program)
    state["judge"] = dumped(predict("question, reply -> verdict: bool"))
    assert refused(program, state).details["path"] == "state.judge.signature.fields[1]"


def test_fields_with_descriptions_are_told_by_their_prefixes() -> None:
    own = dspy.Predict(Described)
    assert program_state.load(dspy.Predict(Described), dumped(own))
    fields = dumped(own)["signature"]["fields"]
    swapped = {**dumped(own), "signature": {"instructions": "", "fields": [fields[1], fields[0], fields[2]]}}
    error = refused(own, swapped)
    assert "its fields are context, question, answer" in error.message
    renamed = dumped(own)
    renamed["signature"]["fields"][1]["prefix"] = "Knowledge:"
    assert "its fields are question, 'Knowledge:', answer" in refused(own, renamed).message


def test_a_description_that_was_changed_since() -> None:
    changed = Described.with_updated_fields("question", desc="${what}")
    assert program_state.load(dspy.Predict(changed), dumped(dspy.Predict(changed)))
    worded = Described.with_updated_fields("question", desc="another text")
    assert program_state.load(dspy.Predict(Described), dumped(dspy.Predict(worded)))
    assert refused(dspy.Predict(Described), dumped(dspy.Predict(changed))).code == "INVALID_REQUEST"


@pytest.mark.parametrize("signature", [Described, "question, context -> answer"])
def test_the_last_prefix_may_be_an_optimizers(signature: Any) -> None:
    state = dumped(dspy.Predict(signature))
    state["signature"]["fields"][-1]["prefix"] = "So, in short:"
    own = dspy.Predict(signature)
    program_state.load(own, state)
    assert own.signature.fields["answer"].json_schema_extra["prefix"] == "So, in short:"


def test_a_name_in_a_state_decides() -> None:
    state = dumped(predict())
    field = state["signature"]["fields"][0]
    field.update(name="question", prefix="Odd:", description="odd")
    assert program_state.load(predict(), state)
    field["name"] = "query"
    assert "its fields are query, context, answer" in refused(predict(), state).message


def test_a_state_of_another_program_is_refused() -> None:
    error = refused(Program(), {"ask.predict": dumped(predict()), "other": dumped(predict())})
    assert error.details["path"] == "state"
    assert "it has the predictors ['ask.predict', 'other'], this one has ['ask.predict', 'judge']" in error.message


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"forward": "x"}, "state.forward"),
        ({"config": {"temperature": 2}}, "state.config"),
        ({"extended_signature": {}}, "state.extended_signature"),
        ({"demos": None}, "state.demos"),
        ({"demos": ["a"]}, "state.demos"),
        ({"train": 5}, "state.train"),
        ({"signature": None}, "state.signature.instructions"),
        ({"signature": {"instructions": "x"}}, "state.signature.fields"),
        ({"signature": {"instructions": "x", "fields": [{"prefix": "a"}] * 3}}, "state.signature.fields"),
        ({"signature": {"instructions": 5, "fields": []}}, "state.signature.instructions"),
    ],
)
def test_what_is_no_state_of_a_predictor_is_told_by_its_path(change: Mapping[str, Any], path: str) -> None:
    assert refused(predict(), {**dumped(predict()), **change}).details["path"] == path


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ({1}, "state.demos[0].a"),
        ([1, b"x"], "state.demos[0].a[1]"),
        ({"b": float("nan")}, "state.demos[0].a.b"),
        ({5: 1}, "state.demos[0].a"),
        ("\ud800", "state.demos[0].a"),
        (dspy.Image(url="https://example.org/a.png"), "state.demos[0].a"),
    ],
)
def test_what_is_no_json_is_told_by_its_path(value: Any, path: str) -> None:
    error = refused(predict(), {**dumped(predict()), "demos": [{"a": value}]})
    assert (error.details["path"], "must be JSON" in error.message) == (path, True)


@pytest.mark.parametrize("state", [5, "a", [1], {1: 2}])
def test_what_is_no_mapping(state: Any) -> None:
    assert refused(predict(), state).details["path"] == "state"


def test_a_state_that_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program_state, "MAX_STATE_BYTES", 1_000)
    error = refused(predict(), {**dumped(predict()), "demos": [{"question": "x" * 1_000}]})
    assert (error.code, error.details["path"]) == ("TOO_LARGE", "state")


class Weights(Parameter):  # type: ignore[misc]
    """A parameter of a program's own."""

    def __init__(self, weight: float) -> None:
        self.weight = weight

    def dump_state(self, json_mode: bool = True) -> dict[str, Any]:
        return {"weight": self.weight}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.weight = state["weight"]


class Weighs(dspy.Module):  # type: ignore[misc]
    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weights = Weights(weight)


def test_the_state_of_a_parameter_that_is_no_predictor() -> None:
    own = Weighs(1.0)
    assert program_state.load(own, dumped(Weighs(2.0))) == {"weights": {"weight": 2.0}}
    assert own.weights.weight == 2.0
    assert refused(own, {"weights": {"weight": 3.0, "forward": 1}}).details["path"] == "state.weights.forward"
    assert refused(own, {"weights": {}}).message.startswith("state cannot be loaded: KeyError")


@pytest.mark.parametrize("module", [Program(), predict()])
def test_a_dumped_state_with_its_fields_named(module: Any) -> None:
    named = program_state.named(module, module.dump_state())
    fresh = type(module)() if isinstance(module, Program) else predict()
    assert program_state.load(fresh, named) == json.loads(json.dumps(named))
