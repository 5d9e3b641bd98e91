"""Which SIGKILL came from the kernel, for want of memory.

A signal does not say who sent it. But the kernel counts what it kills for memory, per memory cgroup: a worker that
nobody here killed, while that number rose, is one of those. Where there is no such count nothing is guessed.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Final

_SELF: Final = Path("/proc/self")
_V1, _V2 = ("cgroup", "memory.oom_control"), ("cgroup2", "memory.events")
_FIELD: Final = "oom_kill"


def find_counter(process: Path = _SELF) -> Path | None:
    """Return the file with the count of a process's memory cgroup, None if there is none.

    process: its folder in /proc. The files are described in the kernel's cgroup-v2.rst (memory.events) and
    cgroup-v1/memory.rst (memory.oom_control), the lines of mountinfo in proc(5).
    """
    try:
        groups = [line.split(":", 2) for line in (process / "cgroup").read_text().splitlines()]
        mounts = (process / "mountinfo").read_text().splitlines()
    except OSError:
        return None
    # The memory controller is in one hierarchy only: in one of version 1 if any is named, else in version 2's.
    named = [path for _, controllers, path in groups if "memory" in controllers.split(",")]
    (kind, file), paths = (_V1, named) if named else (_V2, [path for number, _, path in groups if number == "0"])
    for line in mounts if paths else ():
        where, _, what = line.partition(" - ")
        root, mount = where.split()[3:5]
        mounted, _, options = what.split()[:3]
        group = PurePosixPath(paths[0])
        if mounted != kind or (named and "memory" not in options.split(",")) or not group.is_relative_to(root):
            continue
        found = Path(mount) / group.relative_to(root) / file
        if found.exists():
            return found
    return None


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

    def explains(self, worker_id: str) -> bool:
        """Return whether this worker, dead by a SIGKILL, was killed for memory; take that kill from the count."""
        before, count = self._before.pop(worker_id, None), self._count()
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
