"""Language models whose server fails: a typed error at the caller, and the key is told to nobody."""

from __future__ import annotations

import json
import pickle
import socket
import time
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from orchestrator import Client, Orchestrator, errors
from tests.support import bad_programs
from tests.support.failures import failing
from tests.support.openai_server import Answer, OpenAIServer

FILE = bad_programs.__file__
KEY = "canary-5f0c9e7d31b8a246"
MODEL = "openai/gpt-4o-mini"
POOLS = {"general": {"size": 1}, "optimizer": {"size": 0}, "neural": {"size": 0}}
ANSWERS = {
    "refusing": Answer(f"Incorrect API key provided: {KEY}", status=401),
    "limited": Answer("slow down", status=429, headers={"Retry-After": "7"}),
    "failing": Answer("oops", status=500),
    "hanging": Answer(hang=True),
    "babbling": Answer("what was the question?"),
    "good": Answer(),
}


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[str, OpenAIServer]]:
    with ExitStack() as stack:
        yield {name: stack.enter_context(OpenAIServer(answer)) for name, answer in ANSWERS.items()}


@pytest.fixture(scope="module")
def closed_port() -> Iterator[int]:
    """A port that is taken and refuses connections."""
    with closing(socket.socket()) as unheard:
        unheard.bind(("127.0.0.1", 0))
        yield unheard.getsockname()[1]


@pytest.fixture(scope="module")
def orchestrator(servers: dict[str, OpenAIServer], closed_port: int) -> Iterator[Orchestrator]:
    def entry(url: str, **more: Any) -> dict[str, Any]:
        return {"model": MODEL, "api_key": KEY, "api_base": url, **more}

    lms = {name: entry(server.url) for name, server in servers.items()}
    lms["impatient"] = entry(servers["hanging"].url, timeout_s=0.3)
    lms["absent"] = entry(f"http://127.0.0.1:{closed_port}/v1")
    lms["unknown"] = {"model": "nosuch/model", "api_key": KEY}
    with Orchestrator(pools=POOLS, lms=lms, log_level="debug") as running:
        with running.client() as client:
            client.deploy("tellsthekey", f"{FILE}:TellsTheKey")
        yield running


@pytest.fixture
def client(orchestrator: Orchestrator) -> Iterator[Client]:
    with orchestrator.client() as client:
        yield client
        assert ask(client, "good").answer == "blue"
        assert client.predict("question -> answer", question="And offline?").answer
        assert client.ping()["worker"] == "general-1.1"


def ask(client: Client, lm: str, **more: Any) -> Any:
    return client.module("dspy.Predict", "question -> answer", lm=lm, **more)(question="What colour is the sky?")


def texts_of(error: errors.DspoolError) -> str:
    """Return everything that an error can show of itself."""
    shown = [str(error), repr(error), repr(vars(error)), repr(pickle.dumps(error))]
    return "\n".join([*shown, *traceback.format_exception(error)])


@pytest.mark.parametrize(
    ("lm", "status", "said", "retryable"),
    [
        ("refusing", 401, "check its entry under `lms`", False),
        ("limited", 429, "slow down", True),
        ("failing", 500, "oops", True),
        ("impatient", None, "no answer within timeout_s = 0.3", True),
        ("absent", None, "failed to connect to 127.0.0.1", True),
    ],
)
def test_a_servers_failure_is_an_lm_error(
    client: Client, lm: str, status: int | None, said: str, retryable: bool
) -> None:
    error = failing(
        errors.LMError, lambda: ask(client, lm), f"{MODEL} failed", said, provider="openai", status=status,
        retryable=retryable,
    )  # fmt: skip
    assert error.details["retry_after_s"] == (7.0 if lm == "limited" else None)
    assert "RouterConfig" not in str(error), "advice for somebody else"
    assert KEY not in texts_of(error)


def test_a_failed_call_is_sent_once(client: Client, servers: dict[str, OpenAIServer]) -> None:
    before = len(servers["failing"].requests)
    failing(errors.LMError, lambda: ask(client, "failing"))
    assert len(servers["failing"].requests) == before + 1
    assert servers["failing"].requests[-1].headers["authorization"] == f"Bearer {KEY}"


def test_a_provider_that_nobody_knows_is_named(client: Client) -> None:
    error = failing(
        errors.LMError, lambda: ask(client, "unknown"), "lms.unknown", "nosuch", "openai", provider="nosuch"
    )
    assert KEY not in texts_of(error)


def test_an_answer_that_does_not_fit_is_the_programs_failure(client: Client) -> None:
    error = failing(errors.RemoteError, lambda: ask(client, "babbling"), "what was the question?", "answer")
    assert error.type.endswith("AdapterParseError")


def test_a_server_that_hangs_costs_no_more_than_the_deadline(client: Client, servers: dict[str, OpenAIServer]) -> None:
    deadline_s = 0.5
    started = time.monotonic()
    failing(errors.DeadlineExceeded, lambda: ask(client, "hanging", deadline_s=deadline_s), stage="running")
    assert time.monotonic() - started <= deadline_s + 0.5
    servers["hanging"].wait_idle()  # the connection was given up, not left to wait


@pytest.mark.parametrize("how", ["raise", "return"])
def test_a_program_cannot_tell_the_key_in_an_error(client: Client, how: str) -> None:
    kind = errors.RemoteError if how == "raise" else errors.InvalidRequest
    error = failing(kind, lambda: client.program("tellsthekey", lm="good")(how=how))
    assert "[redacted]" in str(error)
    assert KEY not in texts_of(error)


def test_the_key_is_told_to_nobody(orchestrator: Orchestrator, client: Client) -> None:
    """Run last: what the other tests left is looked through too."""
    for lm in ("refusing", "failing", "absent", "impatient"):
        failing(errors.LMError, partial(ask, client, lm))
    told = {
        "stats": json.dumps(client.stats()),
        "pools": json.dumps(client.pools()),
        "workers": json.dumps(client.workers()),
        "programs": json.dumps(client.programs()),
        "config": json.dumps(client.execute("dspool.config")),
        "worker log": "\n".join(client.logs("general-1.1")),
        "coordinator log": orchestrator.log_file.read_text(),
    }
    assert '"api_key": "****"' in told["config"]
    assert "general-1.1" in told["coordinator log"]
    coordinator = psutil.Process(orchestrator.pid)
    for process in (coordinator, *coordinator.children(recursive=True)):
        folder = Path(f"/proc/{process.pid}")
        told[f"{process.pid} cmdline"] = (folder / "cmdline").read_bytes().decode(errors="replace")
        told[f"{process.pid} environ"] = (folder / "environ").read_bytes().decode(errors="replace")
    for file in orchestrator.run_dir.parent.rglob("*"):
        if file.is_file():
            told[str(file)] = file.read_text(errors="replace")
    assert len(told) >= 13
    assert [where for where, text in told.items() if KEY in text] == []
