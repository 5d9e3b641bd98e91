"""Segments: whose they are, when they are used again, and what a worker finds in them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bridge import shared_memory
from bridge.protocol.errors import INVALID_REQUEST, BridgeError
from bridge.protocol.messages import CLIENT_SHIFT, Request
from bridge.shared_memory import Lendings, Lent, Segments, behind, sample

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


def said(shared_bytes: int) -> Request:
    """Return an attempt whose client says that so many bytes of its payload are in segment 1."""
    return Request(
        request_id=7 << CLIENT_SHIFT | 1, operation="echo", payload=b"", epoch=1, segment="1", shared_bytes=shared_bytes
    )


@pytest.mark.parametrize("shared_bytes", [-1, 101, 1 << 40, 1 << 63])
def test_a_size_that_cannot_be_costs_its_request_alone(folder: Path, shared_bytes: int) -> None:
    (folder / "7" / "1").write_bytes(bytes(100))
    lendings = Lendings(str(folder), 1 << 41)
    with pytest.raises(BridgeError) as refused:
        lendings.take_in(said(shared_bytes))
    assert refused.value.code == INVALID_REQUEST
    assert lendings.take_in(said(100)).payload == bytes(100)


def test_a_payload_is_no_larger_than_a_message_may_be(folder: Path) -> None:
    with (folder / "7" / "1").open("wb") as file:
        file.truncate(1 << 40)  # which costs nothing
    with pytest.raises(BridgeError, match="at most 1,000"):
        Lendings(str(folder), 1000).take_in(said(1 << 40))


def test_a_pipe_in_place_of_a_segment_is_refused_at_once(folder: Path) -> None:
    os.mkfifo(folder / "7" / "1")
    with pytest.raises(BridgeError) as refused:
        Lendings(str(folder), 1000).take_in(said(10))
    assert refused.value.code == INVALID_REQUEST
