"""An echo beside a services process that does nothing, and beside one that keeps a processor busy."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from orchestrator.bench.figures import Figure, quantile, table_of
from orchestrator.bench.findings import Findings
from orchestrator.bench.machine import describe_machine

if TYPE_CHECKING:
    from rich.console import Console

    from orchestrator.client.client import Client

ROUNDS: Final = 5
SECONDS: Final = 2.0
# The promise: beside a busy services process an echo's p99 is at most so many of its medians.
MOST_MEDIANS: Final = 3.0
_WARM_UP_S: Final = 0.5
_BURN: Final = "services.burn"


@dataclass(frozen=True)
class ServicesReport(Findings):
    """What a run found. times_us: round trips of echoes, `idle` and `busy`, a list for each round."""

    times_us: Mapping[str, list[list[float]]]

    @property
    def figures(self) -> list[Figure]:
        """What was measured, and what has a limit. Of the rounds the median is told."""
        found = []
        for way, rounds in self.times_us.items():
            medians, worst = ([quantile(times, share) for times in rounds] for share in (0.5, 0.99))
            ratios = [high / middle for middle, high in zip(medians, worst, strict=True)]
            found.append(Figure(f"echo, services {way}: p50", "µs", None, medians))
            found.append(Figure(f"echo, services {way}: p99", "µs", None, worst))
            limit = MOST_MEDIANS if way == "busy" else None
            found.append(Figure(f"echo, services {way}: p99 / p50", "", limit, ratios))
        return found

    @property
    def passed(self) -> bool:
        """Whether every limit is kept."""
        return all(figure.holds for figure in self.figures)

    def as_json(self) -> dict[str, Any]:
        """Return everything, JSON-ready, but for the single times."""
        figures = [figure.as_json() for figure in self.figures]
        settings = dict(self.settings)
        return {"machine": dict(self.machine), "settings": settings, "figures": figures, "passed": self.passed}

    def print(self, console: Console) -> None:
        """Print the machine and the figures."""
        self.print_machine(console)
        console.print(table_of(self.figures))
        console.print("PASS" if self.passed else "FAIL", highlight=False)


def run_services(
    *, seconds: float = SECONDS, rounds: int = ROUNDS, say: Callable[[str], None] = lambda text: None
) -> ServicesReport:
    """Measure and return what was found. seconds: of each way in each round. say: told what is going on, by lines."""
    from orchestrator.owner import Orchestrator

    found: dict[str, list[list[float]]] = {"idle": [], "busy": []}
    pools = {"general": {"size": 2}, "optimizer": {"size": 0}, "neural": {"size": 0}}
    with Orchestrator(pools=pools, faults=True) as orchestrator, orchestrator.client() as client:
        client.execute("store.info")  # the services process is there
        _echo(client, _WARM_UP_S)
        for number in range(rounds):
            say(f"round {number + 1} of {rounds}")
            found["idle"].append(_echo(client, seconds))
            burning = client.submit(_BURN, {"seconds": seconds + _WARM_UP_S})
            _echo(client, _WARM_UP_S / 2)  # it has begun
            found["busy"].append(_echo(client, seconds))
            burning.result()
    settings = {"seconds": seconds, "rounds": rounds, "workers": 2}
    return ServicesReport(describe_machine(), settings, found)


def _echo(client: Client, seconds: float) -> list[float]:
    """Return the times, in µs, of echoes that follow one another for so long; one at least."""
    times: list[float] = []
    until = time.perf_counter() + seconds
    began = time.perf_counter()
    while began < until or not times:
        client.execute("echo", 1)
        ended = time.perf_counter()
        times.append((ended - began) * 1e6)
        began = ended
    return times
