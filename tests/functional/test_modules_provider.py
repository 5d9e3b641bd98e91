"""Modules on a provider's language model: what one process of DSPy alone asks and answers, they ask and answer too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import dspy
import pytest

from bridge.worker.call import Call
from tests.support.openai_server import Answer, OpenAIServer, Seen
from tests.support.operations import built, run

KEY = "k" * 12
TOOL = '''
def weather(city: str) -> str:
    """Tell the weather of a city."""
    return f"sunny in {city}"
'''
QUESTION = {"question": "what is the weather of the city Rome?"}


def bodies(server: OpenAIServer) -> list[Any]:
    found = [dict(seen.body) for seen in server.requests]
    server.requests.clear()
    return found


def lm_of(server: OpenAIServer) -> Any:
    # The engine that workers use, chosen by hand: DSPy's own choice is the same for this model.
    return dspy.LM("openai/gpt-4o-mini", api_key=KEY, api_base=server.url, engine="lm15", num_retries=0, cache=False)


def lms(server: OpenAIServer) -> dict[str, Any]:
    return {"default": {"model": "openai/gpt-4o-mini", "api_key": KEY, "api_base": server.url}}


@pytest.mark.parametrize("adapter", ["json", "chat"])
def test_native_tool_calls_are_those_of_one_process(tmp_path: Path, adapter: str) -> None:
    (tmp_path / "provider_tools.py").write_text(TOOL)
    namespace: dict[str, Any] = {}
    exec(TOOL, namespace)

    def answer(seen: Seen) -> Answer:
        finished = "sunny in Rome" in json.dumps(seen.body["messages"])
        name, args = ("submit", {"answer": "sunny"}) if finished else ("weather", {"city": "Rome"})
        if seen.body.get("tools"):
            return Answer(text="", tool_calls=((name, args),))
        calls = json.dumps({"tool_calls": [{"name": name, "args": args}]})
        text = f"[[ ## next_thought ## ]]\nx\n\n[[ ## tool_calls ## ]]\n{calls}\n\n[[ ## completed ## ]]"
        return Answer(text=text)

    with OpenAIServer(answer) as server:
        own = dspy.JSONAdapter() if adapter == "json" else dspy.ChatAdapter()
        with dspy.context(lm=lm_of(server), adapter=own, disable_history=True):
            expected = dspy.ReActV2("question -> answer", [namespace["weather"]])(**QUESTION)
        asked = bodies(server)
        with built(lms=lms(server)) as ops:
            options = {"tools": [f"{tmp_path}/provider_tools.py:weather"], "adapter": adapter}
            args = {"signature": "question -> answer", "inputs": QUESTION, "options": options}
            call = Call(1, 1, "dspy.ReActV2")
            found = run(ops, "dspy.ReActV2", args, call=call)
        assert (found.answer, found.termination_reason) == (expected.answer, expected.termination_reason)
        assert bodies(server) == asked
        assert call.lm_calls == len(asked) == 2
        assert bool(asked[0].get("tools")) == (adapter == "json")


@pytest.mark.parametrize("adapter", ["chat", "json", "xml", "baml"])
def test_prompts_and_schemas_are_those_of_one_process(adapter: str) -> None:
    from dspy.adapters.baml_adapter import BAMLAdapter  # type: ignore[import-untyped]

    made = {"chat": dspy.ChatAdapter, "json": dspy.JSONAdapter, "xml": dspy.XMLAdapter, "baml": BAMLAdapter}[adapter]
    texts = {
        "chat": "[[ ## mood ## ]]\ngood\n\n[[ ## n ## ]]\n3\n\n[[ ## completed ## ]]",
        "xml": "<mood>good</mood>\n<n>3</n>",
    }
    signature = "question -> mood: Literal['good', 'bad'], n: int"
    with OpenAIServer(Answer(text=texts.get(adapter, '{"mood": "good", "n": 3}'))) as server:
        with dspy.context(lm=lm_of(server), adapter=made(), disable_history=True):
            expected = dspy.Predict(signature)(**QUESTION)
        asked = bodies(server)
        with built(lms=lms(server)) as ops:
            args = {"signature": signature, "inputs": QUESTION, "options": {"adapter": adapter}}
            found = run(ops, "dspy.Predict", args)
        assert dict(found) == dict(expected)
        assert bodies(server) == asked
        assert ("response_format" in asked[0]) == (adapter in ("json", "baml"))
