"""Stacks of a worker that cannot speak any more: written by C code in a signal's handler, read by the coordinator.

They stand in the memory that holds the started-slots page, behind it, so they outlive the process. The handler needs no
interpreter lock: a worker that holds it for ever is seen too.

For the same reason it reads frames that running threads change, and CPython 3.11 can crash over that (signal 11). So
only a worker that is killed next is asked.
"""

from __future__ import annotations

import faulthandler
import os
import signal
from typing import Final

from bridge.worker.slots import PAGE_BYTES

DUMP_SIGNAL: Final = signal.SIGUSR2
STACKS_OFFSET: Final = PAGE_BYTES
STACKS_BYTES: Final = 65_536

_STDERR_FD: Final = 2


def keep(slots_fd: int) -> None:
    """Have the stacks of all threads written behind the page in `slots_fd`: on DUMP_SIGNAL, and on a fatal error.

    Each dump follows the one before it; what has no room left is cut. `slots_fd` stays the caller's. Raises OSError.
    """
    # Held for the process's life, with the offset that every dump moves on: nobody else reads or writes through it.
    fd = os.dup(slots_fd)
    os.lseek(fd, STACKS_OFFSET, os.SEEK_SET)
    faulthandler.enable(fd)
    faulthandler.register(DUMP_SIGNAL, fd, all_threads=True, chain=False)
    os.register_at_fork(after_in_child=_speak_for_itself)


def _speak_for_itself() -> None:
    """A process that a program forks is not the worker: how it ends belongs into its log."""
    faulthandler.unregister(DUMP_SIGNAL)
    faulthandler.enable(_STDERR_FD)
