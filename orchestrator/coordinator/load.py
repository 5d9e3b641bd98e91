"""How much of the processors is in use: of the machine's, and of what control groups with a quota may have of them."""

from __future__ import annotations

import contextlib
import os
from collections import deque
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from pools.launch.cgroup import find_group

WINDOW_S: Final = 10.0
_SELF: Final = Path("/proc/self")
_STAT: Final = Path("/proc/stat")
_READ_BYTES: Final = 4096
# Fields of the first line of /proc/stat, see proc(5): time in which nothing ran.
_IDLE, _IOWAIT = 3, 4
# user, nice, system, idle, iowait, irq, softirq, steal; what guests used is in user already.
_FIELDS: Final = 8


class _Work(NamedTuple):
    """Time used and time that there was, in units of the source's own, both growing."""

    used: float
    there: float


class _Source(Protocol):
    def read(self, now: float) -> _Work: ...

    def close(self) -> None: ...


class CpuGauge:
    """Reads the part of the processors that was in use over the last 10 s, 0 to 1. Every file is opened once."""

    def __init__(self, process: Path = _SELF, stat: Path = _STAT) -> None:
        """process: whose groups count, its folder in /proc. Of groups those of version 2 are looked at."""
        self._sources: list[tuple[_Source, deque[tuple[float, _Work]]]] = []
        with contextlib.suppress(OSError):
            self._add(_Machine(stat))
        group = find_group("", process)
        for folder in group.upwards() if group is not None else ():
            with contextlib.suppress(OSError, ValueError):
                cores = _quota((folder / "cpu.max").read_text())
                if cores is not None:
                    self._add(_Group(folder / "cpu.stat", cores))

    def _add(self, source: _Source) -> None:
        self._sources.append((source, deque()))

    def used(self, now: float) -> float | None:
        """Return the part in use, of whichever has least left; None where nobody says, and at the first look."""
        parts = [part for source, seen in self._sources if (part := _part(source, seen, now)) is not None]
        return max(parts, default=None)

    def close(self) -> None:
        """Close the files."""
        for source, _ in self._sources:
            source.close()
        self._sources.clear()


def _part(source: _Source, seen: deque[tuple[float, _Work]], now: float) -> float | None:
    try:
        latest = source.read(now)
    except (OSError, ValueError, IndexError):
        return None
    seen.append((now, latest))
    while len(seen) > 2 and seen[0][0] < now - WINDOW_S:
        seen.popleft()
    first = seen[0][1]
    there = latest.there - first.there
    return min(max((latest.used - first.used) / there, 0.0), 1.0) if there > 0 else None


class _Machine:
    """All processors together, in ticks."""

    def __init__(self, stat: Path) -> None:
        self._fd = os.open(stat, os.O_RDONLY | os.O_CLOEXEC)

    def read(self, now: float) -> _Work:
        line = os.pread(self._fd, _READ_BYTES, 0).split(b"\n", 1)[0].split()
        ticks = [int(field) for field in line[1 : 1 + _FIELDS]]
        return _Work(sum(ticks) - ticks[_IDLE] - ticks[_IOWAIT], sum(ticks))

    def close(self) -> None:
        os.close(self._fd)


class _Group:
    """A group that may use so many processors' time, in seconds."""

    def __init__(self, stat: Path, cores: float) -> None:
        self._fd = os.open(stat, os.O_RDONLY | os.O_CLOEXEC)
        self._cores = cores

    def read(self, now: float) -> _Work:
        for line in os.pread(self._fd, _READ_BYTES, 0).splitlines():
            name, _, value = line.partition(b" ")
            if name == b"usage_usec":
                return _Work(int(value) / 1e6, now * self._cores)
        raise ValueError("no usage_usec")

    def close(self) -> None:
        os.close(self._fd)


def _quota(cpu_max: str) -> float | None:
    """Return how many processors `cpu.max` allows, None if all."""
    quota, period = cpu_max.split()
    return None if quota == "max" else int(quota) / int(period)
