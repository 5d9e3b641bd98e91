"""The memory behind the started-slots page: what a worker writes of its stacks, and what is read of it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from bridge.worker.slots import PAGE_BYTES, StartedSlots
from bridge.worker.stacks import STACKS_BYTES, STACKS_OFFSET
from orchestrator.config import load
from orchestrator.coordinator.births import STACK_LINES, Births, Page


@pytest.fixture
def page() -> Iterator[Page]:
    made = Page("general-1.1")
    yield made
    made.close()


def write(page: Page, data: bytes) -> None:
    os.pwrite(page.fd, data, STACKS_OFFSET)


def test_the_slots_end_where_the_stacks_begin(page: Page) -> None:
    assert STACKS_OFFSET == PAGE_BYTES == 8 * len(page.words)
    StartedSlots(page.fd).mark(3)
    assert page.words[3] == 3
    assert page.stacks() == ()


@pytest.mark.parametrize(
    ("written", "lines"),
    [
        (b"one\n", ("one",)),
        (b"one\n\ntwo\n", ("one", "", "two")),
        (b"cut in the mid", ("cut in the mid",)),
        (b"\x1b[31mred\x07\xff\n", ("red\\x07\ufffd",)),
    ],
)
def test_lines_are_read_and_safe_to_print(page: Page, written: bytes, lines: tuple[str, ...]) -> None:
    write(page, written)
    assert page.stacks() == lines


@pytest.mark.parametrize("more", [0, 1, 5])
def test_of_very_many_lines_the_first_are_kept(page: Page, more: int) -> None:
    write(page, b"".join(b"%d\n" % number for number in range(STACK_LINES + more)))
    lines = page.stacks()
    assert len(lines) == STACK_LINES
    kept = STACK_LINES if more == 0 else STACK_LINES - 1
    assert lines[:kept] == tuple(map(str, range(kept)))
    assert lines[kept:] == (() if more == 0 else (f"[{more + 1} lines more]",))


@pytest.mark.parametrize("size", [0, PAGE_BYTES, STACKS_OFFSET + STACKS_BYTES + 1])
def test_nobody_can_cut_or_grow_it(page: Page, size: int) -> None:
    with pytest.raises(PermissionError):
        os.ftruncate(page.fd, size)
    with pytest.raises(PermissionError):
        os.pwrite(page.fd, b"x", STACKS_OFFSET + STACKS_BYTES)
    assert len(page.stacks()) == 0


def test_the_stacks_of_whom_nobody_knows_are_none() -> None:
    births = Births(load(environ={"HOME": "/h"}), run_id="run", endpoint="ipc:///none")
    assert births.stacks("general-1.1") == ()
    births.open_page("general-1.1")
    assert births.stacks("general-1.1") == ()
    births.bury("general-1.1")
    assert births.stacks("general-1.1") == ()
