"""Two coordinators side by side: one has nothing, the other many open sessions and deployed programs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from orchestrator.bench.contender import WORKERS, payloads, window
from orchestrator.bench.driver import flood
from orchestrator.bench.figures import Figure, p50_and_p99, timed
from orchestrator.bench.lives import memory_mb
from orchestrator.errors import DspoolError

if TYPE_CHECKING:
    from orchestrator.bench.subject import Dspool
    from orchestrator.client.client import Client

IN_FLIGHT: Final = 100
# How many times dearer an echo may be beside the crowd.
MOST_DEARER: Final = 1.1
_POOL: Final = "general"
# Two coordinators fall behind by turns: the shorter the turns, the more alike what the machine does meanwhile.
_TURNS: Final = 4
_WARM_UP_S: Final = 0.3
_TIMEOUT_S: Final = 30.0
_POLL_S: Final = 0.002
_CPU_CLOCK: Final = 2

Say = Callable[[str], None]


# --- filling ----------------------------------------------------------------------------------------


def fill(full: Dspool, sessions: int, programs: int, say: Say) -> Iterator[Figure]:
    """Deploy so many programs and open so many sessions; yield what that takes."""
    client = full.client
    client.execute("store.info")  # the services process is there
    before = memory_mb(full.pid)["Rss"]
    say(f"deploying {programs:,} programs")
    began = time.perf_counter()
    for number in range(programs):
        client.deploy(f"program_{number}", {"module": "dspy.Predict", "signature": f"question -> answer_{number}"})
    yield Figure(f"{programs:,} programs deployed, one after the other", "s", None, [time.perf_counter() - began])
    deployed = memory_mb(full.pid)["Rss"]
    say(f"opening {sessions:,} sessions")
    began = time.perf_counter()
    names = (f"session {number}" for number in range(sessions))
    calls = window(
        lambda payload: client.submit("echo", payload, session=next(names)), lambda future: future.result(),
        islice(payloads(), sessions), IN_FLIGHT,
    )  # fmt: skip
    answered = sum(1 for _ in calls)
    yield Figure(f"{answered:,} sessions begun, each by a call", "s", None, [time.perf_counter() - began])
    yield Figure("coordinator: RSS before them", "MB", None, [before])
    yield Figure(f"coordinator: RSS more with {programs:,} programs", "MB", None, [deployed - before])
    yield Figure(
        f"coordinator: RSS more with {sessions:,} sessions", "MB", None, [memory_mb(full.pid)["Rss"] - deployed]
    )


# --- calls ------------------------------------------------------------------------------------------


def compare(empty: Dspool, full: Dspool, seconds: float, rounds: int, say: Say) -> Iterator[Figure]:
    """Yield what an echo costs in both, a call in a session, and how soon a worker more answers."""
    sides = {"empty": empty, "full": full}
    yield from _floods(sides, seconds, rounds, say)
    yield from _calls(full.client, seconds, rounds, say)
    yield from _joins(sides, rounds, say)


def _floods(sides: dict[str, Dspool], seconds: float, rounds: int, say: Say) -> Iterator[Figure]:
    for each in sides.values():
        flood(each, min(seconds, _WARM_UP_S), IN_FLIGHT)
    took_us: dict[str, list[float]] = {name: [] for name in sides}
    cpu_us: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        say(f"echo, {IN_FLIGHT} in flight, by turns: round {number + 1} of {rounds}")
        spent = {name: [0.0, 0.0, 0.0] for name in sides}  # calls, seconds, seconds of CPU
        for turn in range(_TURNS):
            # Who goes first changes.
            for name, side in list(sides.items())[:: 1 if (turn + number) % 2 == 0 else -1]:
                cpu, began = _cpu_s(side.pid), time.perf_counter()
                rate = flood(side, seconds / _TURNS, IN_FLIGHT)["rate"]
                wall = time.perf_counter() - began
                for place, amount in enumerate((rate * wall, wall, _cpu_s(side.pid) - cpu)):
                    spent[name][place] += amount
        for name, (calls, wall, cpu) in spent.items():
            took_us[name].append(wall / calls * 1e6)
            cpu_us[name].append(cpu / calls * 1e6)
    for name in sides:
        yield Figure(f"echo, {IN_FLIGHT} in flight, {name}: each call", "µs", None, took_us[name])
        yield Figure(f"echo, {IN_FLIGHT} in flight, {name}: CPU of the coordinator", "µs", None, cpu_us[name])
    for what, of, most in (("each call", took_us, MOST_DEARER), ("CPU of the coordinator", cpu_us, MOST_DEARER)):
        dearer = [full / empty for empty, full in zip(of["empty"], of["full"], strict=True)]
        yield Figure(f"echo, {IN_FLIGHT} in flight, full / empty: {what}", "", most, dearer)


def _calls(client: Client, seconds: float, rounds: int, say: Say) -> Iterator[Figure]:
    session = client.session("session 0")
    times: dict[str, list[list[float]]] = {"plain": [], "in a session": []}
    for number in range(rounds):
        say(f"calls in a session, and plain ones: round {number + 1} of {rounds}")
        times["plain"].append(timed(lambda: client.execute("echo", 1), seconds))
        times["in a session"].append(timed(lambda: session.execute("echo", 1), seconds))
    for name, found in times.items():
        yield from p50_and_p99(f"echo alone, full, {name}", "ms", found)


def _cpu_s(pid: int) -> float:
    """Return the seconds of CPU that a process has used, all its threads."""
    return time.clock_gettime(~pid << 3 | _CPU_CLOCK)  # as clock_getcpuclockid(3) says it


# --- a worker more ----------------------------------------------------------------------------------


def _joins(sides: dict[str, Dspool], rounds: int, say: Say) -> Iterator[Figure]:
    took: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        say(f"a worker joins: round {number + 1} of {rounds}")
        for name, side in sides.items():
            took[name].append(_join_ms(side.client))
    for name, found in took.items():
        yield Figure(f"a worker more has answered its first call, {name}", "ms", None, found)


def _join_ms(client: Client) -> float:
    """Return the ms from asking for a worker more to its first answer; send it away again."""
    there = {row["id"] for row in _living(client)}
    began = time.perf_counter()
    client.resize(_POOL, WORKERS + 1)
    while time.perf_counter() < began + _TIMEOUT_S:
        asked = [client.submit("echo", number) for number in range(IN_FLIGHT)]
        for future in asked:
            future.result()
            if future.meta is not None and future.meta.worker not in there:
                found = (time.perf_counter() - began) * 1e3
                _shrink(client)
                return found
    raise DspoolError(f"waited {_TIMEOUT_S:g} s for an answer of a new worker")


def _shrink(client: Client) -> None:
    client.resize(_POOL, WORKERS)
    until = time.perf_counter() + _TIMEOUT_S
    while len(_living(client)) > WORKERS:
        if time.perf_counter() > until:
            raise DspoolError(f"waited {_TIMEOUT_S:g} s for a worker to leave")
        time.sleep(_POLL_S)


def _living(client: Client) -> list[dict[str, Any]]:
    return [row for row in client.workers() if row["pool"] == _POOL and row["state"] != "exited"]
