"""Hostile bytes at the decoders: Hypothesis over mutated frames, and a little of what `scripts/fuzz` does at length."""

from __future__ import annotations

import random
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.protocol.codec import BATCH_MESSAGES, decode, encode, encode_frames
from bridge.protocol.messages import BEAT_ATTEMPTS, Heartbeat, Message, Request
from tests.fuzz.corpus import SEPARATOR, frame_seeds, frames_of, message_lists, value_seeds
from tests.fuzz.mutation import Mutator
from tests.fuzz.run import fuzz, seeds_of
from tests.fuzz.targets import TARGETS, read_frames, read_headers, read_values

FRAMES = st.sampled_from(frame_seeds())
VALUES = st.sampled_from(value_seeds())
GOOD = Request(request_id=7, operation="echo", payload=b"\x01")


@st.composite
def mutated(draw: st.DrawFn, seeds: st.SearchStrategy[bytes]) -> bytes:
    """Return a sound byte string with some places changed, cut out or doubled, as Hypothesis likes."""
    data = bytearray(draw(seeds))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        match draw(st.sampled_from(["set", "drop", "insert", "splice"])):
            case "set":
                data[at : at + 1] = bytes([draw(st.integers(0, 255))])
            case "drop":
                del data[at : at + draw(st.integers(1, 9))]
            case "insert":
                data[at:at] = draw(st.binary(max_size=9))
            case _:
                data[at:] = draw(seeds)
    return bytes(data)


@settings(max_examples=150, deadline=None)
@given(mutated(FRAMES))
def test_mutated_frames_are_read_or_told(data: bytes) -> None:
    read_frames(data)


@settings(max_examples=150, deadline=None)
@given(mutated(FRAMES))
def test_both_ways_to_read_a_frame_find_the_same(data: bytes) -> None:
    read_headers(data)


@settings(max_examples=150, deadline=None)
@given(mutated(VALUES))
def test_mutated_values_are_values_or_the_one_error(data: bytes) -> None:
    read_values(data)


@settings(max_examples=200, deadline=None)
@given(mutated(FRAMES), st.integers(0, 5), st.integers(0, 5))
def test_what_comes_before_a_bad_message_is_read_and_what_comes_behind_is_not(
    data: bytes, before: int, behind: int
) -> None:
    good, _ = encode(GOOD)
    bad, *bodies = frames_of(data)
    alone = decode([bad, *bodies]) if bad else None
    decoded = decode([good * before + bad + good * behind, *bodies])
    assert decoded.messages[:before] == [GOOD] * before
    if alone is not None and alone.problem is not None and "truncated" not in alone.problem:
        # A body too many or too few is noticed behind the last message.
        at_its_place = "no message" not in alone.problem
        assert decoded.problem is not None
        assert len(decoded.messages) == before + len(alone.messages) + (0 if at_its_place else behind)


@settings(max_examples=50, deadline=None)
@given(st.randoms(use_true_random=False))
def test_sound_messages_of_any_kinds_in_one_frame_are_all_read(rng: random.Random) -> None:
    sound: list[Message] = [message for messages in message_lists() for message in messages]
    chosen = [rng.choice(sound) for _ in range(rng.randrange(1, 2 * BATCH_MESSAGES))]
    assert [message for frames in encode_frames(chosen) for message in decode(frames).messages] == chosen


def test_no_frame_makes_more_of_itself_than_a_bounded_part() -> None:
    """A beat of 64 attempts is the message that grows most: each number of a byte is an object."""
    beat = Heartbeat(attempts=[(1, 1.0, 1, 1, 1.0)] * BEAT_ATTEMPTS)
    (batch,) = encode_frames([beat] * 20)[0]
    hostile = Mutator([batch, *frame_seeds()], 3)
    frames = [frames_of(hostile.next()) for _ in range(2_000)]
    most = 0.0
    tracemalloc.start()
    try:
        for each in frames:
            tracemalloc.reset_peak()
            before, _ = tracemalloc.get_traced_memory()
            decode(each, 10_000)
            _, peak = tracemalloc.get_traced_memory()
            # An unpacker has a buffer of its own.
            most = max(most, (peak - before - (1 << 19)) / max(sum(map(len, each)), 1_000))
    finally:
        tracemalloc.stop()
    assert most < 60


def test_the_engine_repeats_itself_by_seed() -> None:
    first, again, other = (Mutator(frame_seeds(), seed) for seed in (5, 5, 6))
    data = [first.next() for _ in range(200)]
    assert data == [again.next() for _ in range(200)]
    assert data != [other.next() for _ in range(200)]
    assert any(SEPARATOR in each for each in data)


@pytest.mark.parametrize("target", TARGETS)
def test_the_engine_finds_nothing(target: str) -> None:
    mutator = Mutator(seeds_of(target), 11)
    for _ in range(5_000):
        TARGETS[target](mutator.next())


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_million_hostile_messages_crash_nothing_and_cost_no_memory() -> None:
    told: list[str] = []
    assert fuzz(1_000_000, 1, say=told.append), "\n".join(told)
