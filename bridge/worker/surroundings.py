"""What a process has only one of, and a program can change under the feet of the next."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class Surroundings:
    """The working directory and the file mode mask that this process started with.

    They are put back when no program runs. Programs that run at the same time share them, like everything else of
    their process. Thread-safe.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._folder = os.getcwd()
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
                    with suppress(OSError):  # the folder itself may be gone
                        os.chdir(self._folder)
