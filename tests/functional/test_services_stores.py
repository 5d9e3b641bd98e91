"""A coordinator whose store is a PostgreSQL database, or a file on a disk that is full."""

from __future__ import annotations

import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from orchestrator import Client
from orchestrator.errors import StorageError
from tests.functional.test_sessions_durable import POOLS, TALKER, WAIT_S, stop
from tests.support.coordinator import CoordinatorProcess
from tests.support.postgres import Server, postgres_server
from tests.support.waiting import wait_until

PREDICT = {"module": "dspy.Predict", "signature": "question -> answer"}


@pytest.fixture
def server() -> Iterator[Server]:
    with postgres_server() as server:
        yield server


@pytest.mark.slow
def test_what_is_in_a_database_is_there_after_a_restart(server: Server, run_dirs: Callable[[], Path]) -> None:
    folder = run_dirs()
    settings: dict[str, Any] = {"pools": POOLS, "sessions": {"durable": True}, "store": {"url": server.emptied()}}
    count = 0
    for restart, how in enumerate((signal.SIGTERM, signal.SIGKILL, signal.SIGTERM)):
        with CoordinatorProcess(folder, **settings) as coordinator:
            assert coordinator.next_report()["event"] == "ready"
            with Client(coordinator.endpoint) as client:
                assert client.execute("store.info")["kind"] == "postgresql"
                assert client.deploy("talker", TALKER).created is (restart == 0)
                session = client.session("kept", ttl_s=600.0)
                for _ in range(2):
                    count += 1
                    assert session.call("talker", question="?").count == count
                if restart == 1:
                    assert "program_deployed" in {event.event for event in client.events(after=0, follow=False)}
            stop(coordinator, how)
    assert not (folder / "d" / "store.sqlite3").exists()


@pytest.fixture
def small_disk(run_dirs: Callable[[], Path]) -> tuple[Path, list[str]]:
    """Return a folder, and what runs a command with a disk of 8 MB mounted at `d` in it, seen by nobody else."""
    folder = run_dirs()
    (folder / "d").mkdir(mode=0o700)
    mount = f'mount -t tmpfs -o size=8m,mode=0700 tmpfs {folder / "d"} && exec "$@"'
    prefix = ["unshare", "--mount", "sh", "-c", mount, "sh"]
    if shutil.which("unshare") is None or subprocess.run([*prefix, "true"], capture_output=True).returncode:
        pytest.skip("no disk can be mounted here: that needs root, and unshare")
    return folder, prefix


def fill(file: Path) -> None:
    """Write until there is no room left."""
    with file.open("wb", buffering=0) as filler, suppress(OSError):
        while filler.write(bytes(4096)):
            pass
    assert not shutil.disk_usage(file).free


def test_while_its_disk_is_full_calls_go_on_and_when_there_is_room_so_does_the_rest(
    small_disk: tuple[Path, list[str]],
) -> None:
    folder, prefix = small_disk
    with CoordinatorProcess(folder, pools=POOLS, prefix=prefix) as coordinator:
        assert coordinator.next_report()["event"] == "ready"
        # As that process sees it.
        disk = Path(f"/proc/{coordinator.process.pid}/root{folder}/d")
        with Client(coordinator.endpoint) as client:
            assert client.deploy("qa", PREDICT).version == 1
            fill(disk / "filler")
            with pytest.raises(StorageError) as refused:
                client.deploy("more", PREDICT)
            assert (refused.value.reason, refused.value.retryable) == ("full", True)
            assert client.program("qa")(question="?").answer
            assert [client.execute("echo", number) for number in range(100)] == list(range(100))
            assert [row["name"] for row in client.programs()] == ["qa"]
            assert "disk is full" in client.stats()["services"]["problem"]
            (disk / "filler").unlink()
            assert client.deploy("more", PREDICT).version == 1
            wait_until(lambda: client.stats()["services"]["problem"] is None, WAIT_S, "no problem")
            assert [client.program(name)(question="?").answer != "" for name in ("qa", "more")] == [True, True]
