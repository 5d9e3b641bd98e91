"""Waiting for what a test cannot be told about: a deadline, and a report of where everybody stood."""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

POLL_S = 0.01


def wait_until(predicate: Callable[[], T], timeout_s: float, what: str) -> T:
    """Return the first truthy value of `predicate`, polled every 10 ms.

    Raises AssertionError when `timeout_s` seconds have passed: it names `what`, the last value, and the stack of
    every thread.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        value = predicate()
        if value:
            return value
        if time.monotonic() >= deadline:
            raise AssertionError(f"not within {timeout_s} s: {what}; last value {value!r}\n{stacks()}")
        time.sleep(POLL_S)


def stacks() -> str:
    """Return the stack of every thread of this process, the main thread's last."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    main = threading.main_thread().ident
    frames = sorted(sys._current_frames().items(), key=lambda item: item[0] == main)
    return "\n".join(
        f"--- {names.get(ident, '?')} ({ident})\n{''.join(traceback.format_stack(frame))}" for ident, frame in frames
    )
