"""The standard library's pools after a SIGKILL to one of their workers, for reference. Run in a process of its own.

Prints one JSON object: `told` (what the caller of the killed worker got, null: nothing within WAIT_S), `told_ms`, and
`answered_ms`, from the kill until a process that was not there before has answered a DSPy call.
"""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.pool import AsyncResult
from multiprocessing.queues import SimpleQueue
from typing import Any, Final

from orchestrator.bench.contender import die_with_parent
from orchestrator.bench.recovery import INTERVAL_S, LMS, OPERATION, arguments

WORKERS: Final = 4
WAIT_S: Final = 3.0
_TIMEOUT_S: Final = 60.0

_holding: SimpleQueue[int] | None = None


def main() -> None:
    """Kill a worker of the pool that `argv` names, and print what became of it."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    print(json.dumps(SUBJECTS[sys.argv[1]]()), file=answers, flush=True)


def multiprocessing_pool() -> dict[str, Any]:
    """`multiprocessing.Pool`: it starts another process, and tells the caller nothing."""
    holding: SimpleQueue[int] = multiprocessing.SimpleQueue()
    with multiprocessing.Pool(WORKERS, _begin, (holding,)) as pool:
        before = _warm(lambda: pool.apply(answer))
        held = pool.apply_async(hold)
        victim = holding.get()
        killed_at = time.monotonic()
        os.kill(victim, signal.SIGKILL)
        later: list[AsyncResult[int]] = []
        while not any(each.ready() and each.get() not in before for each in later):
            _check(killed_at)
            later.append(pool.apply_async(answer))
            time.sleep(INTERVAL_S)
        answered_ms = (time.monotonic() - killed_at) * 1000.0
        held.wait(max(killed_at + WAIT_S - time.monotonic(), 0.0))
        told = type(_outcome(held.get)).__name__ if held.ready() else None
        return {"told": told, "told_ms": None, "answered_ms": answered_ms}


def executor() -> dict[str, Any]:
    """`ProcessPoolExecutor`: it breaks, all its calls with it; its user makes another one."""
    holding: SimpleQueue[int] = multiprocessing.SimpleQueue()
    with ProcessPoolExecutor(WORKERS, initializer=_begin, initargs=(holding,)) as pool:
        _warm(lambda: pool.submit(answer).result())
        held = pool.submit(hold)
        victim = holding.get()
        killed_at = time.monotonic()
        os.kill(victim, signal.SIGKILL)
        error = held.exception(_TIMEOUT_S)
        told_ms = (time.monotonic() - killed_at) * 1000.0
        with ProcessPoolExecutor(WORKERS, initializer=_begin, initargs=(holding,)) as another:
            another.submit(answer).result(_TIMEOUT_S)
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


def _outcome(get: Callable[[], Any]) -> Any:
    try:
        return get()
    except Exception as exc:  # noqa: BLE001 - whatever the caller gets is the finding
        return exc


# --- in the workers -------------------------------------------------------------------------------


def _begin(holding: SimpleQueue[int]) -> None:
    global _holding
    die_with_parent()
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
