"""Control groups on plain files: which group is meant, why there can be none, and what is written."""

from __future__ import annotations

import os
import re
import shutil
import threading
from pathlib import Path

import pytest

from orchestrator.cli import checks
from pools.launch import cgroup
from pools.launch.cgroup import Group, WorkerGroups, find_group, folder_name, left_behind, pids_max, survey, sweep
from pools.worker_id import incarnation_of, place_of, pool_of
from tests.support.waiting import wait_until

ME = os.getpid()
KERNEL_FILES = (
    "cgroup.procs", "cgroup.subtree_control", "cgroup.kill", "cgroup.type", "pids.max", "memory.oom.group",
    "memory.max", "memory.current", "memory.events",
)  # fmt: skip


def make(folder: Path) -> None:
    """Make a group as the kernel does: with its files."""
    folder.mkdir(parents=True)
    for name in KERNEL_FILES:
        (folder / name).touch()


@pytest.fixture
def mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return where plain files stand for a mounted hierarchy, in which folders come and go as groups do."""
    monkeypatch.setattr(cgroup, "_make", make)
    monkeypatch.setattr(cgroup, "_remove", lambda folder: shutil.rmtree(folder, ignore_errors=True))
    return tmp_path / "cgroup"


def group(mount: Path, path: str = "scope", *, controllers: str = "cpu memory pids", pids: str = f"{ME}\n") -> Group:
    folder = mount / path
    make(folder)
    (folder / "cgroup.controllers").write_text(controllers)
    (folder / "cgroup.procs").write_text(pids)
    return Group(2, folder, mount)


def process(tmp_path: Path, mount: Path, cgroups: str = "0::/scope\n") -> Path:
    """Return a folder as a process has in /proc."""
    folder = tmp_path / "process"
    folder.mkdir()
    (folder / "cgroup").write_text(cgroups)
    version_1 = f"31 24 0:28 / {mount}/v1 rw - cgroup cgroup rw,pids,memory\n"
    (folder / "mountinfo").write_text(f"30 24 0:27 / {mount} rw - cgroup2 cgroup2 rw\n{version_1}")
    return folder


# --- which group, and whether it will do -------------------------------------------------------------


def test_a_group_and_those_it_is_in(tmp_path: Path, mount: Path) -> None:
    found = find_group("memory", process(tmp_path, mount, "0::/a/b\n"))
    assert found == Group(2, mount / "a/b", mount)
    assert found.upwards() == [mount / "a/b", mount / "a", mount]


def test_a_controller_of_version_1_is_looked_for_there(tmp_path: Path, mount: Path) -> None:
    seen = process(tmp_path, mount, "4:pids,memory:/jobs\n0::/scope\n")
    assert find_group("memory", seen) == Group(1, mount / "v1/jobs", mount / "v1")
    assert find_group("", seen) == Group(2, mount / "scope", mount)


def test_alone_in_a_group_with_controllers_is_enough(tmp_path: Path, mount: Path) -> None:
    ours = group(mount)
    assert survey({ME}, process=process(tmp_path, mount)) == cgroup.Survey(ours)


@pytest.mark.parametrize(
    ("controllers", "pids", "cgroups", "why", "advice"),
    [
        ("cpu pids", f"{ME}\n", "0::/scope\n", "no memory controller", "Delegate=yes"),
        ("", f"{ME}\n", "4:pids,memory:/jobs\n0::/scope\n", "no memory and no pids controller", "version 1 has them"),
        ("memory pids", f"1\n{ME}\n0\n", "0::/scope\n", "others are in .*scope too .pid 1, 0.", "Delegate=yes"),
        ("memory pids", f"{ME}\n", "4:memory:/jobs\n", "no cgroup version 2", "not needed"),
    ],
    ids=("no memory", "version 1", "others", "no version 2"),
)
def test_why_there_can_be_none(
    tmp_path: Path, mount: Path, controllers: str, pids: str, cgroups: str, why: str, advice: str
) -> None:
    group(mount, controllers=controllers, pids=pids)
    found = survey({ME}, process=process(tmp_path, mount, cgroups))
    assert re.search(why, found.why), found
    assert advice in found.advice


def test_what_cannot_be_written_is_not_ours(tmp_path: Path, mount: Path) -> None:
    ours = group(mount)
    (ours.folder / "cgroup.subtree_control").unlink()  # root may write whatever is there
    assert "is not writable" in survey({ME}, process=process(tmp_path, mount)).why


def test_the_group_of_all_groups_may_hold_others(tmp_path: Path, mount: Path) -> None:
    ours = group(mount, pids=f"1\n{ME}\n")
    (ours.folder / "cgroup.type").unlink()
    assert survey({ME}, process=process(tmp_path, mount)).why == ""


# --- what is written ---------------------------------------------------------------------------------


def test_a_life(mount: Path) -> None:
    ours = group(mount)
    groups = WorkerGroups(ours, "dspool.x", {ME})
    home = ours.folder / "dspool.x"
    assert (home / "coordinator/cgroup.procs").read_text() == str(ME)
    for folder in (ours.folder, home):
        assert (folder / "cgroup.subtree_control").read_text() == "+memory +pids"
    assert groups.admit("general-1.1", 4711, pids=300)
    worker = home / "general-1.1"
    wait_until(lambda: (worker / "cgroup.procs").read_text() == "4711", 5, "the move")
    assert (worker / "pids.max").read_text() == "300"
    assert (worker / "memory.oom.group").read_text() == "1"
    assert (worker / "memory.max").read_text() == ""
    (worker / "memory.current").write_text("100\n")
    groups.limit_memory("general-1.1", 250, at_least=3.0)
    wait_until(lambda: (worker / "memory.max").read_text() == "300", 5, "the limit")
    assert groups.was_short_of_memory("general-1.1") is None
    for count, short in ((0, False), (1, True)):
        (worker / "memory.events").write_text(f"low 0\noom 0\noom_kill {count}\noom_group_kill 0\n")
        assert groups.was_short_of_memory("general-1.1") is short
    groups.remove("general-1.1")
    assert not worker.exists()
    assert groups.was_short_of_memory("general-1.1") is None
    groups.close()
    assert not home.exists()
    assert (ours.folder / "cgroup.subtree_control").read_text() == "-memory -pids"
    assert not groups.admit("general-1.2", 4712, pids=300)


def test_nothing_is_made_where_the_kernel_refuses(mount: Path) -> None:
    ours = group(mount)
    (ours.folder / "cgroup.subtree_control").unlink()
    with pytest.raises(OSError, match="subtree_control"):
        WorkerGroups(ours, "dspool.x", {ME})
    assert not (ours.folder / "dspool.x").exists()


def test_a_worker_whose_group_cannot_be_made_runs_without(mount: Path) -> None:
    ours = group(mount)
    groups = WorkerGroups(ours, "dspool.x", {ME})
    make(groups.folder / "general-1.1")
    assert not groups.admit("general-1.1", 4711, pids=300)
    [failure] = groups.failures()
    assert (failure.worker_id, "File exists" in failure.error) == ("general-1.1", True)
    groups.limit_memory("general-1.1", 1)
    groups.remove("general-1.1")
    groups.close()


def test_until_it_is_moved_a_group_says_nothing_of_a_worker(mount: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, move_family = threading.Event(), cgroup.move_family

    def late(pid: int, whence: Path, folder: Path) -> None:
        gate.wait(5)
        move_family(pid, whence, folder)

    monkeypatch.setattr(cgroup, "move_family", late)
    groups = WorkerGroups(group(mount), "dspool.x", {ME})
    assert groups.admit("general-1.1", 4711, pids=300)
    worker = groups.folder / "general-1.1"
    (worker / "memory.events").write_text("oom_kill 0\n")
    (worker / "memory.current").write_text("0\n")  # an empty group
    groups.limit_memory("general-1.1", 250, at_least=3.0)
    assert groups.was_short_of_memory("general-1.1") is None
    (worker / "memory.current").write_text("100\n")
    gate.set()
    wait_until(lambda: groups.was_short_of_memory("general-1.1") is False, 5, "the move")
    wait_until(lambda: (worker / "memory.max").read_text() == "300", 5, "the limit of who is there")
    groups.close()


@pytest.mark.parametrize(
    ("missing", "failed", "stays"), [("cgroup.procs", True, False), ("memory.max", True, True), ("", False, True)]
)
def test_what_is_refused_is_told_once(
    mount: Path, monkeypatch: pytest.MonkeyPatch, missing: str, failed: bool, stays: bool
) -> None:
    groups = WorkerGroups(group(mount), "dspool.x", {ME})
    worker = groups.folder / "general-1.1"

    def make_without(folder: Path) -> None:
        make(folder)
        (folder / "memory.current").write_text("100\n")
        (folder / "memory.events").write_text("oom_kill 0\n")
        if missing:
            (folder / missing).unlink()

    monkeypatch.setattr(cgroup, "_make", make_without)
    assert groups.admit("general-1.1", 4711, pids=300)
    groups.limit_memory("general-1.1", 250)
    groups._mover.close()  # type: ignore[union-attr] - all orders are carried out
    told = [(failure.worker_id, missing in failure.error) for failure in groups.failures()]
    assert told == [("general-1.1", True)] * failed
    assert groups.failures() == []
    assert worker.exists() is stays
    assert groups.was_short_of_memory("general-1.1") is (False if stays else None)


def test_who_is_dead_before_its_move_is_no_failure(mount: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dead(*_: object) -> None:
        raise ProcessLookupError

    monkeypatch.setattr(cgroup, "move_family", dead)
    groups = WorkerGroups(group(mount), "dspool.x", {ME})
    assert groups.admit("general-1.1", 4711, pids=300)
    groups._mover.close()  # type: ignore[union-attr] - all orders are carried out
    assert groups.failures() == []
    assert groups.was_short_of_memory("general-1.1") is None
    assert not (groups.folder / "general-1.1").exists()


def test_what_was_switched_on_in_the_group_of_all_groups_is_taken_back(
    mount: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = group(mount, pids=f"1\n{ME}\n")
    (ours.folder / "cgroup.type").unlink()
    (ours.folder / "cgroup.subtree_control").write_text("cpu memory\n")
    groups = WorkerGroups(ours, "dspool.x", {ME})
    taken: list[tuple[Path, list[str]]] = []
    monkeypatch.setattr(cgroup, "disable", lambda folder, names: taken.append((folder, list(names))))
    groups.close()
    assert taken == [(groups.folder, ["memory", "pids"]), (ours.folder, ["pids"])]


def test_a_limit_of_processes_has_room_for_the_threads_of_every_slot() -> None:
    assert pids_max(1) > 256
    assert pids_max(1024) - pids_max(1) >= 4 * 1023


def test_doctor_tells_of_the_limits_and_of_whom_they_do_not_hold() -> None:
    told = {"folder": "/x", "why": None, "advice": None, "unconfined": {}}
    finding = checks.cgroups(told)
    assert (finding.status, "processes and threads" in finding.found) == (checks.OK, True)
    finding = checks.cgroups({**told, "unconfined": {"general-1.1": "Permission denied"}})
    assert (finding.status, "general-1.1: Permission denied" in finding.found) == (checks.NOTE, True)


def test_a_workers_id_is_taken_apart() -> None:
    taken = place_of("my-pool-2.13"), pool_of("my-pool-2.13"), incarnation_of("my-pool-2.13")
    assert taken == ("my-pool-2", "my-pool", 13)


# --- what the dead left ------------------------------------------------------------------------------


def test_folders_of_the_dead_are_found_and_swept(mount: Path) -> None:
    parent = group(mount).folder
    alive, dead, others = folder_name(ME, 5), folder_name(ME, 4), f"dspool.1.{ME}.4"
    for name in (alive, dead, others, "dspool.unrelated"):
        make(parent / name)
    make(parent / dead / "general-1.1")
    (parent / dead / "general-1.1/cgroup.kill").unlink()
    found = left_behind(parent, lambda pid: 5 if pid == ME else None)
    assert found == [parent / dead]
    assert sweep(found) == found
    assert {each.name for each in parent.iterdir() if each.is_dir()} == {alive, others, "dspool.unrelated"}
    make(parent / "deeper" / dead)
    assert left_behind(parent, lambda pid: 5) == []
    assert left_behind(mount, lambda pid: 5, deep=True) == [parent / "deeper" / dead]
    assert left_behind(parent / "nowhere", lambda pid: None) == []
