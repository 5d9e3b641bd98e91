"""The files of a control group: what the kernel says there, and the single steps that are asked for by writing there.

Writing raises OSError where the kernel refuses.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path


def words(file: Path) -> list[str]:
    """Return the words in a file, none if it cannot be read."""
    try:
        return file.read_text().split()
    except OSError:
        return []


def pids(folder: Path) -> list[int]:
    """Return who is in a group."""
    return [int(word) for word in words(folder / "cgroup.procs")]


def write(file: Path, value: object) -> None:
    """Write a value."""
    # Unbuffered, and no file is made: where the kernel offers none there is none.
    fd = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, str(value).encode())
    finally:
        os.close(fd)


def move(pid: int, folder: Path) -> None:
    """Bring a process, with its threads, into a group."""
    write(folder / "cgroup.procs", pid)


def move_family(pid: int, whence: Path, folder: Path) -> None:
    """Move a process, and then what it started while it was still in `whence`: from now on its children are born here.

    Raises OSError if the process itself cannot be moved.
    """
    move(pid, folder)
    family, found = {pid}, True
    while found:
        children = {each for each in pids(whence) if each not in family and _parent_of(each) in family}
        for child in children:
            with contextlib.suppress(OSError):  # it has ended
                move(child, folder)
        family |= children
        found = bool(children)


def _parent_of(pid: int) -> int:
    """Return a process's parent, 0 if it has ended."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[1])
    except (OSError, IndexError):
        return 0


def limit_memory(folder: Path, limit_bytes: int, at_least: float) -> None:
    """Hold a group to so much memory, or to `at_least` times what it has now if that is more. Raises ValueError too."""
    current = int((folder / "memory.current").read_text())
    write(folder / "memory.max", max(limit_bytes, int(current * at_least)))


def enable(folder: Path, controllers: Iterable[str]) -> None:
    """Hand controllers down to the groups below."""
    write(folder / "cgroup.subtree_control", " ".join(f"+{name}" for name in controllers))


def disable(folder: Path, controllers: Sequence[str]) -> None:
    """Hand controllers down no more, if that is possible."""
    if not controllers:
        return
    with contextlib.suppress(OSError):
        write(folder / "cgroup.subtree_control", " ".join(f"-{name}" for name in controllers))
