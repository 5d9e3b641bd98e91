"""How much of the memory is in use: of the coordinator's control group where that has a limit, else of the machine."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import Final, NamedTuple

from pools.launch.cgroup import Group, find_group

_SELF: Final = Path("/proc/self")
_MEMINFO: Final = Path("/proc/meminfo")
_READ_BYTES: Final = 16_384
# What a limit of version 1 says where there is none: the largest number of whole pages.
_NO_LIMIT: Final = 1 << 60


class _Files(NamedTuple):
    limit: str
    used: str
    given_back: tuple[str, ...]  # lines of memory.stat: what the kernel gives back when memory is needed


_FILES: Final = {
    1: _Files("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file")),
    2: _Files("memory.max", "memory.current", ("inactive_file", "active_file", "slab_reclaimable")),
}


class MemoryGauge:
    """Reads the part of the memory that is in use, 0 to 1. Every file is opened once."""

    def __init__(self, process: Path = _SELF, meminfo: Path = _MEMINFO) -> None:
        """process: whose groups count, its folder in /proc. Groups that have no limit now are not looked at again."""
        group = find_group("memory", process)
        self._limited = [] if group is None else _limited(group)
        self._meminfo = None if self._limited else _open(meminfo)

    def used(self) -> float | None:
        """Return the part in use: of the limited group that is nearest to its limit; None where nobody says."""
        try:
            if self._limited:
                return max(group.used() for group in self._limited)
            return None if self._meminfo is None else _machine(os.pread(self._meminfo, _READ_BYTES, 0))
        except (OSError, ValueError):
            return None

    def close(self) -> None:
        """Close the files."""
        for fd in [fd for group in self._limited for fd in group.fds] + [self._meminfo]:
            if fd is not None:
                os.close(fd)
        self._limited, self._meminfo = [], None


class _LimitedGroup:
    """A group with a limit. What files have left in the page cache, and caches of the kernel, are not counted."""

    def __init__(self, folder: Path, files: _Files) -> None:
        names = (files.limit, files.used, "memory.stat")
        self.fds: list[int] = []
        try:
            for name in names:
                self.fds.append(os.open(folder / name, os.O_RDONLY | os.O_CLOEXEC))
        except OSError:
            for fd in self.fds:
                os.close(fd)
            raise
        self._given_back = re.compile(rf"^(?:{'|'.join(files.given_back)}) (\d+)$".encode(), re.MULTILINE)

    def limit(self) -> int | None:
        text = os.pread(self.fds[0], 64, 0).strip()
        return None if text == b"max" or int(text) >= _NO_LIMIT else int(text)

    def used(self) -> float:
        limit = self.limit()
        if not limit:
            return 0.0
        used = int(os.pread(self.fds[1], 64, 0))
        spare = sum(map(int, self._given_back.findall(os.pread(self.fds[2], _READ_BYTES, 0))))
        return min(max(used - spare, 0) / limit, 1.0)


def _limited(group: Group) -> list[_LimitedGroup]:
    found = []
    for folder in group.upwards():
        with contextlib.suppress(OSError, ValueError):
            each = _LimitedGroup(folder, _FILES[group.version])
            if each.limit() is not None:
                found.append(each)
            else:
                for fd in each.fds:
                    os.close(fd)
    return found


def _machine(meminfo: bytes) -> float | None:
    """Return 1 - MemAvailable / MemTotal, None for a kernel that does not estimate what is available."""
    lines = dict(line.split(b":", 1) for line in meminfo.splitlines() if b":" in line)
    if b"MemTotal" not in lines or b"MemAvailable" not in lines:
        return None
    total, available = (int(lines[name].split()[0]) for name in (b"MemTotal", b"MemAvailable"))
    return 1.0 - available / total


def _open(path: Path) -> int | None:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
