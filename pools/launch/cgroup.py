"""Control groups of workers: where the kernel can hold a worker and all that it starts to a limit, it does.

With cgroup version 2 every worker gets a group of its own: a limit of processes and threads, a hard limit of memory,
and one order that kills whatever is in it. That needs a group that is this process's alone, with its controllers handed
down to it (systemd: `Delegate=yes`); where that is not so nothing is done, and `survey` says why. The files and rules
are those of the kernel's cgroup-v2.rst:

    <our group>/dspool.<pid namespace>.<pid>.<start>/     one folder per coordinator, in which no process may be
        coordinator/                                      whoever was in our group: itself may hold none any more
        general-1.1/                                      a worker
"""

from __future__ import annotations

import contextlib
import os
import queue
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Final, NamedTuple

from pools.launch.cgroup_files import disable, enable, limit_memory, move, move_family, pids, words, write

CONTROLLERS: Final = ("memory", "pids")
# What a worker may have at once, processes and threads: so many, and for each slot a thread pool as Python makes them
# by default, which is also more than the threads of an OpenMP team.
PIDS_BASE: Final = 256
PIDS_PER_SLOT: Final = (os.cpu_count() or 1) + 4
DELEGATE: Final = "systemd-run --user --scope -p Delegate=yes dspool up"

_SELF: Final = Path("/proc/self")
_FOLDER: Final = re.compile(r"dspool\.(\d+)\.(\d+)\.(\d+)")
_LEAF: Final = "coordinator"
_KILL_S: Final = 1.0  # for what was killed to be gone
_SHOWN_PIDS: Final = 3
_VERSION_1: Final = "version 1 has them: boot with systemd.unified_cgroup_hierarchy=1"


# --- where we are -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Group:
    """A group as a folder. top: of what is mounted here, where the way up ends."""

    version: int
    folder: Path
    top: Path

    def upwards(self) -> list[Path]:
        """Return the folders of this group and of those it is in, as far as they can be seen."""
        return [self.folder, *(each for each in self.folder.parents if each.is_relative_to(self.top))]


def find_group(controller: str, process: Path = _SELF) -> Group | None:
    """Return the group that a controller counts a process in, None if there is none or it cannot be seen.

    process: its folder in /proc. A controller is in one hierarchy only: in one of version 1 if any is named there,
    else in version 2's. "" = version 2, whatever is in it. The lines are described in cgroups(7) and proc(5).
    """
    try:
        groups = [line.split(":", 2) for line in (process / "cgroup").read_text().splitlines()]
        mounts = (process / "mountinfo").read_text().splitlines()
    except OSError:
        return None
    named = [path for _, controllers, path in groups if controller and controller in controllers.split(",")]
    paths = named or [path for number, _, path in groups if number == "0"]
    for line in mounts if paths else ():
        where, _, what = line.partition(" - ")
        root, mount = where.split()[3:5]
        kind, _, options = what.split()[:3]
        group = PurePosixPath(paths[0])
        if kind != ("cgroup" if named else "cgroup2") or not group.is_relative_to(root):
            continue
        if named and controller not in options.split(","):
            continue
        return Group(1 if named else 2, Path(mount) / group.relative_to(root), Path(mount))
    return None


@dataclass(frozen=True, slots=True)
class Survey:
    """Whether workers can have groups of their own below `group`. why: why not; advice: what would help."""

    group: Group | None
    why: str = ""
    advice: str = ""


def survey(ours: Collection[int], *, controllers: Sequence[str] = CONTROLLERS, process: Path = _SELF) -> Survey:
    """Look, and change nothing. ours: processes that may be moved."""
    group = find_group("", process)
    if group is None:
        return Survey(None, "no cgroup version 2 is mounted", "not needed")
    missing = [name for name in controllers if name not in words(group.folder / "cgroup.controllers")]
    if missing:
        elsewhere = [name for name in missing if (found := find_group(name, process)) and found.version == 1]
        advice = _VERSION_1 if elsewhere else DELEGATE
        return Survey(group, f"{group.folder} has no {' and no '.join(missing)} controller", advice)
    files = [group.folder, *(group.folder / name for name in ("cgroup.procs", "cgroup.subtree_control"))]
    if not all(os.access(each, os.W_OK) for each in files):
        return Survey(group, f"{group.folder} is not writable", DELEGATE)
    others = [pid for pid in pids(group.folder) if pid not in ours]
    if others and not _is_root(group.folder):
        shown = ", ".join(map(str, others[:_SHOWN_PIDS])) + (", …" if len(others) > _SHOWN_PIDS else "")
        return Survey(group, f"others are in {group.folder} too (pid {shown})", DELEGATE)
    return Survey(group)


def _is_root(folder: Path) -> bool:
    """Whether it is the group of all groups, which alone may hold processes beside groups with limits."""
    return not (folder / "cgroup.type").exists()


# --- groups of workers ------------------------------------------------------------------------------


def pids_max(slots: int) -> int:
    """Return how many processes and threads a worker with so many slots may have."""
    return PIDS_BASE + slots * PIDS_PER_SLOT


@dataclass(slots=True)
class _Worker:
    """A worker's group. moved: the worker is in it."""

    folder: Path
    moved: bool = False


class Failure(NamedTuple):
    """What the kernel refused for a worker. Without its group it has no limit at all, else all but this one."""

    worker_id: str
    error: str


class WorkerGroups:
    """The groups of one coordinator's workers. Used by one thread; whatever goes wrong, workers run without.

    `admit` gives a worker its group, `limit_memory` the limit that holds from then on, `was_short_of_memory` says how
    it ended, `remove` kills what is left in the group. A thread moves and limits; `failures` tells what it could not.
    """

    def __init__(
        self, parent: Group, name: str, ours: Collection[int], *, controllers: Sequence[str] = CONTROLLERS
    ) -> None:
        """Make the folder. parent, ours: our own group, as surveyed. Raises OSError: then everything is as before."""
        self._parent = parent.folder
        self.folder = parent.folder / name
        self._controllers = tuple(controllers)
        before = words(self._parent / "cgroup.subtree_control")
        self._switched_on = [name for name in controllers if name not in before]
        self._workers: dict[str, _Worker] = {}
        self._ending: list[Path] = []
        self._failures: list[Failure] = []
        self._mover: _Mover | None = None
        _make(self.folder)
        try:
            if not _is_root(self._parent):
                self._move_down(ours)
            enable(self._parent, self._controllers)
            enable(self.folder, self._controllers)
        except OSError:
            self.close()
            raise
        self._mover = _Mover()

    def _move_down(self, ours: Collection[int]) -> None:
        """Bring who is in our group into a leaf. Whoever else comes meanwhile has the kernel refuse what follows."""
        leaf = self.folder / _LEAF
        _make(leaf)
        for pid in pids(self._parent):
            if pid in ours:
                with contextlib.suppress(ProcessLookupError):
                    move(pid, leaf)

    def admit(self, worker_id: str, pid: int, *, pids: int) -> bool:
        """Make a worker's group and have its process brought there, and what that started; return whether there is one.

        pids: how many processes and threads there may be in it.
        """
        if self._mover is None:
            return False
        folder = self.folder / worker_id
        # When memory runs out all of the group goes, not a part of it.
        limits = {"pids": ("pids.max", pids), "memory": ("memory.oom.group", 1)}
        try:
            _make(folder)
            for file, value in (limits[name] for name in self._controllers if name in limits):
                write(folder / file, value)
        except OSError as exc:
            self._failures.append(Failure(worker_id, str(exc)))
            self._end(folder)
            return False
        self._workers[worker_id] = _Worker(folder)
        whence = self.folder / _LEAF
        self._mover.do(worker_id, partial(move_family, pid, whence if whence.exists() else self._parent, folder))
        return True

    def limit_memory(self, worker_id: str, limit_bytes: int, *, at_least: float = 1.0) -> None:
        """Have a worker held to so much memory, or to `at_least` times what it has then if that is more."""
        worker = self._workers.get(worker_id)
        if worker is not None and self._mover is not None and "memory" in self._controllers:
            # After its move: before that the group is empty.
            self._mover.do(worker_id, partial(limit_memory, worker.folder, limit_bytes, at_least))

    def was_short_of_memory(self, worker_id: str) -> bool | None:
        """Return whether the kernel has killed in a worker's group for want of memory.

        None: it has no count, or the worker never was in it.
        """
        self._hear_mover()
        worker = self._workers.get(worker_id)
        counts = words(worker.folder / "memory.events") if worker is not None and worker.moved else []
        return int(counts[counts.index("oom_kill") + 1]) > 0 if "oom_kill" in counts else None

    def failures(self) -> list[Failure]:
        """Return what was refused since the last time, at most one for each order."""
        self._hear_mover()
        found, self._failures = self._failures, []
        return found

    def _hear_mover(self) -> None:
        for worker_id, error in self._mover.outcomes() if self._mover is not None else ():
            worker = self._workers.get(worker_id)
            if worker is None:
                continue  # dead, and its group with it
            if error is not None and not isinstance(error, ProcessLookupError):
                self._failures.append(Failure(worker_id, str(error)))
            if error is None:
                worker.moved = True
            elif not worker.moved:
                self.remove(worker_id)

    def remove(self, worker_id: str) -> None:
        """Kill what is left in a dead worker's group, and remove it."""
        worker = self._workers.pop(worker_id, None)
        if worker is not None:
            self._end(worker.folder)

    def _end(self, folder: Path) -> None:
        if not _try_end(folder):
            self._ending.append(folder)

    def tidy(self) -> None:
        """Try again to remove what could not be removed yet: who was killed a moment ago is still on its way out."""
        if self._ending:
            self._ending = [folder for folder in self._ending if not _try_end(folder)]

    def close(self) -> None:
        """Kill what is left in the groups, remove them, and put back who was moved. Takes 1 s at most."""
        if self._mover is not None:
            self._mover.close()
            self._mover = None
        for worker_id in list(self._workers):
            self.remove(worker_id)
        until = time.monotonic() + _KILL_S
        while self._ending and time.monotonic() < until:
            time.sleep(0.005)
            self.tidy()
        disable(self.folder, self._controllers)
        # Only a group that hands no controllers down may hold processes; what handed some down before still does.
        disable(self._parent, self._switched_on)
        leaf = self.folder / _LEAF
        if leaf.exists():
            for pid in pids(leaf):
                with contextlib.suppress(OSError):
                    move(pid, self._parent)
            _remove(leaf)
        _remove(self.folder)


class _Mover:
    """A thread that moves processes: the kernel lets who asks wait for up to 15 ms, too long for an event loop.

    It does what it is ordered to in that order, and collects how that went.
    """

    def __init__(self) -> None:
        self._orders: queue.SimpleQueue[tuple[str, Callable[[], None]] | None] = queue.SimpleQueue()
        self._outcomes: deque[tuple[str, Exception | None]] = deque()
        self._thread = threading.Thread(target=self._run, name="cgroup-mover", daemon=True)
        self._thread.start()

    def do(self, worker_id: str, order: Callable[[], None]) -> None:
        """Have something done for a worker soon; its move comes first."""
        self._orders.put((worker_id, order))

    def outcomes(self) -> list[tuple[str, Exception | None]]:
        """Return for whom something was done since the last time, and what came of it: None if all went well."""
        return [self._outcomes.popleft() for _ in range(len(self._outcomes))]

    def close(self) -> None:
        """Finish."""
        self._orders.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (entry := self._orders.get()) is not None:
            worker_id, order = entry
            try:
                order()
            except (OSError, ValueError) as exc:
                self._outcomes.append((worker_id, exc))
            else:
                self._outcomes.append((worker_id, None))


# --- what coordinators left -------------------------------------------------------------------------


def folder_name(pid: int, started_ticks: int) -> str:
    """Return the name of a coordinator's folder. A pid means something in its namespace only."""
    return f"dspool.{_namespace()}.{pid}.{started_ticks}"


def left_behind(top: Path, started_ticks: Callable[[int], int | None], *, deep: bool = False) -> list[Path]:
    """Return the folders of dead coordinators of this pid namespace, as far as they may be removed.

    They are looked for in the group `top`, or with `deep` in all below it. started_ticks(pid): None if it is dead.
    """
    found = []
    for where, names, _ in os.walk(top):
        for name in sorted(names):
            match = _FOLDER.fullmatch(name)
            if match is None or int(match[1]) != _namespace():
                continue
            if started_ticks(int(match[2])) != int(match[3]) and os.access(Path(where) / name, os.W_OK):
                found.append(Path(where) / name)
        names[:] = [name for name in names if deep and not _FOLDER.fullmatch(name)]
    return found


def sweep(folders: Iterable[Path]) -> list[Path]:
    """Kill what is in these folders, but in a coordinator's leaf, and remove them; return those that are gone.

    Who is in the leaf (the starter of a dead coordinator) is left alone, and so is the folder then. Takes 1 s at most.
    """
    until = time.monotonic() + _KILL_S
    gone = []
    for folder in folders:
        while not _try_sweep(folder) and time.monotonic() < until:
            time.sleep(0.005)
        if not folder.exists():
            gone.append(folder)
    return gone


def _try_sweep(folder: Path) -> bool:
    """Remove a folder; return False if it may go better soon."""
    ended = True
    for group in [each for each in folder.iterdir() if each.is_dir()] if folder.exists() else []:
        if group.name != _LEAF:
            ended = _try_end(group) and ended
    if not ended:
        return False
    leaf = folder / _LEAF
    if leaf.exists():
        _remove(leaf)
        # Who moves out of a group has it to itself; now it may hold processes again.
        for each in (folder, folder.parent):
            disable(each, words(each / "cgroup.subtree_control"))
    _remove(folder)
    return True


def _namespace() -> int:
    return os.stat("/proc/self/ns/pid").st_ino


# --- single steps -----------------------------------------------------------------------------------


def _try_end(folder: Path) -> bool:
    """Kill all in a group and remove it; return whether it is gone. Groups that its processes made go with it."""
    with contextlib.suppress(OSError):
        write(folder / "cgroup.kill", 1)
    for below, _, _ in os.walk(folder, topdown=False):
        _remove(Path(below))
    return not folder.exists()


def _make(folder: Path) -> None:
    folder.mkdir()


def _remove(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()
