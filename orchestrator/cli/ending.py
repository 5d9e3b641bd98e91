"""Ending a coordinator, politely and then not, and proving that nothing of it is left."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from orchestrator import processes
from orchestrator.cli.coordinators import Found, session
from orchestrator.cli.failure import NoCoordinator
from orchestrator.errors import DeadlineExceeded, DspoolError
from orchestrator.rundir import end_run, sweep

# Beyond the drain: workers are given their grace, sockets are closed.
_MARGIN_S: Final = 15.0
_AT_ONCE_S: Final = 2.0
_ANSWER_S: Final = 5.0
_LEFT_TIMEOUT_S: Final = 3.0
_BETWEEN_SIGNALS_S: Final = 0.2

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an end went: asked, killed, or dead before. family: how many processes there were; left: what outlived it."""

    text: str
    how: str
    family: int = 0
    left: list[processes.Process] = field(default_factory=list)
    swept: list[str] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        """Return it as JSON-ready data."""
        return {
            "how": self.how,
            "processes": self.family,
            "left": [{"pid": each.pid, "command": each.command} for each in self.left],
            "swept": self.swept,
        }


def stop(found: Found, *, drain_s: float | None, force: bool, say: Say) -> Outcome:
    """Stop a coordinator: ask, wait for its drain, then SIGTERM twice, then SIGKILL. Raises NoCoordinator."""
    began = time.monotonic()
    head, run_id = _head(found)
    # Noted before anything is asked: what ends in time is to be counted too.
    family = {each.pid: each for each in [head, *processes.descendants(head.pid), *processes.of_run(run_id)]}
    how = "asked"
    if force or not _ended(head, _ask(found, head, drain_s, say), family):
        how = "killed"
        _insist(head, say)
    left = processes.survivors(family.values(), _LEFT_TIMEOUT_S)
    if left and (force or how == "killed"):
        for each in left:
            each.signal(signal.SIGKILL)
        left = processes.survivors(left, _LEFT_TIMEOUT_S)
    if not head.alive:
        end_run(found.run_dir, run_id)
    took_s = time.monotonic() - began
    text = f"coordinator {head.pid} stopped in {took_s:.1f} s; {len(left)} processes left (of {len(family)})"
    return Outcome(text, how, len(family), left)


def _head(found: Found) -> tuple[processes.Process, str]:
    """Return the coordinator's process and its run id. Raises NoCoordinator."""
    if found.info is not None:
        pid, run_id = found.info.pid, found.info.run_id
    else:
        with session(found) as client:
            pid = int(client.stats()["pid"])
        run_id = Path(found.endpoint.removeprefix("ipc://")).parent.name
    head = processes.process(pid)
    if head is None:
        raise NoCoordinator(f"the coordinator with pid {pid} has just ended")
    return head, run_id


def _ask(found: Found, head: processes.Process, drain_s: float | None, say: Say) -> float:
    """Ask for the drain; return how long to wait for its end, 0 if it does not answer. Raises NoCoordinator."""
    try:
        with session(found) as client:
            answer = client.execute(
                "dspool.down", {} if drain_s is None else {"drain_s": drain_s}, deadline_s=_ANSWER_S
            )
    except (NoCoordinator, DeadlineExceeded) as exc:
        if not head.alive:
            return _MARGIN_S
        say(f"coordinator {head.pid} does not answer ({exc.message})")
        return 0.0
    say(f"coordinator {head.pid} drains: accepted work has {answer['drain_s']:g} s to finish")
    return float(answer["drain_s"]) + _MARGIN_S


def _ended(head: processes.Process, budget_s: float, family: dict[int, processes.Process]) -> bool:
    """Wait for the coordinator's end. What it starts meanwhile (a replaced worker) joins the family."""
    until = time.monotonic() + budget_s
    while head.alive:
        if time.monotonic() >= until:
            return False
        processes.survivors([head], min(0.5, budget_s))
        if head.alive:
            family.update({each.pid: each for each in processes.descendants(head.pid)})
    return True


def _insist(head: processes.Process, say: Say) -> None:
    for _ in range(2):  # the second one makes it leave at once
        head.signal(signal.SIGTERM)
        if not processes.survivors([head], _BETWEEN_SIGNALS_S):
            return
    if processes.survivors([head], _AT_ONCE_S):
        say(f"coordinator {head.pid} does not obey SIGTERM: SIGKILL")
        head.signal(signal.SIGKILL)
        processes.survivors([head], _AT_ONCE_S)


def sweep_dead(run_dir: Path) -> Outcome:
    """Remove what dead coordinators left in a run directory. Raises NoCoordinator if there is nothing to be removed."""
    swept = sweep(run_dir)
    workers = [each for run_id in swept for each in processes.of_run(run_id)]
    for each in workers:
        each.signal(signal.SIGKILL)
    for run_id in swept:
        end_run(run_dir, run_id)
    left = processes.survivors(workers, _LEFT_TIMEOUT_S)
    if not swept:
        raise NoCoordinator(f"no coordinator is running (looked in {run_dir}): there is nothing to stop")
    text = f"the coordinator was dead already; what it left in {run_dir} is removed; {len(left)} processes left"
    return Outcome(text, "dead", len(workers), left, swept)


def abandon(pid: int) -> None:
    """End a coordinator that failed to start. Raises DspoolError if something of it is left."""
    head = processes.process(pid)
    if head is None:
        return
    family = [head, *processes.descendants(pid)]
    _insist(head, lambda text: None)
    if left := processes.survivors(family, _LEFT_TIMEOUT_S):
        raise DspoolError("processes outlived their coordinator:\n" + "\n".join(map(str, left)))
