"""The memory of a worker and of the processes that its programs have started."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
# Of a line of statm, and far more than the numbers before the parent's pid in a line of stat.
_LINE_BYTES: Final = 512
# Processes of one worker that are looked at. A program that forks without end is not to stop the heartbeats too.
MAX_PROCESSES: Final = 512
_PROC: Final = "/proc"


class FamilyMemory:
    """Resident bytes of this process and its descendants. Not thread-safe.

    A sum of RSS: pages that processes share, as after a fork, count for each of them. Whose parent has died is
    nobody's descendant. Without children, as nearly always, a look costs two system calls.
    """

    def __init__(self) -> None:
        """Watch this process."""
        self._statm_fd = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
        # Absent where the kernel was built without CONFIG_PROC_CHILDREN: then all of /proc is read instead.
        self._descendants = listed if os.path.exists("/proc/thread-self/children") else searched

    def rss_bytes(self) -> int:
        """Return the sum. Processes that come or go meanwhile may be left out, or more than MAX_PROCESSES."""
        pages = _resident(os.pread(self._statm_fd, _LINE_BYTES, 0))
        if _has_children():
            for pid in self._descendants(os.getpid()):
                with suppress(OSError):  # it has ended
                    pages += _resident(_read(f"/proc/{pid}/statm"))
        return pages * _PAGE_BYTES

    def close(self) -> None:
        """Watch no longer."""
        os.close(self._statm_fd)


def _has_children() -> bool:
    """Return whether this process has children, dead ones that nobody has waited for included."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _resident(statm: bytes) -> int:
    return int(statm.split(maxsplit=2)[1])


def _read(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, _LINE_BYTES)
    finally:
        os.close(fd)


# --- two ways to find descendants ---------------------------------------------------------------------


def listed(root: int, proc: str = _PROC) -> list[int]:
    """Return the descendants of the process `root`, parents first, as the kernel lists them for each thread."""
    found = [root]
    for pid in found:
        with suppress(OSError):  # it has ended
            for thread in os.listdir(f"{proc}/{pid}/task"):
                with suppress(OSError), open(f"{proc}/{pid}/task/{thread}/children", "rb", buffering=0) as file:
                    found += map(int, file.read().split())
        if len(found) > MAX_PROCESSES:
            break
    # Each once: the children of a thread that ends become those of another, which is perhaps read later.
    return list(dict.fromkeys(found[1 : MAX_PROCESSES + 1]))


def searched(root: int, proc: str = _PROC) -> list[int]:
    """Return the descendants of the process `root`, parents first, by the parent of every process there is."""
    children: defaultdict[int, list[int]] = defaultdict(list)
    for pid, parent in _parents(proc):
        children[parent].append(pid)
    found = [root]
    for pid in found:
        found += children.pop(pid, ())
        if len(found) > MAX_PROCESSES:
            break
    return found[1 : MAX_PROCESSES + 1]


def _parents(proc: str) -> Iterator[tuple[int, int]]:
    for name in os.listdir(proc):
        if name.isdecimal():
            with suppress(OSError):  # it has ended
                # `pid (name) state ppid …`: a name may hold anything, also a parenthesis.
                yield int(name), int(_read(f"{proc}/{name}/stat").rpartition(b")")[2].split(maxsplit=2)[1])
