"""Frames that nobody should send, one test for each kind: the sender is told or counted, and everybody is served on."""

from __future__ import annotations

import random
import struct
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgpack
import psutil
import pytest

from bridge.protocol.codec import MAX_BATCH_FRAME_BYTES, encode_frames
from bridge.protocol.messages import Cancel, CancelReply, Invalid, Reply, Request, Taken
from bridge.protocol.values import encode_value
from tests.support.bad_peers import House
from tests.support.coordinator import CoordinatorProcess, WireClient, code_of, value_of

MESSAGE_BYTES = 20 << 20
NESTING = 128


@pytest.fixture(scope="module")
def coordinator() -> Iterator[CoordinatorProcess]:
    limits = {"message_bytes": MESSAGE_BYTES, "nesting": NESTING}
    with (
        tempfile.TemporaryDirectory(prefix="f") as folder,
        CoordinatorProcess(Path(folder), limits=limits) as process,
    ):
        assert process.next_report() == {"event": "ready"}
        yield process


@pytest.fixture
def house(coordinator: CoordinatorProcess) -> Iterator[House]:
    with WireClient(coordinator.endpoint) as good:
        found = House(coordinator, good)
        yield found
        found.serves()


def message(*fields: Any) -> bytes:
    return bytes(msgpack.packb(list(fields), unicode_errors="surrogatepass"))


def refused(outcome: Any) -> None:
    assert code_of(outcome) == "INVALID_REQUEST"


# --- frames as such -----------------------------------------------------------------------------------


def test_no_frame_but_the_address_says_nothing(house: House) -> None:
    house.misreads(b"")
    house.misreads(b"", b"", b"")


def test_an_empty_frame_where_a_body_belongs_is_an_empty_payload(house: House) -> None:
    with house.stranger() as peer:
        peer.send_raw(message(1, 3, next(peer.ids), None, "echo"), b"")
        refused(value_of(peer.expect(Reply)))  # no bytes are no value


@pytest.mark.parametrize("frame", [b"\x90", b"\x00", b""])
def test_two_thousand_tiny_frames_are_one_bad_message(house: House, frame: bytes) -> None:
    house.misreads(*[frame] * 2000)


def test_two_thousand_tiny_messages_are_all_read(house: House) -> None:
    cancel = message(1, 7, 5, b"")
    with house.stranger() as peer:
        peer.send_raw(cancel * 2000)
        for _ in range(2000):
            assert peer.expect(CancelReply).stage == "finished"


def test_a_payload_at_the_limit_is_taken_and_one_byte_more_is_not(house: House) -> None:
    value = bytes(MESSAGE_BYTES - 5)
    with house.stranger() as peer:
        assert len(encode_value(value)) == MESSAGE_BYTES
        assert peer.call("echo", value) == value
        peer.send(Taken(bytes=MESSAGE_BYTES))
        beyond = peer.request("echo", value + b"x")
        assert peer.expect(Invalid).request_id == beyond
        assert peer.call("echo", 1) == 1


def test_a_batch_at_the_limit_is_taken_and_one_byte_more_is_not(house: House) -> None:
    def batch(size: int) -> bytes:
        # Unknown trailing fields are ignored, up to the limit of one header.
        one = message(1, 7, 5, b"", False, 0, "x" * 5000)
        last = size - size // len(one) * len(one) + len(one)
        return one * (size // len(one) - 1) + message(1, 7, 5, b"", False, 0, "x" * (last - (len(one) - 5000)))

    assert len(batch(MAX_BATCH_FRAME_BYTES)) == MAX_BATCH_FRAME_BYTES
    with house.stranger() as peer:
        peer.send_raw(batch(MAX_BATCH_FRAME_BYTES))
        assert peer.expect(CancelReply).stage == "finished"
    house.misreads(batch(MAX_BATCH_FRAME_BYTES + 1))


def test_random_bytes_are_counted(house: House) -> None:
    rng = random.Random(5)
    for size in (1, 100, 60_000):
        house.misreads(b"\xc1" + rng.randbytes(size))


# --- msgpack ------------------------------------------------------------------------------------------


def test_a_message_that_is_cut_off_is_counted_and_what_came_before_it_is_answered(house: House) -> None:
    with house.stranger() as peer:
        whole = Request(request_id=next(peer.ids), operation="echo", payload=encode_value(3))
        (batch,) = encode_frames([whole])[0]
        peer.send_raw(batch + batch[:-2])
        assert value_of(peer.expect(Reply)) == 3
    for end in range(1, len(batch) - 1, 7):
        house.misreads(batch[:end])
    refused(house.reads(encode_value("a long text")[:-3]))


def test_the_byte_that_msgpack_never_uses_is_counted(house: House) -> None:
    house.misreads(b"\xc1")
    house.misreads(b"\x94\x01\x03\xc1")
    refused(house.reads(b"\xc1"))


def test_bytes_behind_a_message_or_a_value_are_no_part_of_it(house: House) -> None:
    house.misreads(message(1, 7, 5, b"") + b"\x00")
    refused(house.reads(b"\x01\x02"))


@pytest.mark.parametrize("size", [b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff"], ids=["array", "map"])
def test_four_billion_items_that_do_not_come_cost_nothing(house: House, size: bytes) -> None:
    before = psutil.Process(house.coordinator.process.pid).memory_info().rss
    house.misreads(size)
    house.misreads(b"\x94\x01\x03\x05" + size)
    refused(house.reads(size))
    refused(house.reads(size, "dspool.logs"))
    assert psutil.Process(house.coordinator.process.pid).memory_info().rss - before < 20_000_000


@pytest.mark.parametrize("levels", [512, 1024, 100_000])
def test_deep_nesting_is_refused_in_headers_and_in_values(house: House, levels: int) -> None:
    house.misreads(b"\x91" * levels)
    refused(house.reads(b"\x91" * levels + b"\x01"))
    refused(house.reads(b"\x91" * min(levels, 60_000) + b"\x01", "dspool.logs"))


def test_sixteen_megabytes_of_empty_maps_do_not_reach_the_coordinators_memory(house: House) -> None:
    count = 16 << 20
    before = psutil.Process(house.coordinator.process.pid).memory_info().rss
    maps = b"\xdd" + struct.pack("!I", count) + b"\x80" * count
    house.misreads(b"\x80" * (MAX_BATCH_FRAME_BYTES - 1))
    # As objects they would take a gigabyte.
    assert code_of(house.reads(maps, "dspool.logs")) == "TOO_LARGE"
    assert psutil.Process(house.coordinator.process.pid).memory_info().rss - before < 100_000_000


def test_of_keys_that_come_twice_the_last_one_counts(house: House) -> None:
    assert house.reads(b"\x82\xa1a\x01\xa1a\x02") == {"a": 2}
    outcome = house.reads(
        b"\x82" + b"".join(b"\xa6worker" + bytes([0xA1]) + name for name in (b"x", b"y")), "dspool.logs"
    )
    assert "'y'" in outcome.message
    house.misreads(b"\x82\x01\x01\x01\x02")


def test_keys_that_are_no_text_travel_and_are_no_names(house: House) -> None:
    odd = {1: "a", b"k": "b", None: "c"}
    payload = bytes(msgpack.packb(odd))
    assert house.reads(payload) == odd
    refused(house.reads(payload, "dspool.resize"))
    refused(house.reads(payload, "sleep"))


def test_text_that_is_no_utf_8_is_refused_and_a_lone_surrogate_travels(house: House) -> None:
    for text in (b"\xa2\xff\xfe", b"\xa3\xed\xa0\x80"):
        house.misreads(b"\x95\x01\x03\x05\xc4\x00" + text)
    refused(house.reads(b"\xa2\xff\xfe"))
    assert house.reads(b"\xa3\xed\xa0\x80") == "\ud800"
    assert code_of(house.reads(b"\x81\xa6worker\xa3\xed\xa0\x80", "dspool.drain")) == "NOT_FOUND"


def test_foreign_extensions_are_refused_and_a_timestamp_must_be_one(house: House) -> None:
    house.misreads(b"\x94\x01\x03\x05" + msgpack.packb(msgpack.ExtType(99, b"x")))
    house.misreads(b"\x94\x01\x03" + msgpack.packb(msgpack.Timestamp(5)) + b"\xc4\x00")
    refused(house.reads(msgpack.packb(msgpack.ExtType(99, b"x"))))
    assert house.reads(msgpack.packb(msgpack.Timestamp(5))) == datetime.fromtimestamp(5, UTC)
    for seconds, nanoseconds in ((2**63 - 1, 0), (-(2**63), 0), (0, 2**32 - 1)):
        refused(house.reads(b"\xc7\x0c\xff" + struct.pack("!Iq", nanoseconds, seconds)))


@pytest.mark.parametrize("number", [-(2**63), 2**63 - 1, 2**63, 2**64 - 1])
def test_numbers_at_the_ends_of_their_range_are_read_as_such(house: House, number: int) -> None:
    assert house.reads(encode_value(number)) == number
    with house.stranger() as peer:
        peer.send(Cancel(request_id=5, epoch=number))
        assert peer.expect(CancelReply).stage == "finished"
        request_id = next(peer.ids)
        peer.send(Request(request_id=request_id, operation="echo", payload=b"\x01", rows=number))
        refused(value_of(peer.expect(Reply)))
        peer.send(Request(request_id=number, operation="echo", payload=b"\x01"))
        assert peer.expect(Invalid).request_id == number


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_is_a_value_and_no_deadline(house: House, number: float) -> None:
    found = house.reads(encode_value(number))
    assert found == number or (found != found and number != number)
    refused(house.good.call("echo", 1, deadline_ms=number))
