"""The short ways of reading and writing give what the careful ones give, for sound and for damaged bytes alike."""

from __future__ import annotations

import random
from typing import Any

import msgpack
import pytest

from bridge.protocol.codec import BATCH_MESSAGES, Decoded, decode, encode, encode_frames, pack_outcomes, unpack_outcomes
from bridge.protocol.errors import BridgeError
from bridge.protocol.messages import Event, Heartbeat, Hello, Message, Program, Reply, Request
from bridge.protocol.values import decode_value, encode_value, read_plain_rows, split_values

KINDS: tuple[Message, ...] = (
    Request(request_id=5 << 40 | 7, payload=b"xyz", operation="echo", deadline_ms=1e5, epoch=77, pool="general"),
    Reply(request_id=1, payload=b"q", worker="general-0.0"),
    Heartbeat(rss_bytes=300, running=2),
    Event(kind="k", payload=b"1"),
    Hello(token=b"a"),
    Program(name="x"),
)
# A message of a type nobody knows: a batch that begins with it is read with care.
STRANGE = bytes(msgpack.packb([1, 99, 0, b""]))
# Bytes that mean something where they stand.
MARKS = (0xC0, 0xC4, 0xA0, 0x80, 0x90, 0x93, 0xD4, 0xDC, 0xCC, 0xCB, 0xC2, 0xC3, 0x00, 0x01, 0x03, 0x0D)


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Return data with a byte or two changed, lost or added."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 2)):
        at = rng.randrange(len(changed))
        match rng.randrange(5):
            case 0:
                changed.insert(at, rng.choice(MARKS))
            case 1 if len(changed) > 1:
                del changed[at]
            case _:
                changed[at] = rng.choice([*MARKS, rng.randrange(256)])
    return bytes(changed)


def test_batches_of_one_type_are_read_as_with_care() -> None:
    rng = random.Random(11)
    faults = 0
    for _ in range(8000):
        batch = encode_frames([rng.choice(KINDS)] * rng.choice((1, 1, 2, 5)))[0][0]
        batch = damaged(batch, rng)
        fast, careful = decode([batch]), decode([STRANGE + batch])
        faults += fast.problem is not None
        assert careful == Decoded(
            fast.messages, fast.unknown + 1, fast.problem, fast.request_id, wrong_version=fast.wrong_version
        )
    assert 4000 < faults < 8000


@pytest.mark.parametrize("count", [1, 2, 15, 16, BATCH_MESSAGES])
def test_a_batch_is_its_messages_one_after_the_other(count: int) -> None:
    messages = [KINDS[index % len(KINDS)] for index in range(count)]
    assert encode_frames(messages) == [[b"".join(encode(message)[0] for message in messages)]]


@pytest.mark.parametrize("count", [0, 1, 15, 16, 65_535, 65_536])
def test_outcomes_are_one_after_the_other(count: int) -> None:
    outcomes = [(index % 2, b"v") for index in range(count)]
    packed = pack_outcomes(iter(outcomes))
    assert packed == b"".join(bytes(msgpack.packb(outcome)) for outcome in outcomes)
    assert unpack_outcomes(packed) == outcomes


# --- values ---------------------------------------------------------------------------------------

ATOMS: tuple[Any, ...] = (
    None, True, 1, -5, 2.0, -0.0, 1e300, 2**63, "a", "ünï", b"x", (1,), 2**80, "\ud800", {"k": 1}, [1, "b"],
)  # fmt: skip


def some_value(rng: random.Random, levels: int) -> Any:
    chance = rng.random()
    if levels == 0 or chance < 0.5:
        return rng.choice(ATOMS)
    if chance < 0.75:
        return [some_value(rng, levels - 1) for _ in range(rng.randrange(4))]
    return {rng.choice(["a", "b", 1, None, b"c", 2.5]): some_value(rng, levels - 1) for _ in range(rng.randrange(4))}


def shape(value: Any) -> Any:
    """What tells 1 from 1.0 and True."""
    if isinstance(value, dict):
        return [(shape(key), shape(item)) for key, item in value.items()]
    if isinstance(value, list | tuple):
        return type(value), [shape(item) for item in value]
    return type(value), repr(value)


def read(data: bytes) -> Any:
    try:
        return shape(decode_value(data))
    except BridgeError as error:
        return error.code


def test_values_are_read_as_with_care() -> None:
    rng = random.Random(12)
    for index in range(8000):
        data = encode_value(some_value(rng, rng.randrange(7)))
        if index % 2:
            data = damaged(data, rng)
        # Beside bytes, a value is read with care.
        careful = read(b"\x92\xc4\x00" + data)
        assert read(data) == (careful if type(careful) is str else careful[1][1])


def test_rows_are_read_as_one_by_one() -> None:
    rng = random.Random(13)
    plain = 0
    for index in range(4000):
        data = b"".join(encode_value(some_value(rng, 2)) for _ in range(rng.randint(1, 3)))
        if index % 2:
            data = damaged(data, rng)
        for count in range(1, 4):
            rows = read_plain_rows(data, count)
            if rows is not None:
                plain += 1
                assert shape(rows) == shape([decode_value(row) for row in split_values(data, count)])
    assert plain > 500
    assert read_plain_rows(b"\x01\x01", 1 << 40) is None


@pytest.mark.parametrize("value", [2**64 - 1, 2**64, -(2**63), -(2**63) - 1, "\ud800", {"\ud800": 1}, {2**70: 1.5}])
def test_what_the_short_way_of_writing_cannot_do_is_written_all_the_same(value: Any) -> None:
    assert shape(decode_value(encode_value(value))) == shape(value)
