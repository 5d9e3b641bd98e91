"""Short texts of many callers: embedded in batches, and one by one."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from orchestrator.bench.findings import Findings
from orchestrator.bench.machine import describe_machine

if TYPE_CHECKING:
    from rich.console import Console

    from orchestrator.client.client import Client
    from orchestrator.client.future import Future

HASH: Final = "offline/hash"
CALLERS: Final = 8
TEXTS: Final = 10_000
LEAST_RATIO: Final = 4.0
# Requests, of one text each, that a caller has under way.
_WINDOW: Final = 64
_WARM_UP: Final = 256
# A model takes milliseconds for a text: one by one it gets a tenth of the texts.
_FEWER: Final = 10
# `pools.neural.batch` of each.
_WAYS: Final[Mapping[str, dict[str, Any]]] = {"batched": {}, "one by one": {"max_items": 1}}


@dataclass(frozen=True)
class EmbeddingReport(Findings):
    """What a run found: texts per second of each way, a value for each round."""

    rates: Mapping[str, list[float]]

    @property
    def ratio(self) -> float:
        """How many times more texts are embedded in batches: the median of the rounds."""
        batched, singly = self.rates.values()
        return statistics.median(one / other for one, other in zip(batched, singly, strict=True))

    @property
    def passed(self) -> bool:
        """Whether it is as much as it must be."""
        return self.ratio >= LEAST_RATIO

    def as_json(self) -> dict[str, Any]:
        """Return everything, JSON-ready."""
        rates = {way: {"rate": statistics.median(rounds), "rounds": rounds} for way, rounds in self.rates.items()}
        return {
            "machine": dict(self.machine),
            "settings": dict(self.settings),
            "rates": rates,
            "ratio": self.ratio,
            "passed": self.passed,
        }

    def print(self, console: Console) -> None:
        """Print the machine, the table and the verdict."""
        from rich import box
        from rich.table import Table

        self.print_machine(console)
        title = f"{self.settings['embedder']}: {TEXTS:,} short texts of {CALLERS} callers, a text per request"
        table = Table("", box=box.SIMPLE_HEAD, title=title, title_justify="left")
        table.add_column("texts/s\nmedian", justify="right")
        table.add_column("rounds")
        for way, rounds in self.rates.items():
            table.add_row(way, f"{statistics.median(rounds):,.0f}", ", ".join(f"{rate:,.0f}" for rate in rounds))
        console.print(table)
        verdict = "PASS" if self.passed else "FAIL"
        text = f"batched / one by one: {self.ratio:.1f} (at least {LEAST_RATIO:g}): {verdict}"
        console.print(text, highlight=False)


def run_embedding(
    *, embedder: str = HASH, texts: int = TEXTS, rounds: int = 5, say: Callable[[str], None] = lambda text: None
) -> EmbeddingReport:
    """Measure and return what was found.

    embedder: the model, as `embedder.model` of the configuration. rounds: how often both ways are measured, by turns.
    say: told what is going on, a line at a time.
    """
    from orchestrator.owner import Orchestrator

    found: dict[str, list[float]] = {way: [] for way in _WAYS}
    for number in range(rounds):
        for way, batch in _WAYS.items():
            say(f"round {number + 1} of {rounds}: {way}")
            pools = {"general": {"size": 0}, "optimizer": {"size": 0}, "neural": {"size": 1, "batch": batch}}
            count = texts // _FEWER if way == "one by one" and embedder != HASH else texts
            with Orchestrator(pools=pools, embedder={"model": embedder}) as orchestrator:
                clients = [orchestrator.client() for _ in range(CALLERS)]
                _measure(clients, _WARM_UP)
                found[way].append(_measure(clients, count))
    settings = {"embedder": embedder, "texts": texts, "callers": CALLERS, "rounds": rounds, "workers": 1}
    return EmbeddingReport(describe_machine(), settings, found)


def _measure(clients: list[Client], count: int) -> float:
    """Return the texts per second while all clients embed their part."""
    with ThreadPoolExecutor(len(clients)) as threads:
        began = time.perf_counter()
        done = list(threads.map(_embed, clients, range(len(clients)), [count // len(clients)] * len(clients)))
        took_s = time.perf_counter() - began
    return sum(done) / took_s


def _embed(client: Client, caller: int, count: int) -> int:
    """Embed texts, one per request, some requests at once; return how many were embedded."""
    under_way: deque[Future] = deque()
    done = 0
    for number in range(count):
        if len(under_way) >= _WINDOW:
            done += len(under_way.popleft().result())
        under_way.append(client.submit("embed", {"texts": [f"caller {caller} has text number {number}"]}))
    return done + sum(len(future.result()) for future in under_way)
