"""The memory of a worker and of the processes that its programs have started."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Final

_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
# More than any file of /proc that is read here has.
_FILE_BYTES: Final = 4096
# Processes of one worker that are looked at. A program that forks without end is not to stop the heartbeats too.
MAX_PROCESSES: Final = 512
# The kernel walks all pages of a process to tell which are its own: about a millisecond for each 70 MB.
MAX_READ: Final = 16
_LOOK_S: Final = 0.025
# Between two looks, as a multiple of what the first has taken: reading takes a twentieth of the time at most.
_REST: Final = 19.0
_PROC: Final = "/proc"


class FamilyMemory:
    """Resident bytes of this process and its descendants, shared pages counted once. Not thread-safe.

    Its RSS, and what is private to each descendant. Where a descendant shares more than that RSS (with its own
    children, then), as much as it shares stands in for the RSS. Both leave pages out, and count none twice. Whose
    parent has died is nobody's descendant. Without children, as nearly always, it costs two system calls.
    """

    def __init__(self) -> None:
        """Watch this process."""
        self._statm_fd = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
        # Absent where the kernel was built without CONFIG_PROC_CHILDREN: then all of /proc is read instead.
        self._descendants = listed if os.path.exists("/proc/thread-self/children") else searched
        self._readings = Readings()

    def rss_bytes(self) -> int:
        """Return the bytes, as `Readings` knows them; of more than MAX_PROCESSES only some count."""
        own = int(os.pread(self._statm_fd, _FILE_BYTES, 0).split(maxsplit=2)[1]) * _PAGE_BYTES
        readings = self._readings
        if _has_children():
            readings.look(self._descendants(os.getpid()))
        elif readings:
            readings.look(())
        return max(own, readings.most_shared()) + readings.private()

    def close(self) -> None:
        """Watch no longer."""
        os.close(self._statm_fd)


class Readings:
    """What was read last of the memory of some processes, by turns. clock: in seconds.

    At each look at most MAX_READ processes are read, those first that have waited longest. A process is first read at
    the look after the one that has found it: between vfork and exec, a child's memory is that of its parent.
    """

    def __init__(self, proc: str = _PROC, clock: Callable[[], float] = time.monotonic) -> None:
        """Know nobody."""
        self._proc = proc
        self._clock = clock
        # Private and shared bytes by pid and start time, the longest waiting first.
        self._of: dict[tuple[int, int], tuple[int, int]] = {}
        self._next_at_s = float("-inf")

    def __len__(self) -> int:
        """Return how many processes are known."""
        return len(self._of)

    def private(self) -> int:
        """Return the bytes that are of one process each."""
        return sum(private for private, _ in self._of.values())

    def most_shared(self) -> int:
        """Return the most that one of the processes shares with any other, in bytes."""
        return max((shared for _, shared in self._of.values()), default=0)

    def look(self, pids: Iterable[int]) -> None:
        """Forget who is not among these processes, read some who were among them before, and note the others."""
        there = [process for pid in pids if (process := _process(pid, self._proc))]
        known = dict.fromkeys(there, (0, 0))
        self._of = {process: amounts for process, amounts in self._of.items() if process in known}
        began = self._clock()
        if began >= self._next_at_s:
            now = began
            for process in list(self._of)[:MAX_READ]:
                del self._of[process]
                self._of[process] = amounts_of(process[0], self._proc)
                now = self._clock()
                if now - began >= _LOOK_S:
                    break
            self._next_at_s = now + _REST * (now - began)
        for process in there:
            self._of.setdefault(process, (0, 0))


def amounts_of(pid: int, proc: str = _PROC) -> tuple[int, int]:
    """Return the private and the shared bytes of a process, both 0 if it has ended.

    Where its pages are not told to us (another user's), its anonymous ones are taken for private.
    """
    with suppress(OSError):
        of = _kilobytes(f"{proc}/{pid}/smaps_rollup")
        private, shared = (of.get(f"{kind}_Clean", 0) + of.get(f"{kind}_Dirty", 0) for kind in ("Private", "Shared"))
        return private << 10, shared << 10
    with suppress(OSError):
        return _kilobytes(f"{proc}/{pid}/status").get("RssAnon", 0) << 10, 0
    return 0, 0


def _kilobytes(path: str) -> dict[str, int]:
    """Return the amounts in a file whose lines are like `Name:  12 kB`."""
    rows = (line.split() for line in _read(path).decode("ascii", "replace").splitlines())
    return {row[0][:-1]: int(row[1]) for row in rows if len(row) == 3 and row[2] == "kB"}


def _process(pid: int, proc: str) -> tuple[int, int] | None:
    """Return a pid with its start time, in ticks, which tells it from others of the same number; None if it is dead."""
    with suppress(OSError):
        state, *fields = _after_name(_read(f"{proc}/{pid}/stat"))
        return None if state in (b"Z", b"X") else (pid, int(fields[18]))
    return None


def _after_name(stat: bytes) -> list[bytes]:
    # `pid (name) state ppid …`: a name may hold anything, also a parenthesis.
    return stat.rpartition(b")")[2].split()


def _has_children() -> bool:
    """Return whether this process has children, dead ones that nobody has waited for included."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _read(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, _FILE_BYTES)
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
                yield int(name), int(_after_name(_read(f"{proc}/{name}/stat"))[1])
