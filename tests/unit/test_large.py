"""Values with large arrays: their parts, what they come back as, and what hostile bytes come to."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.protocol import large
from bridge.protocol.errors import BridgeError
from bridge.protocol.values import decode_value, encode_parts, encode_value

ROWS = large.LARGE_BYTES // 8


def joined(value: Any) -> bytes:
    """Return a value as it travels."""
    return b"".join(encode_parts(value))


@pytest.mark.parametrize("dtype", ["<f8", ">f4", "<i2", "|u1", "<c16", "<M8[us]", "<U5", "?"])
@pytest.mark.parametrize("place", ["alone", "in a dict", "in a list in a dict", "twice"])
def test_arrays_come_back_as_they_were(dtype: str, place: str) -> None:
    array = np.zeros(ROWS * 8, dtype=dtype).reshape(8, -1)
    value: Any = {
        "alone": array,
        "in a dict": {"x": array, "n": 1, "more": (1, {"y": 2**70})},
        "in a list in a dict": {"rows": ["a", array]},
        "twice": [array, "between", array[:, ::2]],
    }[place]
    assert large.holds_large(value)
    data = joined(value)
    assert data[:1] == large.MARK
    np.testing.assert_equal(decode_value(data), value)


def test_its_elements_are_not_copied() -> None:
    array = np.arange(ROWS, dtype=np.float64)
    parts = encode_parts({"x": array})
    assert any(
        isinstance(part, memoryview) and np.shares_memory(np.frombuffer(part, np.float64), array) for part in parts
    )
    data = b"".join(parts)
    back = decode_value(data)["x"]
    assert np.shares_memory(back, np.frombuffer(data, np.uint8))
    assert not back.flags.writeable
    assert back.ctypes.data % 16 == np.frombuffer(data, np.uint8).ctypes.data % 16  # aligned as the message is


def test_small_values_travel_as_ever() -> None:
    for value in ({"x": np.zeros(10)}, "text", {"deep": {"er": {"x": np.zeros(ROWS)}}}, {"x": (np.zeros(ROWS),)}):
        assert not large.holds_large(value)
        assert encode_parts(value) == [encode_value(value)]


def test_what_cannot_travel_is_told_by_its_path() -> None:
    with pytest.raises(BridgeError) as caught:
        encode_parts({"x": np.zeros(ROWS), "docs": [object()]})
    assert caught.value.details["path"] == "docs[0]"
    with pytest.raises(BridgeError) as caught:
        encode_parts({"x": np.array([object()] * ROWS)})
    assert caught.value.details["path"] == "x"
    with pytest.raises(BridgeError) as caught:
        encode_parts({"x": np.zeros(ROWS)}, max_bytes=1000)
    assert caught.value.code == "TOO_LARGE"


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_damaged_bytes_are_refused(data: st.DataObject) -> None:
    whole = bytearray(joined({"x": np.zeros(ROWS), "y": 1}))
    place = data.draw(st.integers(1, 80))
    whole[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.sampled_from([len(whole), len(whole) - 8, 100, 6, 1]))
    refused: BridgeError | None = None
    try:
        decode_value(bytes(whole[:cut]))
    except BridgeError as error:
        refused = error
    assert refused is None or refused.code == "INVALID_REQUEST"
