"""Operations that do harm on purpose, for tests and chaos runs. They exist only where `faults: true` is configured."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from bridge.protocol.errors import INVALID_REQUEST, BridgeError
from bridge.worker import arguments
from bridge.worker.call import Call

Operation = Callable[[Any, Call], Any]

# What fault.leak holds on to, for good.
_leaked: list[bytearray] = []

# Forks twice and leaves a process of another session behind that holds none of our descriptors.
_DAEMON = """
import os, sys, time
os.setsid()
child = os.fork()
if child:
    print(child, flush=True)
    os._exit(0)
for fd in range(3):
    os.close(fd)
time.sleep(float(sys.argv[1]))
"""


def operations(*, enabled: bool) -> dict[str, Operation]:
    """Return the fault operations by name; where they are not enabled, each says how to enable it."""
    return _FAULTS if enabled else dict.fromkeys(_FAULTS, _disabled)


def _disabled(args: Any, call: Call) -> Any:
    raise BridgeError(INVALID_REQUEST, f"{call.operation} is accepted only where `faults: true` is configured")


def _exit(args: Any, call: Call) -> Any:
    fields = arguments.read(args, "fault.exit", optional=("code",))
    os._exit(arguments.whole(fields.get("code", 1), "code", most=255))


def _kill(args: Any, call: Call) -> Any:
    arguments.read(args, "fault.kill")
    os.kill(os.getpid(), signal.SIGKILL)
    # The signal may take effect only at the next return to user code.
    signal.pause()


def _segv(args: Any, call: Call) -> Any:
    arguments.read(args, "fault.segv")
    ctypes.string_at(0)


def _hang(args: Any, call: Call) -> Any:
    seconds = _seconds(args, "fault.hang")
    # Deaf to cancellation and deadlines: only a signal ends it early.
    time.sleep(seconds)
    return {"seconds": seconds}


def _hold_gil(args: Any, call: Call) -> Any:
    seconds = _seconds(args, "fault.hold_gil")
    # PyDLL keeps the interpreter lock during the call: no other thread runs, the io thread included.
    libc = ctypes.PyDLL(None)
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        libc.usleep(ctypes.c_uint(min(int(left * 1e6) + 1, 2**32 - 1)))
    return {"seconds": seconds}


def _leak(args: Any, call: Call) -> Any:
    size = _mb(args, "fault.leak")
    block = bytearray(size << 20)
    # Touch each page: memory that is only reserved does not count as resident.
    block[::4096] = b"\1" * len(range(0, len(block), 4096))
    _leaked.append(block)
    return {"leaked_mb": sum(len(one) for one in _leaked) >> 20}


def _stdout_flood(args: Any, call: Call) -> Any:
    size = _mb(args, "fault.stdout_flood")
    block = ("x" * 127 + "\n").encode() * 8192
    for _ in range(size):
        rest = memoryview(block)
        while rest:
            rest = rest[os.write(1, rest) :]
    return {"mb": size}


def _raise(args: Any, call: Call) -> Any:
    fields = arguments.read(args, "fault.raise", optional=("message",))
    raise RuntimeError(str(fields.get("message", "a fault was asked for")))


def _effect(args: Any, call: Call) -> Any:
    """Leave evidence of this execution, a line that is its token, and take some time; return the token.

    One write at the end of the file: of many processes none damages another's line, and a kill leaves all or nothing.
    """
    fields = arguments.read(args, "fault.effect", required=("path", "token"), optional=("seconds",))
    token = str(fields["token"])
    fd = os.open(str(fields["path"]), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, f"{token}\n".encode())
    finally:
        os.close(fd)
    call.cancelled.wait(arguments.number(fields.get("seconds", 0.0), "seconds"))
    call.check()
    return token


def _spawn_daemon(args: Any, call: Call) -> Any:
    """Leave a process behind that sleeps, in a session of its own and no child of this worker; return its pid."""
    seconds = _seconds(args, "fault.spawn_daemon")
    command = [sys.executable, "-I", "-S", "-c", _DAEMON, str(seconds)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, timeout=30)
    return {"pid": int(done.stdout)}


def _seconds(args: Any, operation: str) -> float:
    return arguments.number(arguments.read(args, operation, required=("seconds",))["seconds"], "seconds")


def _mb(args: Any, operation: str) -> int:
    return arguments.whole(arguments.read(args, operation, required=("mb",))["mb"], "mb", most=1 << 16)


_FAULTS: dict[str, Operation] = {
    "fault.exit": _exit,
    "fault.kill": _kill,
    "fault.segv": _segv,
    "fault.hang": _hang,
    "fault.hold_gil": _hold_gil,
    "fault.leak": _leak,
    "fault.stdout_flood": _stdout_flood,
    "fault.raise": _raise,
    "fault.spawn_daemon": _spawn_daemon,
    "fault.effect": _effect,
}
