"""Durable sessions: there after a restart of the coordinator, and none answered whose change was not kept."""

from __future__ import annotations

import os
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from orchestrator import Client, errors
from tests.support.coordinator import CoordinatorProcess
from tests.support.waiting import wait_until

TALKER = f"{Path(__file__).parents[1] / 'support' / 'programs' / 'talker.py'}:Talker"
POOLS = {"general": {"size": 1, "slots": 2}, "optimizer": {"size": 0}, "neural": {"size": 0}}
WAIT_S = 20.0

Start = Callable[..., CoordinatorProcess]


@pytest.fixture
def start(run_dirs: Callable[[], Path]) -> Iterator[Start]:
    """Give a function that starts a coordinator on the test's one data directory."""
    folder = run_dirs()
    with ExitStack() as stack:

        def begin(**more: Any) -> CoordinatorProcess:
            settings = {"pools": POOLS, "sessions": {"durable": True}, **more}
            coordinator = stack.enter_context(CoordinatorProcess(folder, **settings))
            assert coordinator.next_report()["event"] == "ready"
            return coordinator

        yield begin


def stop(coordinator: CoordinatorProcess, how: signal.Signals) -> None:
    coordinator.process.send_signal(how)
    coordinator.process.wait(WAIT_S)


def services(client: Client) -> Any:
    return client.stats()["services"]


@pytest.mark.parametrize("how", [pytest.param(signal.SIGTERM, marks=pytest.mark.slow), signal.SIGKILL])
def test_sessions_are_there_after_a_restart(start: Start, how: signal.Signals) -> None:
    coordinator = start()
    with Client(coordinator.endpoint) as client, Client(coordinator.endpoint, principal="other") as other:
        client.deploy("talker", TALKER)
        kept = client.session("kept", ttl_s=600.0, affinity="strict_queue")
        for question in ("a", "b"):
            kept.call("talker", question=question)
        kept.state["mark"] = {"deep": (1, b"2")}
        with pytest.raises(errors.RemoteError):
            kept.call("talker", question="c", fail=True)
        other.session("kept").state["whose"] = "other"
        client.session("fragile", on_loss="fail").call("talker", question="a")
        client.session("short", ttl_s=0.3).call("talker", question="a")
        client.session("over").call("talker", question="a")
        assert client.expire_session("over") is True
        generation, metrics, history = kept.info()["generation"], kept.metrics(), kept.history()
        client.session("ended").call("talker", question="a")
        with closing(sqlite3.connect(services(client)["store"]["where"], isolation_level=None)) as somebody:
            somebody.execute("BEGIN IMMEDIATE")  # nobody else writes meanwhile
            ending = client.submit("dspool.session_expire", {"id": "ended"})
            with pytest.raises(TimeoutError):
                ending.result(0.2)
            somebody.execute("ROLLBACK")
        assert ending.result(WAIT_S) is True
        time.sleep(0.3 if how is signal.SIGKILL else 0.0)  # what ended without an answer is kept soon after
    stop(coordinator, how)

    coordinator = start()
    with Client(coordinator.endpoint) as client, Client(coordinator.endpoint, principal="other") as other:
        assert {row["id"] for row in client.sessions()} == {"kept", "fragile"}
        info = client.session_info("kept")
        assert info["generation"] == generation
        assert (info["affinity"], info["ttl_s"], info["calls"]) == ("strict_queue", 600.0, 3)
        assert info["state"] == {"count": 2, "mark": {"deep": (1, b"2")}}
        assert (info["history"], info["metrics"]) == (history, metrics)
        with client.session("kept") as kept:
            value = kept.call("talker", question="d")
            assert (value.count, value.heard) == (3, ["a", "b"])
        assert other.session("kept").state.copy() == {"whose": "other"}
        with pytest.raises(errors.SessionLost):
            client.execute("talker", {"question": "b"}, session="fragile")
        assert client.session("fragile").call("talker", question="b").count == 1


@pytest.mark.slow
def test_what_was_answered_is_kept_whenever_the_coordinator_is_killed(start: Start) -> None:
    answered = asked = 0
    for _ in range(3):
        coordinator = start()
        with Client(coordinator.endpoint) as client:
            if not client.programs():
                client.deploy("talker", TALKER)
            with client.session("counted") as session:
                count = session.state.get("count", 0)
                assert answered <= count <= asked  # what was kept may not have been answered yet
                futures = [session.submit("talker", {"question": "q", "wait_s": 0.01}) for _ in range(40)]
                asked = count + len(futures)
                assert futures[14].result(WAIT_S).count == count + 15
                stop(coordinator, signal.SIGKILL)
                answered = max(one.result(WAIT_S).count for one in futures if one.exception(WAIT_S) is None)
                assert answered < asked


@pytest.mark.slow
def test_calls_go_on_while_nothing_can_be_kept(start: Start) -> None:
    coordinator = start()
    with Client(coordinator.endpoint) as client:
        client.deploy("talker", TALKER)
        session = client.session("going on")
        assert session.call("talker", question="a").count == 1
        os.kill(services(client)["pid"], signal.SIGSTOP)
        try:
            began = time.monotonic()
            assert session.call("talker", question="b").count == 2  # its answer waits for the store, not for ever
            assert time.monotonic() - began < 4.0
            began = time.monotonic()
            assert session.call("talker", question="c").count == 3
            assert time.monotonic() - began < 1.0
        finally:
            os.kill(services(client)["pid"], signal.SIGKILL)
        wait_until(lambda: services(client)["restarts"], WAIT_S, "its death")
    stop(coordinator, signal.SIGTERM)  # which waits for what could not be kept until now
    coordinator = start()
    with Client(coordinator.endpoint) as client:
        assert client.session("going on").state["count"] == 3
