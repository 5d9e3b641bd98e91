"""Programs that are clients themselves: which attempt the caller's thread or task belongs to, for the client to know.

The worker says how to find it (`serve`), once; nothing is done per request. A client in any other process, and in a
fork of a worker, finds none.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Parent:
    """The attempt that a program's own requests belong to.

    deadline: `time.monotonic()` seconds; None = it has none. paused, apaused: lend its slot to others while it waits
    (leaving one waits until it has a slot again). on_stop: has a function called once, on any thread, when the attempt
    is to stop; returns what takes that back. check: raises what unwinds the program if it is to stop. runs: whether it
    has not been answered.
    """

    request_id: int
    endpoint: str
    principal: str
    deadline: float | None
    paused: Callable[[], AbstractContextManager[object]]
    apaused: Callable[[], AbstractAsyncContextManager[object]]
    on_stop: Callable[[Callable[[], object]], Callable[[], object]]
    check: Callable[[], object]
    runs: Callable[[], bool]


Find = Callable[[], Parent | None]


class _Process:
    endpoint = ""
    find: Find | None = None
    credentials = ("", "")


def serve(client_endpoint: str, find: Find, *, worker_id: str = "", client_token: str = "") -> None:
    """Make this process a worker's: clients connect at `client_endpoint`, `find` returns the caller's attempt.

    client_token: what proves to the coordinator that they are that worker's.
    """
    _Process.endpoint, _Process.find = client_endpoint, find
    _Process.credentials = worker_id, client_token


def endpoint() -> str:
    """Return where clients of this worker's coordinator connect; "" in a process that is no worker, nor its fork."""
    return _Process.endpoint


def credentials() -> tuple[str, str]:
    """Return the worker's id and its clients' token; empty ones in a process that is no worker."""
    return _Process.credentials


def is_worker() -> bool:
    """Return whether this process is a worker; a fork of one is none."""
    return _Process.find is not None


def current() -> Parent | None:
    """Return the attempt that the calling thread or task works for, None if it works for none."""
    find = _Process.find
    return None if find is None else find()


def _in_child() -> None:
    # The fork has a copy of the attempts, and nobody who could lend a slot or take it back.
    _Process.find = None
    _Process.credentials = ("", "")


os.register_at_fork(after_in_child=_in_child)
