"""The descriptors that the reactor sleeps on, and who looks after each."""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Iterator
from typing import Final

Handler = Callable[[float], object]

# What a signal handler's wake-up leaves in the pipe.
_PIPE_BYTES: Final = 512


class Watching:
    """One epoll for everything: zmq_poll asks each socket several times per turn, at three system calls each."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, Handler] = {}

    def add(self, fd: int, handler: Handler) -> None:
        """Call `handler(now)` whenever `fd` is readable."""
        self._handlers[fd] = handler
        self._epoll.register(fd, select.EPOLLIN)

    def remove(self, fd: int) -> None:
        """Stop watching a descriptor; it stays open."""
        del self._handlers[fd]
        self._epoll.unregister(fd)

    def add_pidfd(self, pidfd: int, on_end: Handler) -> None:
        """Call `on_end(now)` when the process has ended. Asked again: the number may be another's by then."""

        def look(now: float) -> None:
            if select.select([pidfd], [], [], 0)[0]:
                on_end(now)

        self.add(pidfd, look)

    def add_signals(self, fd: int, on_signal: Handler) -> None:
        """Call `on_signal(now)` for each byte that comes through the self-pipe of the signal handlers."""

        def read(now: float) -> None:
            for _ in os.read(fd, _PIPE_BYTES):
                on_signal(now)

        self.add(fd, read)

    def wait(self, timeout_s: float | None) -> Iterator[Handler]:
        """Sleep until something is readable or `timeout_s` is over (None = for ever); return whom to call.

        Whoever is called may remove what comes after it.
        """
        return self._due(self._epoll.poll(timeout_s))

    def _due(self, events: list[tuple[int, int]]) -> Iterator[Handler]:
        for fd, _ in events:
            handler = self._handlers.get(fd)
            if handler is not None:
                yield handler

    def close(self) -> None:
        """Watch nothing any more."""
        self._handlers.clear()
        self._epoll.close()


def open_pidfd(pid: int) -> int | None:
    """Return a pidfd of `pid`, or None if there is no such process (here) or no descriptor left."""
    if pid <= 0:
        return None
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None
