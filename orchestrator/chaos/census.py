"""What a coordinator and its maker hold, counted by kind: two censuses of calm moments differ in what leaked.

Kinds are names without what is new in every life: numbers and run ids. Every process that a run starts inherits MARK in
its environment, so that orphans in sessions of their own are counted too.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from orchestrator.processes import descendants, process

MARK: Final = "CHAOS_RUN"
_SHM: Final = Path("/dev/shm")
_COMMAND_CHARS: Final = 60  # of its end: what tells workers, zygotes and others apart
_CHANGING: Final = re.compile(r"(?<=/dspool-)\w{8}(?=/|$)|^dspool-\w{8}(?=/|$)|[0-9a-f]{16,}|\d+")


@dataclass(frozen=True, slots=True)
class Census:
    """What was held at one moment, by kind. Of the coordinator: descriptors, threads; of all: processes, files."""

    held: Counter[str]

    @classmethod
    def take(cls, coordinator: int, folder: Path) -> Census:
        """Count. coordinator: its pid; folder: everything that the run may write."""
        held: Counter[str] = Counter()
        for whose, pid in (("the coordinator", coordinator), ("this process", os.getpid())):
            held.update(f"descriptor of {whose}: {kind}" for kind in _descriptors(pid))
            held.update(f"thread of {whose}" for _ in _names(Path(f"/proc/{pid}/task")))
        held.update(f"process: {_kind(command)[-_COMMAND_CHARS:]}" for command in commands())
        held.update(f"shared memory: {_kind(name)}" for name in _names(_SHM) if name.startswith("dspool"))
        held.update(f"file: {_kind(str(path.relative_to(folder)))}" for path in folder.rglob("*"))
        return cls(held)

    def more_than(self, before: Census) -> list[str]:
        """Return a line for each kind of which more is held now than `before`."""
        return [f"{count} more of {kind}" for kind, count in sorted((self.held - before.held).items())]

    def less_than(self, before: Census) -> list[str]:
        """Return a line for each kind of which less is held now."""
        return [f"{count} less of {kind}" for kind, count in sorted((before.held - self.held).items())]


def commands() -> list[str]:
    """Return the command lines of all that this process has started, directly or not, and that exists (zombies too)."""
    own = os.getpid()
    mark = f"{MARK}={os.environ[MARK]}".encode() if MARK in os.environ else None
    pids = {each.pid for each in descendants(own)} | {pid for pid in _zombies(own)}
    if mark is not None:
        pids |= {int(name) for name in _names(Path("/proc")) if name.isdigit() and _is_marked(int(name), mark)}
    found = ((pid, process(pid)) for pid in pids - {own})
    return [known.command if known is not None else "(zombie)" for pid, known in found if _exists(pid)]


def rss_bytes(pid: int) -> int:
    """Return how much memory of a process is resident; 0 once it has ended."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (FileNotFoundError, ProcessLookupError):
        return 0


def _kind(name: str) -> str:
    return _CHANGING.sub("#", name)


def _descriptors(pid: int) -> Iterator[str]:
    folder = Path(f"/proc/{pid}/fd")
    for name in _names(folder):
        try:
            yield _kind(os.readlink(folder / name))
        except FileNotFoundError:
            continue  # that of this very listing


def _zombies(parent: int) -> Iterator[int]:
    for name in filter(str.isdigit, _names(Path("/proc"))):
        fields = _stat(int(name))
        if fields[:1] == ["Z"] and int(fields[1]) == parent:
            yield int(name)


def _stat(pid: int) -> list[str]:
    """Return the fields behind the command's name, state and parent first; none once it has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def _exists(pid: int) -> bool:
    return bool(_stat(pid))


def _is_marked(pid: int, mark: bytes) -> bool:
    try:
        return mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return False


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except (FileNotFoundError, ProcessLookupError):
        return []
