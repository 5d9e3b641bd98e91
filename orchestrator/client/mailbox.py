"""From any thread into an event loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable

Waiter = asyncio.Future[None]


def tell(loop: asyncio.AbstractEventLoop, call: Callable[[], object]) -> None:
    """Have `call` called in a loop, soon. In a loop that is closed nobody waits for it."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(call)


class Mailbox:
    """Hands settled futures to an event loop, many with one wake-up."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._settled: deque[Waiter] = deque()
        self._scheduled = False

    def put(self, waiter: Waiter, _future: object = None) -> bool:
        """Wake what awaits `waiter`; return whether anybody does. On any thread, under the connection's lock."""
        if waiter.cancelled():
            return False
        self._settled.append(waiter)
        if not self._scheduled:
            self._scheduled = True
            tell(self.loop, self._deliver)
        return True

    def _deliver(self) -> None:
        # Cleared first: what is put from here on schedules anew.
        self._scheduled = False
        while self._settled:
            waiter = self._settled.popleft()
            if not waiter.done():
                waiter.set_result(None)
