"""One run: every contender in turn, round after round, so that a noisy moment hits all of them."""

from __future__ import annotations

import json
import os
import select
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Final

from orchestrator.bench.machine import describe_machine
from orchestrator.bench.report import Contestant, Report

SUBJECT: Final = "dspool"
REFERENCES: Final = ("zmq.proxy", "multiprocessing.Pool", "ProcessPoolExecutor")
PEERS: Final = ("loky", "ray", "dask.distributed", "ipyparallel")
CELLS: Final = ("sequential", "flood_100", "flood_1000", "map", "big", "array")
ROUNDS: Final = 5
# Latency is compared in short turns: what the machine does meanwhile then falls on all alike.
_TURNS: Final = 5
_WARM_UP_S: Final = 0.1
_START_TIMEOUT_S: Final = 90.0
_CELL_TIMEOUT_S: Final = 90.0
_STOP_TIMEOUT_S: Final = 20.0
_BOOT: Final = "from orchestrator.bench.driver import main; main()"

Say = Callable[[str], None]


def run(
    *,
    pool: str = "general",
    seconds: float = 0.5,
    rounds: int = ROUNDS,
    peers: bool = False,
    contenders: Sequence[str] | None = None,
    say: Say = lambda text: None,
) -> Report:
    """Measure dspool and its references and return what was found.

    Args:
        pool: the pool of dspool that is measured; it has two workers, the others none.
        seconds: how long each contender sends in each cell of each round.
        rounds: how often everything is repeated; medians and ranges are over these.
        peers: also measure loky, ray, dask.distributed and ipyparallel, one at a time after the rest: some of
            them are busy even when idle.
        contenders: measure these only.
        say: told what is going on, a line at a time.

    A contender that is not installed, or fails, is in the report with its reason and does not end the run.
    """
    names = tuple(contenders) if contenders is not None else (SUBJECT, *REFERENCES, *(PEERS if peers else ()))
    together = [name for name in names if name not in PEERS]
    groups = [together, *([name] for name in names if name in PEERS)]
    found: list[Contestant] = []
    for group in filter(None, groups):
        found += _measure(group, pool=pool, seconds=seconds, rounds=rounds, say=say)
    settings = {"pool": pool, "seconds": seconds, "rounds": rounds, "workers": 2}
    return Report(machine=describe_machine(), settings=settings, contestants=found, subject=SUBJECT)


def _measure(names: Sequence[str], *, pool: str, seconds: float, rounds: int, say: Say) -> list[Contestant]:
    with ExitStack() as stack:
        contestants = [Contestant(name) for name in names]
        drivers: dict[str, Driver] = {}
        for contestant in contestants:
            say(f"starting {contestant.name}")
            driver = stack.enter_context(Driver(contestant.name, pool))
            answer = driver.ask("start", timeout_s=_START_TIMEOUT_S)
            contestant.note = answer.get("error")
            if contestant.note is None:
                contestant.add("start_s", answer["start_s"])
                drivers[contestant.name] = driver
        field = [contestant for contestant in contestants if contestant.name in drivers]
        for cell in CELLS:
            _turn(field, drivers, cell, _WARM_UP_S, keep=False)
        for number in range(rounds if field else 0):
            say(f"round {number + 1} of {rounds}: {', '.join(each.name for each in field if each.note is None)}")
            for cell in CELLS:
                # Who goes first changes from round to round.
                order = field[number % len(field) :] + field[: number % len(field)]
                _turn(order, drivers, cell, seconds, keep=True)
        return contestants


def _turn(field: list[Contestant], drivers: dict[str, Driver], cell: str, seconds: float, *, keep: bool) -> None:
    turns = _TURNS if cell == "sequential" and keep else 1
    times_us: dict[str, list[float]] = {contestant.name: [] for contestant in field}
    for _ in range(turns):
        for contestant in field:
            if contestant.note is not None:
                continue
            answer = drivers[contestant.name].ask(cell, seconds=seconds / turns, timeout_s=seconds + _CELL_TIMEOUT_S)
            if "error" in answer:
                contestant.note = f"{cell}: {answer['error']}"
            elif cell == "sequential":
                times_us[contestant.name] += answer["times_us"]
            elif keep and answer["rate"] is not None:
                contestant.add(cell, answer["rate"])
    if keep and cell == "sequential":
        for contestant in field:
            if len(measured := times_us[contestant.name]) >= 2:
                contestant.add("p50_us", statistics.median(measured))
                contestant.add("p99_us", statistics.quantiles(measured, n=100, method="inclusive")[98])


class Driver:
    """The process that holds one contender (see `driver`). A context manager: leaving it ends the contender."""

    def __init__(self, name: str, pool: str) -> None:
        root = Path(__file__).resolve().parents[2]
        path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
        self.name = name
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _BOOT, name, pool],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
            start_new_session=True,
        )
        self._read = b""

    def __enter__(self) -> Driver:
        """Return the driver, already started."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Stop the contender; kill its process group if it does not end by itself."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        # What a dead contender has not read stays in the buffer, and closing would send it.
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._kill()
        self._process.stdout.close()

    def ask(self, do: str, *, timeout_s: float, seconds: float = 0.0) -> dict[str, Any]:
        """Send one command and return its answer; `{"error": ...}` also when the driver died or took too long."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, "seconds": seconds}).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return {"error": f"its process ended with {self._process.wait()}"}
        while b"\n" not in self._read:
            readable, _, _ = select.select([self._process.stdout], [], [], timeout_s)
            data = os.read(self._process.stdout.fileno(), 1 << 20) if readable else b""
            if not readable:
                self._kill()
                return {"error": f"no answer within {timeout_s:g} s"}
            if not data:
                return {"error": f"its process ended with {self._process.wait()}"}
            self._read += data
        line, _, self._read = self._read.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _kill(self) -> None:
        # The group is the driver's own; unreaped, its number cannot be another's yet.
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
