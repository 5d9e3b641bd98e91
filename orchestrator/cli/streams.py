"""Standard input, output and error as commands need them: there, and able to take every text."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import Final, NoReturn

_STREAMS: Final = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))


def mend() -> None:
    """Open what was closed before the start, as /dev/null: else descriptors of ours would get its numbers."""
    while (fd := os.open(os.devnull, os.O_RDWR)) < len(_STREAMS):
        os.set_inheritable(fd, True)
    os.close(fd)
    for number, (name, mode) in enumerate(_STREAMS):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115 - for life
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as standard error has it: half a surrogate pair is no text


def fail(text: str, code: int) -> NoReturn:
    """Leave with an exit code; say why, if `text` is not empty and anybody can be told."""
    if text:
        with contextlib.suppress(OSError):
            sys.stderr.write(f"error: {text}\n")
            sys.stderr.flush()
    # What could not be written is not tried again when the interpreter ends.
    null = os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):
        os.dup2(null, number)
    os.close(null)
    sys.exit(code)
