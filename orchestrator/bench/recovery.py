"""A general worker is killed under light DSPy load: when its caller is told, and when its place answers again.

Every worker also runs a call that never ends, so that the kill costs somebody something. The place is back when the
replacement has itself answered a DSPy call of the load, not when it is said to be ready.
"""

from __future__ import annotations

import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

from orchestrator.errors import DspoolError, WorkerLost
from pools.worker_id import incarnation_of, place_of

if TYPE_CHECKING:
    from orchestrator.client.client import Client
    from orchestrator.client.future import Future

OPERATION: Final = "dspy.Predict"
POOL: Final = "general"
HELD: Final = "held"
# Nothing here lasts so long.
_HELD_S: Final = 3600.0
LMS: Final = {"default": {"model": "offline/knn"}, HELD: {"model": f"offline/knn?latency_ms={_HELD_S * 1000:.0f}"}}
# Of what is measured, so much at most is waiting for the next call.
INTERVAL_S: Final = 0.005
# So many answers to calls that came after the held one prove that it has been started.
_LATER: Final = 3
_TIMEOUT_S: Final = 30.0
_POLL_S: Final = 0.002

T = TypeVar("T")
Ended: TypeAlias = "queue.SimpleQueue[tuple[float, Any]]"


@dataclass(frozen=True, slots=True)
class Kill:
    """What a SIGKILL cost, in milliseconds from it. told_ms: the caller of what ran has its WorkerLost.

    answered_ms: `replacement`, the next worker in the victim's place, has answered a DSPy call. lost: calls of the
    load that were lost too.
    """

    victim: str
    replacement: str
    told_ms: float
    answered_ms: float
    lost: int


def arguments(number: int) -> dict[str, Any]:
    """Return the arguments of a DSPy call, no two alike."""
    return {"signature": "question -> answer", "inputs": {"question": f"How many are {number} and one?"}}


class LightLoad:
    """A DSPy call every 5 ms, whatever became of those before, from a thread of its own. A context manager."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._changed = threading.Condition()
        self._running = True
        self._stopped = threading.Event()
        self._sent = self._settled = 0
        self._answers: dict[str, tuple[int, float]] = {}
        self._errors: list[BaseException] = []
        self.lost = 0
        self._thread = threading.Thread(target=self._submit, name="light-load", daemon=True)

    def __enter__(self) -> LightLoad:
        """Begin."""
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Send no more, and wait for what was sent. Raises what a call ended with that is no WorkerLost."""
        self._stopped.set()
        self._thread.join()
        if kind is None:
            self._await_settled()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Send nothing meanwhile; begins when all that was sent is settled."""
        with self._changed:
            self._running = False
        try:
            self._await_settled()
            yield
        finally:
            with self._changed:
                self._running = True

    def count(self, worker_id: str) -> int:
        """Return how many calls a worker has answered."""
        with self._changed:
            return self._answers.get(worker_id, (0, 0.0))[0]

    def await_answers(self, worker_id: str, count: int) -> None:
        """Wait until a worker has answered `count` calls."""
        self._await(lambda: self._answers.get(worker_id, (0, 0.0))[0] >= count, f"{count} answers of {worker_id}")

    def await_replacement(self, victim: str) -> tuple[str, float]:
        """Wait until a worker that replaced the victim has answered; return its id and when (monotonic)."""
        return self._await(lambda: self._replacement(victim), f"an answer of the place of {victim}")

    def _replacement(self, victim: str) -> tuple[str, float] | None:
        for worker_id, (_, first_at) in self._answers.items():
            if place_of(worker_id) == place_of(victim) and incarnation_of(worker_id) > incarnation_of(victim):
                return worker_id, first_at
        return None

    def _submit(self) -> None:
        due = time.monotonic()
        while not self._stopped.wait(max(due - time.monotonic(), 0.0)):
            due = max(due + INTERVAL_S, time.monotonic())
            with self._changed:
                if not self._running:
                    continue
                self._sent += 1
            try:
                self._client.submit(OPERATION, arguments(self._sent), pool=POOL).add_done_callback(self._ended)
            except Exception as exc:  # noqa: BLE001 - whoever waits for the load raises it
                with self._changed:
                    self._errors.append(exc)
                    self._changed.notify_all()
                return

    def _ended(self, future: Any) -> None:
        at, error, meta = time.monotonic(), future.exception(0), future.meta
        with self._changed:
            self._settled += 1
            if isinstance(error, WorkerLost):
                self.lost += 1
            elif error is not None:
                self._errors.append(error)
            else:
                answered, first_at = self._answers.get(meta.worker, (0, at))
                self._answers[meta.worker] = answered + 1, first_at
            self._changed.notify_all()

    def _await_settled(self) -> None:
        self._await(lambda: self._settled == self._sent, "the load to be settled")

    def _await(self, found: Callable[[], T | None], what: str) -> T:
        with self._changed:
            self._changed.wait_for(lambda: self._errors or found(), _TIMEOUT_S)
            if self._errors:
                raise self._errors[0]
            if value := found():
                return value
        raise DspoolError(f"waited {_TIMEOUT_S:g} s for {what}")


def kill_workers(client: Client, times: int) -> Iterator[Kill]:
    """Kill general workers by turns under light load, and yield what each kill cost.

    The coordinator must know LMS, and restart at once whatever the number of deaths. Raises DspoolError for a caller
    that was told something else than WorkerLost, and where something takes too long.
    """
    ended: Ended = queue.SimpleQueue()
    held: list[Future] = []
    with LightLoad(client) as load:
        for number in range(times):
            with load.paused():
                workers = _hold(client, held, ended)
            victim = workers[number % len(workers)]
            load.await_answers(victim["id"], load.count(victim["id"]) + _LATER)
            yield _kill(victim, load, ended)
    for future in held:
        future.cancel()
    try:
        for future in held:
            future.exception(_TIMEOUT_S)
    except TimeoutError as exc:
        raise DspoolError(f"waited {_TIMEOUT_S:g} s for the held calls to be cancelled") from exc


def _hold(client: Client, held: list[Future], ended: Ended) -> list[dict[str, Any]]:
    """See to it that every worker holds one call of an hour; return them. The pool must have nothing else to do.

    A worker that holds more is given less: one that held a call beside idle ones would see nothing of the load.
    """
    held[:] = [future for future in held if not future.done()]
    for _ in range(client.stats()["pools"][POOL]["size"] - len(held)):
        future = client.submit(OPERATION, arguments(0), pool=POOL, lm=HELD, deadline_s=_HELD_S)
        future.add_done_callback(lambda done: ended.put((time.monotonic(), done)))
        held.append(future)
    until = time.monotonic() + _TIMEOUT_S
    while time.monotonic() < until:
        alive = [row for row in client.workers() if row["pool"] == POOL and row["state"] == "busy"]
        if len(alive) == len(held) and all(row["in_flight"] == 1 for row in alive):
            return alive
        time.sleep(_POLL_S)
    raise DspoolError(f"waited {_TIMEOUT_S:g} s for a call in every worker")


def _kill(victim: dict[str, Any], load: LightLoad, ended: Ended) -> Kill:
    lost_before = load.lost
    killed_at = time.monotonic()
    os.kill(victim["pid"], signal.SIGKILL)
    replacement, answered_at = load.await_replacement(victim["id"])
    caller_at = told_at(victim["id"], ended)
    told_ms, answered_ms = ((at - killed_at) * 1000.0 for at in (caller_at, answered_at))
    return Kill(victim["id"], replacement, told_ms, answered_ms, load.lost - lost_before)


def told_at(victim: str, ended: Ended, timeout_s: float = _TIMEOUT_S) -> float:
    """Return when the caller of what ran in the victim had its WorkerLost. Raises DspoolError for all else."""
    try:
        at, future = ended.get(timeout=timeout_s)
    except queue.Empty:
        raise DspoolError(f"waited {timeout_s:g} s for the caller of the killed {victim} to be told") from None
    error = future.exception(0)
    if not isinstance(error, WorkerLost) or error.worker != victim:
        raise DspoolError(f"the caller of the killed {victim} was told {error!r}")
    return at
