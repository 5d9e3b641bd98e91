"""Control groups on the kernel's own: processes are moved, held, killed with all they started, and swept."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.config import load
from orchestrator.coordinator import __main__ as coordinating
from orchestrator.coordinator.confinement import Confinement
from orchestrator.rundir import process_ticks
from pools.general import GENERAL
from pools.launch.cgroup import (
    CONTROLLERS,
    Group,
    WorkerGroups,
    find_group,
    folder_name,
    left_behind,
    pids_max,
    survey,
    sweep,
)
from tests.support.waiting import wait_until

SOON_S = 5.0
POOLS = (replace(GENERAL.defaults, memory_limit_mb=300),)


def words(file: Path) -> list[str]:
    return file.read_text().split()


@pytest.fixture
def delegated() -> Iterator[tuple[Group, tuple[str, ...]]]:
    """Give a group of our own with a controller or more: the kernel's memory and pids where they are to be had."""
    top = find_group("")
    if top is None:
        pytest.skip("no cgroup version 2 is mounted")
    available = words(top.folder / "cgroup.controllers")
    wanted = CONTROLLERS if set(CONTROLLERS) <= set(available) else tuple(available[-1:])
    control, folder = top.folder / "cgroup.subtree_control", top.folder / f"dspool-test-{os.getpid()}"
    before = words(control)
    try:
        control.write_text(" ".join(f"+{name}" for name in wanted))
        folder.mkdir()
    except OSError as exc:
        pytest.skip(f"no group can be made below {top.folder}: {exc}")
    if not wanted:
        pytest.skip(f"{top.folder} has no controller at all")
    try:
        yield Group(2, folder, top.top), wanted
    finally:
        (folder / "cgroup.kill").write_text("1")
        wait_until(lambda: _removed(folder), SOON_S, "an empty group")
        if new := [name for name in wanted if name not in before]:
            control.write_text(" ".join(f"-{name}" for name in new))


@pytest.fixture
def limiting(delegated: tuple[Group, tuple[str, ...]]) -> Group:
    """Give a group of our own with the kernel's memory and pids controllers."""
    parent, controllers = delegated
    if set(controllers) != set(CONTROLLERS):
        pytest.skip(f"{parent.top} has no {' or no '.join(sorted(set(CONTROLLERS) - set(controllers)))} controller")
    return parent


def _removed(folder: Path) -> bool:
    with contextlib.suppress(OSError):
        for each, _, _ in os.walk(folder, topdown=False):
            os.rmdir(each)
    return not folder.exists()


@contextlib.contextmanager
def living(group: Path | None = None, command: str = "exec sleep 60") -> Iterator[subprocess.Popen[bytes]]:
    """Run a shell command in a group, once its standard input has a line."""
    started = subprocess.Popen(["sh", "-c", f"read line; {command}"], stdin=subprocess.PIPE)
    try:
        if group is not None:
            (group / "cgroup.procs").write_text(str(started.pid))
        yield started
    finally:
        started.kill()
        started.communicate()


def go(started: subprocess.Popen[bytes]) -> None:
    assert started.stdin is not None
    started.stdin.write(b"\n")
    started.stdin.flush()


def test_a_worker_goes_with_all_it_started(delegated: tuple[Group, tuple[str, ...]]) -> None:
    parent, controllers = delegated
    bomb = "setsid sleep 60 & setsid sleep 60 & wait"
    with living(parent.folder) as coordinator, living(command=bomb) as worker:
        groups = WorkerGroups(parent, "dspool.x", {coordinator.pid}, controllers=controllers)
        assert set(controllers) <= set(words(parent.folder / "cgroup.subtree_control"))
        assert words(groups.folder / "coordinator/cgroup.procs") == [str(coordinator.pid)]
        assert groups.admit("general-1.1", worker.pid, pids=300)
        folder = groups.folder / "general-1.1"
        wait_until(lambda: words(folder / "cgroup.procs") == [str(worker.pid)], SOON_S, "the worker's move")
        go(worker)
        wait_until(lambda: len(words(folder / "cgroup.procs")) == 3, SOON_S, "its grandchildren")
        pids = [int(word) for word in words(folder / "cgroup.procs")]
        began = time.monotonic()
        groups.remove("general-1.1")
        assert worker.wait(SOON_S) == -signal.SIGKILL

        def ended() -> bool:
            groups.tidy()
            return not folder.exists()

        wait_until(ended, SOON_S, "the group's end")
        assert [pid for pid in pids if pid != worker.pid and process_ticks(pid) is not None] == []
        assert time.monotonic() - began < 2.0
        groups.close()
        # Everything is as before.
        assert not groups.folder.exists()
        assert words(parent.folder / "cgroup.subtree_control") == []
        assert words(parent.folder / "cgroup.procs") == [str(coordinator.pid)]


def test_a_coordinator_confines_its_workers_or_says_why_not(delegated: tuple[Group, tuple[str, ...]]) -> None:
    parent, controllers = delegated
    with living(parent.folder) as coordinator, living(parent.folder) as starter, living() as worker:
        alone = Confinement.open(coordinator.pid, starter_pid=0, pools=POOLS, controllers=controllers)
        assert alone.document()["folder"] is None
        assert f"pid {starter.pid}" in alone.document()["why"]
        alone.launched("general-1.1", worker.pid)
        assert alone.was_short_of_memory("general-1.1") is None
        confinement = Confinement.open(coordinator.pid, starter_pid=starter.pid, pools=POOLS, controllers=controllers)
        home = Path(confinement.document()["folder"])
        assert home.parent == parent.folder
        assert confinement.document()["why"] is None
        assert set(words(home / "coordinator/cgroup.procs")) == {str(coordinator.pid), str(starter.pid)}
        confinement.launched("general-1.1", worker.pid)
        wait_until(lambda: words(home / "general-1.1/cgroup.procs"), SOON_S, "the worker's move")
        confinement.met(b"peer", "general-1.1")
        confinement.ready(b"peer")
        confinement.tidy()
        assert confinement.document()["unconfined"] == {}
        confinement.buried("general-1.1")
        assert worker.wait(SOON_S) == -signal.SIGKILL
        confinement.close()
        assert not home.exists()
        assert set(words(parent.folder / "cgroup.procs")) == {str(coordinator.pid), str(starter.pid)}


def test_the_kernel_holds_a_worker_to_its_limits(limiting: Group) -> None:
    with living(limiting.folder) as coordinator, living() as worker:
        confinement = Confinement.open(coordinator.pid, starter_pid=0, pools=POOLS)
        home = Path(confinement.document()["folder"]) / "general-1.1"
        confinement.launched("general-1.1", worker.pid)
        assert words(home / "pids.max") == [str(pids_max(POOLS[0].slots))]
        confinement.met(b"peer", "general-1.1")
        confinement.ready(b"peer")
        wait_until(lambda: words(home / "memory.max") == [str(600 << 20)], SOON_S, "the limit of memory")
        assert confinement.was_short_of_memory("general-1.1") is False
        confinement.close()


def test_what_a_worker_started_before_its_move_moves_too(delegated: tuple[Group, tuple[str, ...]]) -> None:
    parent, controllers = delegated
    with living(parent.folder) as coordinator, living(command="sh -c 'sleep 60 & wait' & wait") as worker:
        groups = WorkerGroups(parent, "dspool.x", {coordinator.pid}, controllers=controllers)
        leaf, folder = groups.folder / "coordinator", groups.folder / "general-1.1"
        (leaf / "cgroup.procs").write_text(str(worker.pid))
        go(worker)
        wait_until(lambda: len(words(leaf / "cgroup.procs")) == 4, SOON_S, "its children and theirs")
        assert groups.admit("general-1.1", worker.pid, pids=300)
        wait_until(lambda: len(words(folder / "cgroup.procs")) == 3, SOON_S, "the move of all")
        assert words(leaf / "cgroup.procs") == [str(coordinator.pid)]
        groups.close()


def test_a_start_that_fails_gives_back_what_it_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[str] = []

    def fails(*_: object) -> None:
        raise OSError("the disk is full")

    for kind in (Confinement, coordinating.ZygoteLauncher):
        close = kind.close
        monkeypatch.setattr(kind, "close", lambda self, close=close: (closed.append(type(self).__name__), close(self)))
    monkeypatch.setattr(coordinating, "package_version", fails)
    environ = {"DSPOOL_DATA_DIR": f"{tmp_path}/data", "DSPOOL_RUN_DIR": f"{tmp_path}/run"}
    settings = load(None, environ=environ, overrides={"pools": {"general": {"size": 1}}})
    order = coordinating.StartOrder(overrides={})
    signals, write_end = os.pipe()
    with pytest.raises(OSError, match="disk is full"):
        coordinating._run(settings, order, coordinating.Reporter(None), None, signals, "0" * 32, tmp_path)
    os.close(write_end)
    os.close(signals)
    assert closed == ["ZygoteLauncher", "Confinement"]


def test_with_others_in_the_group_nothing_is_changed(delegated: tuple[Group, tuple[str, ...]]) -> None:
    parent, controllers = delegated
    with living(parent.folder) as coordinator, living(parent.folder) as other:
        seen = survey({coordinator.pid}, controllers=controllers, process=Path(f"/proc/{coordinator.pid}"))
        assert (seen.group, seen.why) == (parent, f"others are in {parent.folder} too (pid {other.pid})")
        with pytest.raises(OSError, match=r"busy|EBUSY"):
            WorkerGroups(parent, "dspool.x", {coordinator.pid}, controllers=controllers)
        assert not (parent.folder / "dspool.x").exists()
        assert set(words(parent.folder / "cgroup.procs")) == {str(coordinator.pid), str(other.pid)}
        assert words(parent.folder / "cgroup.subtree_control") == []


def test_what_a_dead_coordinator_left_is_swept(delegated: tuple[Group, tuple[str, ...]]) -> None:
    parent, controllers = delegated
    with living(parent.folder) as coordinator, living() as worker:
        name = folder_name(coordinator.pid, process_ticks(coordinator.pid) or 0)
        groups = WorkerGroups(parent, name, {coordinator.pid}, controllers=controllers)
        assert groups.admit("general-1.1", worker.pid, pids=300)
        wait_until(lambda: words(groups.folder / "general-1.1/cgroup.procs"), SOON_S, "the worker's move")
        own = groups.folder / "general-1.1/made by it"
        own.mkdir()
        (own / "cgroup.procs").write_text(str(worker.pid))
        assert left_behind(parent.folder, process_ticks) == []
        coordinator.kill()
        coordinator.wait()
        found = left_behind(parent.top, process_ticks, deep=True)
        assert found == left_behind(parent.folder, process_ticks) == [groups.folder]
        assert sweep(found) == found
        assert worker.wait(SOON_S) == -signal.SIGKILL
        assert words(parent.folder / "cgroup.subtree_control") == []
        groups.close()


def test_who_started_a_dead_coordinator_is_left_alone(delegated: tuple[Group, tuple[str, ...]]) -> None:
    parent, _ = delegated
    with living() as starter:
        dead = parent.folder / folder_name(os.getpid(), 1)
        (dead / "coordinator").mkdir(parents=True)
        (dead / "coordinator/cgroup.procs").write_text(str(starter.pid))
        assert sweep([dead]) == []
        assert starter.poll() is None
