"""Waits of a language model: each ends early when the call it serves is cancelled or out of time."""

from __future__ import annotations

import asyncio
import concurrent.futures
import time
from contextlib import suppress
from typing import TypeVar

from bridge.worker.call import Call
from bridge.worker.waits import await_, wait

T = TypeVar("T")


def pause(call: Call | None, seconds: float) -> None:
    """Wait `seconds`. Raises CallStopped as soon as the call is cancelled or past its deadline."""
    if call is None:
        time.sleep(seconds)
        return
    call.cancelled.wait(_within(call, seconds))
    call.check()


async def apause(call: Call | None, seconds: float) -> None:
    """Wait like `pause`, on an event loop."""
    if call is None:
        await asyncio.sleep(seconds)
        return
    loop, stopped = asyncio.get_running_loop(), asyncio.Event()
    undo = call.on_stop(lambda: loop.call_soon_threadsafe(stopped.set))
    try:
        with suppress(TimeoutError):
            await asyncio.wait_for(stopped.wait(), _within(call, seconds))
    finally:
        undo()
    call.check()


def result_of(call: Call | None, future: concurrent.futures.Future[T]) -> T:
    """Return the future's result. Cancels it and raises CallStopped if the call must stop first."""
    return future.result() if call is None else wait(call, future)


async def aresult_of(call: Call | None, future: concurrent.futures.Future[T]) -> T:
    """Return the future's result like `result_of`, on an event loop; cancelling the task cancels the future."""
    return await (asyncio.wrap_future(future) if call is None else await_(call, future))


def _within(call: Call, seconds: float) -> float:
    remaining_s = call.remaining_s()
    return seconds if remaining_s is None else min(seconds, remaining_s)
