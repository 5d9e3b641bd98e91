"""An echo beside a services process that does nothing, and beside one that keeps a processor busy."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from orchestrator.bench.figures import Figure, FiguresReport, p50_and_p99, quantile, timed
from orchestrator.bench.machine import describe_machine

if TYPE_CHECKING:
    from orchestrator.client.client import Client

ROUNDS: Final = 5
SECONDS: Final = 2.0
# The promise: beside a busy services process an echo's p99 is at most so many of its medians.
MOST_MEDIANS: Final = 3.0
_WARM_UP_S: Final = 0.5
_BURN: Final = "services.burn"


def run_services(
    *, seconds: float = SECONDS, rounds: int = ROUNDS, say: Callable[[str], None] = lambda text: None
) -> FiguresReport:
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
    figures = [figure for way, times in found.items() for figure in figures_of(way, times)]
    return FiguresReport(describe_machine(), settings, figures)


def figures_of(way: str, rounds: list[list[float]]) -> list[Figure]:
    """Return what the echoes of each round took (in µs) while the services were `idle` or `busy`."""
    ratios = [quantile(times, 0.99) / quantile(times, 0.5) for times in rounds]
    limit = MOST_MEDIANS if way == "busy" else None
    name = f"echo, services {way}"
    return [*p50_and_p99(name, "µs", rounds), Figure(f"{name}: p99 / p50", "", limit, ratios)]


def _echo(client: Client, seconds: float) -> list[float]:
    """Return the times, in µs, of echoes that follow one another for so long; one at least."""
    return [ms * 1e3 for ms in timed(lambda: client.execute("echo", 1), seconds)]
