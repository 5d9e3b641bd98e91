"""The kept end of a worker's output."""

from __future__ import annotations

import random

import pytest

from pools.launch.output import LogLimits, WorkerLog, clean

LIMITS = LogLimits(lines=4, line_bytes=10, bytes_per_s=100)


def log_of(*chunks: bytes, limits: LogLimits = LIMITS) -> WorkerLog:
    log = WorkerLog(limits)
    for chunk in chunks:
        log.feed(1, chunk, now=0.0)
    return log


@pytest.mark.parametrize(
    ("chunks", "lines"),
    [
        ((), []),
        ((b"one\ntwo\n",), ["one", "two"]),
        ((b"on", b"e\ntw", b"o"), ["one", "two"]),
        ((b"\n\n",), ["", ""]),
        ((b"a\r\nb\r\n",), ["a", "b"]),
        ((b"1\n2\n3\n4\n5\n6\n",), ["3", "4", "5", "6"]),
        ((b"1\n2\n3\n4\n5\n6",), ["3", "4", "5", "6"]),
        ((b"old", b"\n1\n2\n3\n4\n5\n6\nnew"), ["4", "5", "6", "new"]),
        ((b"0123456789\n",), ["0123456789"]),
        ((b"0123456789x\nnext\n",), ["0123456789 [cut]", "next"]),
        ((b"0123456789", b"abc", b"def\nnext"), ["0123456789 [cut]", "next"]),
    ],
)
def test_lines(chunks: tuple[bytes, ...], lines: list[str]) -> None:
    assert log_of(*chunks).tail() == lines


def test_streams_do_not_mix_within_a_line() -> None:
    log = WorkerLog(LIMITS)
    for stream, data in ((1, b"out"), (2, b"err"), (1, b"put\n"), (2, b"or\n")):
        log.feed(stream, data, now=0.0)
    assert log.tail() == ["output", "error"]


def test_discarded_bytes_are_counted_and_a_broken_line_is_marked() -> None:
    log = WorkerLog(LogLimits(lines=10, line_bytes=100, bytes_per_s=10))
    log.feed(1, b"12345\n678901234\n", now=0.0)
    assert log.tail() == ["12345", "6789 [cut]", "[6 bytes of output discarded]"]
    log.feed(1, b"rest\nx\n", now=1.0)
    assert log.tail() == ["12345", "[6 bytes of output discarded]", "6789 [cut]", "x"]


def test_a_note_per_second_at_most() -> None:
    log = WorkerLog(LogLimits(lines=100, line_bytes=10, bytes_per_s=4))
    for tenth_s in range(30):
        log.feed(1, b"a\n" * 10, now=tenth_s / 10)
    assert sum("discarded" in line for line in log.tail()) == 3


def test_split_points_do_not_matter() -> None:
    rng = random.Random(7)
    data = bytes(rng.choice(b"ab\n\n\r\xff") for _ in range(2_000))
    limits = LogLimits(lines=50, line_bytes=6, bytes_per_s=10_000)
    whole = log_of(data, limits=limits).tail()
    for _ in range(50):
        cuts = sorted(rng.randrange(len(data)) for _ in range(rng.randrange(20)))
        pieces = [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]
        assert log_of(*pieces, limits=limits).tail() == whole


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"\x1b[31mred\x1b[0m", "red"),
        (b"\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        (b"bar\rbaz", "bar\\x0dbaz"),
        (b"tab\tstays", "tab\tstays"),
        (b"\xff\xfe", "\ufffd\ufffd"),
        ("\u202eevil\u2028".encode(), "\\u202eevil\\u2028"),
        ("\x9b31m".encode(), "\\x9b31m"),
        ("größe".encode(), "größe"),
    ],
)
def test_clean(raw: bytes, text: str) -> None:
    assert clean(raw) == text
