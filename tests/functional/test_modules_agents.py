"""Agents, and modules that ask another one again: ReAct, ReActV2, BestOfN, Refine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bridge.protocol.errors import BridgeError
from bridge.protocol.values import decode_value, encode_value
from bridge.worker.call import Call, CallStopped
from bridge.worker.operations import Asynchronous, Operations
from tests.support.operations import built, deploying, refused, run

WEATHER: dict[str, Any] = {
    "signature": "question -> answer, days: int",
    "inputs": {"question": "what is the weather of the city Rome?"},
}
TOOLS = '''
import time

def weather(city: str) -> str:
    """Tell the weather of a city."""
    return f"3 sunny days in {city}"

def broken_weather(city: str) -> str:
    """Tell the weather of a city."""
    raise LookupError(f"no such city: {city}")

def odd_weather(city: str) -> object:
    """Tell the weather of a city."""
    return {"city": city, "at": object}

def slow_weather(city: str) -> str:
    """Tell the weather of a city."""
    for _ in range(15):
        time.sleep(0.02)
    return "late"

def submit(city: str) -> str:
    """Tell the weather of a city."""
    return "taken"

def finish(city: str) -> str:
    """Tell the weather of a city."""
    return "taken"

def length(inputs, prediction):
    """The longer, the better."""
    return float(len(prediction.answer))
'''


@pytest.fixture(scope="module")
def ops() -> Iterator[Operations]:
    with built() as operations:
        yield operations


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("tools") / "weather_tools.py"
    file.write_text(TOOLS)
    return file


def with_tool(tools: Path, name: str, **options: Any) -> dict[str, Any]:
    return {**WEATHER, "options": {"tools": [f"{tools}:{name}"], "max_iters": 4, **options}}


@pytest.mark.parametrize("adapter", ["chat", "json", "xml", "baml"])
@pytest.mark.parametrize("kind", ["dspy.ReAct", "dspy.ReActV2"])
def test_agents_call_tools_through_every_adapter(ops: Operations, tools: Path, kind: str, adapter: str) -> None:
    call = Call(1, 1, kind)
    answer = run(ops, kind, with_tool(tools, "weather", adapter=adapter), call=call)
    assert (answer.answer, answer.days) == ("3 sunny days in Rome", 3)
    assert call.lm_calls == (3 if kind == "dspy.ReAct" else 2)


def test_a_conversation_goes_on_where_it_ended(ops: Operations, tools: Path) -> None:
    args = with_tool(tools, "weather")
    first = run(ops, "dspy.ReActV2", args)
    assert first.termination_reason == "submit"
    told = len(first.history.messages)
    assert told == 2
    again = run(ops, "dspy.ReActV2", {**args, "inputs": {**args["inputs"], "history": first.history}})
    assert again.answer == first.answer
    assert len(again.history.messages) == 2 * told
    # Each attempt goes on from the same place.
    best = {"module": "dspy.ReActV2", "N": 3, "threshold": 9, "reward": "filled:answer", **args["options"]}
    inputs = {**args["inputs"], "history": first.history}
    assert len(run(ops, "dspy.BestOfN", {**args, "inputs": inputs, "options": best}).history.messages) <= 2 * told
    assert len(first.history.messages) == told


@pytest.mark.parametrize("kind", ["dspy.ReAct", "dspy.ReActV2"])
def test_on_an_event_loop_they_answer_alike(ops: Operations, tools: Path, kind: str) -> None:
    args = with_tool(tools, "weather")
    operation = ops.find(kind)
    assert isinstance(operation, Asynchronous)

    async def ask() -> Any:
        return decode_value(encode_value(await operation.run_async(args, Call(1, 1, kind))))  # type: ignore[misc]

    assert asyncio.run(ask()).answer == run(ops, kind, args).answer


def test_who_waits_for_a_thread_says_so(ops: Operations, tools: Path) -> None:
    def is_async(kind: str, args: Any) -> bool:
        operation = ops.find(kind)
        return isinstance(operation, Asynchronous) and operation.is_async(args)

    assert is_async("dspy.Predict", WEATHER)
    assert is_async("dspy.ChainOfThought", WEATHER)
    assert not is_async("dspy.BestOfN", {**WEATHER, "options": {"reward": "filled:answer"}})
    assert not is_async("dspy.Predict", {"signature": "->", "options": 3})
    assert not is_async("dspy.Predict", None)


def test_what_a_tool_raises_is_an_observation(ops: Operations, tools: Path) -> None:
    answer = run(ops, "dspy.ReAct", with_tool(tools, "broken_weather"))
    assert "no such city: Rome" in answer.trajectory["observation_0"]
    results = run(ops, "dspy.ReActV2", with_tool(tools, "broken_weather")).history.messages[0]["tool_calls"]
    (result,) = results.tool_call_results.tool_call_results
    assert result.is_error
    assert "no such city: Rome" in result.value


def test_what_a_tool_returns_must_be_able_to_travel(ops: Operations, tools: Path) -> None:
    error = refused(ops, "dspy.ReAct", with_tool(tools, "odd_weather"))
    assert "trajectory" in error.message


@pytest.mark.parametrize("kind", ["dspy.ReAct", "dspy.ReActV2"])
def test_a_tool_that_blocks_is_stopped_at_the_deadline(ops: Operations, tools: Path, kind: str) -> None:
    began = time.monotonic()
    with pytest.raises(CallStopped) as caught:
        run(ops, kind, with_tool(tools, "slow_weather"), deadline=began + 0.1)
    assert caught.value.error.code == "DEADLINE_EXCEEDED"


@pytest.mark.parametrize(("kind", "name"), [("dspy.ReAct", "finish"), ("dspy.ReActV2", "submit")])
def test_a_tool_cannot_have_the_name_of_the_modules_own(ops: Operations, tools: Path, kind: str, name: str) -> None:
    error = refused(ops, kind, with_tool(tools, name))
    assert (error.code, error.details["path"]) == ("INVALID_REQUEST", "options.tools[0]")


@pytest.mark.parametrize(
    ("module", "options"),
    [("dspy.Predict", {}), ("dspy.ChainOfThought", {}), ("dspy.ReAct", {"max_iters": 2}), ("dspy.ReActV2", {})],
)
def test_best_of_n_and_refine_take_any_module(ops: Operations, tools: Path, module: str, options: Any) -> None:
    if "ReAct" in module:
        options = {"tools": [f"{tools}:weather"], **options}
    for kind in ("dspy.BestOfN", "dspy.Refine"):
        more = {"module": module, "N": 2, "threshold": 1e6, "reward": f"{tools}:length", **options}
        assert run(ops, kind, {**WEATHER, "options": more}).answer


def test_refine_asks_for_advice_between_attempts(ops: Operations, tools: Path) -> None:
    for threshold, calls in ((1e6, 5), (0.0, 1)):
        call = Call(1, 1, "dspy.Refine")
        options = {"N": 3, "threshold": threshold, "reward": f"{tools}:length"}
        run(ops, "dspy.Refine", {**WEATHER, "options": options}, call=call)
        assert call.lm_calls == calls


@pytest.mark.parametrize("kind", ["dspy.BestOfN", "dspy.Refine"])
@pytest.mark.parametrize(("tolerated", "attempts"), [(0, 1), (1, 2), (2, 3), (None, 3), (9, 3)])
def test_failures_are_counted_exactly(
    ops: Operations, tmp_path: Path, kind: str, tolerated: int | None, attempts: int
) -> None:
    file = tmp_path / "failing.py"
    file.write_text(
        "asked = []\ndef fails(inputs, prediction):\n    asked.append(1)\n    raise KeyError('no reward')\n"
    )
    call = Call(1, 1, kind)
    options = {"N": 3, "reward": f"{file}:fails", "fail_count": tolerated}
    if tolerated is None:
        del options["fail_count"]
    with pytest.raises(KeyError, match="no reward"):
        run(ops, kind, {**WEATHER, "options": options}, call=call)
    assert call.lm_calls == attempts


def test_deployed_agents_keep_their_options(ops: Operations, tools: Path) -> None:
    with deploying(ops) as define:
        options = {"tools": [f"{tools}:weather"], "adapter": "json"}
        define("agent", target={"module": "dspy.ReActV2", "signature": WEATHER["signature"], "options": options})
        assert run(ops, "agent", WEATHER["inputs"]).answer == "3 sunny days in Rome"


def test_what_cannot_be_built_is_built_once_in_an_attempt(ops: Operations, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    target = tmp_path / "broken.py"
    target.write_text(f"with open({str(ran)!r}, 'a') as ran:\n    ran.write('x')\nraise OSError('broken')\n")
    args = {**WEATHER, "options": {"tools": [f"{target}:weather"]}}
    operation = ops.find("dspy.ReAct")
    assert isinstance(operation, Asynchronous)
    for attempt in (1, 2):
        assert not operation.is_async(args)
        with pytest.raises(BridgeError, match="broken"):
            operation(args, Call(attempt, attempt, "dspy.ReAct"))
        assert ran.read_text() == "x" * attempt
