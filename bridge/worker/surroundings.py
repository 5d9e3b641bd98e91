"""What a process has only one of, and a program can change under the feet of the next."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

# `os.chdir` lets other threads have the interpreter. They are woken for it and come too late, and each time so the 5 ms
# begin anew after which Python would hand it to them: the io thread could wait as long as there is work.
_chdir = ctypes.PyDLL(None).chdir


class Surroundings:
    """The working directory and the file mode mask that this process started with.

    They are put back when no program runs. Programs that run at the same time share them, like everything else of
    their process. Thread-safe.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._folder = os.fsencode(os.getcwd())
        self._umask = os.umask(0o077)
        os.umask(self._umask)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Run a program in the body."""
        with self._lock:
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if not self._inside:
                    os.umask(self._umask)
                    _chdir(self._folder)  # whatever it returns: the folder itself may be gone
