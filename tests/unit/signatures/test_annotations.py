"""Python annotations to type trees and back: everything that the text grammar has, and what is refused."""

from __future__ import annotations

import collections
import collections.abc
import datetime
import decimal
import enum
import re
import subprocess
import sys
import types
import typing
import uuid
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NewType, Optional, Union

import annotated_types as at
import pydantic
import pytest
import typing_extensions

from signatures.annotations import from_annotation, merged, read_annotation, read_metadata, to_annotation
from signatures.errors import SignatureError
from signatures.types import NONE, STR, Constrained, Constraints, Custom, Media, Record, Scalar, Type


class Color(enum.Enum):
    RED = "red"


class Model(pydantic.BaseModel):
    text: str


@dataclass
class Point:
    x: int


class Movie(typing.TypedDict):
    title: str


class Pair(typing.NamedTuple):
    left: int


class Plain:
    pass


Kilo = NewType("Kilo", float)
Alias = typing_extensions.TypeAliasType("Alias", list[int])
Positive = typing_extensions.TypeAliasType("Positive", Annotated[int, at.Gt(0)])
Endless = typing_extensions.TypeAliasType("Endless", "list[Endless]")

PLAIN: list[tuple[Any, str]] = [
    *((python, python.__name__) for python in (str, int, float, bool, bytes, bytearray, complex)),
    *((python, python.__name__) for python in (list, dict, tuple, set, frozenset)),
    (Any, "Any"),
    (datetime.datetime, "datetime.datetime"),
    (datetime.date, "datetime.date"),
    (datetime.time, "datetime.time"),
    (datetime.timedelta, "datetime.timedelta"),
    (decimal.Decimal, "decimal.Decimal"),
    (uuid.UUID, "uuid.UUID"),
    (list[str], "list[str]"),
    (typing.List[str], "list[str]"),  # noqa: UP006
    (typing.List, "list"),  # noqa: UP006
    (typing.Tuple, "tuple"),  # noqa: UP006
    (dict[str, list[int]], "dict[str, list[int]]"),
    (tuple[int, str], "tuple[int, str]"),
    (tuple[int, ...], "tuple[int, ...]"),
    (set[int], "set[int]"),
    (frozenset[int], "frozenset[int]"),
    (typing.Sequence[str], "Sequence[str]"),
    (collections.abc.Sequence[str], "Sequence[str]"),
    (collections.abc.Iterable[str], "Iterable[str]"),
    (collections.abc.Collection, "Collection"),
    (collections.abc.Mapping[str, int], "Mapping[str, int]"),
    (collections.abc.MutableMapping[str, int], "dict[str, int]"),
    (collections.abc.MutableSequence[int], "list[int]"),
    (collections.abc.Set[int], "set[int]"),
    (Optional[int], "int | None"),  # noqa: UP045
    (int | None, "int | None"),
    (Union[int, str, None], "int | str | None"),  # noqa: UP007
    (Optional[Union[int, Optional[str]]], "int | str | None"),  # noqa: UP007, UP045
    (Union[list[int], typing.List[int]], "list[int]"),  # noqa: UP006, UP007
    (Literal["a", 1, True, None, b"x"], "Literal['a', 1, True, None, b'x']".replace("'a'", '"a"')),
    (Literal["a", "b", "a"], 'Literal["a", "b"]'),
    (typing_extensions.Literal[-1], "Literal[-1]"),
    (Annotated[str, "short", "plain"], 'Annotated[str, "short", "plain"]'),
    (Annotated[Annotated[str, "short"], "plain"], 'Annotated[str, "short", "plain"]'),
    (list[Annotated[int, "years"]], 'list[Annotated[int, "years"]]'),
    (Kilo, "float"),
    (NewType("Nested", Kilo), "float"),
    (Alias, "list[int]"),
    (dict[str, Alias], "dict[str, list[int]]"),
    (typing_extensions.NotRequired[int], "int"),
    (typing.Required[int], "int"),
    (typing.Final[int], "int"),
    (Color, "Color"),
    (Model, "Model"),
    (Point, "Point"),
    (Movie, "Movie"),
    (Pair, "Pair"),
    (Plain, "Plain"),
    (collections.OrderedDict, "OrderedDict"),
    (list[Color | None], "list[Color | None]"),
]


@pytest.mark.parametrize(("annotation", "text"), PLAIN, ids=str)
def test_what_the_text_grammar_has(annotation: Any, text: str) -> None:
    assert str(from_annotation(annotation)) == text


@pytest.mark.parametrize("annotation", [one for one, _ in PLAIN], ids=str)
def test_back_and_forth(annotation: Any) -> None:
    tree = from_annotation(annotation)
    assert from_annotation(to_annotation(tree)) == tree


CONSTRAINED: list[tuple[Any, str]] = [
    (Annotated[int, at.Ge(0), at.Lt(10)], "int[0..<10]"),
    (Annotated[int, at.Gt(0), at.Le(10)], "int[0<..10]"),
    (Annotated[float, at.Interval(gt=0, le=1)], "float[0<..1]"),
    (Annotated[int, at.MultipleOf(5)], "int[multiple_of=5]"),
    (Annotated[str, at.MinLen(1)], "str[1..]"),
    (Annotated[str, at.MaxLen(8)], "str[..8]"),
    (Annotated[list[str], at.Len(1, 5)], "list[str][1..5]"),
    (Annotated[list[str], at.Len(0, 5)], "list[str][..5]"),
    (Annotated[str, pydantic.Field(min_length=1, pattern="^a")], 'str[1.., "^a"]'),
    (
        Annotated[str, pydantic.StringConstraints(max_length=3, pattern=re.compile("^a", re.IGNORECASE))],
        'str[..3, "(?i)^a"]',
    ),
    (Annotated[float, pydantic.Field(ge=0, allow_inf_nan=False)], "float[0.., finite]"),
    (pydantic.FiniteFloat, "float[finite]"),
    (pydantic.PositiveInt, "int[0<..]"),
    (pydantic.conint(ge=1, le=3), "int[1..3]"),
    (pydantic.EmailStr, "str[email]"),
    (Annotated[str | None, at.MaxLen(5)], "str[..5] | None"),
    (Annotated[Positive, at.Lt(9)], "int[0<..<9]"),
    (Annotated[int, "years", at.Ge(0)], 'Annotated[int, "years"][0..]'),
    (Annotated[int, Constraints(ge=2)], "int[2..]"),
    (list[Annotated[int, at.Ge(0)]], "list[int[0..]]"),
    (Annotated[int, NotImplemented, at.doc("how old")], "int"),
]


@pytest.mark.parametrize(("annotation", "text"), CONSTRAINED, ids=str)
def test_constraints_come_from_the_metadata(annotation: Any, text: str) -> None:
    tree = from_annotation(annotation)
    assert str(tree) == text
    assert from_annotation(to_annotation(tree)) == tree


def test_the_outermost_constraints_and_the_description_are_told_apart() -> None:
    found = read_annotation(Annotated[int, pydantic.Field(ge=0, description="how old")])
    assert found == (Scalar("int"), Constraints(ge=0), "how old")
    assert read_annotation(Annotated[str, at.doc("a name")]) == (STR, NONE, "a name")
    assert read_metadata(["a", at.Ge(1), "b"]) == (("a", "b"), Constraints(ge=1), "")


def test_of_two_constraints_of_one_name_the_later_counts() -> None:
    assert str(from_annotation(Annotated[int, at.Ge(0), at.Ge(5)])) == "int[5..]"
    assert merged(Constraints(ge=0, le=9), Constraints(ge=5)) == Constraints(ge=5, le=9)


T = typing.TypeVar("T")


class Box(typing.Generic[T]):
    pass


NAMED_DATE = type("date", (), {})
NAMELESS = type("not a name", (), {})


@pytest.mark.parametrize(
    ("annotation", "told"),
    [
        (T, "'T' is a type variable, and no value has it; write the type that you mean, or Any"),
        (list[T], "'T' is a type variable"),
        (typing.Callable[[int], str], "is no data"),
        (collections.abc.Callable, "'Callable' is no data"),
        (collections.abc.Iterator[int], "arguments that are lost"),
        (collections.abc.Hashable, "'Hashable' is no type for a field"),
        (typing.Self, "'Self' is no type for a field; write a type of values, such as str"),
        (typing.NoReturn, "'NoReturn' is no type for a field"),
        (typing.ClassVar[int], "'ClassVar[int]' is no type for a field"),
        (typing.Union, "'Union' is no type for a field"),
        (typing.ForwardRef("Later"), "the name 'Later' is not known here; define or import it before the signature"),
        ("Later", "the text 'Later' names no type here"),
        (types.GenericAlias(list, ("Later",)), "the text 'Later' names no type here"),
        (type[int], "'type[int]' has arguments that are lost"),
        (Box[int], "derive a class of your own"),
        (object, "'object' says nothing about a value; write Any"),
        (tuple[()], "tuple[()] holds nothing"),
        (Literal[Color.RED], "for a Color write Color itself"),
        (3, "'3' (int) is no type; write a type such as str"),
        ([str], "(list) is no type"),
        ({"a": int}, "(dict) is no type"),
        (Endless, "the text 'list[Endless]' names no type here"),
        (NAMED_DATE, "has the name of another type; rename it"),
        (NAMELESS, "has no name to write"),
        (pydantic.StrictInt, "cannot keep 'Strict'"),
        (Annotated[int, pydantic.AfterValidator(abs)], "cannot keep 'AfterValidator'"),
        (Annotated[str, pydantic.StringConstraints(strip_whitespace=True)], "cannot keep 'strip_whitespace'"),
        (dict[str], "'dict' takes 2 arguments, not 1; write for example dict[X, X]"),
    ],
    ids=str,
)
def test_what_is_no_type_is_refused_with_the_fix(annotation: Any, told: str) -> None:
    with pytest.raises(SignatureError) as caught:
        read_annotation(annotation, name="age")
    assert caught.value.message.startswith("the type of 'age': ")
    assert told in caught.value.message


def test_an_alias_that_holds_itself_ends() -> None:
    # What `type Own = list[Own]` makes in newer Pythons: the value is looked up late.
    kind = type("TypeAliasType", (), {"__value__": property(lambda self: list[self]), "__name__": "Own"})
    kind.__module__ = "typing"
    with pytest.raises(SignatureError, match="the alias 'Own' holds itself"):
        from_annotation(kind())


def test_a_deep_annotation_is_refused() -> None:
    annotation: Any = int
    for _ in range(5_000):
        annotation = list[annotation]
    with pytest.raises(SignatureError, match="nested deeper than 20"):
        from_annotation(annotation)


def test_dspy_types_are_known_by_module_and_name() -> None:
    import dspy

    for name in ("Image", "Audio", "History", "Tool", "Code"):
        assert from_annotation(getattr(dspy, name)) == Media(name)
    java = dspy.Code["java"]
    assert str(from_annotation(list[java])) == 'list[dspy.Code["java"]]'
    own = type("Image", (dspy.Image,), {"__module__": __name__})
    assert from_annotation(own) == Custom("Image", own)


def test_callables_make_what_needs_other_packages() -> None:
    tree: Type = from_annotation(list[Annotated[int, at.Ge(0)]])
    assert to_annotation(tree, constrain=lambda python, given: (python, given.ge)) == list[(int, 0)]
    assert to_annotation(Media("Image")) is Any
    assert to_annotation(Media("Image"), media=lambda one: one.name) == "Image"
    assert to_annotation(Record(())) == dict[str, Any]
    assert to_annotation(Record(()), record=lambda one: len(one.members)) == 0
    assert to_annotation(STR, Constraints(max_length=3), constrain=lambda python, given: (python, given)) == (
        str,
        Constraints(max_length=3),
    )
    assert to_annotation(Constrained(STR, Constraints(max_length=3))) == Annotated[str, Constraints(max_length=3)]


def test_the_module_loads_neither_pydantic_nor_dspy() -> None:
    code = (
        "import sys, signatures.annotations; print(sorted({'pydantic', 'dspy', 'annotated_types'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
