"""What signal handlers raise (Ctrl-C, timers) is held back while the main thread works on what threads share.

A handler runs between any two steps of the main thread, and inside ZeroMQ's calls: what it raises there would lose a
frame that was just received, half of a message being sent, or the lead. So for such a stretch the handlers are
exchanged for one that takes note. What was noted runs at the end of the stretch.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # of `signal`, whose wrappers cost ten times as much
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Final

# Of which handlers are known to raise.
_SIGNALS: Final = tuple(
    int(number)
    for number in (
        signal.SIGINT, signal.SIGALRM, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2,
        signal.SIGVTALRM, signal.SIGPROF,
    )
)  # fmt: skip


class Shield:
    """The one of this process. Off the main thread, and inside another stretch, `up` does nothing and says so."""

    def __init__(self) -> None:
        self._main = threading.main_thread().ident
        self._is_up = False
        self._take_note = self._note  # one object, to be compared by identity
        self._handlers: dict[int, Callable[[int, FrameType | None], object]] = {}
        self.noted: list[tuple[int, FrameType | None]] = []
        self.wake: Callable[[], object] | None = None  # called when something is noted

    def up(self) -> bool:
        """Begin a stretch; return whether `down` must end it."""
        if threading.get_ident() != self._main or self._is_up:
            return False
        for number in _SIGNALS:
            handler = _signal.getsignal(number)
            if callable(handler) and handler is not self._take_note:
                self._handlers[number] = handler
                _signal.signal(number, self._take_note)
        self._is_up = True
        return True

    def down(self) -> None:
        """End the stretch. Raises what the handlers of noted signals raise."""
        self._is_up = False
        try:
            for number in _SIGNALS:
                handler = self._handlers.get(number)
                if handler is not None:
                    _signal.signal(number, handler)
            self._handlers.clear()
        finally:
            while self.noted:
                number, frame = self.noted.pop(0)
                noted: Any = _signal.getsignal(number)
                if callable(noted):
                    noted(number, frame)

    def held(self) -> Held:
        """Return a stretch as a context manager."""
        return Held(self)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._is_up:
            self.noted.append((number, frame))
            if self.wake is not None:
                self.wake()
            return
        # `up` or `down` was cut short by another signal's handler: this one is put back now.
        handler = self._handlers.get(number, _signal.default_int_handler)
        _signal.signal(number, handler)
        handler(number, frame)

    def in_child(self) -> None:
        """A fork's only thread is its main thread."""
        self._main = threading.get_ident()


class Held:
    """A stretch, for where its cost is no matter."""

    __slots__ = ("_must_end", "_shield")

    def __init__(self, shield: Shield) -> None:
        self._shield = shield
        self._must_end = False

    def __enter__(self) -> None:
        self._must_end = self._shield.up()

    def __exit__(self, *_: object) -> None:
        if self._must_end:
            self._shield.down()


shield: Final = Shield()
os.register_at_fork(after_in_child=shield.in_child)
