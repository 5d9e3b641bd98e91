"""The model: frozen values, their identity, their edits, and defaults that are the same once they are read again."""

from __future__ import annotations

import copy
import enum
import hashlib
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings

from signatures.annotations import from_annotation
from signatures.converters import convert
from signatures.errors import SignatureError
from signatures.model import MAX_FIELDS, Field, Spec
from signatures.text.literals import NotALiteral, literal, plain, shape
from signatures.text.parser import read
from signatures.types import (
    ANY,
    STR,
    Annotated,
    Constraints,
    Custom,
    Generic,
    Literal,
    Media,
    Record,
    Scalar,
    Type,
    Union,
)
from tests.support.signatures import specs


class Mood(enum.Enum):
    GOOD = "good"
    BAD = "bad"


class Flags(enum.Flag):
    A = 1
    B = 2


@dataclass(frozen=True)
class Point:
    x: int
    y: Any = 0


TEXT = 'Rate it: review: str[1..4000], tags: list[str] = ["a"] -> stars: int[1..5], reason "one sentence"'
SPEC = read(TEXT)
INPUT, OUTPUT = Field.of("a", "input", typed=False), Field.of("b", "output")
NOT_A_TEXT: Any = 5


# --- frozen values ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        SPEC, INPUT, STR, Generic("list", (STR,)), Literal((1, 2)), Union((STR, ANY)), Constraints(ge=1),
        Record((Field.of("x", "member"),)), Media("Image"), Custom("Mood", Mood),
    ],
    ids=repr,
)  # fmt: skip
def test_every_part_is_a_frozen_value(value: Any) -> None:
    name = next(iter(getattr(value, "__slots__", None) or vars(value)))
    with pytest.raises(AttributeError):
        setattr(value, name, None)
    with pytest.raises(AttributeError):
        delattr(value, name)
    for again in (pickle.loads(pickle.dumps(value)), copy.deepcopy(value)):
        assert again == value
        assert hash(again) == hash(value)


def test_equal_specs_have_equal_texts_and_the_same_classes() -> None:
    again = read(f"  {TEXT.replace(', ', ',  ')}  # the same")
    assert (again, hash(again), again.sha256) == (SPEC, hash(SPEC), SPEC.sha256)
    assert read(TEXT.replace("[1..5]", "[1..6]")) != SPEC
    assert SPEC != TEXT

    class Other(enum.Enum):
        GOOD = "good"

    assert read("-> m: M", types={"M": Mood}) == read("-> m: M", types={"M": Mood})
    assert read("-> m: M", types={"M": Mood}) != read("-> m: M", types={"M": Other})


def test_the_digest_is_of_the_text_and_never_changes() -> None:
    assert str(SPEC) == TEXT
    assert SPEC.sha256 == hashlib.sha256(TEXT.encode()).hexdigest()
    assert read("question -> answer").sha256 == "6ca079c84421c043685959e2f5cd18dedb5a3fd6377d366fe4f1f9a76ed93e35"


# --- edits ------------------------------------------------------------------------------------


def test_edits_return_new_specs() -> None:
    spec = Spec((INPUT,), (OUTPUT,))
    one, more = Field.of("c", "input", Scalar("int")), Field.of("d", "output")
    assert str(spec.append(one).append(more)) == "a, c: int -> b, d"
    assert str(spec.prepend(one).prepend(more)) == "c: int, a -> d, b"
    assert str(spec.append(more).delete("b").delete("a")) == "-> d"
    assert str(spec.with_updated_field("b", type=ANY, default=3)) == "a -> b: Any = 3"
    assert spec.with_instructions("Do it.").with_instructions("") == spec
    assert str(spec) == "a -> b"
    for edit in (spec.delete, spec.with_updated_field, spec.field):
        with pytest.raises(KeyError, match="the signature has no field 'x'; it has a, b"):
            edit("x")


def test_a_field_with_constraints_is_a_typed_one() -> None:
    limited = Field.of("a", "input", constraints=Constraints(max_length=3), typed=False)
    assert limited.typed
    assert not INPUT.typed
    assert INPUT.replace(type=STR).typed


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Spec((INPUT,), ()), "at least one output"),
        (lambda: Spec((), (INPUT,)), "the field 'a' is of the kind 'input' and stands among the outputs"),
        (
            lambda: Spec((OUTPUT,), (OUTPUT.replace(name="c"),)),
            "'b' is of the kind 'output' and stands among the inputs",
        ),
        (lambda: Spec((), (Field.of("m", "member"),)), "the field 'm' is of the kind 'member'"),
        (lambda: Spec((INPUT,), (OUTPUT.replace(name="a"),)), "'a' is an input and an output"),
        (lambda: Spec((), (OUTPUT,), NOT_A_TEXT), "instructions are a text, not int"),
        (lambda: Spec((), (OUTPUT.replace(type=Scalar("None")),)), "None alone is no type for 'b'"),
        (lambda: Spec((), (OUTPUT.replace(constraints=Constraints(ge=1)),)), "the type of 'b': 'str' takes no 'ge'"),
        (
            lambda: Spec((), [OUTPUT.replace(name=f"b{n}") for n in range(MAX_FIELDS + 1)]),
            "at most 200 fields, not 201",
        ),
        (
            lambda: Spec((INPUT.replace(type=Custom("M", Mood)),), (OUTPUT.replace(type=Custom("M", Point)),)),
            "two different classes are called 'M'; rename one",
        ),
    ],
)
def test_what_is_no_signature_is_refused(make: Callable[[], Spec], told: str) -> None:
    with pytest.raises(SignatureError) as caught:
        make()
    assert told in caught.value.message


# --- defaults ---------------------------------------------------------------------------------


def defaulted(annotation: Any, default: Any) -> Spec:
    return Spec((Field.of("a", "input", from_annotation(annotation), default=default),), (OUTPUT,))


@pytest.mark.parametrize(
    ("annotation", "default"),
    [
        (str | Mood, Mood.GOOD), (Mood | str, Mood.GOOD), (list[str | Mood], [Mood.GOOD]),
        (set[str | Mood], {Mood.GOOD}),
        (Flags, Flags.A | Flags.B), (date | str, date(2024, 1, 31)), (float | timedelta, timedelta(1)),
        (Any, date(2024, 1, 31)), (Any, Decimal(1)),
        (Any, 1j), (Any, set()), (Any, Point(1)), (dict, {"x": [frozenset({1})]}), (Point, Point(1, y=Decimal(2))),
    ],
    ids=repr,
)  # fmt: skip
def test_a_default_that_would_be_read_as_another_is_refused(annotation: Any, default: Any) -> None:
    # Its text would be that of a signature with another default.
    with pytest.raises(SignatureError, match=r"the default of 'a' cannot be kept: written as .* does not read back"):
        defaulted(annotation, default)


@pytest.mark.parametrize(
    ("annotation", "default"),
    [
        (Mood | None, Mood.GOOD), (str | Mood, "good"), (Flags, Flags.B), (date | int, date(2024, 1, 31)),
        (complex, -1 - 2j),
        (set[Mood], {Mood.GOOD}), (Any, ((), [], {1: (2,)})), (set, set()), (Point, Point(1, y=["z"])),
        (dict[str, Point | None], {"p": Point(1), "q": None}), (float, float("-inf")), (Any, -0.0), (bytes, b"\xff'\""),
    ],
    ids=repr,
)  # fmt: skip
def test_a_default_that_is_kept_reads_back_the_same(annotation: Any, default: Any) -> None:
    spec = defaulted(annotation, default)
    again = read(str(spec), types=spec.customs)
    assert again == spec
    # Not by the specs' validators, which equal specs share.
    values = [
        convert(one.inputs[0].type, one.inputs[0].constraints, one.inputs[0].default, "a") for one in (spec, again)
    ]
    assert shape(values[0]) == shape(values[1]) == shape(default)


@settings(max_examples=60, derandomize=True, deadline=None)
@given(specs())
def test_every_default_survives_the_text(spec: Spec) -> None:
    again = read(str(spec), types=spec.customs)
    for one, other in zip(spec.fields.values(), again.fields.values(), strict=True):
        if not one.required:
            values = [convert(field.type, field.constraints, field.default, "a") for field in (one, other)]
            assert shape(values[0]) == shape(values[1])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "None"), (True, "True"), (-7, "-7"), (1e300, "1e+300"), (float("inf"), "1e999"), ("it's", '"it\'s"'),
        ('"', "'\"'"), ("\ud800", '"\\ud800"'), (bytearray(b"a"), "b'a'"), (1 - 2j, '"(1-2j)"'), ((1,), "(1,)"),
        ((), "()"),
        ({"b", "a"}, '{"a", "b"}'), (frozenset(), "[]"), ({"a": [None]}, '{"a": [None]}'), (Mood.BAD, '"bad"'),
        (date(2024, 1, 31), '"2024-01-31"'), (timedelta(minutes=1), "60.0"), (Decimal("1.10"), '"1.10"'),
        (Point(1), '{"x": 1, "y": 0}'),
    ],
)  # fmt: skip
def test_the_text_of_a_value(value: Any, text: str) -> None:
    assert literal(value) == literal(plain(value)) == text


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (float("nan"), "nan"), (complex("nan"), "nan"), (10**5000, "at most 4,000 digits"),
        (object(), "'object' has no"), (Mood, "'EnumType' has no"), ({Point(1)}, "in a set"),
        ({frozenset({1}): 2}, "a key of a dict"),
    ],
    ids=["nan", "complex", "digits", "object", "class", "set", "key"],
)  # fmt: skip
def test_what_has_no_text(value: Any, told: str) -> None:
    with pytest.raises(NotALiteral, match=told):
        literal(value)


def test_defaults_and_types_have_a_bounded_depth() -> None:
    deep: list[Any] = []
    for _ in range(25):
        deep = [deep]
    for measured in (literal, shape):
        with pytest.raises(NotALiteral, match="nested deeper than 20"):
            measured(deep)
    with pytest.raises(SignatureError, match="the default of 'a' cannot be kept: a default is nested deeper than 20"):
        defaulted(Any, deep)
    nested: Type = STR
    for _ in range(20):
        nested = Generic("list", (nested,))
    with pytest.raises(SignatureError, match="the type of 'b' is nested deeper than 20"):
        Spec((), (OUTPUT.replace(type=nested),))


# --- constraints and instructions -------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "base", "told"),
    [
        ({"ge": True}, "int", "'ge' must be a number, not True"),
        ({"le": float("nan")}, "float", "'le' must be a number, not nan"),
        ({"max_length": 2.5}, "str", "'max_length' must be a whole number, not 2.5"),
        ({"pattern": b"x"}, "str", "'pattern' must be a text, not b'x'"),
        ({"ge": 1}, "bool", "'bool' takes no constraints; numbers take ranges, texts and containers take lengths"),
        ({"ge": 1}, "str", "'str' takes no 'ge'; that is for int, float and Decimal"),
        ({"min_length": 1}, "int", "'int' takes no 'min_length'; that is for texts and containers"),
        ({"format": "email"}, "bytes", "'bytes' takes no 'format'; that is for str"),
        ({"finite": True}, "int", "'int' takes no 'finite'; that is for float"),
        ({"ge": 1, "gt": 2}, "int", "a range has one lower and one upper end; write for example [0..1] or [0<..<1]"),
        ({"min_length": -1}, "str", "a length is 0 or more; write for example [1..80]"),
        ({"multiple_of": 0}, "int", "'multiple_of' must be above 0"),
        ({"gt": 1, "lt": 1}, "int", "the range holds nothing: 1 is not below 1; swap the ends"),
        ({"format": "phone"}, "str", "unknown format 'phone'; formats are email, json, url"),
        ({"pattern": "("}, "str", "the pattern cannot be read: missing ) (character 2)"),
    ],
    ids=str,
)
def test_constraints_that_a_type_cannot_have(given: dict[str, Any], base: str, told: str) -> None:
    assert Constraints(**given).problem(Scalar(base)) == told
    assert Constraints(**given).problem(Annotated(Scalar(base), ("note",))) in (
        told,
        told.replace(f"'{base}' takes", f"'Annotated[{base}, \"note\"]' takes"),
    )


@pytest.mark.parametrize("text", ['"a \\x": a -> b', "'\\ud8': a -> b"])
def test_a_bad_escape_in_quoted_instructions_is_text(text: str) -> None:
    spec = read(text)
    assert spec.instructions == text[1 : text.index(":") - 1]
    assert read(str(spec)) == spec
