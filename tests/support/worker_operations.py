"""Operations for tests of the worker itself: each does one thing to the process that runs it."""

from __future__ import annotations

import contextvars
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bridge.protocol.errors import INVALID_REQUEST, BridgeError, not_found
from bridge.protocol.messages import Program
from bridge.protocol.values import Prediction
from bridge.protocol.worker_spec import WorkerSpec
from bridge.worker.call import Call, CallStopped, current_call

seen: contextvars.ContextVar[str] = contextvars.ContextVar("seen", default="nothing")


_FAMILY = """
import subprocess, sys
block = b"x" * (int(sys.argv[1]) << 20)
with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as grandchild:
    print("ready", flush=True)
    grandchild.communicate(sys.stdin.buffer.read())
"""


class BadText(Exception):
    def __str__(self) -> str:
        raise KeyboardInterrupt


def hold(args: Any, call: Call) -> Any:
    """Say that it runs, then run until it is cancelled or out of time."""
    call.emit("holding", {"operation": call.operation})
    call.cancelled.wait(call.remaining_s())
    call.check()
    return "not stopped"


def hold_used(args: Any, call: Call) -> Any:
    """Hold, two LM calls later."""
    call.used(lm_calls=2)
    return hold(args, call)


def hold_family(args: Any, call: Call) -> Any:
    """Hold while a child has `mb` of memory, and a child of its own."""
    with subprocess.Popen([sys.executable, "-c", _FAMILY, str(args["mb"])], stdout=-1, stdin=-1) as child:
        assert child.stdout is not None
        child.stdout.readline()
        try:
            return hold(args, call)
        finally:
            child.communicate(b"end")


def ignore(args: Any, call: Call) -> Any:
    """Run until the file exists, whatever happens."""
    call.emit("holding", {})
    while not Path(args["until"]).exists():
        threading.Event().wait(0.01)
    return args["until"]


def fail(args: Any, call: Call) -> Any:
    match args:
        case "exit":
            sys.exit("bye")
        case "interrupt":
            raise KeyboardInterrupt
        case "memory":
            return bytearray(1 << 62)
        case "recursion":
            return fail(args, call)
        case "text":
            raise BadText
        case "long":
            raise ValueError("x" * 1_000_000)
        case "typed":
            raise BridgeError(INVALID_REQUEST, "no such thing", details={"path": "a.b"})
        case "stopped":
            raise CallStopped(BridgeError("CANCELLED", "by itself"))
        case "generator":
            raise GeneratorExit
        case _:
            raise ValueError(f"bad value {args!r}")


def events(args: Any, call: Call) -> Any:
    for number in range(args["count"]):
        call.emit("number", {"number": number, "pad": "x" * args.get("pad", 0)})
    return call.wants_events


def usage(args: Any, call: Call) -> Any:
    call.used(lm_calls=2, tokens=30, cost_usd=0.5, cached=True)
    return Prediction({"answer": "4"})


def context(args: Any, call: Call) -> Any:
    before = seen.get()
    seen.set("another call")
    mine = current_call.get()
    return [before, mine is call, call.lm, call.request_id, threading.current_thread().name]


def results(args: Any, call: Call) -> Any:
    return {"object": object(), "large": b"x" * 100_000, "inner": {"a": [1, object()]}, "fine": b"x" * 20_000}[args]


class Operations:
    inline = frozenset({"ping", "echo"})

    def __init__(self, spec: WorkerSpec) -> None:
        self._programs: dict[str, int] = {}
        self._table: dict[str, Callable[[Any, Call], Any]] = {
            "ping": lambda args, call: {"pong": True},
            "echo": lambda args, call: args,
            "queued_echo": lambda args, call: args,
            "hold": hold,
            "hold_used": hold_used,
            "hold_family": hold_family,
            "ignore": ignore,
            "fail": fail,
            "events": events,
            "usage": usage,
            "context": context,
            "results": results,
            "programs": lambda args, call: self._programs,
            "path": lambda args, call: [sys.path[0], os.getpid()],
            "die": lambda args, call: os._exit(args),
        }
        self._closed_marker = spec.cache_dir

    def find(self, name: str) -> Callable[[Any, Call], Any] | None:
        return self._table.get(name)

    def batched(self, name: str) -> None:
        return None

    def unknown(self, name: str) -> BridgeError:
        return not_found("operation", name, self._table)

    def program(self, message: Program) -> None:
        if message.name == "bad":
            raise ValueError("a bad program")
        self._programs[message.name] = message.program_version

    def close(self) -> None:
        if self._closed_marker:
            Path(self._closed_marker, "closed").touch()


def build(spec: WorkerSpec) -> Operations:
    match spec.lms.get("boot", {}).get("do"):
        case "fail":
            raise ImportError("no module named nowhere")
        case "exit":
            sys.exit(3)
        case "wait":
            threading.Event().wait()
    return Operations(spec)
