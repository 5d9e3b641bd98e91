"""Measure what is promised of import, idling, ends, deaths of coordinators and commits; exit with 1 where it is broken.

Each figure is the median of its runs; its range stands beside it. Starts, memory and the deaths of workers are
measured by `scripts/bench --lives`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from orchestrator import Client, Orchestrator, errors  # noqa: E402 - of this checkout
from orchestrator.bench.figures import HEADING, Figure  # noqa: E402

HEAVY = ("dspy", "pydantic", "numpy", "typer", "yaml")
TIMEOUT_S = 30.0
POLL_S = 0.002


# --- import -----------------------------------------------------------------------------------------

_IMPORT = f"""
import json, sys, time
began = time.perf_counter()
from orchestrator import AsyncClient, Client, Orchestrator, connect, errors
took_s = time.perf_counter() - began
print(json.dumps([took_s, [name for name in {HEAVY!r} if name in sys.modules]]))
"""


def imports(runs: int) -> Iterator[Figure]:
    took_ms: list[float] = []
    loaded: set[str] = set()
    for _ in range(runs + 1):
        done = subprocess.run([sys.executable, "-c", _IMPORT], cwd=ROOT, capture_output=True, text=True, check=True)
        took_s, heavy = json.loads(done.stdout)
        took_ms.append(took_s * 1000.0)
        loaded.update(heavy)
    yield Figure(
        "import of all that orchestrator offers", "ms", 150.0, took_ms[1:]
    )  # the first one may write byte code
    yield Figure(f"heavy packages that come with it, of {len(HEAVY)}", "", 0.0, [float(len(loaded))])


# --- a coordinator of the default size --------------------------------------------------------------


def ends(runs: int) -> Iterator[Figure]:
    first_calls, stops = [], []
    for _ in range(runs):
        orchestrator = Orchestrator().start()
        try:
            began = time.perf_counter()
            with orchestrator.client() as client:
                client.execute("echo", 1)
            first_calls.append((time.perf_counter() - began) * 1000.0)
        finally:
            began = time.perf_counter()
            orchestrator.stop()
            stops.append(time.perf_counter() - began)
    yield Figure("connect and first echo", "ms", None, first_calls)
    yield Figure("stop of an idle one, nothing left", "s", None, stops)


def idle(seconds: float) -> Iterator[Figure]:
    with Orchestrator() as orchestrator, orchestrator.client() as client:
        client.execute("echo", 1)
        family = [psutil.Process(orchestrator.pid), *psutil.Process(orchestrator.pid).children(recursive=True)]
        time.sleep(2.0)  # what follows a start is no idling
        before = [_cpu_s(process) for process in [*family, psutil.Process()]]
        began = time.perf_counter()
        time.sleep(seconds)
        took_s = time.perf_counter() - began
        used = [_cpu_s(process) - then for process, then in zip([*family, psutil.Process()], before, strict=True)]
        rss = sum(process.memory_info().rss for process in family) / 2**20
        yield Figure(f"idle CPU, {len(family)} processes and a client", "%", 1.0, [100.0 * sum(used) / took_s])
        yield Figure("idle CPU of the coordinator alone", "%", None, [100.0 * used[0] / took_s])
        yield Figure("resident memory, pages shared counted often", "MiB", None, [rss])


def _cpu_s(process: psutil.Process) -> float:
    """Return the CPU seconds of a process, from the scheduler's nanoseconds."""
    total_ns = 0
    for task in Path(f"/proc/{process.pid}/task").iterdir():
        total_ns += int((task / "schedstat").read_text().split()[0])
    return total_ns / 1e9


# --- deaths -----------------------------------------------------------------------------------------


@contextmanager
def small() -> Iterator[tuple[Orchestrator, Client]]:
    sizes = {"general": {"size": 2}, "optimizer": {"size": 0}, "neural": {"size": 0}}
    with Orchestrator(pools=sizes) as orchestrator, orchestrator.client() as client:
        yield orchestrator, client


def coordinator_deaths(runs: int) -> Iterator[Figure]:
    told_ms, gone_ms = [], []
    for _ in range(runs):
        with small() as (orchestrator, client):
            futures = [client.submit("sleep", {"seconds": 60.0}) for _ in range(100)]
            head = psutil.Process(orchestrator.pid)
            family = [head, *head.children(recursive=True)]
            began = time.perf_counter()
            head.kill()
            found = [future.exception(TIMEOUT_S) for future in futures]
            told_ms.append((time.perf_counter() - began) * 1000.0)
            if not all(isinstance(error, errors.Unavailable) for error in found):
                raise SystemExit(f"callers of a killed coordinator got {set(map(type, found))}")
            _wait(partial(_none_runs, family), "the end of every process")
            gone_ms.append((time.perf_counter() - began) * 1000.0)
    yield Figure("coordinator killed: 100 callers are told after", "ms", 2000.0, told_ms)
    yield Figure("coordinator killed: no process is left after", "ms", 2000.0, gone_ms)


def _none_runs(family: list[psutil.Process]) -> bool:
    return not any(map(_runs, family))


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _wait(ready: Callable[[], Any], what: str) -> Any:
    until = time.monotonic() + TIMEOUT_S
    while not (found := ready()):
        if time.monotonic() > until:
            raise SystemExit(f"waited {TIMEOUT_S:g} s for {what}")
        time.sleep(POLL_S)
    return found


# --- the store --------------------------------------------------------------------------------------

_WRITES = 1000
_STATE = b"x" * 4096


def commits() -> Iterator[Figure]:
    """A session saved after a call, and a version deployed: all that the store does for it, on this disk."""
    from orchestrator.services.store import SessionSave, Store, VersionDraft, store_path

    saves, deploys, bare = [], [], []
    with tempfile.TemporaryDirectory(dir=Path.home()) as folder:
        with Store.open(store_path(folder)) as store:
            for number in range(1, _WRITES + 1):
                of: dict[str, Any] = {"principal": "p", "id": f"s{number % 50}", "generation": 1, "ttl_s": 60.0}
                change = SessionSave(**of, seq=number, state=_STATE, turns=[(number, _STATE[:500])])
                saves.append(_took_ms(partial(store.sessions.save, [change])))
                draft = VersionDraft(name="qa", sha256=str(number), pool="general", target="m", state=_STATE.decode())
                deploys.append(_took_ms(partial(store.programs.add_version, draft, "live")))
        with open(Path(folder) / "bare", "wb", buffering=0) as file:
            for _ in range(_WRITES):
                bare.append(_took_ms(lambda: (file.write(_STATE), os.fdatasync(file.fileno()))))
    yield Figure("store: a session's change committed, p99", "ms", 5.0, saves, 0.99)
    yield Figure("store: a session's change committed", "ms", None, saves)
    yield Figure("store: a version and its alias committed, p99", "ms", 5.0, deploys, 0.99)
    yield Figure("beside it: 4 KiB written and synced, p99", "ms", None, bare, 0.99)


def _took_ms(do: Callable[[], object]) -> float:
    began = time.perf_counter()
    do()
    return (time.perf_counter() - began) * 1000.0


# --- the table --------------------------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/measure", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures as JSON")
    parser.add_argument("--runs", type=int, default=3, metavar="N", help="how often each is measured (3)")
    parser.add_argument("--idle-s", type=float, default=10.0, metavar="N", help="how long idling is watched (10)")
    wanted = parser.parse_args()
    machine = f"{os.cpu_count()} cores, Python {platform.python_version()}, load {os.getloadavg()[0]:.1f}"
    print(f"{machine}\n{HEADING}")
    figures: list[Figure] = []
    for measured in (
        imports(wanted.runs), ends(wanted.runs), idle(wanted.idle_s), coordinator_deaths(wanted.runs), commits(),
    ):  # fmt: skip
        for figure in measured:
            figures.append(figure)
            print(figure.line(), flush=True)
    if wanted.json is not None:
        rows = [figure.as_json() for figure in figures]
        wanted.json.write_text(json.dumps({"machine": machine, "figures": rows}, indent=1) + "\n", encoding="utf-8")
    return 0 if all(figure.holds for figure in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
