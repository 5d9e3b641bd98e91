"""Kills in a row, and what they cost: coordinators under load, workers in mid-call.

Each coordinator's successor, on the same folders, is the next victim. What is left of a dead one is looked for in two
ways: among the descendants noted before the kill, and by a mark that all its processes inherit in their environment, so
that nobody who was forked in the last moment is missed.
"""

from __future__ import annotations

import os
import random
import secrets
import signal
import tempfile
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from orchestrator import Orchestrator, errors
from orchestrator.bench.figures import quantile
from orchestrator.processes import descendants
from tests.support.acceptance import MARKER, SOON_S, SPAWNER, mark, marks, pools
from tests.support.waiting import wait_until

WORKERS, GRANDCHILDREN, HELD, ECHOES = 2, 3, 6, 2000
_MARK = "KILLS_MARK"
_LONG = {"seconds": 600.0}


@dataclass(frozen=True, slots=True)
class CoordinatorKill:
    """What a SIGKILL to a coordinator cost; seconds from the kill. left: processes of its after 2 s."""

    left: int
    gone_s: float
    told_s: float
    serves_s: float


@dataclass(frozen=True, slots=True)
class WorkerKill:
    """What a SIGKILL to the only worker of a pool cost; seconds from the kill. back_s: a DSPy call was answered."""

    told_s: float
    back_s: float


LIMITS = {"left": 0.0, "gone_s": 2.0, "serves_s": 5.0, "back_s": 3.0}
# The callers of a coordinator learn its death from a descriptor, those of a worker from the coordinator.
TOLD_S: dict[type[Any], float] = {CoordinatorKill: 2.0, WorkerKill: 0.25}


# --- coordinators -----------------------------------------------------------------------------------


class Reign:
    """A coordinator with two workers that serves when this is made."""

    def __init__(self, folder: Path) -> None:
        self._mark = f"{_MARK}={secrets.token_hex(8)}".encode()
        name, _, value = self._mark.decode().partition("=")
        os.environ[name] = value
        try:
            self._orchestrator = Orchestrator(pools=pools(WORKERS), run_dir=folder / "r", data_dir=folder / "d").start()
        finally:
            del os.environ[name]
        self._client = self._orchestrator.client()
        self._client.execute("echo", 0)
        self.serves_at = time.monotonic()
        self._settled_at: list[float] = []

    def work(self) -> None:
        """Take on load: processes in sessions of their own below the workers, held calls, a burst of short ones."""
        client = self._client
        client.deploy("spawner", SPAWNER)
        grandchildren = {client.execute("spawner", _LONG).pid for _ in range(GRANDCHILDREN)}
        self._family = descendants(self._orchestrator.pid)
        assert grandchildren < {each.pid for each in self._family}
        assert len(self._family) >= 1 + WORKERS + GRANDCHILDREN
        # One that is just being executed has no environment for a moment.
        marked = grandchildren | {self._orchestrator.pid}
        wait_until(lambda: marked <= self._marked(), SOON_S, f"the mark of {marked}")
        self._futures = [client.submit("sleep", _LONG) for _ in range(HELD)]
        self._futures += [client.submit("echo", number) for number in range(ECHOES)]
        for future in self._futures:
            future.add_done_callback(lambda _: self._settled_at.append(time.monotonic()))

    def kill(self) -> float:
        """Kill the coordinator; return when."""
        killed_at = time.monotonic()
        os.kill(self._orchestrator.pid, signal.SIGKILL)
        return killed_at

    def await_gone(self, killed_at: float) -> tuple[int, float]:
        """Wait until nobody is left, LIMITS["gone_s"] at most; return how many are, and the seconds since the kill."""
        while True:
            took_s = time.monotonic() - killed_at
            left = self._marked() | {each.pid for each in self._family if each.alive}
            if not left or took_s >= LIMITS["gone_s"]:
                return len(left), took_s
            time.sleep(0.01)

    def told_s(self, killed_at: float) -> float:
        """Return when the last caller was told, in seconds from the kill. Raises AssertionError for a wrong outcome."""
        found = {type(future.exception(SOON_S)) for future in self._futures}
        assert found <= {type(None), errors.Unavailable}, found
        assert all(future.exception(0) is not None for future in self._futures[:HELD])
        wait_until(lambda: len(self._settled_at) >= len(self._futures), SOON_S, "every callback")
        assert len(self._settled_at) == len(self._futures), "a call was settled twice"
        return max(self._settled_at) - killed_at

    def end(self) -> None:
        """Stop what runs; clear up what a killed one left."""
        self._orchestrator.stop()

    def _marked(self) -> set[int]:
        return {int(name) for name in os.listdir("/proc") if name.isdigit() and self._is_marked(name)}

    def _is_marked(self, pid: str) -> bool:
        try:
            return self._mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            return False  # it has ended, or is not ours


def kill_coordinators(times: int, seed: int = 0) -> Generator[CoordinatorKill, None, None]:
    """Kill `times` coordinators, each in the middle of its load, and yield what each kill cost."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="k") as folder, ThreadPoolExecutor(1) as watcher:
        reign = Reign(Path(folder))
        try:
            for _ in range(times):
                reign.work()
                time.sleep(rng.uniform(0.0, 0.03))
                killed_at = reign.kill()
                gone = watcher.submit(reign.await_gone, killed_at)
                victim, reign = reign, Reign(Path(folder))
                left, gone_s = gone.result(SOON_S)
                told_s = victim.told_s(killed_at)
                victim.end()
                yield CoordinatorKill(left, gone_s, told_s, reign.serves_at - killed_at)
        finally:
            reign.end()


# --- workers ----------------------------------------------------------------------------------------


def kill_workers(times: int) -> Generator[WorkerKill, None, None]:
    """Kill the worker of a pool of one `times` times, each in mid-call, and yield what each kill cost."""
    general = {"size": 1, "restart": {"max_restarts": 10_000}, "breaker": None}
    with (
        tempfile.TemporaryDirectory(prefix="k") as folder, Orchestrator(pools=pools(general)) as orchestrator,
        orchestrator.client() as client,
    ):  # fmt: skip
        client.deploy("marker", MARKER)
        for number in range(times):
            evidence = Path(folder) / str(number)
            lost = client.submit("marker", mark(evidence, number, 600.0))
            wait_until(lambda evidence=evidence: marks(evidence), SOON_S, "the call's start")  # type: ignore[misc]
            (victim,) = [row for row in client.workers() if row["state"] == "busy"]
            killed_at = time.monotonic()
            os.kill(victim["pid"], signal.SIGKILL)
            error = lost.exception(SOON_S)
            told_s = time.monotonic() - killed_at
            assert isinstance(error, errors.WorkerLost), error
            assert (error.worker, error.signal, error.executed) == (victim["id"], signal.SIGKILL, "maybe")
            assert client.predict("question -> answer", question="Back?").answer
            yield WorkerKill(told_s, time.monotonic() - killed_at)


# --- the report -------------------------------------------------------------------------------------


def report(kills: list[Any]) -> dict[str, dict[str, float | bool]]:
    """Return, by quantity: p50, p99, max, the limit, and whether p99 keeps it (`left`: whether all do)."""
    found: dict[str, dict[str, float | bool]] = {}
    for name in (field.name for field in fields(kills[0])):
        values = [float(getattr(kill, name)) for kill in kills]
        limit = TOLD_S[type(kills[0])] if name == "told_s" else LIMITS[name]
        p99, most = quantile(values, 0.99), max(values)
        kept = (most if name in ("left", "gone_s") else p99) <= limit
        found[name] = {"p50": quantile(values, 0.5), "p99": p99, "max": most, "limit": limit, "kept": kept}
    return found
