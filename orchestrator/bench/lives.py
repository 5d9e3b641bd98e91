"""How fast processes come to life here, what they weigh, and how long one that was killed is missed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from orchestrator.bench import bereaved
from orchestrator.bench.figures import Figure, FiguresReport
from orchestrator.bench.machine import describe_machine
from orchestrator.bench.recovery import INTERVAL_S, LMS, POOL, Kill, LightLoad, kill_workers
from orchestrator.owner import Orchestrator

if TYPE_CHECKING:
    from rich.console import Console

    from orchestrator.client.client import Client

KILLS: Final = 50
STARTS: Final = 5
FEW: Final = 4
MANY: Final = 32
# The limits, in the units of their rows.
MOST_START_S: Final = 2.5
MOST_LATER_S: Final = 0.5
MOST_PSS_MB: Final = 25.0
MOST_P50_MS: Final = 60.0
MOST_P99_MS: Final = 250.0
# What follows a start is no idling.
_REST_S: Final = 2.0
_FIRST_ANSWERS: Final = 20
_REFERENCE_TIMEOUT_S: Final = 90.0
_BOOT: Final = "from orchestrator.bench.bereaved import main; main()"

Say = Callable[[str], None]


@dataclass(frozen=True)
class LivesReport(FiguresReport):
    """What a run found. references: by name, what `bereaved` prints, or `{"error": text}`."""

    kills: list[Kill]
    references: Mapping[str, Mapping[str, Any]]

    def as_json(self) -> dict[str, Any]:
        """Return everything, JSON-ready."""
        return {
            **super().as_json(),
            "kills": [{name: getattr(kill, name) for name in Kill.__slots__} for kill in self.kills],
            "references": {name: dict(found) for name, found in self.references.items()},
        }

    def print(self, console: Console) -> None:
        """Print the machine, the table, the verdict and the references."""
        super().print(console)
        for name, found in self.references.items():
            console.print(f"for reference, {name}: {_sentence(found)}", highlight=False, markup=False)


def run_lives(*, starts: int = STARTS, kills: int = KILLS, say: Say = lambda text: None) -> LivesReport:
    """Measure and return what was found.

    starts: how often three pools are started with 4 general workers and with 32, by turns. kills: how many general
    workers are killed, one after the other. say: told what is going on, a line at a time.
    """
    figures = list(_starts(starts, say))
    restart = {"max_restarts": 10_000}  # so many deaths in a row would slow its restarts down
    found: list[Kill] = []
    pools = {**_sizes(FEW), POOL: {"size": FEW, "restart": restart}}
    # The calls that are killed are alike: what is measured is not whether they are poison.
    limits = {"poison_deaths": 0}
    with Orchestrator(lms=LMS, pools=pools, limits=limits) as orchestrator, orchestrator.client() as client:
        figures += _weights(client, say)
        for kill in kill_workers(client, kills):
            found.append(kill)
            if len(found) % 10 == 0:
                say(f"{len(found)} of {kills} workers killed")
    figures += _recoveries(found)
    references = {name: _reference(name, say) for name in bereaved.SUBJECTS}
    settings = {"starts": starts, "kills": kills, "workers": FEW, "call_every_ms": INTERVAL_S * 1000.0}
    return LivesReport(describe_machine(), settings, figures, found, references)


def _sizes(general: int) -> dict[str, dict[str, Any]]:
    return {"general": {"size": general}, "optimizer": {"size": 1}, "neural": {"size": 1}}


# --- starts ---------------------------------------------------------------------------------------


def _starts(times: int, say: Say) -> Iterator[Figure]:
    few: list[float] = []
    many: list[float] = []
    for number in range(times):
        say(f"start {number + 1} of {times}: {FEW} general workers, and {MANY}")
        # Who goes first changes: what the machine does meanwhile falls on both alike.
        for size, took in [(FEW, few), (MANY, many)][:: 1 if number % 2 == 0 else -1]:
            took.append(start_s(_sizes(size)))
    later = [more - less for less, more in zip(few, many, strict=True)]
    yield Figure(f"three pools ready, {FEW} general workers", "s", MOST_START_S, few)
    yield Figure(f"three pools ready, {MANY} general workers", "s", None, many)
    yield Figure(f"{MANY} general workers instead of {FEW}: later by", "s", MOST_LATER_S, later)


def start_s(pools: Mapping[str, Mapping[str, Any]]) -> float:
    """Return the seconds from nothing to a coordinator whose pools are all ready; stop it again."""
    orchestrator = Orchestrator(pools=pools)
    began = time.perf_counter()
    try:
        orchestrator.start()
        return time.perf_counter() - began
    finally:
        orchestrator.stop()


# --- weights --------------------------------------------------------------------------------------


def _weights(client: Client, say: Say) -> Iterator[Figure]:
    say(f"{FEW} general workers idle")
    time.sleep(_REST_S)
    workers = {row["id"]: row["pid"] for row in client.workers() if row["pool"] == POOL and row["pid"]}
    idle = [memory_mb(pid) for pid in workers.values()]
    with LightLoad(client) as load:
        for worker_id in workers:
            load.await_answers(worker_id, _FIRST_ANSWERS)
    time.sleep(_REST_S)
    used = [memory_mb(pid) for pid in workers.values()]
    yield Figure(f"PSS of an idle worker, of {FEW} general ones", "MB", MOST_PSS_MB, [each["Pss"] for each in idle])
    yield Figure("RSS of the same, shared pages counted in full", "MB", None, [each["Rss"] for each in idle])
    yield Figure(f"PSS once it has answered {_FIRST_ANSWERS} DSPy calls", "MB", None, [each["Pss"] for each in used])


def memory_mb(pid: int) -> dict[str, float]:
    """Return `Rss` and `Pss` of a process in MB (10⁶ bytes): PSS divides shared pages by those who share them."""
    found = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
        name, _, amount = line.partition(":")
        if name in ("Rss", "Pss"):
            found[name] = int(amount.split()[0]) * 1024 / 1e6
    return found


# --- deaths ---------------------------------------------------------------------------------------


def _recoveries(kills: list[Kill]) -> Iterator[Figure]:
    answered = [kill.answered_ms for kill in kills]
    told = [kill.told_ms for kill in kills]
    yield Figure("worker killed: its replacement has answered a call, p50", "ms", MOST_P50_MS, answered)
    yield Figure("worker killed: its replacement has answered a call, p99", "ms", MOST_P99_MS, answered, 0.99)
    yield Figure("worker killed: the caller of what ran is told, p50", "ms", None, told)
    yield Figure("worker killed: the caller of what ran is told, p99", "ms", MOST_P99_MS, told, 0.99)


def _reference(name: str, say: Say) -> dict[str, Any]:
    """Return what a reference found in a process of its own, or its error."""
    say(f"a worker of {name} is killed")
    path = os.pathsep.join(filter(None, [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH")]))
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", _BOOT, name],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path},
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=_REFERENCE_TIMEOUT_S)
        if process.returncode:
            return {"error": f"its process ended with {process.returncode}"}
        found: dict[str, Any] = json.loads(output)
        return found
    except subprocess.TimeoutExpired:
        return {"error": f"no answer within {_REFERENCE_TIMEOUT_S:g} s"}
    finally:
        if process.poll() is None:
            # The group is its own; unreaped, its number cannot be another's yet.
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def _sentence(found: Mapping[str, Any]) -> str:
    if "error" in found:
        return str(found["error"])
    if found["told"] is None:
        told = f"the caller was told nothing for {bereaved.WAIT_S:g} s and would wait for ever"
    else:
        told = f"the caller got {found['told']} after {found['told_ms']:.0f} ms"
    return f"{told}; a new process has answered a DSPy call after {found['answered_ms']:.0f} ms"
