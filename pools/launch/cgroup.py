"""Control groups of workers: where the kernel can hold a worker and all that it starts to a limit, it does.

With cgroup version 2 every worker gets a group of its own: at most 256 processes, a hard limit of memory, and one order
that kills whatever is in it. That needs a group that is this process's alone, with its controllers handed down to it
(systemd: `Delegate=yes`); where that is not so nothing is done, and `survey` says why. The files and rules are those of
the kernel's cgroup-v2.rst:

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
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

CONTROLLERS: Final = ("memory", "pids")
PIDS_MAX: Final = 256
DELEGATE: Final = "systemd-run --user --scope -p Delegate=yes dspool up"

# What holds from a worker's first moment, by controller. When memory runs out all of the group goes, not a part of it.
_LIMITS: Final = {"pids": (("pids.max", PIDS_MAX),), "memory": (("memory.oom.group", 1),)}

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
    missing = [name for name in controllers if name not in _words(group.folder / "cgroup.controllers")]
    if missing:
        elsewhere = [name for name in missing if (found := find_group(name, process)) and found.version == 1]
        advice = _VERSION_1 if elsewhere else DELEGATE
        return Survey(group, f"{group.folder} has no {' and no '.join(missing)} controller", advice)
    files = [group.folder, *(group.folder / name for name in ("cgroup.procs", "cgroup.subtree_control"))]
    if not all(os.access(each, os.W_OK) for each in files):
        return Survey(group, f"{group.folder} is not writable", DELEGATE)
    others = [pid for pid in _pids(group.folder) if pid not in ours]
    if others and not _is_root(group.folder):
        shown = ", ".join(map(str, others[:_SHOWN_PIDS])) + (", …" if len(others) > _SHOWN_PIDS else "")
        return Survey(group, f"others are in {group.folder} too (pid {shown})", DELEGATE)
    return Survey(group)


def _is_root(folder: Path) -> bool:
    """Whether it is the group of all groups, which alone may hold processes beside groups with limits."""
    return not (folder / "cgroup.type").exists()


def _words(file: Path) -> list[str]:
    try:
        return file.read_text().split()
    except OSError:
        return []


def _pids(folder: Path) -> list[int]:
    return [int(word) for word in _words(folder / "cgroup.procs")]


# --- groups of workers ------------------------------------------------------------------------------


class WorkerGroups:
    """The groups of one coordinator's workers. Used by one thread; whatever goes wrong, workers run without.

    `admit` gives a worker its group, `limit_memory` the limit that holds from then on, `was_short_of_memory` says how
    it ended, `remove` kills what is left in the group.
    """

    def __init__(
        self, parent: Group, name: str, ours: Collection[int], *, controllers: Sequence[str] = CONTROLLERS
    ) -> None:
        """Make the folder. parent, ours: our own group, as surveyed. Raises OSError: then everything is as before."""
        self._parent = parent.folder
        self.folder = parent.folder / name
        self._controllers = tuple(controllers)
        self._workers: dict[str, Path] = {}
        self._ending: list[Path] = []
        self._mover: _Mover | None = None
        _make(self.folder)
        try:
            if not _is_root(self._parent):
                self._move_down(ours)
            _enable(self._parent, self._controllers)
            _enable(self.folder, self._controllers)
        except OSError:
            self.close()
            raise
        self._mover = _Mover()

    def _move_down(self, ours: Collection[int]) -> None:
        """Bring who is in our group into a leaf. Whoever else comes meanwhile has the kernel refuse what follows."""
        leaf = self.folder / _LEAF
        _make(leaf)
        for pid in _pids(self._parent):
            if pid in ours:
                with contextlib.suppress(ProcessLookupError):
                    _move(pid, leaf)

    def admit(self, worker_id: str, pid: int) -> bool:
        """Make a worker's group and have its process brought there; return whether there is one."""
        if self._mover is None:
            return False
        folder = self.folder / worker_id
        try:
            _make(folder)
            for file, value in (limit for name in self._controllers for limit in _LIMITS.get(name, ())):
                _write(folder / file, value)
        except OSError:
            self._end(folder)
            return False
        self._workers[worker_id] = folder
        self._mover.move(pid, folder)
        return True

    def limit_memory(self, worker_id: str, limit_bytes: int, *, at_least: float = 1.0) -> None:
        """Hold a worker to so much memory, or to `at_least` times what it has now if that is more."""
        folder = self._workers.get(worker_id)
        if folder is None:
            return
        with contextlib.suppress(OSError, ValueError):
            current = int((folder / "memory.current").read_text())
            _write(folder / "memory.max", max(limit_bytes, int(current * at_least)))

    def was_short_of_memory(self, worker_id: str) -> bool | None:
        """Return whether the kernel has killed in a worker's group for want of memory; None: it has no count."""
        folder = self._workers.get(worker_id)
        counts = _words(folder / "memory.events") if folder is not None else []
        return int(counts[counts.index("oom_kill") + 1]) > 0 if "oom_kill" in counts else None

    def remove(self, worker_id: str) -> None:
        """Kill what is left in a dead worker's group, and remove it."""
        folder = self._workers.pop(worker_id, None)
        if folder is not None:
            self._end(folder)

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
        _disable(self.folder, self._controllers)
        leaf = self.folder / _LEAF
        if leaf.exists():
            # Only a group that hands no controllers down may hold processes.
            _disable(self._parent, self._controllers)
            for pid in _pids(leaf):
                with contextlib.suppress(OSError):
                    _move(pid, self._parent)
            _remove(leaf)
        _remove(self.folder)


class _Mover:
    """A thread that moves processes. The kernel lets who asks wait for up to 15 ms: too long for an event loop."""

    def __init__(self) -> None:
        self._orders: queue.SimpleQueue[tuple[int, Path] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="cgroup-mover", daemon=True)
        self._thread.start()

    def move(self, pid: int, folder: Path) -> None:
        """Have a process moved soon."""
        self._orders.put((pid, folder))

    def close(self) -> None:
        """Finish."""
        self._orders.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (order := self._orders.get()) is not None:
            # It may have died meanwhile, and its group with it.
            with contextlib.suppress(OSError):
                _move(*order)


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
            _disable(each, _words(each / "cgroup.subtree_control"))
    _remove(folder)
    return True


def _namespace() -> int:
    return os.stat("/proc/self/ns/pid").st_ino


# --- single steps -----------------------------------------------------------------------------------


def _move(pid: int, folder: Path) -> None:
    _write(folder / "cgroup.procs", pid)


def _enable(folder: Path, controllers: Iterable[str]) -> None:
    _write(folder / "cgroup.subtree_control", " ".join(f"+{name}" for name in controllers))


def _disable(folder: Path, controllers: Iterable[str]) -> None:
    with contextlib.suppress(OSError):
        _write(folder / "cgroup.subtree_control", " ".join(f"-{name}" for name in controllers))


def _try_end(folder: Path) -> bool:
    """Kill all in a group and remove it; return whether it is gone. Groups that its processes made go with it."""
    with contextlib.suppress(OSError):
        _write(folder / "cgroup.kill", 1)
    for below, _, _ in os.walk(folder, topdown=False):
        _remove(Path(below))
    return not folder.exists()


def _make(folder: Path) -> None:
    folder.mkdir()


def _remove(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


def _write(file: Path, value: object) -> None:
    # Unbuffered, and no file is made: where the kernel offers none there is none.
    fd = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, str(value).encode())
    finally:
        os.close(fd)
