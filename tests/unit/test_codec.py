"""Frames: what is packed is read back; what cannot be read is reported, never raised."""

from __future__ import annotations

import random
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.protocol.codec import (
    BATCH_BYTES,
    BATCH_MESSAGES,
    HEADER_BYTES,
    INLINE_BYTES,
    MAX_BATCH_FRAME_BYTES,
    Decoded,
    decode,
    encode,
    encode_frames,
    pack_outcomes,
    unpack_outcomes,
)
from bridge.protocol.messages import (
    BEAT_ATTEMPTS,
    PROTOCOL_VERSION,
    TYPES,
    Cancel,
    Event,
    Heartbeat,
    Hello,
    Message,
    Reply,
    Request,
)

GOOD = Request(request_id=7, operation="echo", payload=b"\x01", epoch=3)
LARGE = b"x" * (INLINE_BYTES + 1)

MESSAGES = (
    st.builds(
        Request,
        request_id=st.integers(0, 2**62),
        operation=st.text(st.characters(codec="utf-8"), max_size=20),
        payload=st.binary(max_size=30) | st.just(LARGE),
        deadline_ms=st.none() | st.floats(allow_nan=False),
        rows=st.integers(1, 100),
    )
    | st.builds(Reply, request_id=st.integers(0, 2**62), status=st.integers(0, 2), cost_usd=st.none() | st.just(0.5))
    | st.builds(Event, kind=st.text(st.characters(codec="utf-8"), max_size=5), payload=st.binary(max_size=9))
    | st.builds(
        Heartbeat,
        attempts=st.lists(
            st.tuples(*[st.integers(0, 99), st.floats(0, 9), *[st.integers(0, 99)] * 2, st.floats(0, 9)])
        ),
    )
    | st.builds(Cancel, force=st.booleans(), epoch=st.integers(0, 2**62))
)


def head(**fields: Any) -> bytes:
    """A message array with some of its slots replaced."""
    values = [PROTOCOL_VERSION, 13, 9, b""]
    for name, value in fields.items():
        values[["version", "type", "request_id", "payload"].index(name)] = value
    return bytes(msgpack.packb(values))


@settings(max_examples=100, deadline=None)
@given(st.lists(MESSAGES, max_size=150))
def test_what_is_packed_is_read_back_in_order(messages: list[Message]) -> None:
    received: list[Message] = []
    for frames in encode_frames(messages):
        decoded = decode(frames)
        assert decoded.problem is None
        assert 0 < len(decoded.messages) <= BATCH_MESSAGES
        received += decoded.messages
    assert received == messages


@pytest.mark.parametrize("kind", TYPES.values(), ids=lambda kind: kind.__name__)
def test_every_type_travels(kind: type[Message]) -> None:
    message = kind(operation="echo") if kind is Request else kind()
    assert decode(encode_frames([message])[0]).messages == [message]


@pytest.mark.parametrize("beside", [[], [GOOD]], ids=["alone", "in company"])
def test_a_beat_tells_of_as_many_attempts_as_it_may(beside: list[Message]) -> None:
    attempts = [(2**62 + number, 1e9 - number, 4096, 10**6, 0.25) for number in range(BEAT_ATTEMPTS)]
    messages = [*beside, Heartbeat(rss_bytes=2**40, running=500, queued=9, attempts=attempts), *beside]
    assert decode(encode_frames(messages)[0]) == Decoded(messages)


@pytest.mark.parametrize("attempts", [5, [5], [[1, 2.0, 3, 4]], [[1, 2.0, 3, 4, "5"]], [[0] * 5] * (BEAT_ATTEMPTS + 1)])
def test_a_beat_of_other_attempts_is_refused(attempts: Any) -> None:
    bad = bytes(msgpack.packb([1, 13, 9, b"", 1, 2, 3, attempts]))
    assert decode([encode(GOOD)[0] + bad]).messages == [GOOD]


def test_nothing_to_send_is_no_frame() -> None:
    assert encode_frames([]) == []


@pytest.mark.parametrize("size", [INLINE_BYTES - 1, INLINE_BYTES, INLINE_BYTES + 1, 1_000_000])
def test_a_large_payload_is_a_frame_of_its_own(size: int) -> None:
    message = Request(operation="echo", payload=b"p" * size)
    inline, body = encode(message)
    assert (body is None) == (size <= INLINE_BYTES)
    assert len(inline) < HEADER_BYTES
    packed = encode_frames([GOOD, message, GOOD])
    assert sum(map(len, packed)) - len(packed) == (body is not None)
    assert [m for frames in packed for m in decode(frames).messages] == [GOOD, message, GOOD]


def test_batches_are_bounded() -> None:
    many = encode_frames([GOOD] * (BATCH_MESSAGES * 2 + 1))
    assert [len(decode(frames).messages) for frames in many] == [BATCH_MESSAGES, BATCH_MESSAGES, 1]
    bulky = encode_frames([Request(operation="echo", payload=b"p" * INLINE_BYTES)] * BATCH_MESSAGES)
    assert len(bulky) > 1
    assert all(len(frames[0]) <= BATCH_BYTES for frames in bulky)


def test_a_frame_that_a_good_peer_sends_is_never_too_large() -> None:
    widest = Request(operation="o" * 50_000, payload=b"p" * INLINE_BYTES)
    for frames in encode_frames([GOOD, widest] * 30):
        assert len(frames[0]) <= MAX_BATCH_FRAME_BYTES
        assert decode(frames).problem is None


# --- what cannot be read --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        (b"\xc1", "not msgpack"),
        (b"\x00", "not a message array"),
        (b"\xc0", "not a message array"),
        (b"\x93\x01\x02\x03", "not a message array"),
        (b"\x90", "not a message array"),
        (b"\xdd\xff\xff\xff\xff", "not msgpack"),
        (b"\xdf\xff\xff\xff\xff", "not msgpack"),
        (b"\xc6\xff\xff\xff\xff", "truncated"),
        (b"\x81\x01\x02", "not msgpack"),
        (b"\xd4\x01\x00", "not msgpack"),
        (b"\x91" * 100_000, "not msgpack"),
        (b"\xa2\xff\xfe", "not msgpack"),
        (head(version=0), "protocol version 0"),
        (head(version=999), "protocol version 999"),
        (head(version="1"), "protocol version '1'"),
        (head(request_id="x"), "bad field"),
        (head(payload="text"), "bad field"),
        (head(payload=5), "bad field"),
        (bytes(msgpack.packb([1, 3, 9, b""])), "bad field"),
        (bytes(msgpack.packb([1, 3, 9, b"", 5])), "bad field"),
        (bytes(msgpack.packb([1, 3, 9, b"", "op", "", "", "", 1, "soon"])), "bad field"),
        (bytes(msgpack.packb([1, 13, 9, b"", *range(70)])), "not msgpack"),
        (head(payload=None), "payload frame missing"),
        (head()[:-1], "truncated"),
        (b"\x94\x01", "truncated"),
    ],
    ids=lambda value: value[:12].hex() if isinstance(value, bytes) else value,
)
def test_a_bad_message_ends_the_frame(bad: bytes, problem: str) -> None:
    good, _ = encode(GOOD)
    decoded = decode([good + good + bad + good])
    if problem == "truncated":
        # What follows the cut is read as its rest, or ends the frame.
        decoded = decode([good + good + bad])
    assert decoded.messages == [GOOD, GOOD]
    assert decoded.problem is not None
    assert problem in decoded.problem
    assert decoded.wrong_version == ("version" in problem)


@pytest.mark.parametrize("frames", [[], [b""], [b"", b"body"]])
def test_empty_frames(frames: list[bytes]) -> None:
    assert decode(frames) == Decoded([], problem="empty frame")


def test_an_oversized_batch_is_not_even_read() -> None:
    decoded = decode([bytes(MAX_BATCH_FRAME_BYTES + 1)])
    assert decoded.messages == []
    assert "batch frame of" in str(decoded.problem)


@pytest.mark.parametrize("beside", [b"", b"\x01" * INLINE_BYTES])
def test_a_header_is_bounded_without_its_payload(beside: bytes) -> None:
    def of_size(size: int) -> bytes:
        empty = len(encode(Request(request_id=9, operation="o" * 1000, payload=beside))[0]) - len(beside) - 1000
        return encode(Request(request_id=9, operation="o" * (size - empty), payload=beside))[0]

    good, _ = encode(GOOD)
    for before in (b"", good):
        assert decode([before + of_size(2048)], header_bytes=2048).problem is None
        decoded = decode([before + of_size(2049)], header_bytes=2048)
        assert decoded.problem == "header of 2049 bytes (limit 2048)"
        assert (decoded.request_id, len(decoded.messages)) == (9, bool(before))


def test_the_id_of_a_bad_message_is_told_where_it_can_be() -> None:
    assert decode([head(payload=7)]).request_id == 9
    assert decode([head(version=2)]).request_id == 9
    assert decode([head(request_id=-1, payload=7)]).request_id == 0
    assert decode([head(request_id=b"id", payload=7)]).request_id == 0
    assert decode([head(payload=None)]).request_id == 9


def test_missing_extra_and_oversized_bodies() -> None:
    frames = encode_frames([Request(request_id=5, operation="echo", payload=LARGE), GOOD])[0]
    missing = decode(frames[:1])
    assert (missing.messages, missing.problem, missing.request_id) == ([], "payload frame missing", 5)
    extra = decode([*frames, b"more"])
    assert len(extra.messages) == 2
    assert extra.problem == "1 frames belong to no message"
    oversized = decode(frames, max_payload_bytes=len(LARGE) - 1)
    assert (oversized.messages, oversized.request_id) == ([], 5)
    assert "payload of" in str(oversized.problem)
    assert decode(frames, max_payload_bytes=len(LARGE)).problem is None


def test_unknown_types_are_skipped_with_their_bodies() -> None:
    strange = bytes(msgpack.packb([1, 99, 4, None, "?"]))
    good, _ = encode(GOOD)
    assert decode([strange + good, b"body"]) == Decoded([GOOD], unknown=1)
    assert decode([head(type="13") + good]) == Decoded([GOOD], unknown=1)


def test_other_versions_of_a_message_are_read() -> None:
    assert decode([head()]).messages == [Heartbeat(request_id=9)]
    older = bytes(msgpack.packb([1, 13, 9, b"", 1, 2, 3]))
    newer = bytes(msgpack.packb([1, 13, 9, b"", 1, 2, 3, [], "new", [1, 2]]))
    for one in (older, newer):
        assert decode([one]).messages == [Heartbeat(request_id=9, rss_bytes=1, running=2, queued=3)]
    assert decode([bytes(msgpack.packb([1, 1, 0, b""]))]).messages == [Hello()]


@settings(max_examples=500, deadline=None)
@given(st.lists(st.binary(max_size=100), max_size=4))
def test_random_frames_never_raise(frames: list[bytes]) -> None:
    assert isinstance(decode(frames), Decoded)


@settings(max_examples=300, deadline=None)
@given(st.lists(MESSAGES, min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_damaged_frames_never_raise_and_keep_what_came_before(messages: list[Message], rng: random.Random) -> None:
    first, *bodies = encode_frames(messages)[0]
    at = rng.randrange(len(first))
    changed = bytes([*first[:at], rng.randrange(256), *first[at + 1 :]])
    assert isinstance(decode([changed, *bodies]), Decoded)
    ends = [0]
    for message in messages:
        ends.append(ends[-1] + len(encode(message)[0]))
    whole = sum(end <= at for end in ends[1:])
    cut = decode([first[:at], *bodies])
    assert cut.messages == messages[:whole]
    assert decode([changed, *bodies]).messages[:whole] == messages[:whole]


# --- rows -----------------------------------------------------------------------------------------


def test_outcomes_travel() -> None:
    outcomes = [(0, b"a"), (1, b""), (0, LARGE)]
    assert unpack_outcomes(pack_outcomes(outcomes)) == outcomes
    assert unpack_outcomes(b"") == []


def test_damaged_outcomes_are_a_value_error() -> None:
    with pytest.raises(ValueError, match=r"\d+ exceeds"):
        unpack_outcomes(b"\xdd\xff\xff\xff\xff")
