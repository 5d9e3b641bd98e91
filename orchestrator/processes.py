"""Which processes belong to a coordinator, noted while they live, so that their absence can be proved later.

Everything is read from /proc. A process that ends meanwhile is not there; that is no error.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from orchestrator.rundir import process_ticks

OWNER_FILE: Final = "owner"
_POLL_S: Final = 0.02
_RUN_ID: Final = re.compile(r"[0-9a-f]{32}")
_COMMAND_CHARS: Final = 120


@dataclass(frozen=True, slots=True)
class Process:
    """One process. Its pid and its start time (clock ticks since boot) name it for ever."""

    pid: int
    started_ticks: int
    command: str

    @property
    def alive(self) -> bool:
        """Whether it still runs (a zombie does not)."""
        return process_ticks(self.pid) == self.started_ticks

    def signal(self, number: int) -> None:
        """Signal it; never a later process of the same pid."""
        try:
            pidfd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return
        try:
            if self.alive:
                signal.pidfd_send_signal(pidfd, number)
        except ProcessLookupError:
            return
        finally:
            os.close(pidfd)

    def __str__(self) -> str:
        return f"{self.pid} {self.command[:_COMMAND_CHARS]}"


def process(pid: int) -> Process | None:
    """Return the process with this pid, None if there is none."""
    ticks = process_ticks(pid)
    return None if ticks is None else Process(pid, ticks, _describe(_words(pid)))


def descendants(pid: int) -> list[Process]:
    """Return the living descendants of a process."""
    children: dict[int, list[int]] = {}
    for each in _pids():
        if (parent := _parent(each)) is not None:
            children.setdefault(parent, []).append(each)
    found, unseen = [], [pid]
    while unseen:
        below = children.pop(unseen.pop(), [])
        found += below
        unseen += below
    return [known for each in found if (known := process(each)) is not None]


def of_run(run_id: str) -> list[Process]:
    """Return the processes that carry a run's id as the last word of their command line: its workers."""
    return [found for found, its_run in workers() if its_run == run_id]


def workers() -> list[tuple[Process, str]]:
    """Return every worker process of this user that the system shows, with its run id."""
    found = []
    for pid in _pids():
        words = _words(pid)
        if _is_worker(words) and _is_ours(pid) and (known := process(pid)) is not None:
            found.append((known, words[-1]))
    return found


def orphans() -> list[tuple[Process, str]]:
    """Return the workers whose nanny is gone, with their run ids: they wait for nobody."""
    return [(found, run_id) for found, run_id in workers() if found.alive and not _has_nanny(found.pid)]


def survivors(processes: Iterable[Process], timeout_s: float) -> list[Process]:
    """Wait until all have ended, `timeout_s` seconds at most; return those that have not."""
    until = time.monotonic() + timeout_s
    left = [found for found in processes if found.alive]
    while left and time.monotonic() < until:
        time.sleep(_POLL_S)
        left = [found for found in left if found.alive]
    return left


# --- folders that belong to a process ---------------------------------------------------------


def claim(folder: Path) -> None:
    """Note in a folder that it belongs to this process."""
    (folder / OWNER_FILE).write_text(f"{os.getpid()} {process_ticks(os.getpid())}", encoding="utf-8")


def is_orphaned(folder: Path) -> bool:
    """Return whether a folder of this user belongs to a process that is dead. False where that cannot be told."""
    file = folder / OWNER_FILE
    try:
        if file.stat().st_uid != os.getuid():
            return False
        pid, ticks = file.read_text(encoding="utf-8").split()
        return str(process_ticks(int(pid))) != ticks
    except (OSError, ValueError):
        return False  # being made or removed by somebody


# --- reading /proc ----------------------------------------------------------------------------


def _pids() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


def _read(pid: int, name: str) -> bytes:
    """Return a file of a process's; empty once the process has ended."""
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return b""


def _words(pid: int) -> list[str]:
    return [os.fsdecode(word) for word in _read(pid, "cmdline").split(b"\0")[:-1]]


def _parent(pid: int) -> int | None:
    # The command, in brackets, may hold anything; the parent is the second field after it.
    fields = _read(pid, "stat").rpartition(b")")[2].split()
    return int(fields[1]) if fields else None


def _is_ours(pid: int) -> bool:
    try:
        return os.stat(f"/proc/{pid}").st_uid == os.getuid()
    except FileNotFoundError:
        return False


def _describe(words: list[str]) -> str:
    if _is_worker(words):
        return f"worker {words[-2]} of run {words[-1]}"
    return " ".join(" ".join(words).split())


def _is_worker(words: list[str]) -> bool:
    return len(words) > 2 and "--lifeline-fd" in words and _RUN_ID.fullmatch(words[-1]) is not None


def _has_nanny(pid: int) -> bool:
    parent = _parent(pid)
    return parent is None or any(word.endswith("nanny.py") for word in _words(parent))
