"""DSPy's modules as a client calls them: every one by name, and what is told where there is no sandbox."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from orchestrator import Client, Orchestrator, errors
from tests.support.waiting import wait_until

TOOL = '''
def weather(city: str) -> str:
    """Tell the weather of a city."""
    return f"sunny in {city}"
'''
ENDLESS = """
import dspy
from dspy.primitives.code_interpreter import _create_interpreter

class Endless(dspy.Module):
    def forward(self):
        interpreter = _create_interpreter(None)
        try:
            interpreter.execute("while True: pass")
        finally:
            interpreter.shutdown()
"""
CORPUS = ["red cats sleep", "blue dogs bark", "a green parrot talks"]
QUESTION = {"question": "what is the weather of the city Rome?"}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    empty = tmp_path_factory.mktemp("empty")
    pools = {"general": {"size": 1, "env": {"PATH": str(empty)}}, "optimizer": {"size": 0}, "neural": {"size": 0}}
    with Orchestrator(pools=pools) as orc, orc.client() as client:
        yield client


@pytest.fixture(scope="module")
def tool(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("tools") / "tools_of_client.py"
    file.write_text(TOOL)
    return f"{file}:weather"


@pytest.mark.parametrize(
    ("kind", "options", "lm_calls"),
    [
        ("dspy.Predict", {"adapter": "json"}, 1),
        ("dspy.ChainOfThought", {"adapter": "xml"}, 1),
        ("dspy.ReAct", {"tools": True}, 3),
        ("dspy.ReActV2", {"tools": True, "adapter": "json"}, 2),
        ("dspy.BestOfN", {"module": "dspy.ReActV2", "tools": True, "N": 2, "reward": "filled:answer"}, 2),
        ("dspy.Refine", {"N": 2, "reward": "concise:answer", "threshold": 2, "adapter": "baml"}, 3),
    ],
)
def test_modules_with_a_signature(client: Client, tool: str, kind: str, options: Any, lm_calls: int) -> None:
    if options.get("tools"):
        options = {**options, "tools": [tool]}
    answer = client.execute(kind, {"signature": "question -> answer", "inputs": QUESTION, "options": options})
    assert answer.answer
    assert answer.meta.lm_calls == lm_calls
    assert answer.meta.tokens > 0


def test_modules_without_one(client: Client) -> None:
    rows = [{"question": str(number)} for number in range(6)]
    future = client.submit("dspy.Parallel", {"signature": "question -> answer", "inputs": rows})
    assert len(future.result(30)) == 6
    assert future.meta.lm_calls == 6
    found = client.execute("dspy.Embeddings", {"query": "cats", "corpus": CORPUS, "k": 1})
    assert found.passages == ["red cats sleep"]
    assert client.execute("dspy.Retrieve", {"query": "parrot", "corpus": CORPUS, "k": 1}).passages == CORPUS[2:]
    trainset = [{"question": text, "answer": text.split()[1]} for text in CORPUS]
    (row,) = client.execute("dspy.KNN", {"inputs": {"question": "dogs"}, "options": {"k": 1, "trainset": trainset}})
    assert row["answer"] == "dogs"
    completions = [{"answer": "Paris"}, {"answer": "Rome"}, {"answer": "paris"}]
    assert client.execute("dspy.majority", {"completions": completions}).answer == "Paris"


@pytest.mark.parametrize("kind", ["dspy.ProgramOfThought", "dspy.CodeAct", "dspy.RLM"])
def test_without_a_sandbox_the_error_says_what_to_do(client: Client, kind: str) -> None:
    with pytest.raises(errors.SandboxMissing, match=r"pip install 'dspool\[sandbox\]'") as caught:
        client.module(kind, "question -> answer")(**QUESTION)
    assert (caught.value.module, caught.value.sandbox, caught.value.retryable) == (kind, "deno", False)


def test_unknown_names(client: Client) -> None:
    with pytest.raises(errors.NotFound) as caught:
        client.module("dspy.ReActV3", "question -> answer")(**QUESTION)
    assert "dspy.ReActV2" in caught.value.suggestions
    with pytest.raises(errors.InvalidRequest, match="did you mean 'json'") as refused:
        client.module("dspy.Predict", "question -> answer", options={"adapter": "jsn"})(**QUESTION)
    assert refused.value.path == "options.adapter"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("deno") is None, reason="there is no deno on PATH (pip install 'dspool[sandbox]')")
@pytest.mark.parametrize("how", ["cancel", "deadline", "kill"])
def test_a_sandbox_ends_with_its_call(tmp_path: Path, how: str) -> None:
    (tmp_path / "endless.py").write_text(ENDLESS)
    cache = Path(os.environ["HOME"]) / ".cache" / "deno"
    pools = {"general": {"size": 1, "env": {"DENO_DIR": str(cache)}}, "optimizer": {"size": 0}, "neural": {"size": 0}}
    with Orchestrator(pools=pools) as orc, orc.client() as client:
        client.deploy("endless", f"{tmp_path}/endless.py:Endless")
        future = client.submit("endless", {}, deadline_s=15 if how == "deadline" else 60)

        def denos() -> list[psutil.Process]:
            return [one for one in psutil.Process(orc.pid).children(recursive=True) if _runs_code(one)]

        wait_until(lambda: len(denos()) == 1, 20, "a sandbox is there")
        (deno,) = denos()
        if how != "deadline":
            wait_until(lambda: deno.cpu_times().user > 5.0, 40, "it computes")
        if how == "cancel":
            future.cancel()
        elif how == "kill":
            (worker,) = [one for one in client.workers() if one["pool"] == "general" and one["state"] != "exited"]
            psutil.Process(worker["pid"]).kill()
        with pytest.raises((errors.Cancelled, errors.DeadlineExceeded, errors.WorkerLost)):
            future.result(40)
        wait_until(lambda: not deno.is_running(), 10, "the sandbox is gone")


def _runs_code(process: psutil.Process) -> bool:
    try:
        return process.name() == "deno" and "run" in process.cmdline()
    except psutil.Error:  # it has ended meanwhile
        return False
