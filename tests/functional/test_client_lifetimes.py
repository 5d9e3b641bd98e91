"""`Orchestrator` and `connect` on real coordinators: how they begin and that they end."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from orchestrator import Orchestrator, connect, connect_async, errors
from orchestrator.discovery import LOG_FILE, user_run_dir
from orchestrator.owner import _make_home
from orchestrator.rundir import discover, process_ticks
from tests.support.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
SMALL: dict[str, Any] = {"general": {"size": 1}, "optimizer": {"size": 0}, "neural": {"size": 0}}


def homes() -> list[Path]:
    return list(Path(tempfile.gettempdir()).glob("dspool-*"))


def test_an_orchestrator_works_and_leaves_nothing() -> None:
    with Orchestrator(pools=SMALL) as orc:
        client = orc.client()
        assert client.execute("echo", {"a": (1, 2)}) == {"a": (1, 2)}
        assert client.ping()["worker"] == "general-1.1"
        assert orc.run_dir.is_dir()
        assert orc.log_file.is_file()
        assert process_ticks(orc.pid) is not None
        pid = orc.pid
        held = client.submit("sleep", {"seconds": 0.3})
        wait_until(lambda: client.stats()["requests"]["accepted"] >= 3, 10.0, "its acceptance")
    assert held.exception(0) is None  # the drain let it finish
    assert process_ticks(pid) is None
    assert homes() == []
    with pytest.raises(errors.Unavailable, match="with"):
        orc.endpoint  # noqa: B018
    with pytest.raises(errors.DspoolError):
        client.execute("echo", 1)


def test_it_works_in_a_thread_and_for_asyncio() -> None:
    async def main(orc: Orchestrator) -> Any:
        async with orc.async_client() as client:
            return await client.execute("echo", 7)

    def work() -> Any:
        with Orchestrator(pools=SMALL) as orc:
            return asyncio.run(main(orc))

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(work).result(60) == 7


def test_a_wrong_configuration_is_raised_typed() -> None:
    with pytest.raises(errors.ConfigError, match="sise") as caught, Orchestrator(pools={"general": {"sise": 1}}):
        pass
    assert caught.value.problems
    assert homes() == []


def test_a_configured_data_dir_is_kept_and_held(tmp_path: Path) -> None:
    file = tmp_path / "dspool.yaml"
    file.write_text("data_dir: data\n")
    with Orchestrator(file, pools=SMALL) as orc:
        assert (tmp_path / "data" / "lock").exists()
        with pytest.raises(errors.Unavailable, match=str(orc.pid)), Orchestrator(file, pools=SMALL):
            pass
    assert (tmp_path / "data").is_dir()


# No `__main__` guard, and an owner that is killed in the middle.
SCRIPT = """
import json, sys, time
from orchestrator import Orchestrator
orc = Orchestrator(pools=json.loads(sys.argv[1])).start()
print(orc.pid, flush=True)
future = orc.client().submit("sleep", {"seconds": 60})
time.sleep(60)
"""


def test_the_death_of_the_owner_ends_everything() -> None:
    command = [sys.executable, "-c", SCRIPT, json.dumps(SMALL)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        pid = int(owner.stdout.readline())
        owner.send_signal(signal.SIGKILL)
        killed_at = time.monotonic()
    wait_until(lambda: process_ticks(pid) is None, 2.5, "the coordinator's end")
    assert time.monotonic() - killed_at < 2.5
    assert len(homes()) == 1  # what only its owner would have removed, the next one removes
    home = _make_home()
    assert homes() == [home]
    for path in home.iterdir():
        path.unlink()
    home.rmdir()


# --- connect ----------------------------------------------------------------------------------


def end(pid: int) -> None:
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: process_ticks(pid) is None, 20.0, "the coordinator's end")


def test_without_a_coordinator_connect_says_what_to_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(errors.Unavailable, match="dspool up"):
        connect(start=False)
    monkeypatch.setenv("DSPOOL_ENDPOINT", f"ipc://{tmp_path}/none")
    with pytest.raises(errors.Unavailable, match="dspool up"):
        connect()


def test_of_many_callers_one_starts_a_coordinator(monkeypatch: pytest.MonkeyPatch) -> None:
    for pool, settings in SMALL.items():
        monkeypatch.setenv(f"DSPOOL_POOLS__{pool.upper()}__SIZE", str(settings["size"]))
    threads = threading.active_count()
    with ThreadPoolExecutor(4) as pool_of_threads:
        clients = [future.result(60) for future in [pool_of_threads.submit(connect) for _ in range(4)]]
    info = discover(user_run_dir())
    assert info is not None
    try:
        assert {client.endpoint for client in clients} == {info.endpoint}
        assert [client.execute("echo", n) for n, client in enumerate(clients)] == [0, 1, 2, 3]
        assert not info.private
        with connect(info.endpoint) as by_endpoint:
            assert by_endpoint.ping()["pong"] is True

        async def main() -> Any:
            async with await connect_async(start=False) as client:
                return await client.execute("echo", 5)

        assert asyncio.run(main()) == 5
        assert threading.active_count() == threads
    finally:
        for client in clients:
            client.close()
        end(info.pid)
    assert discover(user_run_dir()) is None
    assert (user_run_dir() / LOG_FILE).exists()


def test_a_coordinator_that_cannot_start_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSPOOL_POOLS__GENERAL__SIZE", "many")
    with pytest.raises(errors.ConfigError, match="many"):
        connect()
