"""Programs that fail, and programs that harm the process they run in. Deployed by this file's path."""

from __future__ import annotations

import os
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dspy  # type: ignore[import-untyped]


def program(forward: Callable[..., Any]) -> type[Any]:
    """Return a program that runs a function."""

    def run(self: Any, **inputs: Any) -> Any:
        return forward(**inputs)

    return type(forward.__name__, (dspy.Module,), {"forward": run, "__module__": __name__})


class SilentError(Exception):
    """Has no text, and says so violently."""

    def __str__(self) -> str:
        raise SystemExit(3)

    __repr__ = __str__


class Silent:
    """Cannot be shown."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")

    __str__ = __repr__


_RAISED: dict[str, Callable[[], Any]] = {
    "exit": lambda: sys.exit("bye"),
    "silent": lambda: _raise(SilentError()),
    "long": lambda: _raise(ValueError("x" * (10 << 20))),
    "recursion": lambda: _endless(0),
    "memory": lambda: bytearray(1 << 46),
}


def _raise(error: BaseException) -> Any:
    raise error


def _endless(depth: int) -> int:
    return _endless(depth + 1) + 1


@program
def Raises(how: str) -> Any:
    if how in _RAISED:
        return _RAISED[how]()
    kinds: list[type[BaseException]] = [ValueError, BaseException, KeyboardInterrupt, SystemExit, GeneratorExit,
                                        StopIteration]  # fmt: skip
    raise {kind.__name__: kind for kind in kinds}[how]("no such ticket: 7")


@program
def Returns(what: str) -> Any:
    cycle: list[Any] = []
    cycle.append(cycle)
    both: list[Any] = []
    both += [both, both]
    deep: Any = 1
    for _ in range(2000):
        deep = [deep]
    results: dict[str, Callable[[], Any]] = {
        "object": lambda: dspy.Prediction(rows=[{"ok": 1}, {"handle": object()}]),
        "lock": lambda: {"a": [1, threading.Lock()]},
        "silent": lambda: {"x": Silent()},
        "cycle": lambda: dspy.Prediction(loop=cycle),
        "doubling cycle": lambda: {"loop": both},
        "deep": lambda: dspy.Prediction(deep=deep),
        "big": lambda: "x" * (3 << 20),
    }
    return results[what]()


@program
def Floods(mb: int) -> int:
    for _ in range(16 * mb):
        print("y" * 65535)
    return mb


@program
def Leaves(code: int) -> None:
    os._exit(code)


@program
def ClosesEverything() -> None:
    os.closerange(0, 65536)


@program
def KillsItsParent() -> None:
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(60)


@program
def Hangs(seconds: float) -> None:
    time.sleep(seconds)


@program
def Spoils(folder: str) -> str:
    """Change what a process has only one of; return what could not be changed."""
    os.chdir(folder)
    os.umask(0)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    dspy.settings.configure(lm=dspy.LM("openai/none", api_key="none"), adapter=dspy.JSONAdapter())
    try:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    except ValueError as exc:
        return str(exc)
    return ""


@program
def Looks(folder: str) -> dict[str, Any]:
    """Return what Spoils changes, as it stands."""
    made = Path(folder) / "made"
    made.touch()
    mode = stat.S_IMODE(made.stat().st_mode)
    made.unlink()
    return {"cwd": os.getcwd(), "mode": mode, "pid": os.getpid(), "adapter": type(dspy.settings.adapter).__name__}


@program
def LosesAThread() -> str:
    thread = threading.Thread(target=sys.exit)
    thread.start()
    thread.join()
    return "done"


@program
def Imported(names: list[str]) -> list[str]:
    """Return which of these modules the process has."""
    return [name for name in names if name in sys.modules]


@program
def TellsTheKey(how: str) -> Any:
    key = dspy.settings.lm.engine.provider.route.api_key
    if how == "raise":
        raise ValueError(f"called with {key}")
    return {key: object()}


class Asks(dspy.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.answer = dspy.Predict("question -> answer")

    def forward(self, question: str, times: int = 1) -> Any:
        return self.answer(question=question * times)


class Needs(dspy.Module):  # type: ignore[misc]
    def __init__(self, model_file: str) -> None:
        super().__init__()

    def forward(self) -> None:
        return None


number = 3
