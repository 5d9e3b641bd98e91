"""The open connections of this process: its exit closes them, its forks do not use them."""

from __future__ import annotations

import atexit
import os
import weakref
from typing import Final, Protocol


class Closable(Protocol):
    """What is open."""

    def close(self) -> None:
        """Close it; may be called again."""

    def disown(self) -> None:
        """Take note that this process is a fork of the one it belongs to."""


OPEN: Final[weakref.WeakSet[Closable]] = weakref.WeakSet()


def _disown() -> None:
    for connection in list(OPEN):
        connection.disown()


def _close_all() -> None:
    for connection in list(OPEN):
        connection.close()


atexit.register(_close_all)
# Asking for the process id on each call would cost a system call on each call.
os.register_at_fork(after_in_child=_disown)
