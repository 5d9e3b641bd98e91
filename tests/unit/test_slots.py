"""The started-slots page."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator

import pytest

from bridge.worker.slots import PAGE_BYTES, WORDS, StartedSlots


@pytest.fixture
def page() -> Iterator[int]:
    fd = os.memfd_create("slots")
    os.ftruncate(fd, PAGE_BYTES)
    yield fd
    os.close(fd)


def words(fd: int) -> list[int]:
    with mmap.mmap(fd, PAGE_BYTES) as shared:
        return list(memoryview(bytes(shared)).cast("Q"))


def test_an_epoch_is_marked_in_its_word(page: int) -> None:
    slots = StartedSlots(page)
    for epoch in (1, 5 + 3 * WORDS, 2**63):
        slots.mark(epoch)
    marked = words(page)
    assert {index: word for index, word in enumerate(marked) if word} == {1: 1, 5: 5 + 3 * WORDS, 0: 2**63}


def test_a_word_never_sinks(page: int) -> None:
    slots = StartedSlots(page)
    slots.mark(7 + WORDS)
    slots.mark(7)
    assert words(page)[7] == 7 + WORDS


def test_a_page_that_is_too_small_is_refused() -> None:
    fd = os.memfd_create("slots")
    with pytest.raises(ValueError, match="size"):
        StartedSlots(fd)
    os.close(fd)
