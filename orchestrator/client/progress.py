"""Progress of a map: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Sized
from types import TracebackType
from typing import Any, Final, Self

_LINE_EVERY_S: Final = 2.0


class Progress:
    """A context manager that counts rows and, if `shown`, writes to standard error."""

    def __init__(self, name: str, rows: Any, *, shown: bool) -> None:
        self._shown = shown
        self._name = name
        self._total = len(rows) if isinstance(rows, Sized) else None
        self._done = 0
        self._next_line_at = time.monotonic() + _LINE_EVERY_S
        self._bar: Any = None

    def __enter__(self) -> Self:
        if self._shown and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import Progress as Bar

            self._bar = Bar(console=Console(stderr=True), transient=False)
            self._task = self._bar.add_task(self._name, total=self._total)
            self._bar.start()
        return self

    def advance(self, rows: int) -> None:
        """Count rows that are done."""
        self._done += rows
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done)
        elif self._shown and (now := time.monotonic()) >= self._next_line_at:
            self._next_line_at = now + _LINE_EVERY_S
            self._line()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self._shown:
            self._line()

    def _line(self) -> None:
        total = "" if self._total is None else f" of {self._total}"
        print(f"{self._name}: {self._done}{total} rows", file=sys.stderr, flush=True)
