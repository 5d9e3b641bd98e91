"""Segments: whose they are, when they are used again, and what a worker finds in them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bridge import shared_memory
from bridge.protocol.errors import BridgeError
from bridge.shared_memory import Lent, Segments, behind, sample

BIG = bytes(range(256)) * 1024


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "7").mkdir()
    return tmp_path


def make(folder: Path, most_bytes: int = 1 << 28) -> Segments:
    return Segments(str(folder / "7"), most_bytes)


def test_a_payload_goes_there_and_an_outcome_comes_back(folder: Path) -> None:
    segments = make(folder)
    segment = segments.lend([BIG[:1000], memoryview(BIG)[1000:]], len(BIG))
    assert segment is not None
    lent = Lent(str(folder), 7, segment.name, segment.used_bytes)
    assert lent.payload() == BIG
    assert lent.answer([b"outcome ", memoryview(BIG)])
    assert shared_memory.read(segment.fd, 8 + len(BIG), behind(segment.used_bytes)) == b"outcome " + BIG
    assert lent.payload() == BIG  # for another attempt
    segments.give_back(segment)
    segments.close()
    assert not (folder / "7").exists()


def test_a_segment_is_used_again_after_an_answer_alone(folder: Path) -> None:
    segments = make(folder)
    first = segments.lend([BIG], len(BIG))
    assert first is not None
    segments.give_back(first)
    second = segments.lend([BIG], len(BIG))
    assert second is first
    segments.drop(second)
    third = segments.lend([BIG], len(BIG))
    assert third is not None
    assert third.name != first.name
    assert os.listdir(folder / "7") == [third.name]
    segments.drop(third)
    segments.close()


def test_what_one_client_has_there_is_bounded(folder: Path) -> None:
    segments = make(folder, most_bytes=2 * len(BIG))
    lent = [segments.lend([BIG], len(BIG)) for _ in range(4)]
    assert [segment is not None for segment in lent] == [True, True, False, False]
    for segment in lent[:2]:
        assert segment is not None
        segments.drop(segment)
    assert os.listdir(folder / "7") == []
    segments.close()


def test_without_its_folder_payloads_travel_in_frames(tmp_path: Path) -> None:
    segments = Segments(str(tmp_path / "gone" / "7"), 1 << 28)
    assert segments.lend([BIG], len(BIG)) is None
    segments.close()


@pytest.mark.parametrize("name", ["", "../7/1", "1/2", "x", "-1", "1" * 13, "1\0"])
def test_a_name_that_is_none_is_refused(folder: Path, name: str) -> None:
    with pytest.raises(BridgeError) as caught:
        Lent(str(folder), 7, name, 10)
    assert caught.value.code == "INVALID_REQUEST"


def test_what_is_there_no_more_or_cut_off_or_a_link_is_refused(folder: Path) -> None:
    with pytest.raises(BridgeError, match="there no more"):
        Lent(str(folder), 7, "3", 10).payload()
    (folder / "7" / "4").write_bytes(b"short")
    with pytest.raises(BridgeError, match="ends after 5"):
        Lent(str(folder), 7, "4", 10).payload()
    (folder / "7" / "5").symlink_to(folder / "7" / "4")
    with pytest.raises(BridgeError, match="there no more"):
        Lent(str(folder), 7, "5", 5).payload()
    assert not Lent(str(folder), 7, "5", 5).answer([b"x"])
    assert not Lent(str(folder), 7, "3", 5).answer([b"x"])


def test_large_payloads_can_be_told_apart() -> None:
    other = bytearray(BIG)
    other[5] ^= 1
    assert sample([BIG]) == sample([bytes(BIG)])
    assert len({sample([BIG]), sample([bytes(other)]), sample([BIG[:-1]])}) == 3
