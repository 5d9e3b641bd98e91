"""Waiting for what another thread decides, no longer than the call may run. No wait polls."""

from __future__ import annotations

import asyncio
import concurrent.futures
from typing import TypeVar

from bridge.worker.call import Call

T = TypeVar("T")


def wait(call: Call, future: concurrent.futures.Future[T], limit_s: float | None = None) -> T:
    """Return the future's result. Cancels it and raises CallStopped if the call must stop first.

    Raises TimeoutError after `limit_s` seconds. Whoever settles the future asks `set_running_or_notify_cancel` first.
    """
    undo = call.on_stop(future.cancel)
    try:
        return future.result(_shorter(call.remaining_s(), limit_s))
    except (concurrent.futures.CancelledError, TimeoutError):
        future.cancel()
        call.check()
        raise
    finally:
        undo()


async def await_(call: Call, future: concurrent.futures.Future[T], limit_s: float | None = None) -> T:
    """Return the future's result like `wait`, on an event loop."""
    undo = call.on_stop(future.cancel)
    try:
        async with asyncio.timeout(_shorter(call.remaining_s(), limit_s)):
            return await asyncio.wrap_future(future)
    except (asyncio.CancelledError, TimeoutError):
        future.cancel()
        call.check()
        raise
    finally:
        undo()


def _shorter(*times_s: float | None) -> float | None:
    known = [one for one in times_s if one is not None]
    return min(known) if known else None
