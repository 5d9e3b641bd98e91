"""A worker dies under load: who calls, who kills, what everybody sees."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from orchestrator.errors import DspoolError, WorkerLost

if TYPE_CHECKING:
    from orchestrator.client.client import Client
    from orchestrator.client.future import Future

_POLL_S: Final = 0.01
_RECOVERY_TIMEOUT_S: Final = 30.0
_ANSWER_TIMEOUT_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Victim:
    """The worker that was killed, and when (monotonic)."""

    worker_id: str
    pid: int
    killed_at: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """What callers saw. told_s: from the kill to the last caller that learnt of it. other: unexpected errors."""

    answered: int
    lost: list[WorkerLost]
    told_s: float
    other: Counter[str]
    recovered_s: float
    replacement: str
    answered_meanwhile: int


def kill_under_load(client: Client, operation: str, args: Any, *, calls: int, lm: str) -> tuple[Victim, Outcome]:
    """Keep the general pool busy, SIGKILL one of its workers half-way, and wait until everything is settled.

    Raises TimeoutError if the pool is not full again, or a call is not settled, in time.
    """
    ended: dict[int, float] = {}
    futures = [client.submit(operation, args, lm=lm, deadline_s=_ANSWER_TIMEOUT_S) for _ in range(calls)]
    for future in futures:
        future.add_done_callback(lambda done: ended.__setitem__(id(done), time.monotonic()))
    _wait(lambda: len(ended) >= calls // 4, "a quarter of the calls to be answered")
    victim = _kill_busy_worker(client)
    replacement = _wait(lambda: _replacement(client, victim), "the pool to be full again")
    recovered_at = time.monotonic()
    _wait(lambda: len(ended) == calls, "every call to be settled")
    return victim, _outcome(futures, ended, victim, replacement, recovered_at)


def _kill_busy_worker(client: Client) -> Victim:
    def busy() -> dict[str, Any] | None:
        rows = [row for row in client.workers() if row["pool"] == "general" and row["in_flight"] and row["pid"]]
        return max(rows, key=lambda row: int(row["in_flight"]), default=None)

    row = _wait(busy, "a busy worker")
    os.kill(row["pid"], signal.SIGKILL)
    return Victim(row["id"], row["pid"], time.monotonic())


def _replacement(client: Client, victim: Victim) -> str | None:
    """Return the id of the worker in the victim's place once the pool is full, else None."""
    place = victim.worker_id.rpartition(".")[0]
    rows = [row for row in client.workers() if row["pool"] == "general" and row["state"] in ("ready", "busy")]
    stats = client.stats()["pools"]["general"]
    heirs = [row["id"] for row in rows if row["id"] != victim.worker_id and row["id"].rpartition(".")[0] == place]
    return str(heirs[0]) if heirs and stats["ready"] == stats["size"] else None


def _outcome(
    futures: list[Future], ended: dict[int, float], victim: Victim, replacement: str, recovered_at: float
) -> Outcome:
    answered, meanwhile, told_s = 0, 0, 0.0
    lost: list[WorkerLost] = []
    other: Counter[str] = Counter()
    for future in futures:
        error = future.exception()
        at = ended[id(future)]
        if error is None:
            answered += 1
            meanwhile += victim.killed_at <= at <= recovered_at
        elif isinstance(error, WorkerLost):
            lost.append(error)
            told_s = max(told_s, at - victim.killed_at)
        else:
            other[error.code if isinstance(error, DspoolError) else repr(error)] += 1
    return Outcome(answered, lost, told_s, other, recovered_at - victim.killed_at, replacement, meanwhile)


def _wait(ready: Any, what: str) -> Any:
    until = time.monotonic() + _RECOVERY_TIMEOUT_S
    while not (value := ready()):
        if time.monotonic() > until:
            raise TimeoutError(f"waited {_RECOVERY_TIMEOUT_S:g} s for {what}")
        time.sleep(_POLL_S)
    return value
