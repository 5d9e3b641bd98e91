"""What a call has used, counted where it is paid for: a server that counts its requests and their tokens."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bridge.worker.call import Call
from bridge.worker.operations import Operations
from tests.support.openai_server import Answer, OpenAIServer, Seen
from tests.support.operations import built, deploying, run

QA: dict[str, Any] = {"signature": "question -> answer", "inputs": {"question": "sky?"}}
PROGRAM = """
import dspy

class Outer(dspy.Module):
    def __init__(self):
        super().__init__()
        self.first = dspy.Predict("question -> answer")
        self.inner = dspy.ChainOfThought("question -> answer")

    def forward(self, question):
        pairs = [(self.inner, dspy.Example(question=f"{question} {n}").with_inputs("question")) for n in range(4)]
        dspy.Parallel(num_threads=2, disable_progress_bar=True)(pairs)
        return self.first(question=question)
"""


def answered(seen: Seen) -> Answer:
    """Answer every field that the system text lists, in the style that it asks for."""
    system = str(seen.body["messages"][0]["content"])
    outputs = system.partition("Your output fields are:")[2].partition("All interactions")[0]
    names = [line.split("`")[1] for line in outputs.splitlines() if "`" in line]
    values = {name: {"x": "try again"} if name == "advice" else "blue" for name in names}
    if not names:
        return Answer(text="The answer is blue.")
    if "JSON object" in system:
        return Answer(text=json.dumps(values))
    sections = [
        f"[[ ## {name} ## ]]\n{json.dumps(value) if name == 'advice' else value}" for name, value in values.items()
    ]
    return Answer(text="\n\n".join([*sections, "[[ ## completed ## ]]"]))


@pytest.fixture
def server() -> Iterator[OpenAIServer]:
    with OpenAIServer(answered) as running:
        yield running


@pytest.fixture
def ops(server: OpenAIServer) -> Iterator[Operations]:
    lm = {"model": "openai/gpt-4o-mini", "api_key": "k" * 12, "api_base": server.url}
    with built(lms={"default": lm, "reader": {**lm, "model": "openai/gpt-4o"}}) as operations:
        yield operations


def used(ops: Operations, server: OpenAIServer, name: str, args: Any) -> tuple[Call, list[Seen]]:
    before = len(server.requests)
    call = Call(1, 1, name)
    run(ops, name, args, call=call)
    return call, server.requests[before:]


def tokens_of(seen: Seen) -> int:
    """Return what the server says that a request used."""
    asked = " ".join(str(message["content"]) for message in seen.body["messages"])
    return max(len(asked.split()), 1) + len(answered(seen).text.split())


@pytest.mark.parametrize(
    ("name", "options", "requests"),
    [
        ("dspy.Predict", {}, 1),
        ("dspy.ChainOfThought", {"adapter": "json"}, 1),
        ("dspy.Predict", {"adapter": "two_step"}, 2),
        ("dspy.Predict", {"adapter": "two_step", "extraction_lm": "reader"}, 2),
        ("dspy.BestOfN", {"N": 4, "reward": "filled:answer", "threshold": 2}, 4),
        ("dspy.BestOfN", {"N": 4, "reward": "filled:answer", "threshold": 1}, 1),
        ("dspy.Refine", {"N": 3, "reward": "filled:answer", "threshold": 2}, 5),
    ],
)
def test_every_request_is_counted(
    ops: Operations, server: OpenAIServer, name: str, options: Any, requests: int
) -> None:
    call, seen = used(ops, server, name, {**QA, "options": options})
    assert len(seen) == call.lm_calls == requests
    assert call.tokens == sum(map(tokens_of, seen))
    assert call.cost_usd is not None
    assert call.cost_usd > 0


def test_threads_and_nested_modules_are_counted(ops: Operations, server: OpenAIServer, tmp_path: Path) -> None:
    args = {"signature": "question -> answer", "inputs": [{"question": str(number)} for number in range(12)]}
    call, seen = used(ops, server, "dspy.Parallel", {**args, "options": {"num_threads": 4}})
    assert len(seen) == call.lm_calls == 12
    assert call.tokens == sum(map(tokens_of, seen))
    (tmp_path / "outer.py").write_text(PROGRAM)
    with deploying(ops) as define:
        define("outer", target=f"{tmp_path}/outer.py:Outer")
        call, seen = used(ops, server, "outer", {"question": "sky?"})
    assert len(seen) == call.lm_calls == 5
    assert call.tokens == sum(map(tokens_of, seen))


def test_a_second_try_by_json_is_an_option(server: OpenAIServer, ops: Operations) -> None:
    with OpenAIServer(Answer(text="no fields at all")) as mute:
        lm = {"model": "openai/gpt-4o-mini", "api_key": "k" * 12, "api_base": mute.url}
        with built(lms={"default": lm}) as others:
            for options, requests in (({}, 2), ({"json_fallback": True}, 2), ({"json_fallback": False}, 1)):
                call = Call(1, 1, "dspy.Predict")
                with pytest.raises(Exception, match="failed to parse"):
                    run(others, "dspy.Predict", {**QA, "options": options}, call=call)
                assert call.lm_calls == requests
            assert len(mute.requests) == 5


def test_the_extraction_model_is_the_one_that_is_named(ops: Operations, server: OpenAIServer) -> None:
    _, seen = used(ops, server, "dspy.Predict", {**QA, "options": {"adapter": "two_step", "extraction_lm": "reader"}})
    assert [one.body["model"] for one in seen] == ["gpt-4o-mini", "gpt-4o"]
