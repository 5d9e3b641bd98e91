"""`dspool up` and `dspool down`."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from subprocess import Popen
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from orchestrator import processes
from orchestrator.boot import START_TIMEOUT_S, Bound, Starting
from orchestrator.cli import ending
from orchestrator.cli.coordinators import Found, find, session
from orchestrator.cli.failure import Exit, Held, command
from orchestrator.cli.listings import AsJson, ConfigFile, workers_table
from orchestrator.cli.plain import milliseconds, plain
from orchestrator.cli.screen import err, out, print_json
from orchestrator.discovery import LOG_FILE, user_run_dir
from orchestrator.errors import DspoolError, InvalidRequest, Unavailable
from orchestrator.rundir import StarterLock, discover, ensure_private

if TYPE_CHECKING:
    from orchestrator.client.client import Client
    from orchestrator.config import Settings

_POLL_S: Final = 0.1
_STOP_TIMEOUT_S: Final = 10.0
_STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


# --- up ---------------------------------------------------------------------------------------


@command
def up(
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Return when every pool is ready.")] = False,
    reload: Annotated[
        bool, typer.Option("--reload", help="Deploy programs again when a file changes that they are made of.")
    ] = False,
    file: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Start the coordinator and its pools.

    In the foreground Ctrl-C or SIGTERM lets accepted work finish (30 s at most), a second one leaves at once.
    """
    from orchestrator.config import load

    if as_json and not detach:
        raise InvalidRequest("--json needs --detach: in the foreground there is no end to wait for")
    if reload and detach:
        raise InvalidRequest("--reload watches in the foreground: it cannot be used with --detach")
    settings = load(file)
    starting, bound = _start(settings, detach)
    if detach:
        _up_detached(starting, bound, settings, as_json)
    else:
        _up_here(starting, bound, settings, reload)


def _start(settings: Settings, detach: bool) -> tuple[Starting, Bound]:
    """Start a coordinator and wait until it is bound. Raises Held where one is running, or a folder is in its way."""
    order: dict[str, Any] = {
        "config": None if settings.file is None else str(settings.file),
        "overrides": {},
        "private": False,
        "starter_pid": os.getpid(),
    }
    with StarterLock(settings.run_dir):
        running = discover(settings.run_dir)
        if running is not None:
            raise Held(
                f"a coordinator with pid {running.pid} is already running in {settings.run_dir}: see `dspool status`, "
                "stop it with `dspool down`, or give another one a run_dir and a data_dir of its own"
            )
        log = ensure_private(settings.run_dir) / LOG_FILE if detach else None
        starting = Starting(order, log, detached=detach)
        try:
            return starting, starting.bound(time.monotonic() + START_TIMEOUT_S)
        except Unavailable as exc:
            # Before it is bound only directories can be in its way.
            raise Held(exc.message, exc.code, exc.retryable, exc.details) from None


def _up_detached(starting: Starting, bound: Bound, settings: Settings, as_json: bool) -> None:
    began = time.monotonic()
    try:
        with session(_found(bound, settings)) as client:
            _await_ready(starting, client, silent=as_json)
            workers = client.workers()
        _print_started(bound, settings, workers, time.monotonic() - began, as_json)
        starting.commit()  # last: it stays if and only if this command succeeds
    except BaseException:
        ending.abandon(bound.pid)
        raise
    finally:
        starting.close()


def _print_started(
    bound: Bound, settings: Settings, workers: list[dict[str, Any]], took_s: float, as_json: bool
) -> None:
    if as_json:
        told = {"endpoint": bound.endpoint, "pid": bound.pid, "run_dir": str(settings.run_dir)}
        print_json({**told, "workers": plain(workers)})
        return
    console = out()
    console.print(workers_table(workers))
    console.print(f"ready after {took_s:.1f} s; log: {settings.run_dir / LOG_FILE}", markup=False)
    if settings.run_dir != user_run_dir():
        console.print(f"other commands find it by DSPOOL_ENDPOINT={bound.endpoint}", markup=False)


def _up_here(starting: Starting, bound: Bound, settings: Settings, reload: bool) -> None:
    """Watch over a coordinator that ends with this process."""
    family: list[processes.Process] = []
    with _forwarding(starting.process, family) as signalled:
        try:
            with session(_found(bound, settings)) as client:
                _await_ready(starting, client, silent=False)
            family.extend(processes.descendants(bound.pid))
            out().print("every pool is ready; Ctrl-C stops", markup=False)
        except DspoolError:
            # Told to stop while it started: that is no failure.
            if not signalled:
                ending.abandon(bound.pid)
                raise
        with _reloading(bound, settings) if reload and not signalled else nullcontext():
            code = starting.process.wait()
    if not signalled and code:
        raise Unavailable(f"the coordinator ended by itself (exit code {code})")
    left = processes.survivors([*family, *processes.of_run(bound.run_id)], _STOP_TIMEOUT_S)
    out().print(f"stopped; {len(left)} processes left", markup=False)
    for each in left:
        err().print(f"still there: {each}", markup=False)
    if len(signalled) > 1:
        raise typer.Exit(Exit.INTERRUPTED)
    if left:
        raise typer.Exit(Exit.FAILED)


@contextmanager
def _reloading(bound: Bound, settings: Settings) -> Iterator[None]:
    from orchestrator.cli.reload import reloading
    from orchestrator.client.client import Client

    client = Client(bound.endpoint, run_id=bound.run_id)
    out().print("programs are deployed again when their files change", markup=False)
    with reloading(client, settings.python_path, settings.programs, lambda text: out().print(text, markup=False)):
        yield


@contextmanager
def _forwarding(process: Popen[bytes], family: list[processes.Process]) -> Iterator[list[int]]:
    """Turn the first signal to stop into the coordinator's drain, a second one into its leaving at once."""
    received: list[int] = []

    def forward(number: int, frame: object) -> None:
        family.extend(processes.descendants(process.pid))
        received.append(number)
        process.send_signal(signal.SIGTERM)

    before = {number: signal.signal(number, forward) for number in _STOP_SIGNALS}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _await_ready(starting: Starting, client: Client, *, silent: bool) -> None:
    """Say which workers come up until all pools are ready, or raise why one is not."""
    console, seen = out(), set()
    until = time.monotonic() + START_TIMEOUT_S
    while True:
        told = starting.tells(_POLL_S)
        for row in [] if silent else client.workers():
            if row["state"] in ("ready", "busy") and row["id"] not in seen:
                seen.add(row["id"])
                console.print(
                    f"  {row['id']} is ready (pid {row['pid']}, boot {milliseconds(row['boot_ms'])} ms)", markup=False
                )
        if told or time.monotonic() >= until:
            starting.ready(until)
            return


def _found(bound: Bound, settings: Settings) -> Found:
    return Found(bound.endpoint, settings.run_dir, discover(settings.run_dir))


# --- down -------------------------------------------------------------------------------------


@command
def down(
    drain_s: Annotated[
        float | None, typer.Option("--drain", min=0, help="Seconds that accepted work may take; 30 if not given.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Do not wait for accepted work; kill what does not end.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Stop the coordinator, and verify that nothing of it is left.

    If it is dead already, what it left behind is removed. Exit code 3 if there is nothing to stop.
    """
    found = find()
    if found is None or (found.info is not None and not found.info.alive):
        outcome = ending.sweep_dead(found.run_dir if found is not None else user_run_dir())
    else:
        outcome = ending.stop(found, drain_s=drain_s, force=force, say=_sayer(as_json))
    if as_json:
        print_json(outcome.document())
    else:
        console = out()
        console.print(outcome.text, markup=False)
        for each in outcome.left:
            err().print(f"still there: {each}", markup=False)
    if outcome.left:
        raise typer.Exit(Exit.FAILED)


def _sayer(as_json: bool) -> Any:
    return (lambda line: None) if as_json else (lambda line: err().print(line, markup=False))
