"""Named points in the code at which a run with faults fails on purpose, so that every moment can be tried.

`hit` does nothing until `arm` was called: by a run with `faults: true` whose environment has VARIABLE, or by a test. A
schedule says which hit of which point does what; hits are counted over all processes of the run, in a file, so that the
n-th is one and the same whoever gets there. Standard library alone: the nanny loads this file by its path.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Final, NamedTuple

VARIABLE: Final = "DSPOOL_FAULT_POINTS"
BEGUN_FILE: Final = "begun"
FIRED_FILE: Final = "fired"
EXIT_CODE: Final = 70
DELAY_S: Final = 0.3

# Each name begins with the kind of process that hits it; `store` is of whichever process has the store open.
POINTS: Final = (
    "worker.before_hello",
    "worker.before_ready",
    "worker.before_run",
    "worker.after_run",
    "worker.before_reply_sent",
    "worker.in_heartbeat",
    "zygote.before_fork",
    "zygote.after_fork",
    "nanny.before_launch",
    "nanny.before_reap",
    "coordinator.after_admission",
    "coordinator.before_send",
    "coordinator.after_control",
    "client.after_send",
    "client.before_deliver",
    "store.before_commit",
    "store.after_commit",
    "store.in_migration",
)


class FaultInjected(RuntimeError):
    """What the action `raise` raises."""


class Fault(NamedTuple):
    """The `nth` hit (from 1) of a point does `action`."""

    point: str
    nth: int
    action: str


class Fired(NamedTuple):
    """A fault that happened, and in which process. Noted before the action."""

    point: str
    nth: int
    action: str
    pid: int


class _Armed:
    def __init__(self, folder: str, faults: Iterable[Fault]) -> None:
        self._folder = folder
        self._actions: dict[str, dict[int, str]] = {}
        for fault in faults:
            self._actions.setdefault(fault.point, {})[fault.nth] = fault.action

    def hit(self, point: str) -> None:
        actions = self._actions.get(point)
        if actions is None or not os.path.exists(os.path.join(self._folder, BEGUN_FILE)):
            return
        nth = self._count(point)
        action = actions.get(nth)
        if action is not None:
            _append(os.path.join(self._folder, FIRED_FILE), json.dumps([point, nth, action, os.getpid()]))
            _ACTIONS[action](point)

    def _count(self, point: str) -> int:
        """Count a hit; return its number. The lock is a killed process' no longer."""
        # Opened anew each time: a descriptor that was inherited by a fork would share its lock.
        fd = os.open(os.path.join(self._folder, point), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            nth = int(os.pread(fd, 20, 0) or b"0") + 1
            os.pwrite(fd, b"%d" % nth, 0)
        finally:
            os.close(fd)
        return nth


_armed: _Armed | None = None


def hit(point: str) -> None:
    """Pass a point. May do anything that ACTIONS names, once this process is armed."""
    if _armed is not None:
        _armed.hit(point)


def schedule(folder: str, faults: Iterable[Fault]) -> str:
    """Return what VARIABLE is to be. folder: an existing one, for the counts and for what fired; see `begin`.

    Raises ValueError for a point or an action that there is not, or a hit before the first.
    """
    listed = list(faults)
    _check(listed)
    return json.dumps({"folder": folder, "faults": listed})


def _check(faults: Iterable[Fault]) -> None:
    for fault in faults:
        if fault.point not in POINTS or fault.action not in ACTIONS or type(fault.nth) is not int or fault.nth < 1:
            raise ValueError(f"no such fault: {fault} (points: {', '.join(POINTS)}; actions: {', '.join(ACTIONS)})")


def arm(text: str) -> None:
    """Let this process, and what it forks, fail by a schedule; the empty text disarms it. Raises ValueError."""
    global _armed
    if not text:
        _armed = None
        return
    try:
        given = json.loads(text)
        folder, faults = os.fspath(given["folder"]), [Fault(*fault) for fault in given["faults"]]
    except (ValueError, TypeError, KeyError, RecursionError) as exc:
        raise ValueError(f"is no schedule of faults ({type(exc).__name__}: {exc})") from None
    _check(faults)
    _armed = _Armed(folder, faults)


def arm_by(environ: Mapping[str, str]) -> None:
    """Arm by what VARIABLE is there."""
    arm(environ.get(VARIABLE, ""))


def begin(folder: str) -> None:
    """Let the schedule of this folder take effect: hits count from now on."""
    os.close(os.open(os.path.join(folder, BEGUN_FILE), os.O_CREAT | os.O_CLOEXEC, 0o600))


def fired(folder: str) -> list[Fired]:
    """Return what has happened by the schedule of this folder, in its order."""
    try:
        with open(os.path.join(folder, FIRED_FILE), encoding="utf-8") as file:
            return [Fired(*json.loads(line)) for line in file]
    except FileNotFoundError:
        return []


# --- what happens ---------------------------------------------------------------------------------


def _exit(point: str) -> None:
    os._exit(EXIT_CODE)


def _kill(point: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    signal.pause()  # the signal may take effect only at the next return to user code


def _stop(point: str) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def _delay(point: str) -> None:
    time.sleep(DELAY_S)


def _raise(point: str) -> None:
    raise FaultInjected(f"a fault was injected at {point}")


def _hang(point: str) -> None:
    while True:
        time.sleep(3600.0)


_ACTIONS: Final[dict[str, Callable[[str], None]]] = {
    "exit": _exit,
    "kill": _kill,
    "stop": _stop,
    "delay": _delay,
    "raise": _raise,
    "hang": _hang,
}
ACTIONS: Final = tuple(_ACTIONS)


def _append(path: str, line: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, f"{line}\n".encode())
    finally:
        os.close(fd)
