"""Agents in workers that call functions of their callers' own processes."""

from __future__ import annotations

import asyncio
import contextvars
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from orchestrator import AsyncClient, Client, Orchestrator, errors
from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[2]
SOON_S = 10.0
ROME: dict[str, Any] = {"question": "what is the weather of the city Rome?"}
asked: contextvars.ContextVar[str] = contextvars.ContextVar("asked", default="nobody")


@pytest.fixture(scope="module")
def orc() -> Iterator[Orchestrator]:
    # One worker with one slot: what is not given back is missed at once.
    pools = {"general": {"size": 1, "slots": 1}, "optimizer": {"size": 0}, "neural": {"size": 0}}
    with Orchestrator(pools=pools) as orchestrator:
        yield orchestrator


@pytest.fixture
def client(orc: Orchestrator) -> Iterator[Client]:
    with orc.client() as client:
        yield client
        await_idle(client)


def await_idle(client: Client) -> None:
    """Wait until nothing runs, and the worker's one slot is free."""
    wait_until(lambda: client.stats()["requests"]["in_flight"] == 0, SOON_S, "the end of what the test began")
    assert client.predict("question -> answer", question="are you there?").answer


def observation(answer: Any) -> str:
    return str(answer.trajectory["observation_0"])


def test_a_function_of_the_caller_is_called_with_what_the_agent_says(client: Client) -> None:
    seen: list[Any] = []

    def weather(city: str, days: int = 1) -> dict[str, Any]:
        """Tell the weather of a city."""
        seen.append((city, days, os.getpid(), asked.get(), threading.current_thread() is threading.main_thread()))
        return {"city": city, "sky": b"blue"}

    asked.set("me")
    answer = client.module("dspy.ReAct", "question -> answer", tools=[weather])(**ROME)
    assert seen == [("Rome", 0, os.getpid(), "me", False)]
    assert answer.trajectory["observation_0"] == {"city": "Rome", "sky": b"blue"}
    assert answer.meta.executed_on == "worker"


class Report(BaseModel):
    sky: str
    wind: list[int] = []


def test_typed_values_go_there_and_come_back(client: Client) -> None:
    def weather(report: Report) -> list[Any]:
        """Tell the weather of a city."""
        return [report, client.predict("city -> sky", city="blue")]

    found = client.module("dspy.ReAct", "question -> answer", tools=[weather])(**ROME).trajectory["observation_0"]
    assert found[0] == {"sky": ROME["question"], "wind": []}
    assert list(found[1]) == ["sky"]


def test_an_async_client_runs_async_tools_on_its_loop_and_others_on_threads(orc: Orchestrator) -> None:
    async def program() -> list[str]:
        here = asyncio.get_running_loop()

        async def weather(city: str) -> str:
            """Tell the weather of a city."""
            await asyncio.sleep(0)
            return f"async {asyncio.get_running_loop() is here}"

        def blocking_weather(city: str) -> str:
            """Tell the weather of a city."""
            return f"thread {threading.current_thread() is not threading.main_thread()}"

        async with AsyncClient(orc.endpoint) as client:
            agents = [client.module("dspy.ReAct", "question -> answer", tools=[t]) for t in (weather, blocking_weather)]
            return [observation(answer) for answer in await asyncio.gather(*(agent(**ROME) for agent in agents))]

    assert asyncio.run(program()) == ["async True", "thread True"]


def test_an_async_tool_of_a_client_that_waits_runs_on_a_loop_that_stays(client: Client) -> None:
    loops: list[Any] = []

    async def weather(city: str) -> str:
        """Tell the weather of a city."""
        loops.append(asyncio.get_running_loop())
        return city

    agent = client.module("dspy.ReAct", "question -> answer", tools=[weather])
    assert [observation(agent(**ROME)) for _ in range(2)] == ["Rome", "Rome"]
    assert loops[0] is loops[1]


def test_of_two_clients_with_tools_of_one_name_each_has_its_own_called(orc: Orchestrator, client: Client) -> None:
    def told_by(who: str) -> Any:
        def weather(city: str) -> str:
            """Tell the weather of a city."""
            return who

        return weather

    def ask(client: Client, who: str, answers: list[str]) -> None:
        agent = client.module("dspy.ReAct", "question -> answer", tools=[told_by(who)])
        answers += [observation(agent(**ROME)) for _ in range(10)]

    with orc.client() as other:
        heard: dict[str, list[str]] = {"one": [], "two": []}
        threads = [
            threading.Thread(target=ask, args=(who_client, who, heard[who]))
            for who_client, who in ((client, "one"), (other, "two"))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert heard == {"one": ["one"] * 10, "two": ["two"] * 10}


def test_a_tool_may_ask_for_work_that_needs_the_agents_own_slot(client: Client) -> None:
    def weather(city: str) -> str:
        """Tell the weather of a city."""
        return str(client.predict("city -> sky", city=f"{city} has a blue sky").sky)

    assert "blue" in observation(client.module("dspy.ReAct", "question -> answer", tools=[weather])(**ROME))


def test_what_goes_wrong_in_a_tool_is_what_the_agent_observes(client: Client) -> None:
    def raises(city: str) -> str:
        """Tell the weather of a city."""
        raise LookupError(f"no weather in {city}")

    def exits(city: str) -> str:
        """Tell the weather of a city."""
        sys.exit(3)

    def odd(city: str) -> Any:
        """Tell the weather of a city."""
        return {"sky": threading.Lock()}

    for tool, last in (
        (raises, "LookupError: no weather in Rome"),
        (exits, "SystemExit: 3"),
        (odd, "TypeError: what odd returned cannot be sent: sky cannot travel"),
    ):
        lines = observation(client.module("dspy.ReAct", "question -> answer", tools=[tool])(**ROME)).splitlines()
        assert lines[0].startswith(f"Execution error in {tool.__name__}:")
        assert lines[-1].startswith(last)


def test_a_tool_that_blocks_ends_with_the_deadline_and_its_slot_is_free(client: Client) -> None:
    go_on = threading.Event()

    def weather(city: str) -> str:
        """Tell the weather of a city."""
        go_on.wait(60)
        return "late"

    agent = client.module("dspy.ReAct", "question -> answer", tools=[weather], deadline_s=0.3)
    started = time.monotonic()
    with pytest.raises(errors.DeadlineExceeded):
        agent(**ROME)
    assert time.monotonic() - started < 2
    try:
        assert client.predict(
            "question -> answer",
            question="is the slot free?",
        ).answer
        assert client.workers()[0]["state"] in ("ready", "busy")
    finally:
        go_on.set()


def test_a_request_that_is_cancelled_cancels_its_async_tool(orc: Orchestrator) -> None:
    async def program() -> None:
        begun, cancelled = asyncio.Event(), asyncio.Event()

        async def weather(city: str) -> None:
            """Tell the weather of a city."""
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()

        async with AsyncClient(orc.endpoint) as client:
            call = asyncio.ensure_future(client.module("dspy.ReAct", "question -> answer", tools=[weather])(**ROME))
            async with asyncio.timeout(SOON_S):
                await begun.wait()
                call.cancel()
                await cancelled.wait()

    asyncio.run(program())
    with orc.client() as client:
        await_idle(client)


def test_a_client_that_is_closed_ends_its_calls(orc: Orchestrator, client: Client) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def weather(city: str) -> None:
        """Tell the weather of a city."""
        begun.set()
        go_on.wait(60)

    raised: list[BaseException] = []
    with orc.client() as leaving:

        def ask() -> None:
            try:
                leaving.module("dspy.ReAct", "question -> answer", tools=[weather])(**ROME)
            except errors.DspoolError as error:
                raised.append(error)

        thread = threading.Thread(target=ask)
        thread.start()
        assert begun.wait(SOON_S)
    thread.join(SOON_S)
    go_on.set()
    assert [type(one) for one in raised] == [errors.Cancelled]
    await_idle(client)


BLOCKED = """
import sys, time
from orchestrator import connect

def weather(city: str) -> str:
    "Tell the weather of a city."
    print("called", flush=True)
    time.sleep(600)

agent = connect(sys.argv[1]).module("dspy.ReAct", "question -> answer", tools=[weather])
agent(question="what is the weather of the city Rome?")
"""


def test_a_client_that_is_killed_ends_its_calls(orc: Orchestrator, client: Client) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", BLOCKED, orc.endpoint], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == "called\n"
        assert client.stats()["requests"]["in_flight"] == 1
        process.kill()
        process.wait()
        killed = time.monotonic()
        wait_until(lambda: client.stats()["requests"]["in_flight"] == 0, 2.0, "the end of its calls")
    assert client.predict("question -> answer", question="is the slot free?").answer
    assert time.monotonic() - killed < 2


def test_tools_that_cannot_be_are_refused_by_their_place(client: Client) -> None:
    def weather(city: str) -> str:
        """Tell the weather of a city."""
        return city

    def finish() -> None: ...

    for tools, path in (
        ([weather, finish], "tools[1]"),
        ([weather, "no.such.module:fn"], None),
        ([weather, "mcp:x"], None),
    ):
        with pytest.raises(errors.DspoolError) as caught:
            client.module("dspy.ReAct", "question -> answer", tools=tools)(**ROME)
        if path is not None:
            assert caught.value.details["path"] == f"options.{path}"
    with pytest.raises(errors.InvalidRequest, match="given twice"):
        client.module("dspy.ReAct", "q -> a", tools=[weather], options={"tools": ["a.b:c"]})(q="?")


def test_a_tool_that_the_caller_only_claims_to_have_is_an_observation(client: Client) -> None:
    spec = {"name": "weather", "description": "Tell the weather of a city.", "parameters": {"properties": {}}}
    args = {"signature": "question -> answer", "inputs": ROME, "options": {"tools": [spec]}}
    assert "unknown tool of the caller 'weather'" in observation(client.execute("dspy.ReAct", args))


def test_tools_of_the_caller_and_of_the_worker_in_one_agent(client: Client, tmp_path: Path) -> None:
    file = tmp_path / "near.py"
    file.write_text("def population(city: str) -> int:\n    'Count the population of a city.'\n    return 3_000_000\n")

    def weather(city: str) -> str:
        """Tell the weather of a city."""
        return "sunny"

    agent = client.module("dspy.ReAct", "question -> answer", tools=[weather, f"{file}:population"])
    assert observation(agent(**ROME)) == "sunny"
    assert observation(agent(question="how large is the population of Rome?")) == "3000000"
