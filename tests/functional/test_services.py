"""The services process of a real coordinator: what it is, what it withstands, what it may not hold up."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from orchestrator import Client, Orchestrator
from orchestrator.cli.app import app
from orchestrator.errors import InvalidRequest, NotFound, StorageError, Unauthenticated, Unavailable
from orchestrator.services.store import Store
from tests.support.acceptance import ROOT, SOON_S, pools
from tests.support.waiting import wait_until

PROGRAM = {"module": "dspy.Predict", "signature": "question -> answer"}
# The library that each of these is recognised by, if it was imported: they come with DSPy.
OF_DSPY = ("numpy", "pydantic_core", "tokenizers", "litellm")


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with Orchestrator(pools=pools(), faults=True) as orchestrator, orchestrator.client() as client:
        yield client


def services(client: Client) -> dict[str, Any]:
    found: dict[str, Any] = client.stats()["services"]
    return found


def kill(client: Client) -> None:
    """Kill the services process, as soon as there is one that is ready."""
    ready = wait_until(lambda: (found := services(client))["state"] == "ready" and found, SOON_S, "the services")
    os.kill(ready["pid"], signal.SIGKILL)


def works(client: Client) -> bool:
    """Return whether it can be asked; fail unless it is Unavailable where it cannot."""
    error = client.submit("store.info").exception(SOON_S)
    if error is None:
        return True
    assert isinstance(error, Unavailable)
    assert error.retryable
    assert error.details["retry_after_s"] > 0
    return False


def dspool(client: Client, *words: str) -> str:
    done = CliRunner().invoke(app, words, env={"DSPOOL_ENDPOINT": client.endpoint})
    assert done.exit_code == 0, done.output
    return done.stdout


# In this order: the first finds a coordinator of which nobody has needed the services yet.


def test_who_never_needs_it_pays_nothing_for_it(client: Client) -> None:
    assert client.execute("echo", 1) == 1
    assert services(client)["state"] == "off"
    assert "services: off" in dspool(client, "status")


def test_the_first_request_launches_it_and_users_do_not_see_it_among_their_pools(client: Client) -> None:
    assert client.execute("store.info")["kind"] == "sqlite"
    found = services(client)
    assert (found["state"], found["worker"], found["problem"]) == ("ready", "services-1.1", None)
    assert Path(found["store"]["where"]).is_file()
    assert {row["pool"] for row in client.workers()} == {"general"}
    assert [row["pool"] for row in client.pools()] == ["general", "optimizer", "neural"]
    assert list(client.stats()["pools"]) == ["general", "optimizer", "neural"]
    told = dspool(client, "status")
    assert f"services: ready (services-1.1, pid {found['pid']})" in told
    assert isinstance(client.logs("services-1.1"), list)
    dspool(client, "logs", "services-1.1")


def test_it_has_no_dspy(client: Client) -> None:
    client.deploy("qa", PROGRAM)
    assert client.program("qa")(question="b").answer
    maps = Path(f"/proc/{services(client)['pid']}/maps").read_text()
    assert "sqlalchemy" in maps, "the libraries of what was imported are seen there"
    assert [name for name in OF_DSPY if f"/{name}" in maps] == []
    code = (
        "import sys, orchestrator.services.process\n"
        f"print([name for name in ('dspy', *{OF_DSPY}) if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_what_is_the_coordinator_s_own_is_refused_to_users(client: Client) -> None:
    for operation in ("echo", "store.info"):
        with pytest.raises(NotFound, match="unknown pool 'services'"):
            client.execute(operation, None, pool="services")
    for operation in ("sessions.save", "events.save"):
        with pytest.raises(NotFound):
            client.execute(operation, {})
    told = ("program_set", "program_sync", "programs_to_deploy", "program_configured", "session_restore", "store_known")
    for operation in (*told, "store_opened", "store_state"):
        with pytest.raises(Unauthenticated):
            client.execute(f"dspool.{operation}", {"name": "qa", "versions": [], "aliases": {}, "names": []})
    with pytest.raises(NotFound):
        client.resize("services", 2)
    with pytest.raises(InvalidRequest, match="can be restarted, not drained"):
        client.drain("services-1.1")
    assert client.program("qa")(question="b").answer


def test_killed_under_load_it_fails_no_call_to_a_pool_and_comes_back(client: Client) -> None:
    failures: list[BaseException] = []
    done = threading.Event()
    calls = 0

    def call() -> None:
        nonlocal calls
        with Client(client.endpoint) as mine:
            while not done.is_set():
                try:
                    assert mine.execute("echo", "a") == "a"
                    assert mine.program("qa")(question="b").answer
                except BaseException as exc:  # noqa: BLE001 - whatever it is, it is a call that failed
                    failures.append(exc)
                calls += 1

    threads = [threading.Thread(target=call) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(2):
        asked = [client.submit("programs.list") for _ in range(20)]
        kill(client)
        errors = [error for future in asked if (error := future.exception(SOON_S)) is not None]
        assert [error for error in errors if not isinstance(error, Unavailable)] == []
        wait_until(lambda: works(client), SOON_S, "the services again")
    done.set()
    for thread in threads:
        thread.join(SOON_S)
    assert failures == []
    assert calls > 0
    assert services(client)["restarts"] == 2
    assert client.programs()[0]["name"] == "qa"


def test_what_it_ran_as_it_was_killed_is_unavailable_not_lost(client: Client) -> None:
    burning = client.submit("services.burn", {"seconds": 30.0})
    waiting = wait_until(lambda: services(client)["in_flight"] == 1, SOON_S, "the request")
    assert waiting
    kill(client)
    error = burning.exception(SOON_S)
    assert isinstance(error, Unavailable)
    assert error.details["signal"] == signal.SIGKILL
    assert error.details["executed"] in ("maybe", "no")
    wait_until(lambda: works(client), SOON_S, "the services again")


def test_a_restart_ends_it_first_and_keeps_what_it_had(client: Client) -> None:
    before = services(client)
    told = dspool(client, "restart", "services")
    after = services(client)
    assert f"{before['worker']} → {after['worker']}" in told
    assert after["state"] == "ready"
    assert after["restarts"] == before["restarts"], "it was meant, so it is no crash"
    assert not Path(f"/proc/{before['pid']}").exists()
    assert client.program("qa")(question="b").answer


def test_while_it_is_busy_calls_are_answered(client: Client) -> None:
    burning = client.submit("services.burn", {"seconds": 0.5})
    began = time.monotonic()
    for number in range(50):
        assert client.execute("echo", number) == number
    assert not burning.done() or time.monotonic() - began > 0.5
    assert burning.result()["seconds"] == 0.5


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_killed_thirty_times_in_a_row_it_waits_longer_and_longer_and_heals(client: Client) -> None:
    before = services(client)["restarts"]
    for _ in range(30):
        kill(client)
        wait_until(lambda: services(client)["state"] == "down", SOON_S, "its end")
        assert client.execute("echo", 1) == 1
    wait_until(lambda: works(client), SOON_S, "the services again")
    assert services(client)["restarts"] == before + 30
    assert client.program("qa")(question="b").answer


# --- stores that cannot be used -----------------------------------------------------------------------


def test_with_a_store_that_cannot_be_used_everything_else_works_and_it_heals(tmp_path: Path) -> None:
    file = tmp_path / "data" / "store.sqlite3"
    file.parent.mkdir(mode=0o700)
    file.write_bytes(b"no database at all, and longer than a header of one is" * 100)
    with Orchestrator(pools=pools(), data_dir=tmp_path / "data") as orchestrator, orchestrator.client() as client:
        assert client.execute("echo", 1) == 1
        with pytest.raises(StorageError, match=str(file)) as refused:
            client.deploy("qa", PROGRAM)
        assert refused.value.reason == "corrupt"
        found = services(client)
        assert (found["state"], found["store"]) == ("ready", None)
        assert str(file) in found["problem"]
        wait_until(lambda: "store_failed" in issues(client), SOON_S, "the issue")
        assert str(file) in issues(client)["store_failed"]["text"]
        assert str(file) in dspool(client, "status")
        assert file.read_bytes().startswith(b"no database"), "it is kept as it is"
        make_newer(file)
        wait_until(lambda: reason(client) == "newer_schema", SOON_S, "another look at the store")
        assert client.execute("echo", 2) == 2
        file.unlink()
        wait_until(lambda: services(client)["store"], SOON_S, "the store, without anybody asking")
        assert client.deploy("qa", PROGRAM).version == 1
        assert services(client)["problem"] is None
        assert client.program("qa")(question="b").answer


def make_newer(file: Path) -> None:
    """Put a store that a later version of dspool has written in the place of what is there, at once."""
    beside = file.with_name("newer.sqlite3")
    Store.open(beside).close()
    with closing(sqlite3.connect(beside)) as connection, connection:
        assert connection.execute("UPDATE schema_info SET version = 1000").rowcount == 1
    beside.replace(file)


def reason(client: Client) -> str:
    with pytest.raises(StorageError) as refused:
        client.execute("store.info")
    return str(refused.value.reason)


def issues(client: Client) -> dict[str, dict[str, Any]]:
    return {issue["name"]: issue for issue in client.health()["issues"]}
