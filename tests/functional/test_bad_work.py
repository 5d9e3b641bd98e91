"""Work that harms what is around it: its caller gets a typed error, everybody else notices nothing."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from orchestrator import Client, Orchestrator, errors
from tests.support import bad_work
from tests.support.bad_work import Unreducible
from tests.support.failures import failing
from tests.support.waiting import wait_until

FILE = bad_work.__file__
GRACE_S = 0.3
POOLS = {
    "general": {"size": 1},
    "frail": {"size": 1, "slots": 1, "grace_s": GRACE_S, "restart": {"max_restarts": 100}},
    "optimizer": {"size": 0},
    "neural": {"size": 0},
}
FORGED = '\x1b[2J\x1b]0;owned\x07red\r{"event": "coordinator_stopped", "level": "error"}\nsecond line\u202e\n'


@pytest.fixture(scope="module")
def orchestrator() -> Iterator[Orchestrator]:
    with Orchestrator(pools=POOLS, python_path=[str(Path(FILE).parents[2])]) as running:
        with running.client() as client:
            for name in ("RaisesMegabytes", "Daemonizes", "Prints"):
                client.deploy(name.lower(), f"{FILE}:{name}")
            client.deploy("spins", f"{FILE}:Spins", pool="frail")
        yield running


@pytest.fixture
def client(orchestrator: Orchestrator) -> Iterator[Client]:
    with orchestrator.client() as client:
        yield client
        assert client.ping()["worker"] == "general-1.1", "a worker was lost"


def test_an_error_of_100_megabytes_is_cut_where_it_is_raised(orchestrator: Orchestrator, client: Client) -> None:
    before = psutil.Process(orchestrator.pid).memory_info().rss
    error = failing(
        errors.RemoteError, lambda: client.program("raisesmegabytes")(mb=100), "left out", type="ValueError"
    )
    assert 10_000 < len(error.message) < 30_000
    assert len(error.remote_traceback) < 30_000
    assert psutil.Process(orchestrator.pid).memory_info().rss - before < 10_000_000


@pytest.mark.parametrize("wrap", [lambda it: it, lambda it: {"a": [it]}, lambda it: {it: 1}], ids=["bare", "in", "key"])
def test_what_cannot_be_pickled_or_shown_cannot_travel_either(client: Client, wrap: Any) -> None:
    failing(errors.InvalidRequest, partial(client.submit, "echo", wrap(Unreducible())), "cannot travel", "Unreducible")


def test_a_loop_without_end_ends_at_its_deadline_and_the_slot_comes_back(client: Client) -> None:
    before = client.ping("frail")["worker"]
    started = time.monotonic()
    spinning = client.submit("spins", {}, deadline_s=0.3)
    failing(errors.DeadlineExceeded, lambda: spinning.result(10), "spins", stage="running")
    assert time.monotonic() - started <= 0.3 + 0.5
    wait_until(lambda: client.ping("frail", deadline_s=30)["worker"] != before, 20.0, "the next worker")


def test_a_daemon_that_a_program_leaves_ends_and_its_worker_does_not(client: Client) -> None:
    pid = client.program("daemonizes")()
    wait_until(lambda: not psutil.pid_exists(pid), 10.0, "the end of the daemon")


def test_what_a_program_prints_forges_no_line_and_moves_no_cursor(orchestrator: Orchestrator, client: Client) -> None:
    assert client.program("prints")(text=FORGED) == len(FORGED)
    lines = wait_until(
        lambda: [line for line in client.logs("general-1.1") if "second" in line], 10.0, "what it printed"
    )
    tail = client.logs("general-1.1")
    assert lines
    assert not [char for line in tail for char in line if char < " " and char != "\t"]
    assert any("\\x0d" in line and "\\x1b]0;owned" in line for line in tail)
    assert not any("\u202e" in line for line in tail)


def test_names_with_line_breaks_forge_no_line_of_the_coordinators_log(
    orchestrator: Orchestrator, client: Client
) -> None:
    name = 'x\n{"event": "forged", "level": "error"}\x1b[31m'
    failing(errors.NotFound, lambda: client.execute(name, 1))
    failing(errors.NotFound, lambda: client.execute("echo", 1, pool=name))
    failing(errors.NotFound, lambda: client.drain(name))
    client.program("prints")(text=FORGED)
    log = orchestrator.log_file.read_text()
    assert "\x1b" not in log
    events = [json.loads(line).get("event") for line in log.splitlines() if line.startswith("{")]
    assert not {"forged", "coordinator_stopped"} & set(events)
    assert not [line for line in log.splitlines() if line.startswith('{"event": "forged"')]
