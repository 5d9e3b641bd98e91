"""Waits of a language model: each ends early when the call it serves is cancelled or out of time."""

from __future__ import annotations

import asyncio
import concurrent.futures
import time
from typing import TypeVar

from bridge.worker.call import Call

T = TypeVar("T")

# A cancellation is a flag of another thread, so a wait for something else looks at it this often.
_LOOK_S = 0.05


def pause(call: Call | None, seconds: float) -> None:
    """Wait `seconds`. Raises CallStopped as soon as the call is cancelled or past its deadline."""
    if call is None:
        time.sleep(seconds)
        return
    remaining_s = call.remaining_s()
    call.cancelled.wait(seconds if remaining_s is None else min(seconds, remaining_s))
    call.check()


async def apause(call: Call | None, seconds: float) -> None:
    """Wait like `pause`, on an event loop."""
    end = time.monotonic() + seconds
    while (left_s := end - time.monotonic()) > 0:
        await asyncio.sleep(_slice_s(call, left_s))
        if call is not None:
            call.check()


def result_of(call: Call | None, future: concurrent.futures.Future[T]) -> T:
    """Return the future's result. Cancels it and raises CallStopped if the call must stop first."""
    while True:
        concurrent.futures.wait([future], timeout=None if call is None else _slice_s(call, _LOOK_S))
        if future.done():
            return future.result()
        _stop_if_asked(call, future)


async def aresult_of(call: Call | None, future: concurrent.futures.Future[T]) -> T:
    """Return the future's result like `result_of`, on an event loop; cancelling the task cancels the future."""
    wrapped = asyncio.wrap_future(future)
    try:
        while True:
            await asyncio.wait([wrapped], timeout=None if call is None else _slice_s(call, _LOOK_S))
            if wrapped.done():
                return wrapped.result()
            _stop_if_asked(call, future)
    finally:
        wrapped.cancel()


def _slice_s(call: Call | None, seconds: float) -> float:
    if call is None:
        return seconds
    remaining_s = call.remaining_s()
    return min(seconds, _LOOK_S) if remaining_s is None else min(seconds, _LOOK_S, remaining_s)


def _stop_if_asked(call: Call | None, future: concurrent.futures.Future[T]) -> None:
    if call is not None:
        try:
            call.check()
        except BaseException:
            future.cancel()
            raise
