"""The number of a run: how often a coordinator was started with a data directory. And what the last one left behind.

`data_dir/run.json` is `{"run": 7}` while run 7 is going on, and stays so if it is killed. After an end in order it is
`{"run": 7, "tail": [[seq, at, event, level, fields], …]}`: events for the next run.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import structlog

from bridge.wallclock import unix_now

FILE_NAME: Final = "run.json"
# Where the counter cannot be read or kept, the clock counts, from here on: no run has had such a number.
_EPOCH_S: Final = 1_735_689_600  # 2025-01-01
# A number has 31 bits, so that (number << 32 | n) is a positive one of 64.
_MAX_RUN: Final = (1 << 31) - 1

Rows: TypeAlias = Sequence[Sequence[Any]]


@dataclass(slots=True)
class RunCounter:
    """The run of a coordinator that holds the lock of its data directory.

    number: 1 to 2**31 - 1, above those of all runs before. previous: the number of the last one, 0 if there was none or
    nobody knows. was_killed: what came before did not end in order. tail: the rows that it left.
    """

    number: int
    previous: int
    was_killed: bool
    tail: list[list[Any]]
    _file: Path

    @classmethod
    def begin(cls, data_dir: str | os.PathLike[str]) -> RunCounter:
        """Begin a run: its number is on the disk when this returns.

        A counter that cannot be read or written is told of in the log; numbers go on by the clock then.
        """
        file = Path(data_dir) / FILE_NAME
        log = structlog.get_logger("dspool.coordinator")
        document: dict[str, Any] = {}
        clock = min(max(1, int(unix_now()) - _EPOCH_S), _MAX_RUN)
        try:
            document = _read(file)
            number = min(document["run"] + 1, _MAX_RUN)
        except FileNotFoundError:
            number = 1
        except (OSError, ValueError) as exc:
            log.warning("run_counter_unreadable", file=str(file), error=str(exc))
            document, number = {"run": 0}, clock
        was_killed = bool(document) and "tail" not in document
        begun = cls(number, document.get("run", 0), was_killed, document.get("tail", []), file)
        try:
            _write(file, {"run": number})
        except OSError as exc:
            log.warning("run_not_counted", file=str(file), error=str(exc))
            begun.number = max(number, clock)
        return begun

    def go_above(self, run: int) -> None:
        """Have a higher number than another run, which is known from elsewhere: it is on the disk when this returns."""
        self.number = min(max(self.number, run + 1), _MAX_RUN)
        try:
            _write(self._file, {"run": self.number})
        except OSError as exc:
            structlog.get_logger("dspool.coordinator").warning("run_not_counted", file=str(self._file), error=str(exc))

    def end(self, tail: Rows) -> None:
        """Note that the run has ended in order, and what the next one is to know of it (JSON). Raises OSError."""
        _write(self._file, {"run": self.number, "tail": tail})


def _read(file: Path) -> dict[str, Any]:
    """Return what the last run wrote. Raises OSError, ValueError."""
    document = json.loads(file.read_bytes())
    if not isinstance(document, dict) or type(document.get("run")) is not int or not 0 < document["run"] <= _MAX_RUN:
        raise ValueError("this is no count of runs")
    tail = document.get("tail", [])
    if not isinstance(tail, list) or not all(isinstance(row, list) and len(row) == 5 for row in tail):
        raise ValueError("its tail is no list of events")
    return document


def _write(file: Path, document: dict[str, Any]) -> None:
    """Write whole or not at all, onto the disk."""
    handle, temporary = tempfile.mkstemp(prefix=f".{file.name}-", dir=file.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            json.dump(document, stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, file)
    except BaseException:
        os.unlink(temporary)
        raise
    folder = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
