"""What a signature text says beyond DSPy's grammar, in DSPy's modules: prefix, constraints, defaults, records."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from dspy.utils.exceptions import AdapterParseError

from bridge.worker.operations import Operations
from orchestrator import Orchestrator
from orchestrator.errors import InvalidRequest, RemoteError
from signatures import parse
from tests.support.operations import built, deploying, refused, run

TEXT = """rate the text: text: str "what a customer wrote", scale: int[1..10] = 10,
    about: {topic: str, words: int = 3} = {"topic": "all"}
    -> score: float[0..1] "how glad it sounds", title: str[..12], people: list[{name: str, age: int[0..150]}][1..2]"""
INPUTS = {"text": "Ann, 41, was glad: 0.75 of the parcel came, 7 days late"}


@pytest.fixture(scope="module")
def ops() -> Iterator[Operations]:
    with built() as operations:
        yield operations


@pytest.fixture
def deploy(ops: Operations) -> Iterator[Callable[..., None]]:
    with deploying(ops) as define:
        yield define


def judged(answer: Any) -> None:
    """Check the outputs of TEXT."""
    assert type(answer.score) is float
    assert 0 <= answer.score <= 1
    assert type(answer.title) is str
    assert len(answer.title) <= 12
    assert 1 <= len(answer.people) <= 2
    for person in answer.people:
        assert list(person) == ["name", "age"]
        assert 0 <= person["age"] <= 150


@pytest.fixture
def warnings_of_dspy() -> Iterator[list[str]]:
    heard: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: heard.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("dspy").addHandler(handler)
    yield heard
    logging.getLogger("dspy").removeHandler(handler)


@pytest.mark.parametrize(
    ("kind", "options", "more"),
    [
        ("dspy.Predict", {}, {}),
        ("dspy.ChainOfThought", {}, {}),
        ("dspy.ReAct", {"max_iters": 2}, {}),
        ("dspy.BestOfN", {"reward": "filled:title", "N": 2}, {}),
        ("dspy.MultiChainComparison", {"M": 1}, {"completions": [{"reasoning": "short", "people": "Ann"}]}),
    ],
)
@pytest.mark.filterwarnings("ignore:The 'prefix' argument:DeprecationWarning")
def test_every_module_takes_it(
    ops: Operations, kind: str, options: Any, more: Any, warnings_of_dspy: list[str]
) -> None:
    judged(run(ops, kind, {"signature": TEXT, "inputs": {**INPUTS, **more}, "options": options}))
    assert warnings_of_dspy == []


def test_dspy_warns_of_what_is_not_checked_before(ops: Operations, warnings_of_dspy: list[str]) -> None:
    # The same ear hears a warning where there is one.
    import dspy

    from bridge.worker.dspy_signature import to_dspy

    with pytest.raises(ValueError, match="No LM"):
        dspy.Predict(to_dspy("n: int[1..9] -> b"))(n=10)
    with dspy.context(lm=dspy.utils.DummyLM([{"b": "x"}])):
        dspy.Predict(to_dspy("n: int[1..9] -> b"))(n=10)
    assert len(warnings_of_dspy) == 1
    assert "n" in warnings_of_dspy[0]


def test_a_deployed_program_takes_it(ops: Operations, deploy: Any) -> None:
    deploy("rate", target={"module": "dspy.ChainOfThought", "signature": TEXT})
    judged(run(ops, "rate", INPUTS))
    assert refused(ops, "rate", {**INPUTS, "scale": 11}).details["path"] == "inputs.scale"


def test_optimizing_takes_it(ops: Operations) -> None:
    text = "sort it: word: str, hint: str = 'none' -> kind: str[..6], sure: float[0..1]"
    rows = [{"word": f"{word} {kind}", "kind": kind, "sure": 1.0} for kind in ("fruit", "tool") for word in "abcdefgh"]
    result = run(ops, "optimize", {
        "program": {"target": {"module": "dspy.Predict", "signature": text}}, "optimizer": "LabeledFewShot",
        "trainset": rows, "metric": "f1:kind", "params": {"k": 8},
    })  # fmt: skip
    assert result["score"] == 100.0
    assert result["program"]["signature"]["instructions"] == "sort it"


DEFAULTS = """
import dspy
from bridge.worker.dspy_signature import to_dspy

class Defaults(dspy.Module):
    def __init__(self):
        super().__init__()
        self.ask = dspy.Predict(to_dspy("a: str, n: int = 42, note: str = 'the default' -> echoed: str"))

    def forward(self):
        with dspy.context(trace=[], max_trace_size=1):
            self.ask(a="x")
            return dict(dspy.settings.trace[0][1])
"""


def test_predict_takes_a_default_for_what_is_missing(ops: Operations, deploy: Any, tmp_path: Path) -> None:
    (tmp_path / "defaults.py").write_text(DEFAULTS)
    deploy("defaults", target=f"{tmp_path}/defaults.py:Defaults")
    assert run(ops, "defaults", {}) == {"a": "x", "n": 42, "note": "the default"}


@pytest.mark.parametrize(
    ("inputs", "problems"),
    [
        ({**INPUTS, "scale": 0}, ["inputs.scale must be an integer from 1 to 10, got int (0)"]),
        ({"text": 5, "scale": "ten"}, ["inputs.text must be a string", "inputs.scale must be an integer"]),
        ({**INPUTS, "about": {"topc": "x"}}, ["inputs.about.topic", "inputs.about.topc"]),
        ({"scale": 1}, ["inputs.text is missing"]),
    ],
)
def test_inputs_are_judged_by_the_engine(ops: Operations, inputs: Any, problems: list[str]) -> None:
    error = refused(ops, "dspy.Predict", {"signature": TEXT, "inputs": inputs})
    assert error.code == "INVALID_REQUEST"
    assert error.details["path"].startswith("inputs.")
    for problem in problems:
        assert problem in error.message


def test_inputs_are_converted_and_those_without_a_type_are_not(ops: Operations) -> None:
    args = {"signature": "n: int, anything -> same: str", "inputs": {"n": " 7 ", "anything": {"a": [1, None]}}}
    assert run(ops, "dspy.Predict", args).same
    assert refused(ops, "dspy.Predict", {**args, "inputs": {"n": True, "anything": 1}}).details["path"] == "inputs.n"


def test_an_answer_that_breaks_a_constraint_fails_the_call(ops: Operations) -> None:
    # The offline model does not know patterns.
    args = {"signature": "text -> code: str['^[0-9]{7}$']", "inputs": {"text": "abc"}}
    with pytest.raises(AdapterParseError, match="must be a string that matches"):
        run(ops, "dspy.Predict", args)


def test_all_problems_of_a_text_are_told_with_their_places(ops: Operations) -> None:
    text = "a: strr,\n  b: lst[int] -> c: int[5..1]"
    error = refused(ops, "dspy.Predict", {"signature": text, "inputs": {}})
    assert error.code == "SIGNATURE_ERROR"
    assert error.details["text"] == text
    assert [(one["line"], one["column"]) for one in error.details["problems"]] == [(1, 4), (2, 6), (2, 24)]
    assert (error.details["line"], error.details["column"]) == (1, 4)
    assert "did you mean 'str'" in error.details["problems"][0]["message"]


def test_instructions_are_given_once(ops: Operations) -> None:
    args = {"inputs": {"a": "x"}, "options": {"instructions": "Be brief."}}
    assert run(ops, "dspy.Predict", {**args, "signature": "a -> b"}).b
    assert refused(ops, "dspy.Predict", {**args, "signature": "be long: a -> b"}).code == "SIGNATURE_ERROR"


PROGRAMS = """
import enum
import dspy

class Team(enum.Enum):
    TECH = "tech"
    BILLING = "billing"

class Point:
    pass

class Sort(dspy.Signature):
    '''Sort a ticket.'''
    ticket: str = dspy.InputField(desc="as it came in")
    limit: int = dspy.InputField(default=3, ge=1)
    team: Team = dspy.OutputField()

class Own(dspy.Module):
    def __init__(self):
        super().__init__()
        self.ask = dspy.Predict(Sort)
    def forward(self, ticket):
        return self.ask(ticket=ticket)

def predict():
    return dspy.Predict(Sort)

def thought():
    return dspy.ChainOfThought("question -> answer: int")
"""


@pytest.mark.parametrize(
    ("target", "signature"),
    [
        ("predict", 'Sort a ticket.: ticket: str "as it came in", limit: int[1..] = 3 '
                    '-> team: Literal["tech", "billing"]'),
        ("thought", "question -> reasoning, answer: int"),
        ("Own", None),
        (
            {"module": "dspy.BestOfN", "signature": "a -> b", "options": {"reward": "filled:b"}},
            "a -> b",
        ),
        ({"module": "dspy.Predict", "signature": "be brief: a, n: int[1..9] = 3 -> b: float[0..1]"},
         "be brief: a, n: int[1..9] = 3 -> b: float[0..1]"),
    ],
)  # fmt: skip
def test_a_loaded_program_tells_its_signature(ops: Operations, tmp_path: Path, target: Any, signature: Any) -> None:
    (tmp_path / "told.py").write_text(PROGRAMS)
    where = f"{tmp_path}/told.py:{target}" if isinstance(target, str) else target
    assert run(ops, "programs.load", {"target": where})["signature"] == signature


def test_the_whole_way_through_a_worker_process() -> None:
    target = {"module": "dspy.ChainOfThought", "signature": TEXT}
    with Orchestrator(pools={"general": {"size": 1}}) as running, running.client() as client:
        judged(client.predict(TEXT, **INPUTS))
        client.deploy("rate", target)
        judged(client.program("rate")(**INPUTS))
        (row,) = client.programs()
        assert str(parse(row["signature"]).delete("reasoning")) == str(parse(TEXT))
        with pytest.raises(InvalidRequest, match="an integer from 1 to 10"):
            client.program("rate")(**INPUTS, scale=11)
        with pytest.raises(RemoteError, match="must be a string that matches"):
            client.predict("text -> code: str['^[0-9]{7}$']", text="abc")
        with pytest.raises(InvalidRequest, match="text must be a string") as caught:
            client.execute("validate", {"signature": TEXT, "inputs": {"text": 7}}, pool="general")
        assert caught.value.path == "inputs.text"
