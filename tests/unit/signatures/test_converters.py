"""Conversion: what each type takes, what it makes of it, and what is said of the rest."""

from __future__ import annotations

import collections
import typing
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import numpy
import pytest

from signatures.converters import convert, expects
from signatures.model import Field
from signatures.types import NONE, Annotated, Constrained, Constraints, Generic, Media, Record, Scalar
from tests.support.convertible import (
    BadMapping,
    Color,
    Endless,
    Hostile,
    Items,
    Model,
    Name,
    Node,
    Plain,
    Point,
    Positive,
    Size,
    Strictly,
    Ticket,
    Whole,
    problem,
    same,
    tree,
)

ACCEPTED = [
    (str, "a", "a"),
    (str, Name("a"), "a"),
    (str, numpy.str_("a"), "a"),
    (str, "", ""),
    (int, 7, 7),
    (int, "7", 7),
    (int, " -7 ", -7),
    (int, "+7", 7),
    (int, 7.0, 7),
    (int, Decimal("7.0"), 7),
    (int, Decimal("1e3"), 1000),
    (int, "9" * 1000, int("9" * 1000)),
    (int, Size.SMALL, 1),
    (int, Whole(3), 3),
    (int, numpy.int64(7), 7),
    (int, numpy.float32(7), 7),
    (float, 1.5, 1.5),
    (float, 2, 2.0),
    (float, " 1.5e3 ", 1500.0),
    (float, ".5", 0.5),
    (float, "5.", 5.0),
    (float, Decimal("1.5"), 1.5),
    (float, numpy.float64(2), 2.0),
    (float, numpy.int8(2), 2.0),
    (float, float("nan"), float("nan")),
    (float, float("inf"), float("inf")),
    (bool, True, True),
    (bool, "tRue", True),
    (bool, "FALSE", False),
    (bool, numpy.bool_(True), True),
    (bytes, b"a", b"a"),
    (bytes, bytearray(b"a"), b"a"),
    (bytes, memoryview(b"a"), b"a"),
    (bytes, "ä", b"\xc3\xa4"),
    (bytearray, b"a", bytearray(b"a")),
    (bytearray, "a", bytearray(b"a")),
    (bytearray, bytearray(b"a"), bytearray(b"a")),
    (complex, 1j, 1j),
    (complex, 2, 2 + 0j),
    (complex, 1.5, 1.5 + 0j),
    (complex, "1+2j", 1 + 2j),
    (complex, "(1+2j)", 1 + 2j),
    (complex, Decimal(2), 2 + 0j),
    (str | None, None, None),
    (Any, None, None),
    (Any, {"a": [1]}, {"a": [1]}),
    (datetime, "2025-01-31T09:30:00Z", datetime(2025, 1, 31, 9, 30, tzinfo=UTC)),
    (datetime, "2025-01-31", datetime(2025, 1, 31)),
    (datetime, datetime(2025, 1, 31), datetime(2025, 1, 31)),
    (datetime, numpy.datetime64("2025-01-31T09:30:00"), datetime(2025, 1, 31, 9, 30)),
    (date, "2025-01-31", date(2025, 1, 31)),
    (date, date(2025, 1, 31), date(2025, 1, 31)),
    (time, "09:30", time(9, 30)),
    (time, time(9), time(9)),
    (timedelta, 90, timedelta(seconds=90)),
    (timedelta, 0.5, timedelta(seconds=0.5)),
    (timedelta, Decimal("1.5"), timedelta(seconds=1.5)),
    (timedelta, "P1DT2H3M4.5S", timedelta(days=1, hours=2, minutes=3, seconds=4.5)),
    (timedelta, "-P2W", timedelta(weeks=-2)),
    (timedelta, "PT0.000001S", timedelta(microseconds=1)),
    (timedelta, timedelta(1), timedelta(1)),
    (Decimal, "1.50", Decimal("1.50")),
    (Decimal, 3, Decimal(3)),
    (Decimal, 0.1, Decimal("0.1")),
    (Decimal, Decimal(1), Decimal(1)),
    (UUID, "12345678-1234-5678-1234-567812345678", UUID(int=0x12345678123456781234567812345678)),
    (UUID, "{12345678123456781234567812345678}", UUID(int=0x12345678123456781234567812345678)),
    (list[int], ["1", 2.0], [1, 2]),
    (list[int], (1,), [1]),
    (list[str], [], []),
    (list, (1, "a"), [1, "a"]),
    (list[str], Items(["a"]), ["a"]),
    (list[int], Point(1, 2), [1, 2]),
    (typing.Sequence[int], (1,), [1]),
    (typing.Iterable[str], ["a"], ["a"]),
    (typing.Collection[str], ("a",), ["a"]),
    (set[int], ["1", 1], {1}),
    (set[int], frozenset({1}), {1}),
    (set, (1,), {1}),
    (frozenset[str], {"a"}, frozenset({"a"})),
    (tuple[int, str], [1, "a"], (1, "a")),
    (tuple[int, ...], ["1", 2], (1, 2)),
    (tuple, [1], (1,)),
    (tuple[int, str], ("1", "a"), (1, "a")),
    (dict[str, int], {"a": "1"}, {"a": 1}),
    (dict[int, str], {"1": "a"}, {1: "a"}),
    (dict, collections.OrderedDict(a=1), {"a": 1}),
    (dict, Endless(), {0: 0, 1: 1}),
    (typing.Mapping[str, Any], collections.ChainMap({"a": 1}), {"a": 1}),
    (typing.Literal["a", 2, True, None, b"x"], "2", 2),
    (typing.Literal["a", 2, True, None], "True", True),
    (typing.Literal["a", 2, True, None], None, None),
    (typing.Literal["a", 2, True, None], "None", None),
    (typing.Literal["a", b"x"], "b'x'", b"x"),
    (typing.Literal["a", 1], Size.SMALL, 1),
    (typing.Literal["a"], Name("a"), "a"),
    (typing.Literal["2", 2], "2", "2"),
    (Color, Color.RED, Color.RED),
    (Color, "r", Color.RED),
    (Color, "GREEN", Color.GREEN),
    (Color, 2, Color.GREEN),
    (Color, "2", Color.GREEN),
    (Color, True, Color.TRUE),
    (Size, 1, Size.SMALL),
    (int | str, "7", "7"),
    (str | int, 7, 7),
    (int | bool, True, True),
    (int | float, 2.0, 2.0),
    (int | float, "2", 2),
    (int | float, numpy.float64(2), 2.0),
    (float | int, numpy.int64(2), 2),
    (int | str, Name("7"), "7"),
    (int | Size, Size.SMALL, Size.SMALL),
    (list[int] | list[str], ["1"], ["1"]),
    (list[int] | tuple[int, ...], (1,), (1,)),
    (list[int] | None, ("1",), [1]),
    (Positive | int, {"n": "1"}, Positive(1)),
    (Node, {"value": "1", "next": {"value": 2}, "others": [{"value": 3}]}, Node(1, Node(2), [Node(3)])),
    (Point, {"x": "1"}, Point(1)),
    (Point, [1, "2"], Point(1, 2)),
    (Point, Point(1, 2), Point(1, 2)),
    (Ticket, {"title": "a"}, {"title": "a"}),
    (Ticket, {"tags": ("b",), "title": "a"}, {"title": "a", "tags": ["b"]}),
    (Strictly, {"title": "a"}, {"title": "a"}),
    (Model, {"count": "1"}, Model(count=1)),
    (Model, Model(count=1), Model(count=1)),
    (Media("Image"), "http://a.b/c.png", "http://a.b/c.png"),
    (Annotated(Scalar("int"), ("a note",)), "1", 1),
]


@pytest.mark.parametrize(("annotation", "value", "result"), ACCEPTED)
def test_accepted(annotation: Any, value: Any, result: Any) -> None:
    type = tree(annotation)
    made = convert(type, NONE, value, "v")
    assert same(made, result)
    assert same(convert(type, NONE, made, "v"), result)


REFUSED = [
    (str, 123, "v must be a string, got int (123)"),
    (str, b"a", "v must be a string, got bytes (b'a')"),
    (str, None, "v must be a string, got None"),
    (str, ["a"], "v must be a string, got list (['a'])"),
    (int, True, "v must be an integer, got bool (True)"),
    (int, 7.5, "v must be an integer, got float (7.5)"),
    (int, "1_000", "v must be an integer, got str ('1_000')"),
    (int, "7.0", "v must be an integer, got str ('7.0')"),
    (int, "٣", "v must be an integer, got str ('٣')"),
    (int, float("inf"), "v must be an integer, got float (inf)"),
    (int, Decimal("1e999999999"), "v must be an integer, got Decimal"),
    (int, Decimal("nan"), "v must be an integer, got Decimal (NaN)"),
    (int, "9" * 10_000_000, f"v must be an integer, got str ('{'9' * 58}…)"),
    (int, "9" * 1001, f"v must be an integer, got str ('{'9' * 58}…)"),
    (int, numpy.float32(0.5), "v must be an integer, got float32 (0.5)"),
    (int, None, "v must be an integer, got None"),
    (float, False, "v must be a number, got bool (False)"),
    (float, "nan", "v must be a number, got str ('nan')"),
    (float, "1e999", "v must be a number, got str ('1e999')"),
    (float, "inf", "v must be a number, got str ('inf')"),
    (float, 1 << 2000, "v must be a number, got int (of 2001 bits)"),
    (float, 1j, "v must be a number, got complex (1j)"),
    (bool, 1, "v must be true or false, got int (1)"),
    (bool, "yes", "v must be true or false, got str ('yes')"),
    (bytes, 1, "v must be bytes, got int (1)"),
    (bytes, "\ud800", "v must be bytes, got str ('\\ud800')"),
    (complex, True, "v must be a complex number, got bool (True)"),
    (complex, "nan", "v must be a complex number, got str ('nan')"),
    (Scalar("None"), 0, "v must be None, got int (0)"),
    (datetime, "soon", "v must be a date and time, like 2025-01-31T09:30:00, got str ('soon')"),
    (datetime, 5, "v must be a date and time, like 2025-01-31T09:30:00, got int (5)"),
    (date, datetime(2025, 1, 31), "v must be a date, like 2025-01-31, got datetime (2025-01-31T00:00:00)"),
    (date, "2025-02-30", "v must be a date, like 2025-01-31, got str ('2025-02-30')"),
    (time, "25:00", "v must be a time, like 09:30:00, got str ('25:00')"),
    (timedelta, True, "v must be a duration in seconds, or like PT1H30M, got bool (True)"),
    (timedelta, "P1Y", "v must be a duration in seconds, or like PT1H30M, got str ('P1Y')"),
    (timedelta, "PT", "v must be a duration in seconds, or like PT1H30M, got str ('PT')"),
    (timedelta, 1e300, "v must be a duration in seconds, or like PT1H30M, got float (1e+300)"),
    (Decimal, True, "v must be a decimal number, got bool (True)"),
    (Decimal, "nan", "v must be a decimal number, got str ('nan')"),
    (Decimal, float("nan"), "v must be a decimal number, got float (nan)"),
    (UUID, "1234", "v must be a UUID, got str ('1234')"),
    (UUID, 5, "v must be a UUID, got int (5)"),
    (list[str], "ab", "v must be a list of strings, got str ('ab')"),
    (list, {1}, "v must be a list, got set ({1})"),
    (list[int], [1, "a", True], "v[1] must be an integer, got str ('a')\nv[2] must be an integer, got bool (True)"),
    (list[list[int]], [[1], ["a"]], "v[1][0] must be an integer, got str ('a')"),
    (set[int], {"a"}, "v['a'] must be an integer, got str ('a')"),
    (set[int], ["a"], "v[0] must be an integer, got str ('a')"),
    (set[list[int]], [[1]], "v[0] must be something that a set can hold, got list ([1])"),
    (set, [[1]], "v[0] must be something that a set can hold, got list ([1])"),
    (tuple[int, str], [1], "v must be a tuple (an integer, a string), got 1 item"),
    (tuple[int, str], [1, 2], "v[1] must be a string, got int (2)"),
    (tuple[int, ...], {1}, "v must be a tuple of integers, got set ({1})"),
    (dict[str, int], {"a": "b"}, "v['a'] must be an integer, got str ('b')"),
    (dict[str, int], {1: 2}, "v[1] has a key that must be a string, got int (1)"),
    (dict[int, str], {"1": "a", 1: "b"}, "v[1] has the same key as v['1']; leave one out"),
    (dict[list[int], int], {(1,): 1}, "v[(1)] has a key that a mapping cannot hold, got tuple ((1))"),
    (dict, [("a", 1)], "v must be a mapping, got list ([(…)])"),
    (dict, BadMapping(), "v cannot be read: it raised ZeroDivisionError"),
    (typing.Literal["a", 2], "c", "v must be one of 'a', 2, got str ('c')"),
    (typing.Literal["a", 1], True, "v must be one of 'a', 1, got bool (True)"),
    (typing.Literal["a", 1], 1.0, "v must be one of 'a', 1, got float (1.0)"),
    (typing.Literal["a"], ["a"], "v must be 'a', got list (['a'])"),
    (Color, "b", "v must be one of 'r', 2, True, got str ('b')"),
    (Color, 1, "v must be one of 'r', 2, True, got int (1)"),
    (int | None, "a", "v must be an integer or None, got str ('a')"),
    (list[int] | None, ["a"], "v[0] must be an integer, got str ('a')"),
    (
        int | list[int] | list[str],
        [None],
        "v must be an integer or a list of integers or a list of strings, got list ([None])",
    ),
    (
        Node,
        {"value": "a", "nxt": 1},
        "v.value must be an integer, got str ('a')\nv.nxt is unknown; did you mean 'next'?",
    ),
    (Node, {"value": 1, "others": [{}]}, "v.others[0].value is missing; give an integer"),
    (Node, [1], "v must be a Node (a mapping with value, next, others), got list ([1])"),
    (Positive, {"n": -1}, "v makes no Positive: n is below 0"),
    (
        list[Positive],
        [{"n": -1}, 3],
        "v[0] makes no Positive: n is below 0\nv[1] must be a Positive (a mapping with n), got int (3)",
    ),
    (list[Positive], 3, "v must be a list of Positive objects (mappings with n), got int (3)"),
    (Point, [1, 2, 3], "v must be a Point (a mapping with x, y), got 3 items"),
    (Point, ["a"], "v.x must be an integer, got str ('a')"),
    (Point, [], "v.x is missing; give an integer"),
    (Ticket, {"tags": [1]}, "v.title is missing; give a string\nv.tags[0] must be a string, got int (1)"),
    (Ticket, 5, "v must be a Ticket (a mapping with title, tags), got int (5)"),
    (Strictly, {"note": "a"}, "v.title is missing; give a string"),
    (
        Model,
        {"names": [1], "count": 13},
        "v.count is refused: 13 brings bad luck, got int (13)\nv.names[0] must be a valid string, got int (1)",
    ),
    (Model, {}, "v.count is missing; give a value"),
    (Model, 5, "v must be a Model (a mapping with count, names), got int (5)"),
    (Plain, {}, "v must be a Plain, got dict ({})"),
    (Media("Image"), None, "v must be a dspy.Image, got None"),
    (int, Hostile(), "v must be an integer, got Hostile"),
    (Color, Hostile(), "v must be one of 'r', 2, True, got Hostile"),
    (typing.Literal["a", 1], Hostile(), "v must be one of 'a', 1, got Hostile"),
    (dict[str, int], {"odd name": 1, "b": Hostile()}, "v['b'] must be an integer, got Hostile"),
]


@pytest.mark.parametrize(("annotation", "value", "message"), REFUSED)
def test_refused(annotation: Any, value: Any, message: str) -> None:
    assert problem(annotation, value) == message


C = Constraints


@pytest.mark.parametrize(
    ("annotation", "constraints", "good", "bad", "words"),
    [
        (int, C(ge=0, le=100), [0, 100, "5"], [-1, 101, "101"], "an integer from 0 to 100"),
        (int, C(gt=0, lt=3), [1, 2.0], [0, 3], "an integer above 0 and below 3"),
        (int, C(ge=0, lt=3), [0], [3], "an integer of at least 0 and below 3"),
        (int, C(multiple_of=5), [0, -5, 10**600], [7], "an integer that is a multiple of 5"),
        (float, C(ge=0, le=1), [0, 0.5, 1], [-0.1, 1.1, float("nan")], "a number from 0 to 1"),
        (float, C(ge=0), [float("inf")], [float("nan")], "a number of at least 0"),
        (float, C(lt=1, gt=0), [0.5], [0, 1, float("nan")], "a number above 0 and below 1"),
        (float, C(finite=True), [1], [float("nan"), float("inf")], "a finite number"),
        (float, C(multiple_of=0.1), [0.3, 1, 0.0], [0.35, float("inf")], "a number that is a multiple of 0.1"),
        (Decimal, C(ge=0.1, le=0.3), ["0.1", "0.3"], ["0.31", Decimal("nan")], "a decimal number from 0.1 to 0.3"),
        (
            Decimal,
            C(multiple_of=0.5),
            ["1.5"],
            ["1.6", Decimal("1e99999")],
            "a decimal number that is a multiple of 0.5",
        ),
        (str, C(max_length=2), ["", "ab"], ["abc"], "a string of at most 2 characters"),
        (str, C(min_length=1), ["a"], [""], "a string of at least 1 character"),
        (str, C(min_length=1, max_length=2), ["a"], ["", "abc"], "a string of 1 to 2 characters"),
        (str, C(pattern="^[A-Z]+$"), ["AB"], ["ab", ""], "a string that matches '^[A-Z]+$'"),
        (str, C(format="email"), ["a@example.org"], ["a"], "an email address"),
        (bytes, C(max_length=1), [b"a"], [b"ab", "ä"], "bytes of at most 1 byte"),
        (list[str], C(min_length=1, max_length=2), [["a"], ("a", "b")], [[], ["a"] * 3], "a list of 1 to 2 strings"),
        (list, C(max_length=1), [[1]], [[1, 2]], "a list of at most 1 item"),
        (set[int], C(max_length=1), [[1, "1"]], [[1, 2]], "a set of at most 1 integer"),
        (
            dict[str, int],
            C(max_length=1),
            [{}],
            [{"a": 1, "b": 2}],
            "a mapping of strings to integers with at most 1 item",
        ),
        (tuple[int, ...], C(min_length=2), [[1, 2]], [[1]], "a tuple of at least 2 integers"),
    ],
)
def test_constraints(annotation: Any, constraints: Constraints, good: list[Any], bad: list[Any], words: str) -> None:
    type = tree(annotation)
    assert expects(type, constraints) == words
    for value in good:
        convert(type, constraints, value, "v")
        convert(Generic("list", (Constrained(type, constraints),)), NONE, [value], "v")
    for value in bad:
        assert problem(type, value, constraints).startswith(f"v must be {words}, got ")
        inside = problem(Generic("list", (Constrained(type, constraints),)), [value])
        assert inside.startswith(f"v[0] must be {words}, got ")


@pytest.mark.parametrize(
    ("constraints", "annotation", "value", "tail"),
    [
        (C(max_length=80), str, "x" * 95, "got 95 characters"),
        (C(max_length=80), str, 5, "got int (5)"),
        (C(min_length=1), list[str], [], "got 0 items"),
        (C(max_length=1), list[str], ["a", 2], "v[1] must be a string, got int (2)"),
        (C(max_length=1), bytes, b"ab", "got 2 bytes"),
        (C(max_length=1), bytes, "ä", "got 2 bytes"),
    ],
)
def test_a_broken_length_is_told_as_a_length(constraints: Constraints, annotation: Any, value: Any, tail: str) -> None:
    assert problem(annotation, value, constraints).endswith(tail)


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (list[typing.Literal["a", "b"]], "a list of values, each one of 'a', 'b'"),
        (list[list[str]], "a list of lists of strings"),
        (list[str | None], "a list of values, each a string or None"),
        (dict[str, list[int]], "a mapping of strings to lists of integers"),
        (str | None, "a string or None"),
        (typing.Literal[tuple(range(30))], "one of 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 20 more"),
        (Plain, "a Plain"),
        (Record((Field.of("a", "member"), Field.of("b", "member"))), "a mapping with a, b"),
    ],
)
def test_expectations_in_words(annotation: Any, words: str) -> None:
    assert expects(tree(annotation), NONE) == words
