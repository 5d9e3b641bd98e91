"""The `Launcher` protocol: everything the coordinator knows about processes goes through it."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from pools.core.events import ExitReason


@dataclass(frozen=True, slots=True)
class ZygoteSpec:
    """What a worker may be forked from.

    name: of the pool; one zygote serves all that are launched under it. preload: modules that it imports first.
    Without any the root zygote, which every pool shares, forks the worker itself.
    """

    name: str
    preload: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LaunchSpec:
    """One worker to be started.

    worker_spec: an encoded `bridge.protocol.worker_spec.WorkerSpec`, opaque here.
    slots_fd: a memfd of 4,096 bytes or more, which begins with the started-slots page; it stays the caller's.
    env: the child's whole environment.
    zygote: what it may be forked from; None = it is to be a fresh process.
    """

    worker_id: str
    python: str
    worker_spec: bytes = field(repr=False)  # it holds secrets
    slots_fd: int
    env: Mapping[str, str]
    zygote: ZygoteSpec | None = None


@dataclass(frozen=True, slots=True)
class Launched:
    """The process exists."""

    worker_id: str
    pid: int


@dataclass(frozen=True, slots=True)
class LaunchFailed:
    """No process could be started; `error` says why (a missing interpreter, no memory, …)."""

    worker_id: str
    error: str


@dataclass(frozen=True, slots=True)
class Died:
    """The worker's pidfd became readable: it will never send again. How it ended follows as `Reaped`."""

    worker_id: str


@dataclass(frozen=True, slots=True)
class Reaped:
    """How a worker ended. peak_rss_bytes: its largest resident set, 0 if unknown."""

    worker_id: str
    reason: ExitReason
    peak_rss_bytes: int


@dataclass(frozen=True, slots=True)
class NannyLost:
    """The nanny died. Every worker it had is killed and reaped (their `Died` and `Reaped` follow); a new nanny runs."""


LauncherEvent = Launched | LaunchFailed | Died | Reaped | NannyLost


class Launcher(Protocol):
    """Starts, watches, kills worker processes. Nothing here blocks, except `close`."""

    def launch(self, spec: LaunchSpec) -> None:
        """Begin to start a worker; `poll` tells the outcome."""

    def kill(self, worker_id: str, signal_number: int = signal.SIGKILL) -> None:
        """Signal a worker (by pidfd: never another process that took its pid). Unknown or dead ids are ignored."""

    def fileno(self) -> int:
        """Return a descriptor that is readable when `poll` has something."""

    def poll(self) -> list[LauncherEvent]:
        """Return what happened since the last call, oldest first, draining the workers' output on the way."""

    def log_tail(self, worker_id: str) -> list[str]:
        """Return the last lines a worker wrote to stdout and stderr, also after its death."""

    def forget(self, worker_id: str) -> None:
        """Drop the log of a dead worker."""

    def close(self) -> None:
        """Kill and reap every worker and the nanny; return when nothing is left (bounded: 5 s)."""
