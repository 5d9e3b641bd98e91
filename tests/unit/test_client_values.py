"""Rows encoded and decoded together are what each is by itself."""

from __future__ import annotations

import datetime
import decimal
import random
import uuid
from typing import Any

import pytest

from bridge.protocol.errors import BridgeError
from bridge.protocol.values import (
    Prediction,
    decode_value,
    decode_values,
    encode_value,
    encode_values,
    read_plain_rows,
    split_values,
)


def atom(seeded: random.Random) -> Any:
    return seeded.choice((
        None, True, False, 0, -1, seeded.getrandbits(63), -seeded.getrandbits(62), seeded.random(), "",
        "é" * seeded.randrange(40), b"\x00" * seeded.randrange(300), seeded.getrandbits(64),
    ))  # fmt: skip


def odd(seeded: random.Random) -> Any:
    return seeded.choice((
        seeded.getrandbits(200), "lone \udc80", (1, 2), {3, 4}, {1: "one", (2, 3): None}, decimal.Decimal("1.50"),
        datetime.datetime(2024, 5, seeded.randint(1, 31), tzinfo=datetime.UTC), uuid.UUID(int=seeded.getrandbits(128)),
        Prediction({"answer": seeded.random()}),
    ))  # fmt: skip


def value(seeded: random.Random, levels: int, oddness: float) -> Any:
    draw = seeded.random()
    if draw < oddness:
        return odd(seeded)
    if levels == 0 or draw < 0.6:
        return atom(seeded)
    if draw < 0.8:
        return [value(seeded, levels - 1, oddness) for _ in range(seeded.randrange(5))]
    return {f"k{n}": value(seeded, levels - 1, oddness) for n in range(seeded.randrange(5))}


def batches(seed: int, oddness: float) -> list[list[Any]]:
    seeded = random.Random(seed)
    counts = [1, 2, 15, 16, 17, 64, 300]
    return [[value(seeded, seeded.randrange(5), oddness) for _ in range(count)] for count in counts for _ in range(5)]


@pytest.mark.parametrize("oddness", [0.0, 0.02, 0.3])
@pytest.mark.parametrize("seed", range(4))
def test_values_together_are_as_each_by_itself(seed: int, oddness: float) -> None:
    for batch in batches(seed, oddness):
        encoded = [encode_value(one) for one in batch]
        together = encode_values(batch)
        assert together == b"".join(encoded)
        assert split_values(together, len(batch)) == encoded
        wanted = [decode_value(one) for one in encoded]
        found = decode_values(encoded)
        assert found == wanted == batch
        assert [type(one) for one in found] == [type(one) for one in wanted]
        plain = read_plain_rows(together, len(batch))
        assert plain is None or plain == wanted


@pytest.mark.parametrize("atoms", [range(70_000), ["x"] * 16, [{"q": n, "t": "x"} for n in range(20)]])
def test_flat_values_together_are_as_each_by_itself(atoms: Any) -> None:
    assert encode_values(list(atoms)) == b"".join(map(encode_value, atoms))


def test_nesting_is_limited_for_each_value_alike() -> None:
    deep: Any = 1
    for _ in range(6):
        deep = [deep]
    assert decode_values([encode_value(deep)], nesting=8) == [deep]
    with pytest.raises(BridgeError):
        encode_values([1, deep], nesting=4)
    with pytest.raises(BridgeError):
        decode_values([encode_value(1), encode_value(deep)], nesting=4)


@pytest.mark.parametrize("bad", [object(), {"x": [object()]}])
def test_what_cannot_travel_is_refused_with_its_path(bad: Any) -> None:
    with pytest.raises(BridgeError) as alone:
        encode_value(bad)
    with pytest.raises(BridgeError) as together:
        encode_values([1, bad, 2])
    assert together.value.details == alone.value.details


def test_a_payload_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(BridgeError):
        decode_values([encode_value(1), b"\xc1"])
