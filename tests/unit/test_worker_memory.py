"""Who is a worker's descendant, by what the kernel tells of processes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from bridge.worker.memory import MAX_PROCESSES, FamilyMemory, listed, searched

Find = Callable[[int, str], list[int]]

# The parent of each process. 3 is the family's root; 4 is its sister.
FAMILY = {1: 0, 2: 1, 3: 2, 4: 2, 5: 3, 60: 3, 7: 5, 800: 7, 9: 4}
NAMES = {5: "two words", 60: ") S 4 (", 7: "\n"}


def write(proc: Path, parents: dict[int, int]) -> str:
    """Write what /proc tells of these processes; each has two threads, and its children belong to the second."""
    for pid, parent in parents.items():
        children = [str(one) for one, its_parent in parents.items() if its_parent == pid]
        for thread, text in ((pid, ""), (pid + 1000, " ".join(children) + " ")):
            (proc / str(pid) / "task" / str(thread)).mkdir(parents=True)
            (proc / str(pid) / "task" / str(thread) / "children").write_text(text)
        (proc / str(pid) / "stat").write_text(f"{pid} ({NAMES.get(pid, 'python')}) S {parent} {pid} 3 0 -1 4194560 0\n")
    (proc / "self").mkdir()
    (proc / "meminfo").write_text("MemTotal: 1 kB\n")
    return str(proc)


@pytest.mark.parametrize("find", [listed, searched])
def test_descendants_of_every_depth_are_found(find: Find, tmp_path: Path) -> None:
    proc = write(tmp_path, FAMILY)
    assert sorted(find(3, proc)) == [5, 7, 60, 800]
    assert find(800, proc) == []
    assert find(77, proc) == []


@pytest.mark.parametrize("find", [listed, searched])
def test_who_vanishes_meanwhile_is_left_out(find: Find, tmp_path: Path) -> None:
    proc = write(tmp_path, FAMILY)
    (tmp_path / "60" / "stat").unlink()
    (tmp_path / "3" / "task" / "1003" / "children").write_text("5 ")
    (tmp_path / "7" / "task" / "7" / "children").unlink()
    assert sorted(find(3, proc)) == [5, 7, 800]


@pytest.mark.parametrize("find", [listed, searched])
def test_of_very_many_only_some_are_looked_at(find: Find, tmp_path: Path) -> None:
    proc = write(tmp_path, {3: 2, **dict.fromkeys(range(10, 11 + MAX_PROCESSES), 3)})
    assert len(set(find(3, proc))) == len(find(3, proc)) == MAX_PROCESSES


def test_alone_it_is_the_process_itself() -> None:
    memory = FamilyMemory()
    try:
        counted = memory.rss_bytes()
        assert counted == pytest.approx(psutil.Process().memory_info().rss, rel=0.05)
    finally:
        memory.close()
    with pytest.raises(OSError, match="descriptor"):
        memory.rss_bytes()


def test_the_real_proc_can_be_searched() -> None:
    assert os.getpid() in searched(os.getppid(), "/proc")
