"""Which processes belong to a coordinator, noted while they live, so that their absence can be proved later."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass

import psutil

from orchestrator.rundir import process_ticks

_POLL_S = 0.02
_RUN_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class Process:
    """One process. Its pid and its start time (clock ticks since boot) name it for ever."""

    pid: int
    started_ticks: int
    command: str

    @property
    def alive(self) -> bool:
        """Whether it still runs (a zombie does not)."""
        return process_ticks(self.pid) == self.started_ticks

    def signal(self, number: int) -> None:
        """Signal it; never a later process of the same pid."""
        try:
            pidfd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return
        try:
            if self.alive:
                signal.pidfd_send_signal(pidfd, number)
        except ProcessLookupError:
            return
        finally:
            os.close(pidfd)

    def __str__(self) -> str:
        return f"{self.pid} {self.command[:120]}"


def process(pid: int) -> Process | None:
    """Return the process with this pid, None if there is none."""
    ticks = process_ticks(pid)
    if ticks is None:
        return None
    try:
        return Process(pid, ticks, _describe(psutil.Process(pid).cmdline()))
    except psutil.Error:
        return Process(pid, ticks, "")


def _describe(words: list[str]) -> str:
    if _is_worker(words):
        return f"worker {words[-2]} of run {words[-1]}"
    return " ".join(" ".join(words).split())


def _is_worker(words: list[str]) -> bool:
    return len(words) > 2 and "--lifeline-fd" in words and _RUN_ID.fullmatch(words[-1]) is not None


def descendants(pid: int) -> list[Process]:
    """Return the living descendants of a process."""
    try:
        children = psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    return [found for child in children if (found := process(child.pid)) is not None]


def of_run(run_id: str) -> list[Process]:
    """Return the processes that carry a run's id as the last word of their command line: its workers."""
    return [found for found, its_run in workers() if its_run == run_id]


def workers() -> list[tuple[Process, str]]:
    """Return every worker process of this user that the system shows, with its run id."""
    found = []
    for each in psutil.process_iter(["cmdline", "uids"]):
        words = each.info["cmdline"] or []
        uids = each.info["uids"]
        if (
            _is_worker(words)
            and uids is not None
            and uids.real == os.getuid()
            and (known := process(each.pid)) is not None
        ):
            found.append((known, words[-1]))
    return found


def orphans() -> list[tuple[Process, str]]:
    """Return the workers whose nanny is gone, with their run ids: they wait for nobody."""
    return [(found, run_id) for found, run_id in workers() if not _has_nanny(found.pid)]


def _has_nanny(pid: int) -> bool:
    try:
        parent = psutil.Process(pid).parent()
        return parent is not None and any(word.endswith("nanny.py") for word in parent.cmdline())
    except psutil.NoSuchProcess:
        return True  # it ended meanwhile: nothing is left of it
    except psutil.AccessDenied:
        return False


def survivors(processes: Iterable[Process], timeout_s: float) -> list[Process]:
    """Wait until all have ended, `timeout_s` seconds at most; return those that have not."""
    until = time.monotonic() + timeout_s
    left = [found for found in processes if found.alive]
    while left and time.monotonic() < until:
        time.sleep(_POLL_S)
        left = [found for found in left if found.alive]
    return left
