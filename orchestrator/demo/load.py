"""A worker dies under load: who calls, who kills, what everybody sees."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from orchestrator.errors import DspoolError, WorkerLost
from pools.worker_id import place_of

if TYPE_CHECKING:
    from orchestrator.client.client import Client
    from orchestrator.client.future import Future

# Finer than what is told of it.
_POLL_S: Final = 0.001
_IN_SERVICE: Final = ("ready", "busy")
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
    """What callers saw; seconds from the kill.

    told_s: the last caller that lost its call learnt of it. other: unexpected errors. ready_s: `replacement`, the next
    worker in the victim's place, was seen ready. answered_s: it had answered a call itself. answered_meanwhile: calls
    that others answered until then.
    """

    answered: int
    lost: list[WorkerLost]
    told_s: float
    other: Counter[str]
    replacement: str
    ready_s: float
    answered_s: float
    answered_meanwhile: int


def kill_under_load(client: Client, operation: str, args: Any, *, calls: int, lm: str) -> tuple[Victim, Outcome]:
    """Keep the general pool busy, SIGKILL one of its workers, and wait until everything is settled.

    Raises TimeoutError if the worker's place does not answer again, or a call is not settled, in time.
    """
    ended: dict[int, float] = {}

    def submit() -> Future:
        future = client.submit(operation, args, lm=lm, deadline_s=_ANSWER_TIMEOUT_S)
        future.add_done_callback(lambda done: ended.__setitem__(id(done), time.monotonic()))
        return future

    futures = [submit() for _ in range(calls)]
    _wait(lambda: len(ended) >= calls // 4, "a quarter of the calls to be answered")
    victim = _kill_busy_worker(client)
    replacement = _wait(lambda: _replacement(client, victim), "the place of the killed worker to be filled")
    ready_at = time.monotonic()
    _wait(lambda: len(ended) == calls, "every call to be settled")
    # Where a worker takes longer to start than all those calls take, it has had none of them.
    others = list(futures)
    while (answered_at := _first_answer(others, ended, replacement)) is None:
        if time.monotonic() > ready_at + _RECOVERY_TIMEOUT_S:
            raise TimeoutError(f"waited {_RECOVERY_TIMEOUT_S:g} s for an answer of {replacement}")
        others.append(submit())
        _wait(lambda: len(ended) == len(others), "another call to be settled")
    return victim, _outcome(futures, ended, victim, replacement, ready_at, answered_at)


def _kill_busy_worker(client: Client) -> Victim:
    def busy() -> dict[str, Any] | None:
        rows = [row for row in client.workers() if row["pool"] == "general" and row["in_flight"] and row["pid"]]
        return max(rows, key=lambda row: int(row["in_flight"]), default=None)

    row = _wait(busy, "a busy worker")
    killed_at = time.monotonic()
    os.kill(row["pid"], signal.SIGKILL)
    return Victim(row["id"], row["pid"], killed_at)


def _replacement(client: Client, victim: Victim) -> str | None:
    """Return the id of a ready worker in the victim's place, None while there is none."""
    place = place_of(victim.worker_id)
    for row in client.workers():
        worker_id = str(row["id"])
        if place_of(worker_id) == place and worker_id != victim.worker_id and row["state"] in _IN_SERVICE:
            return worker_id
    return None


def _first_answer(futures: list[Future], ended: dict[int, float], worker_id: str) -> float | None:
    """Return when a worker's first answer came (monotonic), None if it has answered none of the calls."""
    answers = [
        ended[id(future)]
        for future in futures
        if future.exception() is None and future.meta is not None and future.meta.worker == worker_id
    ]
    return min(answers, default=None)


def _outcome(
    futures: list[Future], ended: dict[int, float], victim: Victim, replacement: str, ready_at: float,
    answered_at: float,
) -> Outcome:  # fmt: skip
    answered, meanwhile, told_s = 0, 0, 0.0
    lost: list[WorkerLost] = []
    other: Counter[str] = Counter()
    for future in futures:
        error = future.exception()
        at = ended[id(future)]
        if error is None:
            answered += 1
            meanwhile += victim.killed_at <= at < answered_at
        elif isinstance(error, WorkerLost):
            lost.append(error)
            told_s = max(told_s, at - victim.killed_at)
        else:
            other[error.code if isinstance(error, DspoolError) else repr(error)] += 1
    ready_s, answered_s = ready_at - victim.killed_at, answered_at - victim.killed_at
    return Outcome(answered, lost, told_s, other, replacement, ready_s, answered_s, meanwhile)


def _wait(ready: Any, what: str) -> Any:
    until = time.monotonic() + _RECOVERY_TIMEOUT_S
    while not (value := ready()):
        if time.monotonic() > until:
            raise TimeoutError(f"waited {_RECOVERY_TIMEOUT_S:g} s for {what}")
        time.sleep(_POLL_S)
    return value
