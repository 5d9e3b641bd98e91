"""Turns: what changes one program is done one after the other, so that it is told in the order in which it was kept."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Final

from bridge.protocol.errors import OVERLOADED, BridgeError
from bridge.worker.call import Call
from bridge.worker.waits import wait

# Each keeps a thread waiting, for its turn or for the worker that loads its program.
_MOST: Final = 32


class Turns:
    """Who has the turn of each name, and who waits for it, the first first. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lines: dict[str, deque[Future[None]]] = {}
        self._count = 0

    @contextmanager
    def of(self, name: str, call: Call | None) -> Iterator[None]:
        """Have the body run in the turn of a name; a call that waits for it lends its slot.

        Raises BridgeError(OVERLOADED) where too much is under way, CallStopped if the call must stop first.
        """
        mine: Future[None] = Future()
        with self._lock:
            if self._count >= _MOST:
                text = f"{self._count} changes of programs are under way; try again when some are done"
                raise BridgeError(OVERLOADED, text, retryable=True, details={"retry_after_s": 1.0})
            self._count += 1
            line = self._lines.setdefault(name, deque())
            line.append(mine)
            waits = line[0] is not mine
        try:
            if waits and call is not None:
                with call.paused():
                    wait(call, mine)
            elif waits:
                mine.result()
            yield
        finally:
            self._leave(name, mine)

    def _leave(self, name: str, mine: Future[None]) -> None:
        with self._lock:
            self._count -= 1
            line = self._lines[name]
            had_it = line[0] is mine
            line.remove(mine)
            if not line:
                del self._lines[name]
                return
            following = line[0]
        # One that gave up meanwhile leaves the line by itself, and hands on what it never had.
        if had_it and following.set_running_or_notify_cancel():
            following.set_result(None)
