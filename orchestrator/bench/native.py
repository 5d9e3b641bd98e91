"""Native operations: in the client's process, and the same through a worker, by turns in one run."""

from __future__ import annotations

import gc
import resource
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from orchestrator.bench.contender import WORKERS
from orchestrator.bench.findings import Findings
from orchestrator.bench.machine import describe_machine
from orchestrator.bench.subject import POOLS

if TYPE_CHECKING:
    from rich.console import Console

    from orchestrator.client.client import Client

SIGNATURE: Final = (
    "text: str[..4000], tags: list[str], limit: int = 10, team: Literal['billing', 'tech'], score: float[0..1] "
    "-> answer"
)
INPUTS: Final = {
    "text": "The invoice of May was charged twice.", "tags": ["refund", "may"], "limit": "20", "team": "billing",
    "score": 0.5,
}  # fmt: skip
TEMPLATE: Final = (
    "You are {{ role }}. Answer in {{ language }}, in at most {{ words }} words.\n"
    "{% for line in context %}- {{ line }}\n{% endfor %}Question: {{ question }}"
)
CALLS: Final[Mapping[str, dict[str, Any]]] = {
    "validate": {"signature": SIGNATURE, "inputs": INPUTS},
    "template": {
        "template": TEMPLATE,
        "values": {
            "role": "a support engineer", "language": "English", "words": 50, "question": "Who pays the refund?",
            "context": ["Invoices are sent monthly.", "Refunds take five days."],
        },
    },
    "metrics.f1": {"prediction": "the refund takes five days", "reference": "Refunds take about five days."},
}  # fmt: skip
MOST_P99_US: Final = 50.0
LEAST_RATIO: Final = 10.0
VALIDATIONS: Final = 1_000_000
MOST_GROWTH_BYTES: Final = 2_000_000
_WARM_UP_CALLS: Final = 20_000
_TURNS: Final = 5
_PARSED: Final = 200
_WARM_PARSES: Final = 20_000


@dataclass
class Compared:
    """One operation: microseconds, a value for each round."""

    native_p50_us: list[float] = field(default_factory=list)
    native_p99_us: list[float] = field(default_factory=list)
    worker_p50_us: list[float] = field(default_factory=list)
    worker_p99_us: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """How many times longer the median call takes through a worker: the median of the rounds."""
        return statistics.median(
            worker / native for native, worker in zip(self.native_p50_us, self.worker_p50_us, strict=True)
        )

    @property
    def passed(self) -> bool:
        """Whether it is as fast as it must be."""
        return statistics.median(self.native_p99_us) < MOST_P99_US and self.ratio >= LEAST_RATIO

    def as_json(self) -> dict[str, Any]:
        """Return medians over the rounds, the rounds themselves, and the verdict."""
        rounds = dict(vars(self))
        medians = {name: statistics.median(values) for name, values in rounds.items()}
        return {**medians, "ratio": self.ratio, "passed": self.passed, "rounds": rounds}


@dataclass(frozen=True)
class Memory:
    """Resident memory of the client's process around many validations."""

    validations: int
    seconds: float
    before_bytes: int
    after_bytes: int

    @property
    def passed(self) -> bool:
        """Whether it is flat."""
        return abs(self.after_bytes - self.before_bytes) <= MOST_GROWTH_BYTES


@dataclass(frozen=True)
class NativeReport(Findings):
    """What a run found. parse_us: of a text never seen (cold), and of one seen before (warm)."""

    rows: Mapping[str, Compared]
    memory: Memory
    parse_us: Mapping[str, float]

    @property
    def passed(self) -> bool:
        """Whether everything is as it must be."""
        return self.memory.passed and all(row.passed for row in self.rows.values())

    def as_json(self) -> dict[str, Any]:
        """Return everything, JSON-ready."""
        return {
            "machine": dict(self.machine),
            "settings": dict(self.settings),
            "rows": {name: row.as_json() for name, row in self.rows.items()},
            "memory": {**vars(self.memory), "passed": self.memory.passed},
            "parse_us": dict(self.parse_us),
            "passed": self.passed,
        }

    def print(self, console: Console) -> None:
        """Print the machine, the table and the verdicts."""
        from rich import box
        from rich.table import Table

        self.print_machine(console)
        table = Table(
            "operation", box=box.SIMPLE_HEAD, title="microseconds, median of the rounds", title_justify="left"
        )
        for heading in ("native\np50", "native\np99", "worker\np50", "worker\np99", "worker /\nnative", ""):
            table.add_column(heading, justify="right")
        for name, row in self.rows.items():
            cells = [f"{statistics.median(values):,.1f}" for values in vars(row).values()]
            table.add_row(name, *cells, f"{row.ratio:.0f}", _verdict(row.passed))
        console.print(table)
        memory = self.memory
        console.print(
            f"{memory.validations:,} validations in {memory.seconds:.1f} s: RSS {memory.before_bytes / 1e6:.1f} MB "
            f"before, {memory.after_bytes / 1e6:.1f} MB after (at most ± {MOST_GROWTH_BYTES / 1e6:.0f} MB): "
            f"{_verdict(memory.passed)}\n"
            f"reading a signature: {self.parse_us['cold']:,.1f} µs cold, {self.parse_us['warm']:,.2f} µs warm\n"
            f"native p99 < {MOST_P99_US:g} µs and at least {LEAST_RATIO:g} times faster than through a worker: "
            f"{_verdict(all(row.passed for row in self.rows.values()))}",
            highlight=False,
        )


def run_native(
    *, pool: str = "general", seconds: float = 0.5, rounds: int = 5, validations: int = VALIDATIONS,
    say: Callable[[str], None] = lambda text: None,
) -> NativeReport:  # fmt: skip
    """Measure and return what was found.

    pool: where the operations run that go through a worker; it has two. seconds: for each operation and way in each
    round. rounds: how often everything is repeated. say: told what is going on, a line at a time.
    """
    from orchestrator.owner import Orchestrator

    pools = {name: {"size": WORKERS if name == pool else 0} for name in {*POOLS, pool}}
    rows = {name: Compared() for name in CALLS}
    say("starting dspool")
    with Orchestrator(pools=pools) as orchestrator, orchestrator.client() as client:
        for name in CALLS:
            _measure(client, name, None, 0.1)
            _measure(client, name, pool, 0.1)
        for number in range(rounds):
            say(f"round {number + 1} of {rounds}")
            for name, row in rows.items():
                _round(client, name, pool, seconds, row)
        say(f"{validations:,} validations")
        memory = _memory(client, validations)
    settings = {"pool": pool, "seconds": seconds, "rounds": rounds, "workers": WORKERS}
    return NativeReport(describe_machine(), settings, rows, memory, _parse_us())


def _round(client: Client, name: str, pool: str, seconds: float, row: Compared) -> None:
    native: list[float] = []
    worker: list[float] = []
    # In short turns: what the machine does meanwhile falls on both alike.
    for _ in range(_TURNS):
        native += _measure(client, name, None, seconds / _TURNS)
        worker += _measure(client, name, pool, seconds / _TURNS)
    row.native_p50_us.append(statistics.median(native))
    row.native_p99_us.append(_p99(native))
    row.worker_p50_us.append(statistics.median(worker))
    row.worker_p99_us.append(_p99(worker))


def _measure(client: Client, name: str, pool: str | None, seconds: float) -> list[float]:
    """Return the microseconds of each call, one after the other, at least two."""
    execute, args = client.execute, CALLS[name]
    times_us: list[float] = []
    deadline = time.perf_counter() + seconds
    ended = 0.0
    while ended < deadline or len(times_us) < 2:
        began = time.perf_counter()
        execute(name, args, pool=pool)
        ended = time.perf_counter()
        times_us.append((ended - began) * 1e6)
    return times_us


def _p99(times_us: list[float]) -> float:
    return statistics.quantiles(times_us, n=100, method="inclusive")[98]


def _memory(client: Client, validations: int) -> Memory:
    args = CALLS["validate"]
    for _ in range(min(validations, _WARM_UP_CALLS)):
        client.execute("validate", args)
    gc.collect()
    before, began = _rss_bytes(), time.perf_counter()
    for _ in range(validations):
        client.execute("validate", args)
    took_s = time.perf_counter() - began
    gc.collect()
    return Memory(validations, took_s, before, _rss_bytes())


def _rss_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize()


def _parse_us() -> dict[str, float]:
    """Return the median microseconds of reading a text for the first time, and the mean of reading it again."""
    from orchestrator.client.signature_text import signature_text
    from signatures.text.parser import read

    cold: list[float] = []
    for number in range(_PARSED):
        text = SIGNATURE.replace("answer", f"answer_{number}")
        began = time.perf_counter()
        read(text)
        cold.append((time.perf_counter() - began) * 1e6)
    signature_text(SIGNATURE)
    began = time.perf_counter()
    for _ in range(_WARM_PARSES):
        signature_text(SIGNATURE)
    warm = (time.perf_counter() - began) / _WARM_PARSES * 1e6
    return {"cold": statistics.median(cold), "warm": warm}


def _verdict(passed: bool) -> str:
    return "PASS" if passed else "FAIL"
