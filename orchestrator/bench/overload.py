"""What a coordinator does when ten times as much is asked of it as it can do, and when what is asked kills workers."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import psutil

from bridge.protocol.messages import FLAG_IDEMPOTENT, PRIORITY_HIGH
from orchestrator.bench.figures import Figure, FiguresReport, quantile
from orchestrator.bench.machine import describe_machine
from orchestrator.bench.swarm import SHED, SUCCESS, Order, Outcomes, Swarmer
from orchestrator.owner import Orchestrator
from pools.worker_id import place_of

if TYPE_CHECKING:
    from orchestrator.client.client import Client

SECONDS: Final = 30.0
POOL: Final = "general"
WORKERS: Final = 2
SLOTS: Final = 8
# What one request takes of a slot.
WORK_S: Final = 0.01
OFFERED: Final = 10.0
_CROWD: Final = 3
_PEAK_WINDOW: Final = 4 * WORKERS * SLOTS
_PEAK_S: Final = 5.0
_HIGH_RATE: Final = 50.0
_GREED: Final = 10.0
_DEMAND: Final = 1.5
_POISON_RATE: Final = 20.0
_DEADLY_RATE: Final = 200.0
_KILL_EVERY_S: Final = 0.02
_REFUSALS: Final = ("OVERLOADED", "CIRCUIT_OPEN", "POISON_REQUEST")
# The limits, in the units of their rows. Shares of what it should be are told as what is missing.
_MOST_MISSING: Final = 0.10
_MOST_REFUSAL_MS: Final = 10.0
_MOST_GROWN_MB: Final = 64.0
_MOST_HIGH_RATIO: Final = 2.0
_MOST_POISON_DEATHS: Final = 2.0
_MOST_POISON_MISSING: Final = 0.05
_MOST_AMPLIFIED: Final = 1.2
_MOST_OPEN_MS: Final = 50.0
_POLL_S: Final = 0.05
_PROGRAM: Final = '''
import os
import time

import dspy


class Delicate(dspy.Module):
    """Works a little; ends its process if it is told to."""

    def forward(self, seconds, deadly=False, number=0):
        if deadly:
            os._exit(3)
        time.sleep(seconds)
        return number
'''

Say = Callable[[str], None]


def run_overload(*, seconds: float = SECONDS, say: Say = lambda text: None) -> FiguresReport:
    """Measure and return what was found. seconds: how long each overload lasts; say: told what is going on."""
    work = Order(operation="sleep", args={"seconds": WORK_S}, seconds=seconds, pool=POOL)
    figures: list[Figure] = []
    with _house() as (orchestrator, client):
        say("peak: a closed loop")
        with Swarmer(client.endpoint) as one:
            peak = _peak(one, work)
        say(f"{peak:,.0f}/s at the peak; {OFFERED:g} times as much is offered for {seconds:g} s")
        figures += _overload(orchestrator, client, work, peak)
        say("high priority, alone and under the same")
        figures += _priorities(client, work, peak)
        say("three principals, one greedy")
        figures += _shares(client, work, peak)
    with _house(restart={"max_restarts": 10_000}) as (_, client), _delicate(client):
        say("poison beside healthy work")
        figures += _poison(client, seconds)
    with _house(restart={"max_restarts": 10_000}) as (_, client), _delicate(client):
        say("an operation that kills whatever it is given")
        figures += _open_breaker(client, min(seconds, _PEAK_S))
    with _house(restart={"max_restarts": 10_000}, breaker=None) as (_, client), _delicate(client):
        say("retries: workers are killed while they hold work that may run again")
        figures += _retries(client, seconds)
    settings = {"seconds": seconds, "workers": WORKERS, "slots": SLOTS, "work_ms": WORK_S * 1000.0, "offered": OFFERED}
    return FiguresReport(describe_machine(), settings, figures)


@contextmanager
def _house(**more: Any) -> Iterator[tuple[Orchestrator, Client]]:
    pools = {POOL: {"size": WORKERS, "slots": SLOTS, **more}, "optimizer": {"size": 0}, "neural": {"size": 0}}
    with Orchestrator(pools=pools) as orchestrator, orchestrator.client() as client:
        yield orchestrator, client


@contextmanager
def _delicate(client: Client) -> Iterator[None]:
    with tempfile.TemporaryDirectory(prefix="dspool-bench-") as folder:
        file = Path(folder, "delicate.py")
        file.write_text(_PROGRAM, encoding="utf-8")
        client.deploy("delicate", f"{file}:Delicate", pool=POOL)
        yield


# --- too much -----------------------------------------------------------------------------------------


def _peak(one: Swarmer, work: Order) -> float:
    """Return how many requests each second are answered in a closed loop that keeps every slot busy."""
    closed = replace(work, seconds=_PEAK_S, window=_PEAK_WINDOW, deadline_s=10.0)
    one.run(replace(closed, seconds=1.0))
    return one.run(closed).count(SUCCESS) / _PEAK_S


def _together(swarm: Sequence[tuple[Swarmer, Order]]) -> list[Outcomes]:
    """Carry out these orders at the same time."""
    for each, order in swarm:
        each.begin(order)
    return [each.outcomes() for each, _ in swarm]


def _overload(orchestrator: Orchestrator, client: Client, work: Order, peak: float) -> Iterator[Figure]:
    order = replace(work, rate=OFFERED * peak / _CROWD)
    with ExitStack() as stack:
        swarm = [(stack.enter_context(Swarmer(client.endpoint)), order) for _ in range(_CROWD)]
        with _largest(orchestrator.pid) as grown:
            crowd = Outcomes()
            for outcomes in _together(swarm):
                crowd.add(outcomes)
    offered = crowd.sent / work.seconds / peak
    yield Figure("offered, in terms of the peak (a closed loop)", "times", None, [offered])
    yield Figure("goodput missing of the peak", "", _MOST_MISSING, [_missing(crowd, work.seconds, peak)])
    refused = [ms for code in _REFUSALS for ms in crowd.times_ms.get(code, ())]
    yield Figure("a refusal is told, p50", "ms", None, refused or [0.0])
    yield Figure("a refusal is told, p99", "ms", _MOST_REFUSAL_MS, refused or [0.0], 0.99)
    accepted = max(crowd.sent - len(refused), 1)
    yield Figure("accepted, then shed, of all accepted", "", None, [crowd.count(SHED) / accepted])
    yield Figure("accepted, then out of time, of all accepted", "", None, [crowd.count("DEADLINE_EXCEEDED") / accepted])
    yield Figure("requests without any answer", "", 0.0, [float(crowd.unanswered)])
    yield Figure("the coordinator grew by", "MB", _MOST_GROWN_MB, [grown[0]])


def _missing(outcomes: Outcomes, seconds: float, wanted: float) -> float:
    """Return what share of the wanted rate was not done."""
    return max(0.0, 1.0 - outcomes.count(SUCCESS) / seconds / wanted)


@contextmanager
def _largest(pid: int) -> Iterator[list[float]]:
    """Give a list whose one entry says, at the end of the block, by how many MB (10⁶ bytes) a process grew at most."""
    process = psutil.Process(pid)
    before = process.memory_info().rss
    grown = [0.0]
    done = threading.Event()

    def watch() -> None:
        while not done.wait(_POLL_S):
            grown[0] = max(grown[0], (process.memory_info().rss - before) / 1e6)

    watcher = threading.Thread(target=watch, name="rss")
    watcher.start()
    try:
        yield grown
    finally:
        done.set()
        watcher.join()


def _priorities(client: Client, work: Order, peak: float) -> Iterator[Figure]:
    high = replace(work, priority=PRIORITY_HIGH, rate=_HIGH_RATE, deadline_s=10.0)
    flood = replace(work, rate=OFFERED * peak / _CROWD)
    with ExitStack() as stack:
        one, *crowd = [stack.enter_context(Swarmer(client.endpoint)) for _ in range(1 + _CROWD)]
        alone = one.run(high).times_ms[SUCCESS]
        pressed, *_ = _together([(one, high), *[(each, flood) for each in crowd]])
    times = pressed.times_ms.get(SUCCESS, [])
    refused = 1.0 - len(times) / pressed.sent
    yield Figure("high priority, alone, p99", "ms", None, alone, 0.99)
    yield Figure("high priority, under the overload, p99", "ms", None, times or [float("inf")], 0.99)
    ratio = quantile(times, 0.99) / quantile(alone, 0.99) if times else float("inf")
    yield Figure("the second in terms of the first", "times", _MOST_HIGH_RATIO, [ratio])
    yield Figure("high priority refused or out of time under it", "", 0.01, [refused])


def _shares(client: Client, work: Order, peak: float) -> Iterator[Figure]:
    fair = peak / 3.0
    # Each alone asks for more than its share, so that a share is all that anybody can get.
    demand = _DEMAND * fair
    with ExitStack() as stack:
        swarm = [
            (stack.enter_context(Swarmer(client.endpoint, principal)), replace(work, rate=demand * times))
            for principal, times in (("greedy", _GREED), ("modest", 1.0), ("humble", 1.0))
        ]
        everybody = _together(swarm)
    done = [each.count(SUCCESS) for each in everybody]
    yield Figure(
        "three principals, one asks for 10 times as much: its share", "", 1.1 / 3.0, [done[0] / max(sum(done), 1)]
    )
    missing = [1.0 - 3.0 * count / max(sum(done), 1) for count in done[1:]]
    yield Figure("what the others miss of a third of all, the worst", "", _MOST_MISSING, missing, 1.0)


# --- what kills workers -------------------------------------------------------------------------------


def _poison(client: Client, seconds: float) -> Iterator[Figure]:
    healthy = Order(
        operation="delicate", args={"seconds": WORK_S}, seconds=seconds, window=_PEAK_WINDOW, deadline_s=10.0,
        pool=POOL, distinct=True, flags=FLAG_IDEMPOTENT,
    )  # fmt: skip
    poison = replace(healthy, args={"seconds": 0.0, "deadly": True}, window=0, rate=_POISON_RATE, distinct=False)
    with Swarmer(client.endpoint) as one, Swarmer(client.endpoint) as other:
        one.run(replace(healthy, seconds=1.0))
        without = one.run(healthy).count(SUCCESS) / seconds
        before = _deaths(client)
        beside, poisoned = _together([(one, healthy), (other, poison)])
        died = _deaths(client) - before
    yield Figure("the same poison, again and again: workers lost", "", _MOST_POISON_DEATHS, [float(died)])
    missing = _missing(beside, seconds, without)
    yield Figure("healthy work missing beside it", "", _MOST_POISON_MISSING, [missing])
    refused = poisoned.times_ms.get("POISON_REQUEST", [])
    yield Figure("poison refused as such, of what was sent", "", None, [len(refused) / poisoned.sent])
    lost = beside.sent - beside.count(SUCCESS)
    yield Figure("healthy requests (idempotent) that were lost all the same", "", None, [float(lost)])


def _deaths(client: Client) -> int:
    """Return how many lives the places of the pool have had, in all."""
    lives: dict[str, int] = {}
    for row in client.workers():
        if row["pool"] == POOL:
            lives[place_of(row["id"])] = max(row["incarnation"], lives.get(place_of(row["id"]), 0))
    return sum(lives.values())


def _retries(client: Client, seconds: float) -> Iterator[Figure]:
    """Kill workers as fast as they come while they hold work that may be run again."""
    work = Order(
        operation="delicate", args={"seconds": WORK_S}, seconds=seconds, window=_PEAK_WINDOW, deadline_s=2.0, pool=POOL,
        flags=FLAG_IDEMPOTENT, distinct=True,
    )  # fmt: skip
    before = client.stats()["requests"]
    kills = 0
    with Swarmer(client.endpoint) as one:
        one.begin(work)
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            busy = [row["pid"] for row in client.workers() if row["pool"] == POOL and row["state"] == "busy"]
            for pid in busy[:1]:
                with suppress(ProcessLookupError):  # it was faster
                    os.kill(pid, signal.SIGKILL)
                    kills += 1
            time.sleep(_KILL_EVERY_S)
        outcomes = one.outcomes()
    after = client.stats()["requests"]
    accepted, resent = (after[name] - before[name] for name in ("accepted", "resent"))
    yield Figure("workers killed under work that may run again, each second", "", None, [kills / seconds])
    yield Figure("attempts for each request accepted", "times", _MOST_AMPLIFIED, [1.0 + resent / max(accepted, 1)])
    yield Figure("of these requests, done all the same", "", None, [outcomes.count(SUCCESS) / max(accepted, 1)])


def _open_breaker(client: Client, seconds: float) -> Iterator[Figure]:
    """Ask for what always kills its worker until the breaker opens, and go on."""
    deadly = Order(
        operation="delicate", args={"seconds": 0.0, "deadly": True}, seconds=seconds, rate=_DEADLY_RATE, deadline_s=2.0,
        pool=POOL, distinct=True,
    )  # fmt: skip
    with Swarmer(client.endpoint) as one:
        outcomes = one.run(deadly)
    refused = outcomes.times_ms.get("CIRCUIT_OPEN", [])
    failed = outcomes.sent - len(refused)
    yield Figure("an operation that always kills: requests until its breaker is open", "", None, [float(failed)])
    yield Figure("a refusal by the open breaker is told, p99", "ms", _MOST_OPEN_MS, refused or [float("inf")], 0.99)
