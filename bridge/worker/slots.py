"""The started-slots page: which attempts may have run user code, readable after this process is dead."""

from __future__ import annotations

import mmap
import threading
from typing import Final

WORDS: Final = 512
PAGE_BYTES: Final = 8 * WORDS


class StartedSlots:
    """Shared with the coordinator: word `epoch mod 512` holds the highest epoch that was started there.

    The coordinator reads `word < epoch` as proof that the attempt never started. Thread-safe.
    """

    def __init__(self, fd: int) -> None:
        """Map the page in `fd`, which stays the caller's. Raises OSError or ValueError if there is none."""
        self._page = mmap.mmap(fd, PAGE_BYTES)
        self._words = memoryview(self._page).cast("Q")
        lock = threading.Lock()
        self._acquire, self._release = lock.acquire, lock.release

    def mark(self, epoch: int) -> None:
        """Record, before any user code runs, that the attempt is about to start."""
        word = epoch % WORDS
        words = self._words
        # Attempts may start out of order, but a word must never sink: that would deny that the higher one started.
        self._acquire()  # `with` takes half as long again
        try:
            if words[word] < epoch:
                words[word] = epoch
        finally:
            self._release()
