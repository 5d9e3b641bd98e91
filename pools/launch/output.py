"""What workers print: the last lines of each, within bounds. Pure: bytes and the time come in as arguments."""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass

_CUT = b" [cut]"
# Colours and cursor movements go; any other character that could move a terminal or forge a line is shown by its code.
_TERMINAL_SEQUENCE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")
_UNSAFE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


@dataclass(frozen=True, slots=True)
class LogLimits:
    """How much of a worker's output is kept.

    lines: the last so many, of stdout and stderr together; line_bytes: of one line, the rest is cut;
    bytes_per_s: what is turned into lines, bytes beyond it are counted and discarded.
    """

    lines: int = 200
    line_bytes: int = 8192
    bytes_per_s: int = 1 << 20


class WorkerLog:
    """The end of one worker's output."""

    def __init__(self, limits: LogLimits) -> None:
        """Start empty."""
        self._limits = limits
        self._lines: deque[bytes] = deque(maxlen=limits.lines)
        self._streams: dict[int, _Assembler] = {}
        self._window_end_s = float("-inf")
        self._room_bytes = 0
        self._discarded_bytes = 0

    def feed(self, stream: int, data: bytes, *, now: float) -> None:
        """Take bytes of one stream (1: stdout, 2: stderr)."""
        if now >= self._window_end_s:
            self._open_window(now)
        assembler = self._streams.setdefault(stream, _Assembler(self._limits))
        taken = data[: self._room_bytes]
        self._room_bytes -= len(taken)
        self._lines.extend(assembler.feed(taken))
        if len(taken) < len(data):
            assembler.break_line()
            self._discarded_bytes += len(data) - len(taken)

    def tail(self) -> list[str]:
        """Return the last lines, oldest first, unfinished ones and a note of what was discarded included."""
        lines = [*self._lines, *(s.partial for s in self._streams.values() if s.partial)]
        if self._discarded_bytes:
            lines.append(self._note())
        return [clean(line) for line in lines[-self._limits.lines :]]

    def _open_window(self, now: float) -> None:
        if self._discarded_bytes:
            self._lines.append(self._note())
        self._discarded_bytes = 0
        self._room_bytes = self._limits.bytes_per_s
        self._window_end_s = now + 1.0

    def _note(self) -> bytes:
        return b"[%d bytes of output discarded]" % self._discarded_bytes


class _Assembler:
    """Lines out of the pieces of one stream."""

    def __init__(self, limits: LogLimits) -> None:
        self._limits = limits
        self._partial = bytearray()
        self._skipping = False  # until the next newline: this line is already cut

    @property
    def partial(self) -> bytes:
        return bytes(self._partial)

    def feed(self, data: bytes) -> list[bytes]:
        """Return the lines that `data` completes, of very many only the last."""
        kept = self._limits.lines + 1
        pieces = data.rsplit(b"\n", kept)
        if len(pieces) > kept:  # the first piece is everything older than what will be kept
            del pieces[0]
            self._end_line()
        lines = []
        for piece in pieces[:-1]:
            self._extend(piece)
            shown = bool(self._partial) or not self._skipping
            line = self._end_line()
            if shown:
                lines.append(line)
        self._extend(pieces[-1])
        return lines

    def break_line(self) -> None:
        """Bytes are missing from here on: the current line ends, the next starts after a newline."""
        if self._partial and not self._skipping:
            self._partial += _CUT
        self._skipping = True

    def _extend(self, piece: bytes) -> None:
        if self._skipping:
            return
        space = self._limits.line_bytes - len(self._partial)
        self._partial += piece[:space]
        if len(piece) > space:
            self.break_line()

    def _end_line(self) -> bytes:
        line = bytes(self._partial)
        self._partial.clear()
        self._skipping = False
        return line


def clean(line: bytes) -> str:
    r"""Return one line as text that is safe to print: invalid UTF-8 replaced, control characters as \x07."""
    text = _TERMINAL_SEQUENCE.sub("", line.removesuffix(b"\r").decode("utf-8", "replace"))
    return _UNSAFE.sub(_code, text)


def _code(match: re.Match[str]) -> str:
    number = ord(match[0])
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"
