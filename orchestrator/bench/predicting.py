"""`dspy.Predict` through dspool, on one thread of one process, and behind FastAPI; and calls that wait for a model."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from orchestrator.bench.contender import WORKERS
from orchestrator.bench.findings import Findings
from orchestrator.bench.machine import describe_machine
from orchestrator.bench.rivals import MODEL, SIGNATURE, OneThread, Served, question

if TYPE_CHECKING:
    from rich.console import Console

    from orchestrator.client.client import Client
    from orchestrator.client.future import Future

DSPOOL: Final = "dspool"
DSPOOL_MAP: Final = "dspool, map"
ONE_THREAD: Final = "one process, one thread"
SERVED: Final = f"FastAPI, uvicorn with {WORKERS} workers, httpx"
# What the server could do for a client that costs next to nothing; there is none such to use.
SERVED_BARELY: Final = "the same, but for the least of clients"
# How many times faster dspool must be.
LEAST: Final[Mapping[str, float]] = {ONE_THREAD: 1.5, SERVED: 2.0}
# Each with what it does best with: connections cost httpx much, and uvicorn some.
IN_FLIGHT: Final[Mapping[str, int]] = {DSPOOL: 256, DSPOOL_MAP: 256, ONE_THREAD: 1, SERVED: 8, SERVED_BARELY: 16}
# Calls that wait: 200 of 200 ms on 16 slots take 2.6 s, and what it costs to have them.
WAITING_CALLS: Final = 200
WAITING_MS: Final = 200
SLOTS: Final = 8
MOST_WAITING_S: Final = 3.2
_LMS: Final = {"default": {"model": MODEL}, "waiting": {"model": f"{MODEL}?latency_ms={WAITING_MS}"}}
_WARM_UP_S: Final = 0.3


@dataclass(frozen=True)
class PredictingReport(Findings):
    """What a run found, a value for each round. rates: calls per second. notes: why one was not measured."""

    rates: Mapping[str, list[float]]
    waiting_s: list[float]
    notes: Mapping[str, str] = field(default_factory=dict)

    def ratio(self, name: str) -> float:
        """Return how many times faster dspool is: the median of the rounds."""
        return statistics.median(
            ours / theirs for ours, theirs in zip(self.rates[DSPOOL], self.rates[name], strict=True)
        )

    @property
    def ratios(self) -> dict[str, float]:
        """Those to all that was measured."""
        return {name: self.ratio(name) for name in self.rates if name != DSPOOL}

    @property
    def passed(self) -> bool:
        """Whether everything that was measured is as it must be."""
        fast = all(ratio >= LEAST.get(name, 0.0) for name, ratio in self.ratios.items())
        return fast and statistics.median(self.waiting_s) <= MOST_WAITING_S

    def as_json(self) -> dict[str, Any]:
        """Return everything, JSON-ready."""
        return {
            "machine": dict(self.machine),
            "settings": dict(self.settings),
            "rates": {
                name: {"rate": statistics.median(rounds), "rounds": rounds} for name, rounds in self.rates.items()
            },
            "ratios": self.ratios,
            "waiting_s": self.waiting_s,
            "notes": dict(self.notes),
            "passed": self.passed,
        }

    def print(self, console: Console) -> None:
        """Print the machine, the table and the verdicts."""
        from rich import box
        from rich.table import Table

        self.print_machine(console)
        title = f"dspy.Predict on {MODEL}, {WORKERS} workers"
        table = Table("", box=box.SIMPLE_HEAD, title=title, title_justify="left")
        for heading in ("in\nflight", "calls/s\nmedian", "rounds", "dspool /\nthis", "at\nleast", ""):
            table.add_column(heading, justify="right")
        for name, rounds in self.rates.items():
            cells = [str(IN_FLIGHT[name]), f"{statistics.median(rounds):,.0f}"]
            cells += [", ".join(f"{rate:,.0f}" for rate in rounds), f"{self.ratio(name):.2f}"]
            if name in LEAST:
                cells += [f"{LEAST[name]:g}", _verdict(self.ratio(name) >= LEAST[name])]
            table.add_row(name, *cells)
        console.print(table)
        for name, note in self.notes.items():
            console.print(f"{name}: {note}", highlight=False, markup=False)
        waiting_s = statistics.median(self.waiting_s)
        console.print(
            f"{WAITING_CALLS} calls that wait {WAITING_MS} ms each, {SLOTS} slots a worker: {waiting_s:.2f} s "
            f"(at most {MOST_WAITING_S:g}): {_verdict(waiting_s <= MOST_WAITING_S)}",
            highlight=False,
        )


def run_predicting(
    *, seconds: float = 1.0, rounds: int = 5, say: Callable[[str], None] = lambda text: None
) -> PredictingReport:
    """Measure and return what was found.

    seconds: for each side in each round. rounds: how often everything is repeated; the sides take turns. say: told
    what is going on, a line at a time. Where FastAPI is not installed or does not start the report says so.
    """
    from orchestrator.owner import Orchestrator

    pools = {"general": {"size": WORKERS, "slots": SLOTS}, "optimizer": {"size": 0}, "neural": {"size": 0}}
    notes: dict[str, str] = {}
    waiting_s: list[float] = []
    with ExitStack() as stack:
        say("starting all sides")
        client = stack.enter_context(stack.enter_context(Orchestrator(pools=pools, lms=_LMS)).client())
        alone = stack.enter_context(OneThread())
        sides: dict[str, Callable[[float], float]] = {
            DSPOOL: lambda seconds: _calls(client, seconds),
            DSPOOL_MAP: lambda seconds: _map(client, seconds),
            ONE_THREAD: alone.rate,
        }
        try:
            served = stack.enter_context(Served())
            sides[SERVED] = lambda seconds: served.rate(seconds, IN_FLIGHT[SERVED])
            sides[SERVED_BARELY] = lambda seconds: served.bare_rate(seconds, IN_FLIGHT[SERVED_BARELY])
        except RuntimeError as exc:
            notes[SERVED] = str(exc)
        for side in sides.values():
            side(_WARM_UP_S)
        rates: dict[str, list[float]] = {name: [] for name in sides}
        for number in range(rounds):
            say(f"round {number + 1} of {rounds}")
            # Who goes first changes from round to round.
            names = list(sides)
            for name in names[number % len(names) :] + names[: number % len(names)]:
                rates[name].append(sides[name](seconds))
            waiting_s.append(_waiting_s(client))
    settings = {"seconds": seconds, "rounds": rounds, "workers": WORKERS, "in_flight": dict(IN_FLIGHT), "slots": SLOTS}
    return PredictingReport(describe_machine(), settings, rates, waiting_s, notes)


def _args(number: int) -> dict[str, Any]:
    return {"signature": SIGNATURE, "inputs": {"question": question(number)}}


def _calls(client: Client, seconds: float) -> float:
    """Return the calls per second with many on their way, until the last answer."""
    under_way: deque[tuple[int, Future]] = deque()
    number = 0

    def take() -> None:
        sent, future = under_way.popleft()
        _check(sent, future.result())

    began = time.perf_counter()
    while time.perf_counter() < began + seconds:
        if len(under_way) >= IN_FLIGHT[DSPOOL]:
            take()
        number += 1
        under_way.append((number, client.submit("dspy.Predict", _args(number))))
    while under_way:
        take()
    return number / (time.perf_counter() - began)


def _map(client: Client, seconds: float) -> float:
    """Return the rows per second that a map answers."""
    number = 0
    began = time.perf_counter()
    rows = iter(lambda: time.perf_counter() - began > seconds, True)  # yields until the time is up
    for number, found in enumerate(client.map("dspy.Predict", (_args(at) for at, _ in enumerate(rows, 1))), 1):
        _check(number, found)
    return number / (time.perf_counter() - began)


def _check(number: int, found: Any) -> None:
    if f" {number} " not in found.answer:
        raise RuntimeError(f"question {number} was answered with {found.answer!r}")


def _waiting_s(client: Client) -> float:
    """Return the seconds that many calls take which wait for their model."""
    began = time.perf_counter()
    futures = [client.submit("dspy.Predict", _args(number), lm="waiting") for number in range(WAITING_CALLS)]
    for number, future in enumerate(futures):
        _check(number, future.result())
    return time.perf_counter() - began


def _verdict(passed: bool) -> str:
    return "PASS" if passed else "FAIL"
