"""The standard library's pools after a SIGKILL to one of their workers, for reference. Run in a process of its own.

Prints one JSON object, in milliseconds from the kill: `told` (what the caller of the killed worker got, null: nothing
within WAIT_S), `told_ms` (null with it), and `answered_ms`, when a process that was not there before has answered a
DSPy call.
"""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import queue
import signal
import sys
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.pool import AsyncResult, Pool
from multiprocessing.queues import SimpleQueue
from typing import Any, Final, NoReturn, TypeAlias

from orchestrator.bench.contender import die_with_parent
from orchestrator.bench.recovery import INTERVAL_S, LMS, OPERATION, arguments

WORKERS: Final = 4
WAIT_S: Final = 3.0
_TIMEOUT_S: Final = 60.0
# Of all of it, however it hangs; in whole seconds.
MOST_S: Final = 80

Outcomes: TypeAlias = "queue.SimpleQueue[tuple[float, Any]]"

_holding: SimpleQueue[int] | None = None


def main() -> NoReturn:
    """Kill a worker of the pool that `argv` names, print what became of it, and end this process.

    The pools are not closed: a worker may have died with a lock of its pool, and closing would wait for it. Their
    processes die with this one, which dies with the one that started it, and of SIGALRM after MOST_S.
    """
    signal.alarm(MOST_S)
    die_with_parent()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        print(json.dumps(SUBJECTS[sys.argv[1]]()), file=answers, flush=True)
    except Exception:  # noqa: BLE001 - it is told, and nothing is left to do
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def multiprocessing_pool() -> dict[str, Any]:
    """`multiprocessing.Pool`: it starts another process, and tells the caller nothing."""
    holding: SimpleQueue[int] = multiprocessing.SimpleQueue()
    pool = multiprocessing.Pool(WORKERS, _begin, (holding, os.getpid()))
    before = _warm(lambda: pool.apply(answer))
    outcomes = held_call(pool, hold)
    victim = holding.get()
    killed_at = time.monotonic()
    os.kill(victim, signal.SIGKILL)
    later: list[AsyncResult[int]] = []
    while not any(each.ready() and each.get() not in before for each in later):
        _check(killed_at)
        later.append(pool.apply_async(answer))
        time.sleep(INTERVAL_S)
    answered_ms = (time.monotonic() - killed_at) * 1000.0
    return {**told_of(outcomes, killed_at), "answered_ms": answered_ms}


def held_call(pool: Pool, call: Callable[[], Any]) -> Outcomes:
    """Run a call in a pool; return where its outcome will be, with the moment its caller had it (monotonic)."""
    outcomes: Outcomes = queue.SimpleQueue()

    def note(outcome: Any) -> None:
        outcomes.put((time.monotonic(), outcome))

    pool.apply_async(call, callback=note, error_callback=note)
    return outcomes


def told_of(outcomes: Outcomes, killed_at: float) -> dict[str, Any]:
    """Return `told` and `told_ms` of an outcome that comes within WAIT_S of the kill, both null if none does."""
    try:
        told_at, outcome = outcomes.get(timeout=max(killed_at + WAIT_S - time.monotonic(), 0.0))
    except queue.Empty:
        return {"told": None, "told_ms": None}
    return {"told": type(outcome).__name__, "told_ms": (told_at - killed_at) * 1000.0}


def executor() -> dict[str, Any]:
    """`ProcessPoolExecutor`: it breaks, all its calls with it; its user makes another one."""
    holding: SimpleQueue[int] = multiprocessing.SimpleQueue()
    start = functools.partial(ProcessPoolExecutor, WORKERS, initializer=_begin, initargs=(holding, os.getpid()))
    pool = start()
    _warm(lambda: pool.submit(answer).result())
    held = pool.submit(hold)
    victim = holding.get()
    killed_at = time.monotonic()
    os.kill(victim, signal.SIGKILL)
    error = held.exception(_TIMEOUT_S)
    told_ms = (time.monotonic() - killed_at) * 1000.0
    start().submit(answer).result(_TIMEOUT_S)
    answered_ms = (time.monotonic() - killed_at) * 1000.0
    return {"told": type(error).__name__, "told_ms": told_ms, "answered_ms": answered_ms}


def _warm(ask: Callable[[], int]) -> set[int]:
    """Ask until every worker has answered; return their pids."""
    began, pids = time.monotonic(), set[int]()
    while len(pids) < WORKERS:
        _check(began)
        pids.add(ask())
    return pids


def _check(began: float) -> None:
    if time.monotonic() - began > _TIMEOUT_S:
        raise TimeoutError(f"waited {_TIMEOUT_S:g} s")


# --- in the workers -------------------------------------------------------------------------------


def _begin(holding: SimpleQueue[int], parent: int) -> None:
    global _holding
    die_with_parent()
    if os.getppid() != parent:  # it died before the kernel was asked
        os._exit(1)
    _holding = holding


def hold() -> None:
    """Say who runs this, and never end."""
    assert _holding is not None
    _holding.put(os.getpid())
    time.sleep(3600.0)


def answer() -> int:
    """Run the DSPy call that dspool's workers are measured by; return who did."""
    _predict()(arguments(os.getpid()))
    return os.getpid()


@functools.cache
def _predict() -> Callable[[Any], Any]:
    from bridge.worker import operations
    from bridge.worker.call import Call

    operations.prepare_environment("")
    from bridge.worker.lm import LanguageModels
    from bridge.worker.modules import Modules
    from bridge.worker.scope import Scope

    predict = Modules(Scope(LanguageModels(LMS))).operations()[OPERATION]
    return lambda args: predict(args, Call(0, 0, OPERATION))


SUBJECTS: Final[dict[str, Callable[[], dict[str, Any]]]] = {
    "multiprocessing.Pool": multiprocessing_pool,
    "ProcessPoolExecutor": executor,
}
