"""Which SIGKILL came from the kernel, for want of memory.

A signal does not say who sent it. But the kernel counts what it kills for memory, per memory cgroup. The count of a
worker's own group says exactly what happened. Where it has none, a worker that nobody here killed, while the count of
the coordinator's group rose, is one of those. Where there is no such count either nothing is guessed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from pools.launch.cgroup import find_group

_SELF: Final = Path("/proc/self")
_FILES: Final = {1: "memory.oom_control", 2: "memory.events"}
_FIELD: Final = "oom_kill"


def find_counter(process: Path = _SELF) -> Path | None:
    """Return the file with the count of a process's memory cgroup, None if there is none.

    process: its folder in /proc. The files are described in the kernel's cgroup-v2.rst (memory.events) and
    cgroup-v1/memory.rst (memory.oom_control).
    """
    group = find_group("memory", process)
    file = None if group is None else group.folder / _FILES[group.version]
    return file if file is not None and file.exists() else None


class OomKills:
    """The kernel's kills for memory, each of which explains one death."""

    def __init__(self, counter: Path | None) -> None:
        """counter: as found by `find_counter`; None = nothing is ever explained."""
        self._counter = counter
        self._before: dict[str, int] = {}  # what was counted at each worker's birth
        self._explained = 0  # all up to this number belongs to deaths that have been told

    def launched(self, worker_id: str) -> None:
        """A worker is born: only what is counted from now on can be about it."""
        count = self._count()
        if count is not None:
            self._before[worker_id] = count

    def killed_here(self, worker_id: str) -> None:
        """Somebody here kills this worker: no other explanation is needed."""
        self._before.pop(worker_id, None)

    def all_killed_here(self) -> None:
        """Everybody who lives is being killed by somebody here."""
        self._before.clear()

    def explains(self, worker_id: str, exactly: bool | None = None) -> bool:
        """Return whether this worker, dead by a SIGKILL, was killed for memory; take that kill from the count.

        exactly: what its own group says, None if it has none.
        """
        before, count = self._before.pop(worker_id, None), self._count()
        if exactly is not None:
            return exactly
        if before is None or count is None or count <= max(before, self._explained):
            return False
        self._explained = max(before, self._explained) + 1
        return True

    def buried(self, worker_id: str) -> None:
        """Forget a worker."""
        self._before.pop(worker_id, None)

    def _count(self) -> int | None:
        try:
            lines = self._counter.read_text().splitlines() if self._counter is not None else []
        except OSError:
            return None
        counts = [value for name, _, value in (line.partition(" ") for line in lines) if name == _FIELD]
        return int(counts[0]) if counts else None
