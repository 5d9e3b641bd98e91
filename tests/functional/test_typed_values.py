"""DSPy's types and pydantic models through a coordinator and a worker, there and back."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dspy
import numpy
import pytest
from dspy.experimental import Citations, Document

from orchestrator import Client, Example, Orchestrator, Prediction, Record, errors
from tests.support.acceptance import ROOT, pools
from tests.support.openai_server import OpenAIServer

PICTURE = "data:image/png;base64,iVBORw0KGgo="
MODELS = """
import enum
import pydantic

class Team(enum.Enum):
    TECH = "tech"

class Ticket(pydantic.BaseModel, frozen=True):
    team: Team
    words: tuple[str, ...] = ()
"""
PROGRAMS = """
import dspy
import pydantic
from tickets_of_both import Team, Ticket

class Mine(pydantic.BaseModel):
    ticket: Ticket
    note: str = "only here"

class Same(dspy.Module):
    def forward(self, value):
        kind = type(value).__module__ + "." + type(value).__name__
        return dspy.Prediction(same=value, within=[{"v": value}], kind=kind)

class Look(dspy.Module):
    def __init__(self):
        super().__init__()
        self.look = dspy.Predict("picture: dspy.Image, history: dspy.History, notes: list[dspy.File] -> answer")

    def forward(self, picture, history, notes):
        return dspy.Prediction(answer=self.look(picture=picture, history=history, notes=notes).answer, picture=picture,
                               history=history, notes=notes)

class Several(dspy.Module):
    def forward(self, score):
        return dspy.Prediction.from_completions([{"answer": "a", "score": score}, {"answer": "b", "score": 0}])

class Models(dspy.Module):
    def forward(self):
        ticket = Ticket(team=Team.TECH, words=("a", "b"))
        return dspy.Prediction(ticket=ticket, mine=Mine(ticket=ticket))
"""
VALUES: dict[str, Any] = {
    "image": dspy.Image(PICTURE),
    "audio": dspy.Audio(b"abc", audio_format="wav"),
    "file": dspy.File.from_bytes(b"abc", "a.txt"),
    "history": dspy.History(messages=[{"question": "q", "picture": dspy.Image(PICTURE)}]),
    "code": dspy.Code(code="x = 1"),
    "reasoning": dspy.Reasoning(content="so"),
    "tool calls": dspy.ToolCalls.from_dict_list([{"name": "search", "args": {"q": [1, None]}}]),
    "tool call results": dspy.ToolCallResults(tool_call_results=[{"name": "search", "value": {"found": 1}}]),
    "document": Document(data="text", title="t"),
    "citations": Citations.from_dict_list(
        [{"cited_text": "x", "document_index": 0, "start_char_index": 0, "end_char_index": 1}]
    ),
    "example": dspy.Example(q=1, a=2).with_inputs("q"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("typed")
    (path / "tickets_of_both.py").write_text(MODELS, encoding="utf-8")
    (path / "typed_programs.py").write_text(PROGRAMS, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def server() -> Iterator[OpenAIServer]:
    with OpenAIServer() as server:
        yield server


@pytest.fixture(scope="module")
def client(folder: Path, server: OpenAIServer) -> Iterator[Client]:
    local = {"model": "openai/gpt-4o-mini", "api_key": "test-0f9e8d7c6b5a", "api_base": server.url}
    lms = {"default": {"model": "offline/knn"}, "local": local}
    with (
        Orchestrator(pools=pools(1, 1), python_path=[str(folder)], lms=lms) as orchestrator,
        orchestrator.client() as client,
    ):
        for name in ("Same", "Look", "Several", "Models"):
            client.deploy(name.lower(), f"typed_programs:{name}")
        yield client


@pytest.mark.parametrize("name", VALUES)
def test_a_typed_value_makes_the_round_trip(client: Client, name: str) -> None:
    value = VALUES[name]
    assert client.execute("echo", {"v": [value]}) == {"v": [value]}
    answer = client.program("same")(value=value)
    assert answer.same == answer.within[0]["v"] == value
    assert type(answer.same) is type(value)
    # In the worker it was DSPy's own.
    assert answer.kind == f"{type(value).__module__}.{type(value).__name__}"
    if name == "example":
        assert answer.same.inputs().toDict() == {"q": 1}


def test_arrays_and_predictions_too(client: Client) -> None:
    array = numpy.arange(6.0).reshape(2, 3)
    assert numpy.array_equal(client.program("same")(value=array).same, array)
    before = client.program("several")(score=0.5)
    assert client.execute("echo", before) == before
    again = client.program("same")(value=before)
    assert again.kind == "dspy.primitives.prediction.Prediction"
    assert again.same == before
    assert again.same.completions == before.completions


def test_rows_may_be_examples(client: Client) -> None:
    rows = [dspy.Example(value=n, answer="a").with_inputs("value").inputs() for n in range(20)]
    assert [one.same for one in client.map("same", rows)] == list(range(20))
    assert client.execute(
        "dspy.Predict", {"signature": "text -> amount: float", "inputs": Example({"text": "3 euros"})}
    )


def test_a_prediction_has_completions_usage_and_score(client: Client) -> None:
    answer = client.program("several")(score=0.5)
    assert isinstance(answer, Prediction)
    assert answer.completions.answer == ["a", "b"]
    assert dict(answer.completions[1]) == {"answer": "b", "score": 0}
    assert answer > 0.25
    answer = client.predict("question -> answer", question="why?")
    assert answer.completions.answer == [answer.answer]
    assert answer.meta is not None
    assert sum(one["total_tokens"] for one in answer.usage.values()) == answer.meta.tokens > 0


def test_typed_inputs_of_a_signature(client: Client) -> None:
    given = {"picture": dspy.Image(PICTURE), "history": VALUES["history"], "notes": [dspy.File(b"abc")]}
    answer = client.program("look")(**given)
    assert {name: answer[name] for name in given} == given
    for picture in (PICTURE, "https://host.example/a.png", b"GIF89a"):
        assert client.predict("picture: dspy.Image, question -> answer", picture=picture, question="what?").answer


@pytest.mark.parametrize(
    "picture", ["missing.png", "/etc/passwd", b"no picture", Record("dspy.Image", {"url": "a.png"})]
)
def test_a_path_is_no_image(client: Client, picture: Any) -> None:
    with pytest.raises(errors.InvalidRequest, match=r"inputs\.picture") as caught:
        client.predict("picture: dspy.Image -> answer", picture=picture)
    assert caught.value.path == "inputs.picture"
    # Where DSPy makes one of a file, it is the sender who is told.
    with pytest.raises(ValueError, match="File not found"):
        dspy.Image.from_path("missing.png")


def test_a_language_model_is_sent_what_one_process_sends(client: Client, server: OpenAIServer) -> None:
    signature = "pictures: list[dspy.Image], history: dspy.History, code: dspy.Code -> answer"
    given = {"pictures": [dspy.Image(PICTURE)], "history": VALUES["history"], "code": VALUES["code"]}
    assert client.module("dspy.Predict", signature, lm="local")(**given).answer == "blue"
    with dspy.context(lm=dspy.LM("openai/gpt-4o-mini", api_key="k", api_base=server.url, cache=False)):
        assert dspy.Predict(signature)(**given).answer == "blue"
    there, here = (request.body["messages"] for request in server.requests)
    assert there == here
    assert PICTURE in json.dumps(there)
    assert "CUSTOM-TYPE" not in json.dumps(there)


def test_models_arrive_as_their_classes_where_these_are_loaded(
    client: Client, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = client.program("models")()
    assert type(first.ticket) is Record
    assert (first.ticket["team"], first.ticket.words) == ("tech", ("a", "b"))
    assert first.mine.note == "only here"
    assert "typed_programs" not in sys.modules

    monkeypatch.syspath_prepend(str(folder))
    module = importlib.import_module("tickets_of_both")
    try:
        second = client.program("models")()
        ticket = module.Ticket(team=module.Team.TECH, words=("a", "b"))
        assert second.ticket == ticket
        assert second.mine.ticket == ticket
        assert first.ticket.to(module.Ticket) == ticket
        # A worker has the class: a record of it becomes the class there, and comes back as the class.
        assert client.program("same")(value=first.ticket).same == ticket
        assert client.program("same")(value=ticket).kind == "tickets_of_both.Ticket"
    finally:
        del sys.modules["tickets_of_both"]


WITHOUT_DSPY = """
import sys
from orchestrator import Client, Example, Record
with Client(sys.argv[1]) as client:
    image = Record("dspy.Image", {"url": sys.argv[2]})
    answer = client.program("same")(value=image)
    assert answer.same == image and answer.kind == "dspy.adapters.types.image.Image", answer
    row = Example({"q": 1, "a": 2}, ["q"])
    back = client.program("same")(value=row).same
    assert type(back) is Example and back == row and back.inputs().q == 1, back
assert not {"dspy", "pydantic", "numpy"} & set(sys.modules)
"""


def test_a_client_without_dspy_has_records(client: Client) -> None:
    command = [sys.executable, "-c", WITHOUT_DSPY, client.endpoint, PICTURE]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    command = [sys.executable, "-m", "orchestrator.cli", "call", "models", "--json"]
    environ = {**os.environ, "DSPOOL_ENDPOINT": client.endpoint}
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["value"]["ticket"] == {"team": "tech", "words": ["a", "b"]}
