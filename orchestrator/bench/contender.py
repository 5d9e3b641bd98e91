"""What is measured: one small protocol, and the loops that every contender shares."""

from __future__ import annotations

import ctypes
import os
import signal
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Final, Protocol, TypeVar

WORKERS: Final = 2
BIG_BYTES: Final = 1_000_000
_TEXT_CHARACTERS: Final = 120
_PR_SET_PDEATHSIG: Final = 1

Payload = dict[str, Any]
Handle = TypeVar("Handle")


class Contender(Protocol):
    """A way to run `echo` in WORKERS other processes. Used by one thread of a process of its own."""

    name: ClassVar[str]

    def start(self) -> None:
        """Start the workers and return when they answer. Raises ImportError where a package is missing."""

    def echo(self, payload: Payload) -> Payload:
        """Send one payload to a worker, which decodes and re-encodes it, and wait for it to come back."""

    def flood(self, payloads: Iterator[Payload], in_flight: int) -> Iterator[Payload]:
        """Echo all of `payloads` with at most `in_flight` on their way; yield every answer once, in any order."""

    def map(self, rows: list[Payload], chunk: int) -> list[Payload] | None:
        """Echo all rows, `chunk` of them a message, in order; None where this contender has no such thing."""

    def stop(self) -> None:
        """End every process that `start` made. Safe to call twice, and after a start that failed."""


def payloads(first: int = 0) -> Iterator[Payload]:
    """Yield payloads without end: a text of 120 characters and a number, no two alike."""
    filler = "x" * (_TEXT_CHARACTERS - 12)
    number = first
    while True:
        yield {"text": f"{number:012d}{filler}", "n": number}
        number += 1


def big_payloads() -> Iterator[Payload]:
    """Yield payloads of 1,000,000 bytes that do not compress, without end, told apart by their number."""
    blob = os.urandom(BIG_BYTES)
    number = 0
    while True:
        yield {"blob": blob, "n": number}
        number += 1


def window(
    submit: Callable[[Payload], Handle], result: Callable[[Handle], Payload], source: Iterator[Payload], in_flight: int
) -> Iterator[Payload]:
    """Flood by handles: submit up to `in_flight`, then wait for the oldest before each further one."""
    handles: deque[Handle] = deque()
    for payload in source:
        handles.append(submit(payload))
        if len(handles) >= in_flight:
            yield result(handles.popleft())
    while handles:
        yield result(handles.popleft())


def echo(payload: Payload) -> Payload:
    """Return the payload: what the workers of the references run."""
    return payload


def die_with_parent() -> None:
    """Have the kernel kill this process when the one that started it dies, however it dies."""
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before the kernel was asked
        os._exit(1)
