"""Modules and programs read as they write: through a real coordinator, by both clients and the command."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator import AsyncClient, Client, Final, Orchestrator, Token
from orchestrator.errors import DeadlineExceeded, NotFound, SlowConsumer
from tests.support.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
NONE = {"size": 0}
POOLS = {"general": {"size": 1, "slots": 4}, "optimizer": {**NONE}, "neural": {**NONE}}
LMS = {"default": {"model": "offline/knn"}, "slow": {"model": "offline/knn?latency_ms=60000"}}
QUESTION = "A pool is a set of like workers that serve one purpose."
# Writes more words than may be on their way.
LONG = "question -> " + ", ".join(f"part{n}" for n in range(8))
WORDS = " ".join(f"word{n}" for n in range(25))


@pytest.fixture(scope="module")
def orchestrator() -> Iterator[Orchestrator]:
    with Orchestrator(pools=POOLS, lms=LMS) as orchestrator:
        yield orchestrator


@pytest.fixture
def client(orchestrator: Orchestrator) -> Iterator[Client]:
    with orchestrator.client() as client:
        yield client


def by_field(items: list[Any]) -> dict[str, str]:
    fields: dict[str, str] = {}
    for item in items:
        if isinstance(item, Token):
            fields[item.field] = fields.get(item.field, "") + item.text
    return fields


def test_each_field_comes_in_pieces_and_the_prediction_at_the_end(client: Client) -> None:
    module = client.module("dspy.ChainOfThought", "question -> answer")
    *items, final = module.stream(question=QUESTION)
    assert isinstance(final, Final)
    said = by_field(items)
    assert list(said) == ["reasoning", "answer"]
    assert {name: text.strip() for name, text in said.items()} == {
        "reasoning": final.value.reasoning.strip(),
        "answer": final.value.answer.strip(),
    }
    assert sum(isinstance(item, Token) for item in items) > 2
    assert final.meta is not None
    assert final.meta.lm_calls == 1
    assert final.value.answer == module(question=QUESTION).answer


def test_the_pace_is_the_readers_and_nothing_is_lost(client: Client) -> None:
    stream = client.module("dspy.Predict", LONG).stream(question=WORDS)
    wait_until(lambda: client.execute("ping") and len(stream._feed) == 64, 10, "the window is full")
    assert client.stats()["requests"]["in_flight"] == 1  # it waits
    *items, final = stream
    assert isinstance(final, Final)
    assert {name: text.strip() for name, text in by_field(items).items()} == dict(final.value)
    assert sum(len(text.split()) for text in final.value.values()) > 100


def test_many_streams_share_a_worker(orchestrator: Orchestrator) -> None:
    async def read(client: AsyncClient, number: int) -> None:
        question = f"Number {number} is the answer to {number}."
        items = [item async for item in client.module("dspy.Predict", "question -> answer").stream(question=question)]
        assert isinstance(items[-1], Final)
        assert str(number) in items[-1].value.answer
        assert by_field(items)["answer"].strip() == items[-1].value.answer.strip()

    async def run() -> None:
        async with AsyncClient(orchestrator.endpoint) as client:
            await asyncio.gather(*(read(client, number) for number in range(100, 120)))

    asyncio.run(run())


def test_a_stream_that_is_left_frees_its_slot(client: Client) -> None:
    stream = client.module("dspy.Predict", "question -> answer", lm="slow").stream(question="?")
    wait_until(lambda: client.stats()["requests"]["in_flight"] == 1, 10, "it runs")
    stream.close()
    wait_until(lambda: client.stats()["requests"]["in_flight"] == 0, 5, "it is cancelled")


def test_errors_and_deadlines_end_a_stream(client: Client) -> None:
    with pytest.raises(DeadlineExceeded):
        list(client.module("dspy.Predict", "question -> answer", lm="slow", deadline_s=0.3).stream(question="?"))
    with pytest.raises(NotFound):
        list(client.stream("dspy.Predict", {"signature": "a -> b", "inputs": {"a": 1}}, lm="nobody"))


def test_the_command_shows_what_comes(orchestrator: Orchestrator) -> None:
    words = ["call", "dspy.Predict", "signature=question -> answer", "--stream"]
    words.append("inputs=" + json.dumps({"question": QUESTION}))
    environ = {**os.environ, "DSPOOL_ENDPOINT": orchestrator.endpoint}

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "orchestrator.cli", *words, *more]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environ, timeout=60)

    shown = run()
    assert (shown.returncode, shown.stdout) == (0, f"answer: {QUESTION}\n")
    late = run("--json", "--lm", "slow", "--deadline", "0.3")
    (line,) = late.stdout.splitlines()
    assert (late.returncode, json.loads(line)["type"], json.loads(line)["code"]) == (4, "error", "DEADLINE_EXCEEDED")


@pytest.mark.slow
@pytest.mark.timeout(90)
def test_a_stream_that_nobody_reads_is_ended(client: Client) -> None:
    stream = client.module("dspy.Predict", LONG, deadline_s=80).stream(question=WORDS)
    began = time.monotonic()
    wait_until(lambda: client.stats()["requests"]["in_flight"] == 0, 60, "the worker has given up")
    assert time.monotonic() - began > 25
    with pytest.raises(SlowConsumer, match="has read no event"):
        list(stream)
