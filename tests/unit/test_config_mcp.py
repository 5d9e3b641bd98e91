"""MCP servers in the configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.config import Settings
from orchestrator.config.load import load
from orchestrator.config.view import MASK, show
from orchestrator.coordinator.births import environment
from orchestrator.errors import ConfigError


def read(servers: Any, **environ: str) -> Settings:
    return load(overrides={"mcp": servers}, environ={"HOME": "/tmp", **environ})


def test_a_command_with_its_variables_and_an_address() -> None:
    servers = {
        "files": {"command": ["bin/server", "--root", "data"], "env": {"API_TOKEN": "${TOKEN}", "MODE": "calm"}},
        "bare": {"command": ["python"]},
        "web": {"url": "http://someone:secret@127.0.0.1:8000/mcp"},
    }
    settings = read(servers, TOKEN="hidden-token", DSPOOL_MCP__FILES__ENV__Two__Words="yes")
    files = settings.mcp["files"].for_worker()
    assert files["command"] == [str(Path.cwd() / "bin/server"), "--root", "data"]
    assert files["env"] == {"API_TOKEN": "hidden-token", "MODE": "calm", "Two__Words": "yes"}
    assert settings.mcp["bare"].for_worker() == {"command": ["python"], "env": {}, "url": None}
    assert settings.mcp["web"].for_worker()["url"] == "http://someone:secret@127.0.0.1:8000/mcp"
    shown = show(settings)["mcp"]
    assert shown["files"]["env"] == {"API_TOKEN": MASK, "MODE": "calm", "Two__Words": "yes"}
    assert "secret" not in shown["web"]["url"]
    assert load(overrides={}, environ={"HOME": "/tmp"}).mcp == {}


def test_a_servers_secrets_are_not_in_the_workers_environment() -> None:
    settings = read({"files": {"command": ["server"], "env": {"API_TOKEN": "hidden-token", "MODE": "calm"}}})
    found = environment(settings, {}, {"TOKEN": "hidden-token", "WEATHER": "calm", "PATH": "/bin"})
    assert "TOKEN" not in found
    assert (found["WEATHER"], found["PATH"]) == ("calm", "/bin")


@pytest.mark.parametrize(
    ("server", "said"),
    [
        ({}, "mcp.one: must have either command or url"),
        ({"command": ["a"], "url": "http://x"}, "mcp.one: must have either command or url"),
        ({"url": "http://x", "env": {"A": "b"}}, "mcp.one: must have env with a command alone"),
        ({"url": "x"}, "mcp.one.url: must be an http:// or https:// address"),
        ({"command": "python server.py"}, "mcp.one.command: must be"),
        ({"command": []}, "mcp.one.command: must have at least 1"),
        ({"comand": ["a"]}, "mcp.one.comand: unknown key; did you mean 'command'"),
    ],
    ids=["nothing", "both", "variables for an address", "no address", "a text", "an empty list", "a typo"],
)
def test_what_is_wrong_is_told(server: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said.replace("?", r"\?")):
        read({"one": server})
