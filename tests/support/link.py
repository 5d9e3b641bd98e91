"""A line between two processes that can go silent: it stays open and carries nothing."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Self

_CHUNK_BYTES = 65_536


class Link:
    """Carries what connects to `path` on to the socket at `target`; closed at the end of the block.

    A silent direction keeps what it has read: `speak` sends it on, late.
    """

    def __init__(self, path: Path, target: Path) -> None:
        self.path, self._target = path, target
        self.held_bytes = 0  # read, and kept back by silence
        self._up, self._down = threading.Event(), threading.Event()
        self._up.set()
        self._down.set()
        self._closed = False
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._start(self._accept)

    @property
    def endpoint(self) -> str:
        return f"ipc://{self.path}"

    def silence(self, *, up: bool = True, down: bool = True) -> None:
        """Carry nothing from now on. up: towards the target; down: from it."""
        if up:
            self._up.clear()
        if down:
            self._down.clear()

    def speak(self) -> None:
        """Carry everything again, first what was kept."""
        self._up.set()
        self._down.set()

    def cut(self) -> None:
        """End every connection."""
        for each in self._sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # the listener was shut down
            while True:
                near, _ = self._listener.accept()
                far = socket.socket(socket.AF_UNIX)
                far.connect(str(self._target))
                self._sockets += [near, far]
                self._start(self._carry, near, far, self._up)
                self._start(self._carry, far, near, self._down)

    def _carry(self, source: socket.socket, sink: socket.socket, gate: threading.Event) -> None:
        # A connection that was reset while it was silent has lost what it carried, as real ones have.
        with contextlib.suppress(OSError):
            while data := source.recv(_CHUNK_BYTES):
                if not gate.is_set():
                    self.held_bytes += len(data)
                    gate.wait()
                if self._closed:
                    return
                sink.sendall(data)
            gate.wait()  # the end of a connection is not told through silence either
            sink.shutdown(socket.SHUT_WR)

    def _start(self, target: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, name=f"link {self.path.name}")
        self._threads.append(thread)
        thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._closed = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self.cut()
        self.speak()
        for thread in self._threads:
            thread.join()
        for each in [*self._sockets, self._listener]:
            each.close()
        self.path.unlink(missing_ok=True)
