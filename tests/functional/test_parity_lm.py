"""A program through a coordinator and the same one in this process, on a provider's model: equal questions and answers.

The server compares for us: what a request's body holds is all that a model could tell the two apart by.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dspy
import pytest

from orchestrator import Client, Final, Orchestrator, Token, errors
from tests.support.openai_server import Answer, OpenAIServer, Seen

KEY = "k" * 12
MODEL = "openai/gpt-4o-mini"
PARAMS = {"temperature": 0.25, "max_tokens": 300}
QUESTION = {"question": "what is the weather of the city Rome?"}
PICTURE = dspy.Image("data:image/png;base64,iVBORw0KGgo=")
TYPED = "question -> mood: Literal['good', 'bad'], numbers: list[int], sure: float, notes: dict[str, str]"
FIELDS = {"mood": "bad", "numbers": [3, 5], "sure": 0.5, "notes": {"a": "b"}}
PROGRAM = """
import dspy

class Ask(dspy.Signature):
    "Answer, and say how sure you are."
    question: str = dspy.InputField(desc="what somebody asks")
    answer: str = dspy.OutputField()
    sure: float = dspy.OutputField(desc="from 0 to 1")

class Twice(dspy.Module):
    def __init__(self):
        super().__init__()
        self.first = dspy.Predict(Ask, temperature=0.9)
        self.check = dspy.ChainOfThought("question, draft -> answer: str, sure: float")
        self.first.demos = [dspy.Example(question="is it?", answer="it is", sure=0.125)]

    def forward(self, question):
        draft = self.first(question=question)
        return self.check(question=question, draft=draft.answer)
"""


def chat(fields: dict[str, Any]) -> str:
    """Return what a model answers to a prompt of the ChatAdapter."""
    parts = ((name, value if isinstance(value, str) else json.dumps(value)) for name, value in fields.items())
    return "\n\n".join([*(f"[[ ## {name} ## ]]\n{text}" for name, text in parts), "[[ ## completed ## ]]"])


@pytest.fixture(scope="module")
def server() -> Iterator[OpenAIServer]:
    with OpenAIServer() as found:
        yield found


@pytest.fixture(scope="module")
def client(server: OpenAIServer) -> Iterator[Client]:
    lm = {"model": MODEL, "api_key": KEY, "api_base": server.url, "params": PARAMS}
    pools = {"general": {"size": 1, "slots": 4}, "optimizer": {"size": 0}, "neural": {"size": 0}}
    with (
        Orchestrator(pools=pools, lms={"default": lm, "hasty": {**lm, "timeout_s": 0.3}}) as orchestrator,
        orchestrator.client() as client,
    ):
        yield client


@pytest.fixture(autouse=True)
def _fresh(server: OpenAIServer) -> None:
    server.requests.clear()


def here(server: OpenAIServer, **more: Any) -> Any:
    """Return the model as a program of one process has it."""
    return dspy.LM(MODEL, api_key=KEY, api_base=server.url, num_retries=0, cache=False, **PARAMS, **more)


def bodies(server: OpenAIServer) -> list[Any]:
    """Return the requests since the last time."""
    found = [(seen.path, dict(seen.body)) for seen in server.requests]
    server.requests.clear()
    return found


def compared(
    server: OpenAIServer, own: Callable[[], Any], through: Callable[[], Any], **context: Any
) -> tuple[Any, list[Any]]:
    """Run both; return what ours answered and the bodies of the requests. Asserts that both are equal."""
    with dspy.context(lm=here(server), disable_history=True, **context):
        expected = own()
    asked = bodies(server)
    found = through()
    assert bodies(server) == asked
    assert dict(found) == dict(expected)
    return found, [body for _, body in asked]


def test_one_predictor(client: Client, server: OpenAIServer) -> None:
    server.answer = Answer(chat({"answer": "sunny"}))
    signature = "question -> answer"
    found, (asked,) = compared(
        server, lambda: dspy.Predict(signature)(**QUESTION), lambda: client.predict(signature, **QUESTION)
    )
    assert found.answer == "sunny"
    assert (asked["model"], asked["temperature"], 300 in asked.values()) == ("gpt-4o-mini", 0.25, True)
    assert found.meta.lm_calls == 1
    assert found.meta.tokens > 50


def test_typed_outputs(client: Client, server: OpenAIServer) -> None:
    server.answer = Answer(chat({"reasoning": "clouds", **FIELDS}))
    found, _ = compared(
        server,
        lambda: dspy.ChainOfThought(TYPED)(**QUESTION),
        lambda: client.module("dspy.ChainOfThought", TYPED)(**QUESTION),
    )
    assert dict(found) == {"reasoning": "clouds", **FIELDS}


def test_a_schema_of_json(client: Client, server: OpenAIServer) -> None:
    server.answer = Answer(json.dumps(FIELDS))
    signature = TYPED.partition(", notes")[0]  # a schema of OpenAI's has no mappings
    _, (asked,) = compared(
        server,
        lambda: dspy.Predict(signature)(**QUESTION),
        lambda: client.module("dspy.Predict", signature, options={"adapter": "json"})(**QUESTION),
        adapter=dspy.JSONAdapter(),
    )
    schema = asked["response_format"]["json_schema"]["schema"]
    assert set(schema["properties"]) == {"mood", "numbers", "sure"}
    assert schema["properties"]["mood"]["enum"] == ["good", "bad"]


def test_an_answer_that_cannot_be_read_is_asked_for_again_as_json(client: Client, server: OpenAIServer) -> None:
    def answer(seen: Seen) -> Answer:
        return Answer(json.dumps({"answer": "sunny"}) if "response_format" in seen.body else "I do not know.")

    server.answer = answer
    found, asked = compared(
        server,
        lambda: dspy.Predict("question -> answer")(**QUESTION),
        lambda: client.predict("question -> answer", **QUESTION),
    )
    assert (found.answer, len(asked), found.meta.lm_calls) == ("sunny", 2, 2)


def test_native_tool_calls_of_a_function_of_this_process(client: Client, server: OpenAIServer) -> None:
    called: list[str] = []

    def weather(city: str, days: int = 1) -> str:
        """Tell the weather of a city."""
        called.append(city)
        return f"sunny in {city}, {days}"

    def answer(seen: Seen) -> Answer:
        if "sunny in Rome" in json.dumps(seen.body["messages"]):
            return Answer("", tool_calls=(("submit", {"answer": "sunny"}),))
        return Answer("", tool_calls=(("weather", {"city": "Rome", "days": 2}),))

    server.answer = answer
    found, asked = compared(
        server,
        lambda: _without_history(dspy.ReActV2("question -> answer", [weather])(**QUESTION)),
        lambda: _without_history(
            client.module("dspy.ReActV2", "question -> answer", tools=[weather], options={"adapter": "json"})(
                **QUESTION
            )
        ),
        adapter=dspy.JSONAdapter(),
    )
    assert found["answer"] == "sunny"
    assert called == ["Rome", "Rome"]
    assert [tool["function"]["name"] for tool in asked[0]["tools"]] == ["weather", "submit"]
    assert asked[0]["tools"][0]["function"]["parameters"]["properties"]["city"]["type"] == "string"


def _without_history(prediction: Any) -> dict[str, Any]:
    """Return what can be compared: of a History and of tool calls both sides have objects of their own."""
    return {name: value for name, value in dict(prediction).items() if isinstance(value, str)}


def test_the_text_based_agent(client: Client, server: OpenAIServer) -> None:
    def weather(city: str) -> str:
        """Tell the weather of a city."""
        return f"sunny in {city}" if city == "Rome" else f"{city} is not known"

    def answer(seen: Seen) -> Answer:
        said = json.dumps(seen.body["messages"])
        if "[[ ## reasoning ## ]]" in seen.body["messages"][0]["content"]:
            return Answer(chat({"reasoning": "r", "answer": "sunny"}))
        name, args = ("finish", {}) if "sunny in Rome" in said else ("weather", {"city": "Rome"})
        if "is not known" not in said:
            name, args = "weather", {"city": "Rom"}
        return Answer(chat({"next_thought": "t", "next_tool_name": name, "next_tool_args": args}))

    server.answer = answer
    found, asked = compared(
        server,
        lambda: dspy.ReAct("question -> answer", [weather])(**QUESTION),
        lambda: client.module("dspy.ReAct", "question -> answer", tools=[weather])(**QUESTION),
    )
    assert (found.answer, len(asked)) == ("sunny", 4)
    assert found.trajectory["observation_0"] == "Rom is not known"


def test_a_picture_is_a_part_of_the_message(client: Client, server: OpenAIServer) -> None:
    server.answer = Answer(chat({"answer": "a dot"}))
    signature = "picture: dspy.Image, question -> answer"
    _, (asked,) = compared(
        server,
        lambda: dspy.Predict(signature)(picture=PICTURE, **QUESTION),
        lambda: client.predict(signature, picture=PICTURE, **QUESTION),
    )
    assert {"type": "image_url", "image_url": {"url": PICTURE.url}} in asked["messages"][-1]["content"]


def test_a_program_with_demonstrations_and_a_setting_of_its_own(
    client: Client, server: OpenAIServer, tmp_path: Path
) -> None:
    file = tmp_path / "twice_of_parity.py"
    file.write_text(PROGRAM)
    namespace: dict[str, Any] = {"__name__": "twice_of_parity"}
    exec(PROGRAM, namespace)
    server.answer = Answer(chat({"reasoning": "r", "answer": "sunny", "sure": 0.75}))
    client.deploy("twice", f"{file}:Twice")
    found, asked = compared(
        server, lambda: namespace["Twice"]()(**QUESTION), lambda: client.program("twice")(**QUESTION)
    )
    assert (found.sure, [body["temperature"] for body in asked]) == (0.75, [0.9, 0.25])
    assert "is it?" in json.dumps(asked[0]["messages"])


def test_streamed_text(client: Client, server: OpenAIServer) -> None:
    words = "one two three four five six seven eight nine ten eleven twelve"
    server.answer = Answer(chat({"reasoning": words, "answer": words[::-1]}))

    async def own() -> tuple[list[tuple[str, str]], Any]:
        module = dspy.ChainOfThought("question -> answer")
        listeners = [dspy.streaming.StreamListener(name) for name in ("reasoning", "answer")]
        chunks: list[tuple[str, str]] = []
        async for item in dspy.streamify(module, stream_listeners=listeners, is_async_program=True)(**QUESTION):
            if isinstance(item, dspy.Prediction):
                return chunks, item
            if isinstance(item, dspy.streaming.StreamResponse):
                chunks.append((item.signature_field_name, item.chunk))
        raise AssertionError("no prediction")

    with dspy.context(lm=here(server), disable_history=True):
        expected_chunks, expected = asyncio.run(own())
    asked = bodies(server)
    *items, final = client.module("dspy.ChainOfThought", "question -> answer").stream(**QUESTION)
    chunks = [(item.field, item.text) for item in items if isinstance(item, Token)]
    assert isinstance(final, Final)
    assert dict(final.value) == dict(expected)
    assert _texts(chunks) == _texts(expected_chunks)
    assert len(chunks) > 10
    assert bodies(server) == asked
    assert asked[0][1]["stream"] is True


def _texts(chunks: list[tuple[str, str]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, text in chunks:
        found[name] = found.get(name, "") + text
    return found


@pytest.mark.parametrize("status", [401, 404, 429, 500])
def test_errors_of_the_provider(client: Client, server: OpenAIServer, status: int) -> None:
    server.answer = Answer("not now", status=status, headers={"Retry-After": "3"} if status == 429 else {})
    with dspy.context(lm=here(server), disable_history=True), pytest.raises(dspy.LMError) as own:
        dspy.Predict("question -> answer")(**QUESTION)
    asked = bodies(server)
    with pytest.raises(errors.LMError, match="not now") as caught:
        client.predict("question -> answer", **QUESTION)
    assert bodies(server) == asked
    assert caught.value.status == own.value.status == status
    assert caught.value.provider == "openai"
    assert caught.value.details["type"] == type(own.value).__name__
    assert caught.value.retryable == (status in (429, 500))
    assert KEY not in str(caught.value)


def test_a_provider_that_does_not_answer(client: Client, server: OpenAIServer) -> None:
    server.answer = Answer(hang=True)
    with dspy.context(lm=here(server, timeout=0.3), disable_history=True), pytest.raises(dspy.LMError) as own:
        dspy.Predict("question -> answer")(**QUESTION)
    with pytest.raises(errors.LMError) as caught:
        client.module("dspy.Predict", "question -> answer", lm="hasty")(**QUESTION)
    # DSPy by itself cannot tell a silent provider from one that is not there; workers can.
    assert (type(own.value), caught.value.details["type"]) == (dspy.LMTransportError, "LMTimeoutError")
    assert (caught.value.provider, caught.value.status, caught.value.retryable) == ("openai", None, True)
    server.wait_idle()
