"""What the acceptance tests share: small fleets, other processes that use them, evidence of what was executed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil

from orchestrator import Client
from orchestrator.rundir import process_ticks
from tests.support.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
MARKER = f"{ROOT}/tests/support/programs/marker.py:Marker"
LISTENER = f"{ROOT}/tests/support/programs/marker.py:Listener"
SPAWNER = f"{ROOT}/tests/support/programs/spawner.py:Spawner"
# Far beyond what anything takes; where it is reached, something hangs.
SOON_S = 20.0
# The promise about every end: nothing is alive, and everybody knows, so much later.
GONE_S = 2.0


def pools(general: dict[str, Any] | int = 1, optimizer: dict[str, Any] | int = 0, neural: int = 0) -> dict[str, Any]:
    """Return a setting of `pools`; a number is a size."""
    named = {"general": general, "optimizer": optimizer, "neural": neural}
    return {name: {"size": value} if isinstance(value, int) else value for name, value in named.items()}


# --- other processes ------------------------------------------------------------------------------


class Script:
    """A Python process that runs `code` and speaks in JSON lines: `said()` is its next one."""

    def __init__(self, code: str, *arguments: str, **environ: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            cwd=ROOT, env={**os.environ, **environ},
        )  # fmt: skip

    def said(self) -> Any:
        """Return the next line. Raises AssertionError when there is none to come."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the script ended with {self.process.wait(SOON_S)} and said nothing"
        return json.loads(line)

    def tell(self) -> None:
        """Give the script a line on its standard input."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def __enter__(self) -> Script:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


# --- processes that are to end ----------------------------------------------------------------------


class Family:
    """Processes, named for ever by pid and start time, noted while they live."""

    def __init__(self, pids: Iterable[int]) -> None:
        noted = {pid: process_ticks(pid) for pid in pids}
        assert noted
        assert None not in noted.values(), f"one of {noted} has ended already"
        self._noted = noted

    @classmethod
    def of(cls, pid: int) -> Family:
        """Note a process and its descendants."""
        return cls([pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))])

    def __contains__(self, pid: int) -> bool:
        return pid in self._noted

    def __len__(self) -> int:
        return len(self._noted)

    def alive(self) -> list[int]:
        """Return the pids of those that run (a zombie does not)."""
        return [pid for pid, ticks in self._noted.items() if process_ticks(pid) == ticks]

    def assert_gone(self, since: float) -> None:
        """Assert that all have ended GONE_S after `since` (monotonic)."""
        wait_until(lambda: not self.alive(), max(since + GONE_S - time.monotonic(), 0.0), f"the end of {self._noted}")


# --- what the coordinator says ----------------------------------------------------------------------


def under_way(client: Client) -> int:
    """Return how many requests are accepted and not settled."""
    requests = client.stats()["requests"]
    return int(requests["queued"] + requests["in_flight"])


def await_under_way(client: Client, count: int) -> None:
    """Wait until exactly `count` requests are accepted and not settled."""
    wait_until(lambda: under_way(client) == count, SOON_S, f"{count} requests under way")


def await_full(client: Client, pool: str) -> None:
    """Wait until every worker of a pool is ready."""

    def full() -> bool:
        stats = client.stats()["pools"][pool]
        return bool(stats["ready"] == stats["size"])

    wait_until(full, SOON_S, f"a full pool {pool}")


# --- evidence ---------------------------------------------------------------------------------------


def mark(path: Path, number: int, seconds: float = 0.0) -> dict[str, Any]:
    """Return the arguments of a call of MARKER."""
    return {"path": str(path), "number": number, "seconds": seconds}


def marks(path: Path) -> list[int]:
    """Return the numbers of the calls that ran, in their order."""
    return [int(line) for line in path.read_text().splitlines()] if path.exists() else []
