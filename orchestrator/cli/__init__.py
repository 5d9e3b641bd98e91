"""The command `dspool`. Only this package imports typer and rich."""

from __future__ import annotations

import os
import sys

from orchestrator.cli import streams

_FAILED, _USAGE, _INTERRUPTED = 1, 2, 130


def main() -> None:
    """Run the command line: the entry point of the console script. Raises SystemExit."""
    try:
        streams.mend()
        _run()
    except KeyboardInterrupt:
        streams.fail("", _INTERRUPTED)
    except BrokenPipeError:
        streams.fail("", _FAILED)  # the reader has had enough
    except OSError as exc:
        what = exc.strerror or str(exc)
        streams.fail(what if exc.filename is None else f"{os.fsdecode(exc.filename)}: {what}", _FAILED)


def _run() -> None:
    try:
        os.getcwd()
    except FileNotFoundError:
        streams.fail("the current folder has been removed: change to one that exists", _USAGE)
    # Imported here: it takes a while, in which Ctrl-C is no error either.
    from orchestrator.cli.app import app

    try:
        app(prog_name="dspool")
    finally:
        sys.stdout.flush()
