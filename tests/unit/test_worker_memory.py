"""Who is a worker's descendant, by what the kernel tells of processes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from bridge.worker.memory import MAX_PROCESSES, MAX_READ, FamilyMemory, Readings, amounts_of, listed, searched

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


# --- what is read of them -----------------------------------------------------------------------------

ROLLUP = """55bda71db000-7ffd8ec6d000 ---p 00000000 00:00 0                          [rollup]
Rss:               {rss} kB
Shared_Clean:      {shared} kB
Shared_Dirty:         10 kB
Private_Clean:         1 kB
Private_Dirty:     {private} kB
Private_Hugetlb:       5 kB
"""


def tell(proc: Path, pid: int, private: int, *, started: int = 7, shared: int = 0, state: str = "S") -> None:
    """Write what /proc tells of the memory of a process, in kB; 1 kB more of it is private, 10 kB more shared."""
    folder = proc / str(pid)
    folder.mkdir(exist_ok=True)
    (folder / "stat").write_text(f"{pid} (a ) S 1) {state} 3 {'0 ' * 17}{started} 0 0\n")
    (folder / "smaps_rollup").write_text(ROLLUP.format(rss=private + shared + 11, private=private, shared=shared))


class Clock:
    """Goes `step` seconds ahead each time it is asked."""

    def __init__(self, step: float = 0.0) -> None:
        self.now = 0.0
        self.step = step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


def test_pages_are_private_or_shared_or_else_anonymous(tmp_path: Path) -> None:
    tell(tmp_path, 5, 30, shared=500)
    assert amounts_of(5, str(tmp_path)) == (31 << 10, 510 << 10)
    (tmp_path / "5" / "smaps_rollup").unlink()
    assert amounts_of(5, str(tmp_path)) == (0, 0)
    (tmp_path / "5" / "status").write_text("Name:\ta b kB\nVmRSS:\t  90 kB\nRssAnon:\t  40 kB\nRssFile:\t 50 kB\n")
    assert amounts_of(5, str(tmp_path)) == (40 << 10, 0)


def test_a_process_is_read_once_it_was_seen_before(tmp_path: Path) -> None:
    tell(tmp_path, 5, 30)
    tell(tmp_path, 6, 40, shared=90)
    readings = Readings(str(tmp_path), Clock())
    readings.look([5])
    assert (len(readings), readings.private()) == (1, 0)
    readings.look([5, 6])
    assert (readings.private(), readings.most_shared()) == (31 << 10, 10 << 10)
    readings.look([5, 6])
    assert (readings.private(), readings.most_shared()) == (72 << 10, 100 << 10)
    readings.look([6])
    assert readings.private() == 41 << 10
    readings.look([])
    assert (len(readings), readings.private(), readings.most_shared()) == (0, 0, 0)


def test_another_process_of_the_same_number_and_a_dead_one_are_told_apart(tmp_path: Path) -> None:
    readings = Readings(str(tmp_path), Clock())
    tell(tmp_path, 5, 30)
    for _ in range(2):
        readings.look([5])
    assert readings.private() == 31 << 10
    tell(tmp_path, 5, 80, started=8)
    readings.look([5])
    assert readings.private() == 0
    readings.look([5])
    assert readings.private() == 81 << 10
    tell(tmp_path, 5, 80, started=8, state="Z")
    readings.look([5, 9])
    assert len(readings) == 0


def test_many_are_read_by_turns(tmp_path: Path) -> None:
    pids = range(10, 10 + 2 * MAX_READ + 1)
    for pid in pids:
        tell(tmp_path, pid, 0)
    readings = Readings(str(tmp_path), Clock())
    read = []
    for _ in range(5):
        readings.look(pids)
        read.append(readings.private() >> 10)
    assert read == [0, MAX_READ, 2 * MAX_READ, 2 * MAX_READ + 1, 2 * MAX_READ + 1]


def test_reading_takes_a_twentieth_of_the_time_at_most(tmp_path: Path) -> None:
    for pid in (5, 6, 7):
        tell(tmp_path, pid, 0)
    clock = Clock()
    readings = Readings(str(tmp_path), clock)
    readings.look([5, 6, 7])
    began, clock.step = clock.now, 0.02
    readings.look([5, 6, 7])
    took = clock.now - began - clock.step
    assert readings.private() >> 10 == 2  # the third is left for later
    clock.step = 0.0
    clock.now += 18.9 * took
    readings.look([5, 6, 7])
    assert readings.private() >> 10 == 2
    clock.now += 0.2 * took
    readings.look([5, 6, 7])
    assert readings.private() >> 10 == 3
