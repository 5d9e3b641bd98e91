"""The coordinator's process: read the start order, bind, run the reactor, leave nothing behind.

Descriptors by number: `--spec-fd` a memory file with the start order (JSON), `--ready-fd` where JSON lines tell how the
start goes, `--lifeline-fd` whose EOF means that the owner is gone, unless a byte came first: then nobody owns this
coordinator any more (each of the last two may be absent).
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import random
import resource
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import zmq

from bridge import faultpoints
from bridge.protocol.codec import MAX_BATCH_FRAME_BYTES
from bridge.protocol.errors import BridgeError
from bridge.transport import Router, ipc_endpoint
from orchestrator.config import Settings, load
from orchestrator.coordinator.births import Births, zygote_environment
from orchestrator.coordinator.clients import Identity
from orchestrator.coordinator.confinement import Confinement
from orchestrator.coordinator.event_log import EventLog
from orchestrator.coordinator.logs import configure_logs
from orchestrator.coordinator.reactor import Reactor
from orchestrator.coordinator.run_counter import RunCounter
from orchestrator.coordinator.watching import open_pidfd
from orchestrator.errors import ConfigError, DspoolError
from orchestrator.rundir import CoordinatorInfo, DataLock, end_run, new_run, new_shared, process_ticks, publish, sweep
from orchestrator.version import package_version
from pools.core.fleet import Fleet
from pools.launch.zygote import ZygoteLauncher

DEFAULT_DRAIN_S: Final = 30.0
# Answers under way when the sockets close.
_LINGER_MS: Final = 250
# Objects of the start live for ever; those of a call die by reference count. Full collections would only cost.
_GC_THRESHOLDS: Final = (50_000, 50, 100)


@dataclass(frozen=True, slots=True, kw_only=True)
class StartOrder:
    """What the starter wants.

    config: a file, None to look for one. overrides: as `Orchestrator(**overrides)`. private: not to be discovered.
    owner_pid: leave when this process ends, 0 = nobody owns this coordinator. starter_pid: a process of ours that
    waits for this one, and may be put into another control group with it; 0 = none.
    """

    config: str | None = None
    overrides: dict[str, Any]
    private: bool = False
    drain_s: float = DEFAULT_DRAIN_S
    owner_pid: int = 0
    starter_pid: int = 0

    @classmethod
    def read(cls, data: bytes) -> StartOrder:
        """Read an order; unknown keys are an error of the starter's."""
        return cls(**{"overrides": {}, **json.loads(data)})


class Reporter:
    """Tells the starter how it goes. A starter that is gone is not missed."""

    def __init__(self, fd: int | None) -> None:
        self._fd = fd

    def tell(self, event: str, **fields: Any) -> None:
        """Write one line."""
        if self._fd is None:
            return
        try:
            os.write(self._fd, json.dumps({"event": event, **fields}, default=str).encode() + b"\n")
        except BrokenPipeError:
            self.close()

    def error(self, error: DspoolError | BridgeError) -> None:
        """Say what went wrong."""
        self.tell("error", code=error.code, message=error.message, details=error.details)

    def close(self) -> None:
        """Say no more."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def main(argv: list[str] | None = None) -> int:
    """Run a coordinator. Returns the process's exit code."""
    parser = argparse.ArgumentParser(prog="orchestrator.coordinator")
    parser.add_argument("--spec-fd", type=int)
    parser.add_argument("--ready-fd", type=int)
    parser.add_argument("--lifeline-fd", type=int)
    fds = parser.parse_args(argv)
    for fd in (fds.spec_fd, fds.ready_fd, fds.lifeline_fd):
        if fd is not None:
            os.set_inheritable(fd, False)
    reporter = Reporter(fds.ready_fd)
    try:
        order = _read_order(fds.spec_fd)
        settings = load(order.config, environ=os.environ, overrides=order.overrides)
        configure_logs(settings.log_level)
        if not settings.faults:
            os.environ.pop(faultpoints.VARIABLE, None)
        _arm()
        _coordinate(settings, order, reporter, fds.lifeline_fd)
    except DspoolError as error:
        reporter.error(error)
        print(f"dspool: {error.message}", file=sys.stderr)
        return 2
    finally:
        reporter.close()
    return 0


def _arm() -> None:
    """Let this process fail by the schedule in its environment. Raises ConfigError."""
    try:
        faultpoints.arm_by(os.environ)
    except ValueError as exc:
        name = faultpoints.VARIABLE
        raise ConfigError(
            f"a problem in the environment:\n  {name}: {exc}",
            problems=[{"where": name, "path": "", "message": str(exc)}],
        ) from None


def _read_order(fd: int | None) -> StartOrder:
    if fd is None:
        return StartOrder(overrides={})
    with os.fdopen(fd, "rb") as file:
        file.seek(0)
        return StartOrder.read(file.read())


def _coordinate(settings: Settings, order: StartOrder, reporter: Reporter, lifeline_fd: int | None) -> None:
    signals = _signal_pipe()
    _raise_descriptor_limit()
    with DataLock(settings.data_dir):
        sweep(settings.run_dir)
        run_id, directory = new_run(settings.run_dir)
        try:
            _run(settings, order, reporter, lifeline_fd, signals, run_id, directory)
        finally:
            end_run(settings.run_dir, run_id)


def _run(
    settings: Settings, order: StartOrder, reporter: Reporter, lifeline_fd: int | None, signals: int, run_id: str,
    directory: Path,
) -> None:  # fmt: skip
    with contextlib.ExitStack() as ending:
        _serve(settings, order, reporter, lifeline_fd, signals, run_id, directory, ending)


def _serve(
    settings: Settings, order: StartOrder, reporter: Reporter, lifeline_fd: int | None, signals: int, run_id: str,
    directory: Path, ending: contextlib.ExitStack,
) -> None:  # fmt: skip
    """Make what a coordinator needs, and run. ending: what is to be given back, however this ends, the latest first."""
    counter = RunCounter.begin(settings.data_dir)
    context = zmq.Context(io_threads=1)
    ending.callback(context.term)
    max_frame = max(settings.limits.message_bytes, MAX_BATCH_FRAME_BYTES) + 65_536
    front_endpoint, back_endpoint = (ipc_endpoint(str(directory / f"{end}.sock")) for end in ("frontend", "backend"))
    frontend = Router(context, front_endpoint, max_frame_bytes=max_frame, watched=True)
    ending.callback(frontend.close, _LINGER_MS)
    backend = Router(context, back_endpoint, max_frame_bytes=max_frame)
    ending.callback(backend.close)
    made = new_shared(run_id) if settings.limits.shared_bytes else None
    shared = str(made[1]) if made is not None else ""
    births = Births(settings, run_id=run_id, endpoint=back_endpoint, client_endpoint=front_endpoint, shared_dir=shared)
    ending.callback(births.close)
    confinement = Confinement.open(os.getpid(), starter_pid=order.starter_pid, pools=settings.fleet.pools)
    ending.callback(confinement.close)
    launcher = ZygoteLauncher(
        run_id, env=zygote_environment(settings, os.environ), python_path=settings.python_path, folder=shared
    )
    ending.callback(launcher.close)
    if shared:  # before the nanny would do it
        ending.callback(end_run, os.path.dirname(shared), run_id)
    identity = Identity(
        run_id=run_id, version=package_version(), pid=os.getpid(), started_ticks=process_ticks(os.getpid()) or 0,
        shared_dir=shared,
    )  # fmt: skip
    fleet = Fleet(
        settings.fleet, lms=frozenset(settings.lms), random=random.SystemRandom().random, open_page=births.open_page,
        run=counter.number,
    )  # fmt: skip

    events = EventLog(counter)
    events.begin(version=identity.version, pid=identity.pid)

    def on_ready(error: BridgeError | None) -> None:
        if error is not None:
            reporter.error(error)
        else:
            reporter.tell("ready")
        reporter.close()

    reactor = Reactor(
        settings, identity, frontend=frontend, backend=backend, launcher=launcher, births=births,
        confinement=confinement, fleet=fleet, events=events, drain_s=order.drain_s, on_ready=on_ready,
    )  # fmt: skip
    reactor.watching.add_signals(signals, reactor.terminate)
    _watch_owner(reactor, lifeline_fd, order.owner_pid)
    info = CoordinatorInfo(
        run_id=run_id, endpoint=front_endpoint, pid=identity.pid, started_ticks=identity.started_ticks,
        version=identity.version, data_dir=str(settings.data_dir), private=order.private,
    )  # fmt: skip
    publish(settings.run_dir, info)
    reporter.tell("bound", endpoint=front_endpoint, pid=info.pid, run_id=run_id, run_dir=str(directory))
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLDS)
    reactor.run()


def _watch_owner(reactor: Reactor, lifeline_fd: int | None, owner_pid: int) -> None:
    """Two ways to notice: a fork of the owner may keep the lifeline open, a pid namespace may hide the owner."""
    if lifeline_fd is not None:
        reactor.watching.add(lifeline_fd, lambda now: _hear_owner(reactor, lifeline_fd))
    if owner_pid:
        pidfd = open_pidfd(owner_pid)
        if pidfd is not None:
            reactor.watching.add_pidfd(pidfd, lambda now: reactor.owner_gone("pidfd"))


def _hear_owner(reactor: Reactor, lifeline_fd: int) -> None:
    if os.read(lifeline_fd, 1):
        reactor.watching.remove(lifeline_fd)
        os.close(lifeline_fd)
    else:
        reactor.owner_gone("lifeline")


def _raise_descriptor_limit() -> None:
    """Take all the descriptors there are to have: libzmq aborts the process when none is left for a new peer."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _signal_pipe() -> int:
    """Install the handlers; return the descriptor where each signal leaves a byte."""
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
    nothing: Callable[..., None] = lambda *_: None  # noqa: E731 - the wake-up byte is the message
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, nothing)
    return read_fd


if __name__ == "__main__":
    sys.exit(main())
