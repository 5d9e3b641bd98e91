"""What outlives a worker, and how long it takes: versions, sessions that are kept, events; and the store by itself."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count, cycle
from typing import TYPE_CHECKING, Final

from bridge.wallclock import unix_now
from orchestrator.bench.figures import Figure, p50_and_p99, timed
from orchestrator.errors import Cancelled, DspoolError, Unavailable

if TYPE_CHECKING:
    from pathlib import Path

    from orchestrator.client.client import Client

MOST_COMMIT_P99_MS: Final = 5.0
# Sessions that are opened as fast as can be must find room.
MOST_OPEN: Final = 1_000_000
_PROGRAM: Final = """
import dspy


class Program(dspy.Module):
    def forward(self, x):
        return {{"x": x, "version": {version}}}
"""
_STATE: Final = b"x" * 4096
_TURN: Final = b"x" * 500
_SESSIONS: Final = 50
_TOLD_S: Final = 30.0
_OPEN_S: Final = 60.0
_WATCHED: Final = "watched"
_FOLLOWED: Final = "an event: from its happening to a follower"
_BARE: Final = "beside them: 4 KiB written and synced"

Say = Callable[[str], None]


# --- what callers wait for --------------------------------------------------------------------------


def answers(client: Client, folder: Path, seconds: float, rounds: int, say: Say) -> Iterator[Figure]:
    """Yield how long a caller waits who deploys, opens sessions and calls in one, where sessions are durable.

    folder: programs are written there.
    """
    targets = []
    for version in (1, 2):
        file = folder / f"version_{version}.py"
        file.write_text(_PROGRAM.format(version=version), encoding="utf-8")
        targets.append(f"{file}:Program")
    first = timed(lambda: client.deploy("swapped", targets[0]), 0.0)
    client.deploy("swapped", targets[1])
    yield Figure("deploy: the first of a coordinator", "ms", None, first)
    steps = _steps(client)
    follower = Follower(client)
    found: dict[str, list[list[float]]] = {name: [] for name in (*steps, _FOLLOWED)}
    for number in range(rounds):
        say(f"versions, durable sessions, events: round {number + 1} of {rounds}")
        for name, step in steps.items():
            found[name].append(timed(step, seconds))
        found[_FOLLOWED].append(follower.lags_ms(seconds))
    for name, times in found.items():
        yield from p50_and_p99(name, "ms", times)


def _steps(client: Client) -> dict[str, Callable[[], object]]:
    """Return what is measured, by its name; each can be repeated."""
    session = client.session("measured")
    numbers, versions = count(), cycle((1, 2))

    def deploy(*, warm: bool) -> object:
        target = {"module": "dspy.Predict", "signature": f"question -> answer_{next(numbers)}"}
        return client.deploy("fresh", target, warm=warm)

    def swap() -> None:
        version = next(versions)
        client.alias("swapped", "live", version)
        answered = client.execute("swapped", {"x": 1})["version"]
        if answered != version:
            raise DspoolError(f"version {version} is live, and version {answered} answered")

    return {
        "deploy, a new version": lambda: deploy(warm=False),
        "deploy, a new version, warm": lambda: deploy(warm=True),
        "alias moved": lambda: client.alias("swapped", "live", next(versions)),
        "hot swap: alias moved, the new version has answered": swap,
        "a durable session opened": lambda: client.session(f"opened {next(numbers)}", ttl_s=_OPEN_S),
        "echo alone, plain": lambda: client.execute("echo", 1),
        "echo alone, in a durable session": lambda: session.execute("echo", 1),
        "a durable session: a value of its state written": lambda: session.state.update(number=next(numbers)),
    }


class Follower:
    """Follows the event log from a thread of its own, until the coordinator ends, and notes the moves of an alias."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._seen: queue.SimpleQueue[float] = queue.SimpleQueue()
        self._versions = cycle((1, 2))
        threading.Thread(target=self._follow, name="follower", daemon=True).start()

    def lags_ms(self, seconds: float) -> list[float]:
        """Move the alias for so long, once at least; return how much later than the coordinator each move is seen."""
        lags: list[float] = []

        def move() -> None:
            self._client.alias("swapped", _WATCHED, next(self._versions))
            lags.append(self._seen.get(timeout=_TOLD_S))

        timed(move, seconds)
        return lags

    def _follow(self) -> None:
        with suppress(Unavailable, Cancelled):  # the coordinator has ended, or the client was closed
            for event in self._client.events():
                if event.event == "alias_moved" and event.fields["alias"] == _WATCHED:
                    self._seen.put((unix_now() - event.at) * 1e3)


# --- the store --------------------------------------------------------------------------------------


def commits(folder: Path, seconds: float, rounds: int, say: Say) -> Iterator[Figure]:
    """Yield how long a store in that folder takes for a transaction, and the disk by itself for one like it."""
    from orchestrator.services.store import SessionSave, Store, VersionDraft

    numbers = count(1)

    def save() -> None:
        seq = next(numbers)
        change = SessionSave(
            principal="p", id=f"session {seq % _SESSIONS}", generation=1, seq=seq, ttl_s=600.0, state=_STATE,
            turns=[(seq, _TURN)], touched_at=unix_now(),
        )  # fmt: skip
        store.sessions.save([change])

    def deploy() -> None:
        draft = VersionDraft(
            name="qa", sha256=str(next(numbers)), pool="general", target="module:QA", state=_STATE.decode(),
            deployed_at=unix_now(),
        )  # fmt: skip
        store.programs.add_version(draft, "live")

    def sync() -> None:
        bare.write(_STATE)
        os.fdatasync(bare.fileno())

    steps: dict[str, Callable[[], object]] = {
        "store: the change of a session": save, "store: a version and its alias": deploy, _BARE: sync,
    }  # fmt: skip
    found: dict[str, list[list[float]]] = {name: [] for name in steps}
    with Store.open(folder / "bench.sqlite3") as store, (folder / "bare").open("wb", buffering=0) as bare:
        for number in range(rounds):
            say(f"commits: round {number + 1} of {rounds}")
            for name, step in steps.items():
                found[name].append(timed(step, seconds))
    for name, times in found.items():
        yield from p50_and_p99(name, "ms", times, None if name == _BARE else MOST_COMMIT_P99_MS)
