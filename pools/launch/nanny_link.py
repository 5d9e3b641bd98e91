"""The coordinator's end of a nanny: start it, send it orders, read what it says."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pools.launch.nanny import FAULT_POINTS

_SCRIPT = Path(__file__).with_name("nanny.py")
_MESSAGE_BYTES = 65_536
# What finding an interpreter and its libraries takes; the rest of the environment may hold secrets.
_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", FAULT_POINTS)


class NannyLink:
    """A running nanny. `pidfd` is readable when it is dead, `fileno()` when it said something or hung up."""

    def __init__(self, lifeline_fd: int, folder: str = "") -> None:
        """Start a nanny whose workers get `lifeline_fd`, and that removes a folder after us. Raises OSError."""
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        words = [sys.executable, "-I", "-S", "-X", "utf8", str(_SCRIPT), str(theirs.fileno()), str(lifeline_fd)]
        words += [folder] if folder else []
        try:
            self._process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno(), lifeline_fd],
                env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
                # A session of its own: no process below it can ever be taken for a child started otherwise.
                start_new_session=True,
            )
            self.pid = self._process.pid
            self.pidfd = os.pidfd_open(self.pid)
        except OSError:
            self._socket.close()  # a nanny that does run already ends by that
            raise
        finally:
            theirs.close()
        self._socket.setblocking(False)
        self.hung_up = False

    def fileno(self) -> int:
        """Return the control socket's descriptor, -1 after `hang_up`."""
        return self._socket.fileno()

    def order(
        self, message: Mapping[str, Any], argv: Sequence[str], env: Mapping[str, str], fds: Sequence[int]
    ) -> None:
        """Ask for a process; fds: spec, slots, stdout, stderr. Raises OSError (BlockingIOError: it is stuck)."""
        order_fd = memory_file("order", json.dumps({"argv": list(argv), "env": dict(env)}).encode())
        try:
            socket.send_fds(self._socket, [json.dumps(message).encode()], [order_fd, *fds])
        finally:
            os.close(order_fd)

    def messages(self) -> Iterator[tuple[dict[str, Any], list[int]]]:
        """Read what has arrived: messages and the descriptors that came with them, which are the caller's now."""
        while self._socket.fileno() >= 0:
            try:
                data, fds, _, _ = socket.recv_fds(self._socket, _MESSAGE_BYTES, 1, socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                return
            except ConnectionResetError:
                data, fds = b"", []
            if not data:
                self.hung_up = True
                return
            yield json.loads(data), fds

    def kill(self) -> None:
        """SIGKILL it; its children become this process'."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def hang_up(self) -> None:
        """Close the socket: the nanny kills and reaps all it has, then ends."""
        self._socket.close()

    def bury(self) -> list[int]:
        """Reap a dead nanny. Returns its descriptors, which the caller closes."""
        self._process.wait()
        return [fd for fd in (self._socket.detach(), self.pidfd) if fd >= 0]


def memory_file(name: str, data: bytes) -> int:
    """Return a new memfd that holds `data`, positioned at its beginning. Raises OSError."""
    fd = os.memfd_create(name)
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(data)
        os.lseek(fd, 0, os.SEEK_SET)
    except OSError:
        os.close(fd)
        raise
    return fd
