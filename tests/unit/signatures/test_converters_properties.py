"""What holds of every conversion, whatever the type and the value."""

from __future__ import annotations

import typing
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import numpy
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from signatures.converters import convert
from signatures.errors import Problem, ValidationError
from signatures.types import NONE
from tests.support.convertible import (
    BadMapping,
    Color,
    Endless,
    Hostile,
    Items,
    Left,
    Model,
    Name,
    Node,
    Plain,
    Point,
    Positive,
    Right,
    Size,
    Ticket,
    Whole,
    chain,
    knotted,
    same,
    tree,
)

few = settings(derandomize=True, deadline=None, max_examples=150)


SCALAR_TYPES = [
    str,
    int,
    float,
    bool,
    bytes,
    bytearray,
    complex,
    None,
    Any,
    datetime,
    date,
    time,
    timedelta,
    Decimal,
    UUID,
]
OTHER_TYPES = [
    typing.Literal["a", 1, True, None],
    typing.Literal[0, 1.5],
    Color,
    Size,
    Node,
    Positive,
    Point,
    Ticket,
    Model,
    Plain,
    list,
    dict,
    set,
    tuple,
    Left | Right,
]


def _containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(
        inner.map(lambda one: list[one]),
        inner.map(lambda one: tuple[one, ...]),
        st.tuples(inner, inner).map(lambda two: tuple[two[0], two[1]]),
        st.tuples(inner, inner).map(lambda two: dict[two[0], two[1]]),
        inner.map(lambda one: set[one]),
        inner.map(lambda one: frozenset[one]),
        st.tuples(inner, inner).map(lambda two: typing.Union[two[0], two[1]]),  # noqa: UP007 - types are values here
    )


annotations = st.recursive(st.sampled_from([*SCALAR_TYPES, *OTHER_TYPES]), _containers, max_leaves=5)

NUMBERISH = ["1", " 2 ", "1.5", "true", "nan", "1e5", "2025-01-31", "09:30", "PT5M", "r", "RED", "a", "None", "True"]
plain_values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.integers(),
    st.floats(),
    st.text(max_size=3),
    st.sampled_from(NUMBERISH),
    st.binary(max_size=3),
    st.complex_numbers(),
    st.decimals(),
    st.dates(),
    st.datetimes(),
    st.times(),
    st.timedeltas(),
    st.uuids(),
    st.sampled_from([*Color, *Size, Positive(1), Point(1), Model(count=1), Plain(), Name("a"), Whole(1)]),
    st.builds(numpy.int64, st.integers(-3, 3)),
    st.builds(numpy.float64, st.floats()),
    st.builds(bytearray, st.binary(max_size=3)),
)
names = st.sampled_from(["value", "next", "others", "n", "x", "y", "title", "tags", "count", "names", "a", "1"])


hashable_values = st.one_of(
    names, st.integers(-2, 2), st.booleans(), st.tuples(st.integers(0, 1)), st.dates(), st.floats()
)


def _nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.lists(hashable_values, max_size=3).map(set),
        st.dictionaries(hashable_values, inner, max_size=3),
        st.dictionaries(names, inner, max_size=3),
    )


values = st.recursive(plain_values, _nested, max_leaves=6)


def released() -> memoryview:
    view = memoryview(b"a")
    view.release()
    return view


# Hypothesis itself asks its values this and that, so it draws their names.
HOSTILE: dict[str, Any] = {
    "object": Hostile,
    "mapping": BadMapping,
    "endless": Endless,
    "list": lambda: Items([1]),
    "knot": knotted,
    "class": lambda: int,
    "key": lambda: {"n": Hostile(), "x": BadMapping()},
    "items": lambda: [Hostile(), 1],
    "huge": lambda: 1 << 99_999,
    "text": lambda: "9" * 1_000_000,
    "view": released,
    "deep": lambda: chain(400),
    "surrogate": lambda: "\udfff",
}


def with_values(annotation: Any) -> st.SearchStrategy[tuple[Any, Any]]:
    """Draw a value for an annotation: one of its own kind, or any."""
    return st.tuples(st.just(annotation), st.one_of(own(annotation), values))


def own(annotation: Any) -> st.SearchStrategy[Any]:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return st.sampled_from(arguments)
    inner = [own(one) for one in arguments if one is not ...]
    if origin is tuple:
        return st.lists(inner[0], max_size=3).map(tuple) if ... in arguments else st.tuples(*inner)
    if origin is dict:
        return st.lists(st.tuples(*inner), max_size=3).map(lambda items: dict(one for one in items if hashable(one[0])))
    if origin in (set, frozenset):
        return st.lists(inner[0], max_size=3).map(lambda items: origin(filter(hashable, items)))
    if origin is list:
        return st.lists(inner[0], max_size=3)
    if inner:
        return st.one_of(inner)
    return plain_values if annotation in (Any, None, Plain, Positive, Model) else st.from_type(annotation)


def hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


@few
@given(annotations.flatmap(with_values))
def test_to_convert_twice_is_to_convert_once(drawn: tuple[Any, Any]) -> None:
    annotation, value = drawn
    type = tree(annotation)
    try:
        once = convert(type, NONE, value, "v")
    except ValidationError:
        return
    assert same(convert(type, NONE, once, "v"), once)


@few
@given(annotations, values)
def test_nothing_but_validation_errors_comes_out(annotation: Any, value: Any) -> None:
    assert is_sound(told(annotation, value))


@pytest.mark.parametrize("hostile", HOSTILE)
@settings(few, max_examples=60)
@given(annotations)
def test_nothing_else_comes_of_hostile_values(hostile: str, annotation: Any) -> None:
    assert is_sound(told(annotation, HOSTILE[hostile]()))


def told(annotation: Any, value: Any) -> tuple[Problem, ...] | None:
    """Return what is told of a value, None if it is accepted."""
    try:
        convert(tree(annotation), NONE, value, "v")
    except ValidationError as exc:
        return exc.problems
    return None


def is_sound(problems: tuple[Problem, ...] | None) -> bool:
    if problems is None:
        return True
    return bool(problems) and all(one.message.startswith(one.path) and len(one.message) < 2000 for one in problems)


STRICT_TYPES = [
    str,
    int,
    float,
    bool,
    bytes,
    None,
    Any,
    datetime,
    date,
    time,
    timedelta,
    Decimal,
    UUID,
    typing.Literal["a", 1, True, None],
    Color,
    Size,
    Positive,
    Ticket,
    Model,
    list,
    dict,
    set,
    tuple,
]
strict_annotations = st.recursive(st.sampled_from(STRICT_TYPES), _containers, max_leaves=4)


@few
@given(strict_annotations.flatmap(with_values))
def test_what_pydantic_takes_strictly_is_taken(drawn: tuple[Any, Any]) -> None:
    annotation, value = drawn
    try:
        theirs = pydantic.TypeAdapter(annotation).validate_python(value, strict=True)
    except (pydantic.ValidationError, pydantic.PydanticUserError, TypeError):
        return
    ours = convert(tree(annotation), NONE, value, "v")
    assert same(ours, theirs) or ours == theirs
