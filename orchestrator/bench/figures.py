"""Figures with a limit: what was measured, what it must not exceed, and whether it does."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from orchestrator.bench.findings import Findings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from rich.console import Console
    from rich.table import Table

NAME_WIDTH: Final = 58
HEADING: Final = f"{'':<{NAME_WIDTH}}{'':>9} {'':<6}{'limit':>8}  {'':<7} range"


@dataclass(frozen=True)
class Figure:
    """One measured quantity: `runs` in `unit`, told as the smallest value that `share` of them do not exceed.

    limit: what that must not exceed; None = there is none.
    """

    name: str
    unit: str
    limit: float | None
    runs: list[float]
    share: float = 0.5

    @property
    def value(self) -> float:
        """What is told."""
        return quantile(self.runs, self.share)

    @property
    def holds(self) -> bool:
        """Whether the limit is kept."""
        return self.limit is None or self.value <= self.limit

    @property
    def verdict(self) -> str:
        """`ok`, `BROKEN`, or nothing where there is no limit."""
        return "" if self.limit is None else "ok" if self.holds else "BROKEN"

    def cells(self) -> tuple[str, str, str, str, str, str]:
        """Return name, value, unit, limit, verdict and range as text."""
        limit = "" if self.limit is None else f"≤ {self.limit:g}"
        spread = f"{min(self.runs):.3g} … {max(self.runs):.3g}"
        return self.name, f"{self.value:.3g}", self.unit, limit, self.verdict, spread

    def line(self) -> str:
        """Return it as a line below HEADING."""
        name, value, unit, limit, verdict, spread = self.cells()
        return f"{name:<{NAME_WIDTH}}{value:>9} {unit:<6}{limit:>8}  {verdict:<7} {spread}"

    def as_json(self) -> dict[str, Any]:
        """Return it JSON-ready, its runs included."""
        return {**asdict(self), "value": self.value, "holds": self.holds}


@dataclass(frozen=True)
class FiguresReport(Findings):
    """What a run found, in figures: it is as it must be if every limit is kept."""

    figures: list[Figure]

    @property
    def passed(self) -> bool:
        """Whether every limit is kept."""
        return all(figure.holds for figure in self.figures)

    def as_json(self) -> dict[str, Any]:
        """Return everything, JSON-ready."""
        return {
            "machine": dict(self.machine),
            "settings": dict(self.settings),
            "figures": [figure.as_json() for figure in self.figures],
            "passed": self.passed,
        }

    def print(self, console: Console) -> None:
        """Print the machine, the table and the verdict."""
        self.print_machine(console)
        console.print(table_of(self.figures))
        console.print("PASS" if self.passed else "FAIL", highlight=False)


def quantile(values: list[float], share: float) -> float:
    """Return the smallest value that `share` (0..1) of all do not exceed: the nearest rank. There is one at least."""
    # 0.07 * 100 is a little more than 7.
    rank = math.ceil(round(share * len(values), 9))
    return sorted(values)[max(rank, 1) - 1]


def p50_and_p99(name: str, unit: str, rounds: list[list[float]], most_p99: float | None = None) -> list[Figure]:
    """Return both of what each round measured; of the rounds the median is told. most_p99: the limit of the p99."""
    medians, worst = ([quantile(values, share) for values in rounds] for share in (0.5, 0.99))
    return [Figure(f"{name}: p50", unit, None, medians), Figure(f"{name}: p99", unit, most_p99, worst)]


def timed(call: Callable[[], object], seconds: float) -> list[float]:
    """Repeat a call for so long, once at least; return what each took, in ms."""
    times: list[float] = []
    ended = time.perf_counter()
    until = ended + seconds
    while not times or ended < until:
        began = time.perf_counter()
        call()
        ended = time.perf_counter()
        times.append((ended - began) * 1e3)
    return times


def table_of(figures: Iterable[Figure]) -> Table:
    """Return the figures as a table."""
    from rich import box
    from rich.table import Table

    table = Table("", box=box.SIMPLE_HEAD)
    table.add_column("measured", justify="right")
    table.add_column("")
    table.add_column("limit", justify="right")
    table.add_column("")
    table.add_column("range")
    for figure in figures:
        table.add_row(*figure.cells())
    return table
