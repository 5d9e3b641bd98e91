"""The descriptors that a leader polls, and when they may be closed."""

from __future__ import annotations

import os
import select

from orchestrator.client.link import Link


class Descriptors:
    """A caller's and the io thread's poll objects (a poll object serves one thread at a time), and who uses them.

    Both watch the socket, the connection's end, the coordinator's pidfd, and an eventfd of their own. `io_parked` is
    what the io thread sleeps on while it does not lead. The last user closes everything once `ended` is set. All but
    `close` and polling is done under the connection's lock.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self.socket_fd = socket_fd = link.dealer.fileno()
        ends = link.end_fd, link.pidfd
        self.io_wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._caller_wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.for_io = _poller(socket_fd, *ends, self.io_wake_fd), self.io_wake_fd
        self.for_caller = _poller(socket_fd, *ends, self._caller_wake_fd), self._caller_wake_fd
        self.io_parked = _poller(*ends, self.io_wake_fd)
        self._users = 0
        self._closing = False
        self.ended = False

    def wake_caller(self) -> None:
        """Wake the caller that leads. Only while it is counted in."""
        os.eventfd_write(self._caller_wake_fd, 1)

    def enter(self) -> None:
        """Count a user in."""
        self._users += 1

    def left(self) -> bool:
        """Count a user out. Returns whether it must call `close` now."""
        self._users -= 1
        return self.unused()

    def unused(self) -> bool:
        """Return, once, True when everything is over and nobody uses the descriptors: the caller must `close`."""
        if not self.ended or self._users or self._closing:
            return False
        self._closing = True
        return True

    def tell_end(self, events: list[tuple[int, int]]) -> bool:
        """Return whether the connection is over: it was cut, or the coordinator is dead."""
        link = self._link
        return any(fd == link.pidfd or (fd == link.end_fd and link.dealer.ended()) for fd, _ in events)

    def close(self) -> None:
        """Close everything. Takes a moment: not under the lock."""
        self._link.close()
        os.close(self.io_wake_fd)
        os.close(self._caller_wake_fd)


def drain(wake_fd: int) -> None:
    """Make an eventfd unreadable."""
    try:
        os.eventfd_read(wake_fd)
    except BlockingIOError:
        return


def _poller(*fds: int) -> select.poll:
    poller = select.poll()
    for fd in fds:
        poller.register(fd, select.POLLIN)
    return poller
