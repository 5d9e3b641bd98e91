"""Agents with the tools of MCP servers: real servers, started by workers over stdio, and one over HTTP."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bridge.protocol.errors import INVALID_REQUEST, BridgeError
from bridge.worker.mcp import Servers
from orchestrator import Client, Orchestrator, errors
from tests.support.waiting import wait_until

SERVER = Path(__file__).parents[1] / "support" / "mcp_server.py"
SOON_S = 10.0
INSTALLED = importlib.util.find_spec("mcp") is not None
needs_mcp = pytest.mark.skipif(not INSTALLED, reason="the package mcp is not installed (pip install 'dspool[mcp]')")

ROME = "what is the weather of the city Rome?"
ENVIRONMENT = "list the names of the environment"


@pytest.fixture(scope="module")
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.fixture(scope="module")
def orc(port: int) -> Iterator[Orchestrator]:
    servers = {
        "weather": {"command": [sys.executable, str(SERVER)], "env": {"WEATHER_MODE": "calm"}},
        "web": {"url": f"http://127.0.0.1:{port}/mcp"},
        "absent": {"command": ["/no/such/server"]},
        "short": {"command": ["sh", "-c", "exit 3"]},
    }
    pools = {"general": {"size": 1, "slots": 2}, "optimizer": {"size": 0}, "neural": {"size": 0}}
    os.environ["SECRET_OF_THE_COORDINATOR"] = "hidden"
    try:
        with Orchestrator(pools=pools, mcp=servers) as orchestrator, orchestrator.client() as client:
            yield orchestrator
            pid = server_pid(client)
    finally:
        del os.environ["SECRET_OF_THE_COORDINATOR"]
    wait_until(lambda: not is_alive(pid), SOON_S, "the end of the MCP server, after that of the coordinator")


@pytest.fixture
def client(orc: Orchestrator) -> Iterator[Client]:
    with orc.client() as client:
        yield client


def ask(client: Client, question: str, tool: str = "mcp:weather", **more: Any) -> Any:
    agent = client.module("dspy.ReAct", "question -> answer", tools=[tool], **more)
    return agent(question=question).trajectory["observation_0"]


def server_pid(client: Client) -> int:
    return int(ask(client, ENVIRONMENT)[0].removeprefix("pid="))


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@needs_mcp
@pytest.mark.parametrize("tool", ["mcp:weather", "mcp:weather/weather"])
def test_an_agent_calls_a_tool_of_a_server(client: Client, tool: str) -> None:
    assert ask(client, ROME, tool) == "sunny in Rome for 0 days"


@needs_mcp
def test_a_tool_that_fails_is_an_observation(client: Client) -> None:
    told = ask(client, "what is the weather of the city Atlantis?").splitlines()
    assert told[0].startswith("Execution error in weather:")
    assert told[-1].startswith("RuntimeError: Failed to call a MCP tool: Error executing tool weather")


@needs_mcp
def test_a_server_knows_no_secrets_of_its_worker(client: Client) -> None:
    names = set(ask(client, ENVIRONMENT)[1:])
    assert "WEATHER_MODE" in names
    assert names <= {"WEATHER_MODE", "HOME", "LC_CTYPE", "LOGNAME", "PATH", "SHELL", "TERM", "USER"}


@needs_mcp
def test_a_server_that_died_is_started_again(client: Client) -> None:
    pid = server_pid(client)
    assert ask(client, "please end the server at once").splitlines()[-1].endswith("Connection closed")
    os.kill(again := server_pid(client), signal.SIGKILL)

    def next_pid() -> int | None:
        told = ask(client, ENVIRONMENT)
        if isinstance(told, str):  # a call that meets the death is told of it, and not sent again
            assert told.splitlines()[-1].endswith("Connection closed")
            return None
        return int(told[0].removeprefix("pid="))

    assert len({pid, again, wait_until(next_pid, SOON_S, "an answer of the server's successor")}) == 3


@needs_mcp
def test_a_tool_that_does_not_answer_ends_with_its_request(client: Client) -> None:
    pid = server_pid(client)
    with pytest.raises(errors.DeadlineExceeded):
        ask(client, "wait for ever", deadline_s=0.3)
    assert server_pid(client) == pid


@needs_mcp
def test_a_worker_takes_its_servers_along(client: Client) -> None:
    pid = server_pid(client)
    (worker,) = [one for one in client.workers() if one["state"] in ("ready", "busy")]
    os.kill(worker["pid"], signal.SIGKILL)
    wait_until(lambda: not is_alive(pid), SOON_S, "the end of the dead worker's MCP server")
    assert server_pid(client) != pid


@needs_mcp
def test_a_server_over_http_and_its_successor(client: Client, port: int) -> None:
    def start() -> subprocess.Popen[bytes]:
        process = subprocess.Popen([sys.executable, SERVER, str(port)], stderr=subprocess.DEVNULL)

        def answers() -> bool:
            assert process.poll() is None
            try:
                return ask(client, ROME, "mcp:web/weather") == "sunny in Rome for 0 days"
            except errors.RemoteError:
                return False  # it does not listen yet

        wait_until(answers, SOON_S, "an answer of the MCP server over HTTP")
        return process

    for _ in range(2):
        process = start()
        process.kill()
        process.wait()


@needs_mcp
def test_what_is_not_there_is_told(client: Client) -> None:
    for tool, kind, said in (
        ("mcp:wether", errors.NotFound, "did you mean 'weather'"),
        ("mcp:weather/wether", errors.NotFound, "did you mean 'weather'"),
        ("mcp:absent", errors.RemoteError, "'absent' could not be opened: .*No such file"),
        ("mcp:short", errors.RemoteError, "'short' could not be opened: Connection closed"),
    ):
        with pytest.raises(kind, match=said):
            ask(client, ROME, tool)
    with pytest.raises(errors.InvalidRequest, match="a tool named 'weather' exists already") as caught:
        client.module("dspy.ReAct", "question -> answer", tools=["mcp:weather", "mcp:weather/weather"])(question=ROME)
    assert caught.value.path == "options.tools[1]"


@pytest.mark.skipif(INSTALLED, reason="the package mcp is installed")
def test_without_the_package_the_advice_says_what_to_install() -> None:
    with pytest.raises(BridgeError, match=r"pip install 'dspool\[mcp\]'") as caught:
        Servers({"weather": {"command": ["true"]}}).tools("weather", "", "options.tools[0]")
    assert (caught.value.code, caught.value.details["path"]) == (INVALID_REQUEST, "options.tools[0]")
