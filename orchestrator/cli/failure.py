"""What a command does when it fails: one exit code per kind of failure, and text that says what to do."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from enum import IntEnum
from typing import Any, ParamSpec

import typer

from orchestrator.cli.plain import plain
from orchestrator.cli.screen import err
from orchestrator.errors import (
    CircuitOpen,
    DeadlineExceeded,
    DspoolError,
    InvalidRequest,
    NotFound,
    Overloaded,
    RemoteError,
    SignatureError,
    TooLarge,
    Unavailable,
)

P = ParamSpec("P")


class Exit(IntEnum):
    """The exit codes of `dspool`."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    NO_COORDINATOR = 3
    TIMED_OUT = 4
    INTERRUPTED = 130


class NoCoordinator(Unavailable):
    """Nobody coordinates: none was found, or the one that was there has died."""


class Held(Unavailable):
    """Something that only one coordinator may use is in use by another."""


def exit_code(error: BaseException) -> Exit:
    """Return the exit code for what a command raised."""
    match error:
        case NoCoordinator():
            return Exit.NO_COORDINATOR
        case Overloaded() | CircuitOpen() | DeadlineExceeded() | TimeoutError():
            return Exit.TIMED_OUT
        case InvalidRequest() | NotFound() | SignatureError() | TooLarge() | Held():
            return Exit.USAGE
        case KeyboardInterrupt():
            return Exit.INTERRUPTED
        case _:
            return Exit.FAILED


def report(error: DspoolError, *, as_json: bool) -> None:
    """Tell the user: as JSON on stdout, or as text on stderr. Never a traceback of ours."""
    if as_json:
        sys.stdout.write(json.dumps({"error": error_document(error)}, indent=2) + "\n")
        return
    console = err()
    if isinstance(error, RemoteError) and error.remote_traceback:
        console.print(error.remote_traceback.rstrip(), markup=False, highlight=False)
        console.print()
    console.print("[bold red]error:[/] ", end="")
    console.print(str(error), markup=False, highlight=False)


def error_document(error: DspoolError) -> dict[str, Any]:
    """Return an error as a JSON-ready mapping."""
    return {
        "code": error.code,
        "message": str(error),
        "retryable": error.retryable,
        "exit_code": int(exit_code(error)),
        "details": plain(error.details),
    }


def command(function: Callable[P, None]) -> Callable[P, None]:
    """Make a function a command: what it raises becomes an exit code. A parameter `as_json` chooses the form."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            function(*args, **kwargs)
        except DspoolError as error:
            report(error, as_json=bool(kwargs.get("as_json")))
            raise typer.Exit(exit_code(error)) from None
        except TimeoutError as exc:
            report(DspoolError(str(exc), "TIMED_OUT"), as_json=bool(kwargs.get("as_json")))
            raise typer.Exit(Exit.TIMED_OUT) from None
        except KeyboardInterrupt:
            raise typer.Exit(Exit.INTERRUPTED) from None

    return run
