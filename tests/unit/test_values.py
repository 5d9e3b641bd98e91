"""Values come out as they went in, or say where they cannot."""

from __future__ import annotations

import collections
import contextlib
import copy
import enum
import math
import pickle
import random
import subprocess
import sys
import threading
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

import msgpack
import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.protocol.errors import INVALID_REQUEST, TOO_LARGE, BridgeError
from bridge.protocol.values import MAX_NESTING, Meta, Prediction, decode_value, encode_value, split_values

SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.binary(max_size=20)
    | st.text(st.characters(), max_size=20) | st.dates() | st.datetimes() | st.datetimes(timezones=st.just(UTC))
    | st.times() | st.timedeltas() | st.decimals(allow_nan=False) | st.uuids()
)  # fmt: skip
KEYS = st.recursive(SCALARS, lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3), max_leaves=4)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(KEYS, inner, max_size=4)
        | st.sets(KEYS, max_size=4)
        | st.dictionaries(st.text(max_size=5), inner, max_size=3).map(Prediction)
    ),
    max_leaves=20,
)


def same(left: Any, right: Any) -> bool:
    """Equality with types, at every level of lists and dict values."""
    if type(left) is not type(right):
        return False
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    return bool(left == right)


def nested(depth: int, wrap: Any = lambda value: [value]) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = wrap(value)
    return value


@settings(max_examples=300, deadline=None)
@given(VALUES)
def test_any_value_arrives_equal(value: Any) -> None:
    assert same(decode_value(encode_value(value)), value)


@pytest.mark.parametrize(
    "value",
    [
        0, 2**63, 2**64, -(2**63) - 1, 2**64 - 1, 10**400, -(10**400), math.inf, -math.inf, -0.0,
        "\ud800 lone", b"\x00\xff", (), [], {}, set(), frozenset(), ((1, (2,)),), {(1, ("a", 2)): 1, None: 2, b"k": 3},
        {frozenset({(1, 2)}): {1, "x"}}, datetime(2024, 2, 29, 1, 2, 3, 999_999),
        datetime(2024, 2, 29, tzinfo=timezone(timedelta(hours=5, minutes=45, seconds=7))), datetime.min, datetime.max,
        date.max, time(1, 2, 3, 4, tzinfo=UTC), timedelta.min, timedelta.max, Decimal("1E+999999"), Decimal("-0.00"),
        Decimal("Infinity"), UUID(int=2**128 - 1), Prediction({"answer": "x", "keys": [1, (2,)]}),
        {"a": {"b": [Prediction({"c": {1, 2}})]}},
    ],
    ids=lambda value: type(value).__name__,  # a repr of sets differs from process to process
)  # fmt: skip
def test_corner_values(value: Any) -> None:
    assert same(decode_value(encode_value(value)), value)


def test_nan_arrives_as_nan() -> None:
    assert math.isnan(decode_value(encode_value(math.nan)))
    assert decode_value(encode_value(Decimal("sNaN"))).is_snan()


def test_named_zones_arrive_as_the_same_instant() -> None:
    sent = datetime(2024, 7, 1, 12, tzinfo=ZoneInfo("Europe/Berlin"))
    got = decode_value(encode_value(sent))
    assert got == sent
    assert got.utcoffset() == timedelta(hours=2)
    with pytest.raises(BridgeError, match="depends on the date"):
        encode_value(time(12, tzinfo=ZoneInfo("Europe/Berlin")))


class Point(NamedTuple):
    x: int
    y: int


class Text(str):
    def __str__(self) -> str:
        return "not this"


class Count(int):
    pass


class Color(enum.IntEnum):
    RED = 1


class Name(enum.StrEnum):
    A = "a"


@dataclass
class Record:
    x: int


@pytest.mark.parametrize(
    ("sent", "received"),
    [
        (collections.OrderedDict(b=1, a=2), {"b": 1, "a": 2}),
        (collections.defaultdict(list, a=[1]), {"a": [1]}),
        (collections.Counter("aab"), {"a": 2, "b": 1}),
        (Point(1, 2), (1, 2)),
        ([Point(1, 2)], [(1, 2)]),
        (Text("text"), "text"),
        ({Text("k"): Text("v")}, {"k": "v"}),
        (Count(7), 7),
        (Count(2**70), 2**70),
        (bytearray(b"ab"), b"ab"),
        (memoryview(b"abc")[1:], b"bc"),
    ],
)
def test_subclasses_travel_as_their_base(sent: Any, received: Any) -> None:
    assert same(decode_value(encode_value(sent)), received)


def cyclic() -> list[Any]:
    value: list[Any] = []
    value.append([value, value])
    return value


class Unreadable(dict):  # type: ignore[type-arg]
    def __iter__(self) -> Any:
        raise RuntimeError("no")

    keys = items = values = __iter__


@pytest.mark.parametrize(
    ("value", "path", "text"),
    [
        (object(), "", "the value cannot travel: it is a object"),
        ({"docs": [1, 2, 3, {"x": object()}]}, "docs[3].x", "plain data"),
        ({"a": (1, {2: [object]})}, "a[1][2][0]", "plain data"),
        ({"two words": {"x": len}}, "['two words'].x", "plain data"),
        ([{1, 2}, {Record}], "[1]{item}", "plain data"),
        ({"p": Prediction({"f": len})}, "p.f", "plain data"),
        ({"x": {len: 1}}, "x{key}", "plain data"),
        ([Color.RED], "[0]", "send its .value or .name"),
        ({"n": Name.A}, "n", "send its .value or .name"),
        ({"r": Record(1)}, "r", "dataclasses.asdict"),
        ([1j], "[0]", "plain data"),
        (numpy.array([object()]), "", "tolist"),
        ({"m": numpy.ma.masked_array([1], mask=[True])}, "m", "cannot travel"),
        ({"m": memoryview(b"abcd")[::2]}, "m", "contiguous"),
        ({"u": Unreadable(a=1)}, "", "RuntimeError"),
    ],
    ids=lambda value: repr(value)[:30] if isinstance(value, str) else "",
)
def test_what_cannot_travel_is_named(value: Any, path: str, text: str) -> None:
    with pytest.raises(BridgeError) as caught:
        encode_value(value)
    assert caught.value.code == INVALID_REQUEST
    assert caught.value.details["path"] == path
    assert text in caught.value.message


def test_a_failed_value_leaves_nothing_behind() -> None:
    for _ in range(3):
        with pytest.raises(BridgeError):
            encode_value({"a": "x" * 100, "b": object()})
        assert decode_value(encode_value({"a": 1})) == {"a": 1}


# --- limits -------------------------------------------------------------------------------------

WRAPS = [lambda v: [v], lambda v: {"a": v}, lambda v: (v,), lambda v: frozenset({v}), lambda v: Prediction({"a": v})]


@pytest.mark.parametrize("wrap", WRAPS, ids=["list", "dict", "tuple", "frozenset", "prediction"])
@pytest.mark.parametrize("nesting", [1, 5, 128])
def test_nesting_is_counted_on_both_sides(wrap: Any, nesting: int) -> None:
    data = encode_value(nested(nesting, wrap), nesting=nesting)
    assert decode_value(data, nesting=nesting) == nested(nesting, wrap)
    with pytest.raises(BridgeError, match="nested") as caught:
        encode_value(nested(nesting + 1, wrap), nesting=nesting)
    assert caught.value.code == INVALID_REQUEST
    too_deep = encode_value(nested(nesting + 1, wrap), nesting=nesting + 1)
    with pytest.raises(BridgeError, match="nested"):
        decode_value(too_deep, nesting=nesting)


@pytest.mark.parametrize("wrap", WRAPS, ids=["list", "dict", "tuple", "frozenset", "prediction"])
def test_no_configuration_allows_endless_nesting(wrap: Any) -> None:
    encode_value(nested(MAX_NESTING - 1, wrap), nesting=10**9)
    with pytest.raises(BridgeError, match="nested"):
        encode_value(nested(MAX_NESTING + 1, wrap), nesting=10**9)


def test_a_value_that_contains_itself_is_refused() -> None:
    with pytest.raises(BridgeError, match="contains itself") as caught:
        encode_value(cyclic())
    assert len(caught.value.details["path"]) <= 201


@pytest.mark.parametrize("code", [1, 2, 3, 10, 11, 12, 77])
def test_hostile_nesting_of_extensions_is_refused(code: int) -> None:
    data = b"\x90"
    for _ in range(2000):
        data = msgpack.packb(msgpack.ExtType(code, data))
    with pytest.raises(BridgeError) as caught:
        decode_value(data)
    assert caught.value.code == INVALID_REQUEST


def test_size_limit() -> None:
    size = len(encode_value("x" * 1000))
    encode_value("x" * 1000, max_bytes=size)
    with pytest.raises(BridgeError, match=f"{size:,}") as caught:
        encode_value("x" * 1000, max_bytes=size - 1)
    assert caught.value.code == TOO_LARGE


# --- hostile bytes --------------------------------------------------------------------------------


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=200))
def test_random_bytes_are_a_value_or_a_typed_error(data: bytes) -> None:
    assert readable(data) in (True, False)


def readable(data: bytes) -> bool:
    """Whether data is a value; a fault must be the typed one."""
    with contextlib.suppress(BridgeError):
        decode_value(data)
        return True
    return False


@settings(max_examples=300, deadline=None)
@given(VALUES, st.randoms(use_true_random=False))
def test_damaged_values_never_raise_anything_else(value: Any, rng: random.Random) -> None:
    data = bytearray(encode_value(value))
    for _ in range(rng.randint(1, 3)):
        data[rng.randrange(len(data))] = rng.randrange(256)
    for damaged in (bytes(data), bytes(data[: rng.randrange(len(data))]), bytes(data) + b"\x00"):
        assert readable(damaged) in (True, False)
    assert not readable(bytes(data[:0]))


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\xc1", b"\x01\x02", b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff",
        b"\x91" * 100_000, b"\x81\x90\x01", b"\x81\x80\x01",
        msgpack.packb(msgpack.ExtType(99, b"")), msgpack.packb(msgpack.ExtType(1, b"\xc0")),
        msgpack.packb(msgpack.ExtType(1, b"\x90\x90")), msgpack.packb(msgpack.ExtType(4, b"yesterday")),
        msgpack.packb(msgpack.ExtType(7, b"\x7f" * 12)), msgpack.packb(msgpack.ExtType(9, b"short")),
        msgpack.packb(msgpack.ExtType(12, b"\x81\x01\x02")), msgpack.packb(msgpack.ExtType(10, b"")),
    ],
    ids=lambda data: data[:8].hex(),
)  # fmt: skip
def test_damaged_corner_cases(data: bytes) -> None:
    with pytest.raises(BridgeError, match="cannot be read") as caught:
        decode_value(data)
    assert caught.value.code == INVALID_REQUEST


@pytest.mark.parametrize(
    ("descr", "shape"),
    [
        ("|O", [1]), ("<f8", [2**40]), ("<f8", [-1]), ("<f8", "ab"), ("nonsense", [1]), ("|S0", [2**50]),
        ([["a", "|O"]], [1]), ("<f8", [2**62, 2**62]), ("<f8", [1.5]),
    ],
)  # fmt: skip
def test_hostile_arrays_are_refused(descr: Any, shape: Any) -> None:
    head = msgpack.packb([descr, shape])
    body = len(head).to_bytes(4, "big") + head + bytes(-(4 + len(head)) % 16) + bytes(16)
    with pytest.raises(BridgeError):
        decode_value(msgpack.packb(msgpack.ExtType(10, body)))


# --- numpy ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "array",
    [
        numpy.arange(12, dtype="<f4").reshape(3, 4), numpy.arange(12).reshape(3, 4).T, numpy.arange(10)[::-2],
        numpy.array(5), numpy.zeros((0, 3)), numpy.zeros((3, 0), "U2"), numpy.array([True, False]),
        numpy.array(["a", "ünï"]), numpy.array([b"x", b"yz"]), numpy.array([1 + 2j]), numpy.array([1.5], ">f8"),
        numpy.array(["2024-01-01", "NaT"], "M8[us]"), numpy.array([3], "m8[s]"), numpy.array([1.5], "f2"),
        numpy.array([(1, 2.0, b"ab")], [("a", "i4"), ("b", "f8"), ("c", "S2")]), numpy.array([b"\x00\x01"], "V2"),
        numpy.array([((1, 2), 3)], [("p", [("x", "i1"), ("y", "i1")]), ("z", "i2")]),
    ],
    ids=lambda array: f"{array.dtype}{array.shape}"[:40],
)  # fmt: skip
def test_arrays(array: Any) -> None:
    got = decode_value(encode_value({"array": array}))["array"]
    assert type(got) is numpy.ndarray
    assert got.dtype == array.dtype
    assert got.shape == array.shape
    assert got.tobytes() == array.tobytes()


def test_arrays_are_aligned_views() -> None:
    got = decode_value(encode_value(["pad", numpy.arange(1000.0)]))[1]
    assert got.flags.aligned
    assert not got.flags.owndata


@pytest.mark.parametrize(
    "scalar",
    [numpy.float32(1.5), numpy.float64(2.5), numpy.int8(-3), numpy.uint64(2**64 - 1), numpy.bool_(True),
     numpy.str_("ab"), numpy.str_(""), numpy.bytes_(b"ab"),
     numpy.datetime64("2024-01-01T00:00", "s"), numpy.timedelta64(3, "D"), numpy.complex64(1j)],
    ids=lambda scalar: type(scalar).__name__,
)  # fmt: skip
def test_scalars(scalar: Any) -> None:
    got = decode_value(encode_value({"x": scalar}))["x"]
    assert type(got) is type(scalar)
    assert got == scalar
    assert got.dtype == scalar.dtype or scalar.dtype.itemsize == 0


def test_values_without_arrays_do_not_load_numpy() -> None:
    code = (
        "import sys; from bridge.protocol.values import decode_value, encode_value;"
        "decode_value(encode_value({'a': [1, (2,), {3}]}));"
        "sys.exit('numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- rows -----------------------------------------------------------------------------------------


@given(st.lists(VALUES, max_size=5))
@settings(max_examples=50, deadline=None)
def test_rows_split_where_they_were_joined(rows: list[Any]) -> None:
    encoded = [encode_value(row) for row in rows]
    assert split_values(b"".join(encoded), len(rows)) == encoded


@pytest.mark.parametrize(
    ("data", "count"), [(b"\x01\x02", 1), (b"\x01\x02", 3), (b"\x01\xc1", 2), (b"\x01\x92", 2), (b"", 1)]
)
def test_rows_that_do_not_add_up_are_refused(data: bytes, count: int) -> None:
    with pytest.raises(BridgeError) as caught:
        split_values(data, count)
    assert caught.value.code == INVALID_REQUEST


# --- Prediction -----------------------------------------------------------------------------------


def test_prediction_is_a_mapping_with_attributes() -> None:
    prediction = Prediction({"answer": "4", "keys": "k"})
    assert prediction.answer == prediction["answer"] == prediction.get("answer") == "4"
    assert prediction["keys"] == "k"
    assert dict(prediction) == prediction.toDict() == {"answer": "4", "keys": "k"}
    assert prediction == Prediction({"keys": "k", "answer": "4"})
    assert prediction != Prediction({"answer": "5", "keys": "k"})
    assert repr(prediction) == "Prediction(answer='4', keys='k')"
    assert "answer" in dir(prediction)
    with pytest.raises(AttributeError, match="fields: answer, keys"):
        _ = prediction.reasoning
    with pytest.raises(AttributeError):
        prediction.answer = "5"  # type: ignore[attr-defined]


def test_meta_is_set_once_and_copied() -> None:
    prediction = Prediction({"answer": 1})
    assert prediction.meta is None
    meta = Meta(1, "general-0.0", "general", 1, 0.1, 0.2, 0.3, 1, 10, None, False)
    prediction.meta = meta
    with pytest.raises(AttributeError, match="once"):
        prediction.meta = meta
    for twin in (copy.copy(prediction), copy.deepcopy(prediction), pickle.loads(pickle.dumps(prediction))):
        assert twin == prediction
        assert twin.meta == meta
    assert (meta.executed_on, meta.fallback_used, meta.trace_id) == ("worker", False, "")


def test_threads_do_not_share_packers() -> None:
    wrong: list[Any] = []

    def work(number: int) -> None:
        for index in range(300):
            value = {"t": f"{number}" * 50, "nested": [(index, {number}), numpy.arange(3)]}
            got = decode_value(encode_value(value))
            if got["t"] != value["t"] or got["nested"][0] != value["nested"][0]:
                wrong.append(got)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
