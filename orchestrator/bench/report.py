"""What a run found: medians with their range, ratios round by round, as a table and as JSON."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from orchestrator.bench.findings import Findings

if TYPE_CHECKING:
    from rich.console import Console

# row -> its heading and the digits after the point
ROWS: Final[Mapping[str, tuple[str, int]]] = {
    "start_s": ("start\ns", 2),
    "p50_us": ("p50\nµs", 0),
    "p99_us": ("p99\nµs", 0),
    "flood_100": ("calls/s\n100 in flight", 0),
    "flood_1000": ("calls/s\n1,000 in flight", 0),
    "map": ("map items/s\nchunk 64", 0),
    "big": ("1 MB echo\nMB/s", 0),
    "array": ("1 MB array\nMB/s", 0),
}
COMPARED_WITH: Final = ("zmq.proxy", "multiprocessing.Pool")


@dataclass
class Contestant:
    """One contender's figures: row -> one value a round (of `start_s` there is one). `note`: why there are none."""

    name: str
    note: str | None = None
    values: dict[str, list[float]] = field(default_factory=dict)

    def add(self, row: str, value: float) -> None:
        """Add what one round found."""
        self.values.setdefault(row, []).append(value)


@dataclass(frozen=True)
class Report(Findings):
    """One run. `subject` names the contestant that the others are references for."""

    contestants: list[Contestant]
    subject: str

    @property
    def passed(self) -> bool:
        """Whether the subject was measured in full."""
        return any(each.name == self.subject and each.note is None for each in self.contestants)

    def ratios(self) -> dict[str, dict[str, dict[str, float]]]:
        """Return reference -> row -> summary of subject / reference, formed within each round."""
        by_name = {each.name: each for each in self.contestants}
        subject = by_name.get(self.subject)
        if subject is None:
            return {}
        return {
            name: {
                row: _summary([ours / theirs for ours, theirs in zip(subject.values[row], values, strict=False)])
                for row, values in by_name[name].values.items()
                if subject.values.get(row)
            }
            for name in COMPARED_WITH
            if name in by_name
        }

    def as_json(self) -> dict[str, Any]:
        """Return everything, JSON-ready: each row with median, low, high and the rounds themselves."""
        return {
            "machine": dict(self.machine),
            "settings": dict(self.settings),
            "contenders": {
                each.name: {
                    "note": each.note,
                    "rows": {row: {**_summary(values), "rounds": values} for row, values in each.values.items()},
                }
                for each in self.contestants
            },
            "ratios": self.ratios(),
        }

    def print(self, console: Console | None = None) -> None:
        """Print the machine, the table and the ratios."""
        from rich import box
        from rich.console import Console
        from rich.table import Table

        console = console or Console()
        self.print_machine(console)
        headings = [heading for heading, _ in ROWS.values()]
        table = Table(
            "contender", box=box.SIMPLE_HEAD, title="median ± half the range of the rounds", title_justify="left"
        )
        for heading in headings:
            table.add_column(heading, justify="right")
        for each in self.contestants:
            cells = [_cell(each.values.get(row), digits) for row, (_, digits) in ROWS.items()]
            table.add_row(each.name, *cells)
        console.print(table)
        for each in self.contestants:
            if each.note is not None:
                console.print(f"{each.name}: {each.note}", highlight=False, markup=False)
        if ratios := self.ratios():
            table = Table("", box=box.SIMPLE_HEAD, title=f"{self.subject} / reference", title_justify="left")
            for heading in headings:
                table.add_column(heading, justify="right")
            for name, rows in ratios.items():
                table.add_row(f"/ {name}", *(f"{rows[row]['median']:.2f}" if row in rows else "-" for row in ROWS))
            console.print(table)


def _summary(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def _cell(values: list[float] | None, digits: int) -> str:
    if not values:
        return "-"
    found = _summary(values)
    text = f"{found['median']:,.{digits}f}"
    if len(values) > 1 and found["median"]:
        text += f" ±{(found['high'] - found['low']) / 2 / found['median']:.0%}"
    return text
