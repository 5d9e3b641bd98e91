"""What this process holds and what it started: taken before a test and after it, the difference is what leaked.

Attribution does not depend on parents alone: every process that the tests start inherits the mark
`DSPOOL_TEST_RUN` in its environment, so a grandchild that was orphaned or left its session is found too.
Files are looked for in the test run's own temporary folder (see `tests/conftest.py`), not in everybody's.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from pathlib import Path

MARK = "DSPOOL_TEST_RUN"
SHM = Path("/dev/shm")
SHM_PREFIXES = ("dspool", "psm_")
# Entries of the test run's temporary folder that outlive a test by design.
KEPT = re.compile(r"run|data|cache|pytest-of-.*")
# Files of a run folder that outlive a coordinator by design.
KEPT_IN_RUN = re.compile(r".*lock|.*\.log")
RUN_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Process:
    """One process. `start_ticks` tells it from a later one with the same pid."""

    pid: int
    start_ticks: int
    parent: int
    state: str
    command: str

    @property
    def key(self) -> tuple[int, int]:
        return self.pid, self.start_ticks

    def __str__(self) -> str:
        zombie = " (zombie)" if self.state == "Z" else ""
        return f"process {self.pid}{zombie}, child of {self.parent}: {self.command[:200]}"


@dataclass(frozen=True)
class Census:
    """Everything held at one moment."""

    processes: dict[tuple[int, int], Process]
    descriptors: Counter[str]
    threads: dict[int, str]
    zmq_threads: int
    files: frozenset[str]
    shared_memory: frozenset[str]
    sockets: dict[str, str] = field(default_factory=dict, compare=False)

    @staticmethod
    def take() -> Census:
        """Count now. Takes some milliseconds."""
        descriptors = _descriptors()
        return Census(
            processes={process.key: process for process in _own_processes()},
            descriptors=descriptors,
            threads=_threads(),
            zmq_threads=_zmq_threads(),
            files=frozenset(_files(Path(tempfile.gettempdir()))),
            shared_memory=frozenset(_shared_memory()),
            sockets=_socket_names() if any(name.startswith("socket:") for name in descriptors) else {},
        )

    def difference(self, before: Census) -> list[str]:
        """Return a line for everything that is held now and was not held `before`.

        What a process of `before` has started since is its own affair (a coordinator that several tests share
        replaces its workers). While there is one, its client may also open descriptors and start threads late:
        those are compared only where no process was held before.
        """
        lines = [str(process) for process in self.processes.values() if not self._accounted(process, before)]
        if not before.processes:
            lines += [
                f"descriptor {self._name(target)}" for target in (self.descriptors - before.descriptors).elements()
            ]
            lines += [f"thread {name!r}" for ident, name in self.threads.items() if ident not in before.threads]
            if self.zmq_threads > before.zmq_threads:
                lines.append(f"{self.zmq_threads - before.zmq_threads} ZeroMQ threads (a context was not terminated)")
        lines += [f"file {path}" for path in sorted(self.files - before.files)]
        lines += [f"shared memory {name}" for name in sorted(self.shared_memory - before.shared_memory)]
        return lines

    def _accounted(self, process: Process, before: Census) -> bool:
        by_pid = {other.pid: other for other in self.processes.values()}
        current: Process | None = process
        while current is not None:
            if current.key in before.processes:
                return True
            current = by_pid.get(current.parent)
        return False

    def _name(self, target: str) -> str:
        return f"{target} {self.sockets[target]}" if target in self.sockets else target


# --- processes ----------------------------------------------------------------------------------


def _own_processes() -> list[Process]:
    """Return this process's descendants and every process that carries its mark."""
    everybody = {process.pid: process for process in _all_processes()}
    own = os.getpid()
    mark = f"{MARK}={os.environ[MARK]}".encode() if MARK in os.environ else None
    return [
        process
        for process in everybody.values()
        if process.pid != own
        and "multiprocessing.resource_tracker" not in process.command  # one per interpreter, for its whole life
        and (_descends(process, own, everybody) or (mark is not None and _marked(process.pid, mark)))
    ]


def _all_processes() -> Iterator[Process]:
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):  # it went while being looked at
                yield _process(int(name))


def _process(pid: int) -> Process:
    text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    command_name = text[text.index("(") + 1 : text.rindex(")")]
    fields = text[text.rindex(")") + 2 :].split()
    command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    return Process(pid, int(fields[19]), int(fields[1]), fields[0], command or f"[{command_name}]")


def _descends(process: Process, ancestor: int, everybody: dict[int, Process]) -> bool:
    seen: set[int] = set()
    parent = process.parent
    while parent in everybody and parent not in seen:
        if parent == ancestor:
            return True
        seen.add(parent)
        parent = everybody[parent].parent
    return False


def _marked(pid: int, mark: bytes) -> bool:
    try:
        return mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False


# --- this process -------------------------------------------------------------------------------


def _descriptors() -> Counter[str]:
    tracker = getattr(resource_tracker._resource_tracker, "_fd", None)
    targets: Counter[str] = Counter()
    for name in os.listdir("/proc/self/fd"):
        if name == str(tracker):
            continue
        with contextlib.suppress(OSError):  # the descriptor of this very listing
            targets[os.readlink(f"/proc/self/fd/{name}")] += 1
    return targets


def _threads() -> dict[int, str]:
    # tqdm's monitor lives from the first progress bar to the end of the process.
    return {
        thread.ident: thread.name
        for thread in threading.enumerate()
        if thread.ident is not None and type(thread).__name__ != "TMonitor"
    }


def _zmq_threads() -> int:
    count = 0
    for name in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError):
            count += Path(f"/proc/self/task/{name}/comm").read_text().startswith("ZMQbg")
    return count


def _socket_names() -> dict[str, str]:
    """Return `socket:[inode]` -> the path or addresses it is bound to, where it has any."""
    names: dict[str, str] = {}
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        fields = line.split()
        if len(fields) > 7:
            names[f"socket:[{fields[6]}]"] = fields[7]
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                names[f"socket:[{fields[9]}]"] = f"{table} {fields[1]} -> {fields[2]}"
    return names


# --- files --------------------------------------------------------------------------------------


def _files(root: Path) -> Iterator[str]:
    """Yield what a test made in the temporary folder, and what a coordinator left in the user's run folder."""
    for entry in _entries(root):
        if not KEPT.fullmatch(entry.name):
            yield entry.path
    for folder, folders, files in os.walk(root / "run"):
        yield from (os.path.join(folder, name) for name in folders if RUN_ID.fullmatch(name))
        yield from (os.path.join(folder, name) for name in files if not KEPT_IN_RUN.fullmatch(name))


def _shared_memory() -> Iterator[str]:
    for entry in _entries(SHM):
        with contextlib.suppress(OSError):
            if entry.name.startswith(SHM_PREFIXES) and entry.stat().st_uid == os.getuid():
                yield entry.name


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except FileNotFoundError:
        return []
