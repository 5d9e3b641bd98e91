"""One contender in a process of its own, measured on command.

Its threads, imports and garbage then disturb no other contender. Commands are JSON lines on stdin, each answered by
one on stdout: `{"do": "start"}` -> `{"start_s": ...}`, `{"do": CELL, "seconds": s}` -> the cell's figures, or
`{"error": text}`. The end of stdin, for whatever reason, stops the contender.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, Final

from orchestrator.bench import peers, references
from orchestrator.bench.contender import BIG_BYTES, Contender, Payload, big_payloads, payloads
from orchestrator.bench.subject import Dspool

CHUNK: Final = 64
_MAP_ROWS: Final = (640, 20_480)
_MAP_SHORT_S: Final = 0.05
_LOOK_EVERY: Final = 16

CONTENDERS: Final[dict[str, Callable[[str], Contender]]] = {
    Dspool.name: Dspool,
    references.ZmqProxy.name: lambda pool: references.ZmqProxy(),
    references.MultiprocessingPool.name: lambda pool: references.MultiprocessingPool(),
    references.StandardExecutor.name: lambda pool: references.StandardExecutor(),
    peers.Loky.name: lambda pool: peers.Loky(),
    peers.Ray.name: lambda pool: peers.Ray(),
    peers.Distributed.name: lambda pool: peers.Distributed(),
    peers.IPyParallel.name: lambda pool: peers.IPyParallel(),
}


class Cheated(Exception):
    """A contender answered something else than what it was sent."""


def main() -> None:
    """Serve commands: `argv` is the contender's name and the pool that dspool is measured on."""
    name, pool = sys.argv[1:3]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's Ctrl-C is for the run, which then closes stdin
    # A contender may print: only answers go to the real stdout.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    contender = CONTENDERS[name](pool)
    try:
        for line in sys.stdin:
            answers.write(json.dumps(_obey(contender, json.loads(line))) + "\n")
    finally:
        contender.stop()


def _obey(contender: Contender, command: dict[str, Any]) -> dict[str, Any]:
    try:
        if command["do"] == "start":
            began = time.perf_counter()
            contender.start()
            return {"start_s": time.perf_counter() - began}
        return CELLS[command["do"]](contender, float(command["seconds"]))
    except ModuleNotFoundError as exc:
        return {"error": f"{exc.name} is not installed"}
    except Exception as exc:  # noqa: BLE001 - whatever a contender raises is its result
        traceback.print_exc()
        return {"error": f"{type(exc).__name__}: {exc}"}


# --- cells --------------------------------------------------------------------------------------


def sequential(contender: Contender, seconds: float) -> dict[str, Any]:
    """One call after the other; every call's time in microseconds."""
    times_us: list[float] = []
    deadline = time.perf_counter() + seconds
    for payload in payloads():
        began = time.perf_counter()
        answer = contender.echo(payload)
        ended = time.perf_counter()
        times_us.append((ended - began) * 1e6)
        if answer != payload:
            raise Cheated(f"sent {payload}, got {answer}")
        if ended >= deadline:
            break
    return {"times_us": times_us}


def flood(contender: Contender, seconds: float, in_flight: int) -> dict[str, Any]:
    """Keep `in_flight` calls on their way; the rate counts until the last answer."""
    source = _Until(payloads(), seconds)
    calls = checksum = 0
    began = time.perf_counter()
    for answer in contender.flood(iter(source), in_flight):
        calls += 1
        checksum += answer["n"]
    took_s = time.perf_counter() - began
    if (calls, checksum) != (source.sent, source.sent * (source.sent - 1) // 2):
        raise Cheated(f"sent {source.sent} payloads, got {calls} answers, not all of them its own")
    return {"rate": calls / took_s}


class _Until:
    """Yields from an endless source until the time is up, and counts."""

    def __init__(self, source: Iterator[Payload], seconds: float) -> None:
        self._source = source
        self._seconds = seconds
        self.sent = 0

    def __iter__(self) -> Iterator[Payload]:
        deadline = time.perf_counter() + self._seconds
        for payload in self._source:
            if self.sent % _LOOK_EVERY == 0 and self.sent and time.perf_counter() >= deadline:
                return
            self.sent += 1
            yield payload


def mapped(contender: Contender, seconds: float) -> dict[str, Any]:
    """Map lists of rows, growing them until one takes 50 ms; the rate is of rows."""
    rows_each, most = _MAP_ROWS
    source = payloads()
    done, took_s = 0, 0.0
    while took_s < seconds:
        rows = [next(source) for _ in range(rows_each)]
        began = time.perf_counter()
        answers = contender.map(rows, CHUNK)
        each_s = time.perf_counter() - began
        if answers is None:
            return {"rate": None}
        if answers != rows:
            raise Cheated("a map answered other rows than it was sent, or in another order")
        done += rows_each
        took_s += each_s
        if each_s < _MAP_SHORT_S:
            rows_each = min(2 * rows_each, most)
    return {"rate": done / took_s}


def big(contender: Contender, seconds: float) -> dict[str, Any]:
    """Echo 1 MB of bytes, one call after the other; the rate is in MB/s, counted one way."""
    done = 0
    began = time.perf_counter()
    for payload in big_payloads():
        answer = contender.echo(payload)
        done += 1
        if answer["n"] != payload["n"] or len(answer["blob"]) != BIG_BYTES:
            raise Cheated("another payload of 1 MB came back")
        if time.perf_counter() - began >= seconds:
            break
    return {"rate": done * BIG_BYTES / 1e6 / (time.perf_counter() - began)}


def arrays(contender: Contender, seconds: float) -> dict[str, Any]:
    """Echo numpy arrays of 1 MB, one call after the other; the rate is in MB/s, counted one way."""
    if contender.name in _NO_ARRAYS:
        return {"rate": None}
    import numpy

    array = numpy.random.default_rng(0).random(BIG_BYTES // 8)
    done = 0
    began = time.perf_counter()
    while True:
        array[0] = done
        answer = contender.echo({"array": array, "n": done})["array"]
        if answer.nbytes != BIG_BYTES or answer[0] != done or answer[-1] != array[-1]:
            raise Cheated("another array of 1 MB came back")
        done += 1
        if time.perf_counter() - began >= seconds:
            return {"rate": done * BIG_BYTES / 1e6 / (time.perf_counter() - began)}


# Whose barest ends know msgpack's own types alone.
_NO_ARRAYS: Final = frozenset({"zmq.proxy"})
CELLS: Final[dict[str, Callable[[Contender, float], dict[str, Any]]]] = {
    "sequential": sequential,
    "flood_100": lambda contender, seconds: flood(contender, seconds, 100),
    "flood_1000": lambda contender, seconds: flood(contender, seconds, 1000),
    "map": mapped,
    "big": big,
    "array": arrays,
}
