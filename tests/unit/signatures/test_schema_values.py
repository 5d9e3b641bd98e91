"""A schema says what validation does; a signature reads back as far as a schema says it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any
from uuid import UUID

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from signatures import ValidationError, from_json_schema, parse
from signatures.model import Field, Spec
from signatures.schema.json_values import json_value
from signatures.schema.writer import json_schema
from signatures.text.parser import read
from signatures.types import (
    ANY,
    NOTHING,
    STR,
    Constrained,
    Constraints,
    Generic,
    Literal,
    Record,
    Scalar,
    Type,
    union,
)
from tests.corpus.rows import load, types_of
from tests.support.schemas import again, check_round_trip
from tests.support.signatures import specs

CHECKED = settings(derandomize=True, deadline=None, max_examples=60)


def test_the_corpus_reads_back_as_far_as_a_schema_says_it() -> None:
    rows = load("signatures")
    untold = Counter(check_round_trip(read(row["text"], types=types_of(row))) for row in rows)
    of_classes = untold.pop("a class is read as a record")
    told = untold.pop("")
    assert told >= 300
    assert told + of_classes >= len(rows) - 5, untold


@CHECKED
@given(spec=specs())
def test_any_signature_reads_back_as_far_as_a_schema_says_it(spec: Spec) -> None:
    check_round_trip(spec)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("question -> answer", "question: str -> answer: str"),
        ("-> a: frozenset[int]", "-> a: set[int]"),
        ("-> a: tuple[int, ...]", "-> a: list[int]"),
        ("-> a: Collection[Sequence]", "-> a: list[list]"),
        ("-> a: Mapping[Any, int]", "-> a: dict[str, int]"),
        ("-> a: dict[int, str]", "-> a: dict[str['^-?[0-9]+$'], str]"),
        ("-> a: dict[UUID, str]", "-> a: dict[uuid.UUID, str]"),
        ("-> a: Annotated[list[float[finite]], 'note']", "-> a: list[float]"),
        ("-> a: Literal[b'x', 1]", """-> a: Literal["b'x'", 1]"""),
        ("-> a: float = 1e999", "-> a: float | None = None"),
        ("-> a: list | tuple", "-> a: list"),
    ],
)
def test_what_a_schema_cannot_say_reads_back_as_this(text: str, expected: str) -> None:
    assert again(read(text)) == read(expected)


def test_a_class_takes_its_name_from_the_title() -> None:
    Triage = parse("ticket -> team: Literal['a', 'b']", name="Triage")
    found = from_json_schema(Triage.json_schema())
    assert found.__name__ == "Triage"
    assert found.__module__ == __name__
    assert str(found) == "ticket: str -> team: Literal['a', 'b']".replace("'", '"')
    assert (
        from_json_schema(outputs={"type": "object", "properties": {"a": {}}, "required": ["a"]}).__name__ == "Signature"
    )


# --- the same values ---

# Texts of a format are checked by what the format means, as a consumer that checks formats does.
FORMATS = jsonschema.FormatChecker(formats=())
for name, well_formed in {
    "date-time": datetime.fromisoformat,
    "date": date.fromisoformat,
    "time": time.fromisoformat,
    "uuid": UUID,
    "decimal": Decimal,
}.items():
    FORMATS.checks(name, raises=(ValueError, ArithmeticError))(
        lambda value, well_formed=well_formed: not isinstance(value, str) or well_formed(value) is not None
    )

INT, FLOAT, BOOL = Scalar("int"), Scalar("float"), Scalar("bool")
TEXTS = st.text("ab1.-", max_size=5)
DATES = st.dates().map(date.isoformat)
NUMBERS = st.integers(-20, 20) | st.floats(-20, 20, width=16)
JUNK = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS | DATES | st.uuids().map(str),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)

# Types without arguments, each with values that may fit it.
LEAVES: dict[Type, st.SearchStrategy[Any]] = {
    STR: TEXTS,
    Constrained(STR, Constraints(min_length=1, max_length=3)): TEXTS,
    Constrained(STR, Constraints(pattern="^a+$")): st.text("ab", max_size=3),
    INT: NUMBERS,
    Constrained(INT, Constraints(ge=-3, lt=7, multiple_of=2)): NUMBERS,
    FLOAT: NUMBERS,
    Constrained(FLOAT, Constraints(gt=0, le=1)): NUMBERS,
    BOOL: st.booleans(),
    NOTHING: st.none(),
    ANY: JUNK,
    Scalar("decimal.Decimal"): NUMBERS | st.decimals(-9, 9, places=2).map(str),
    Scalar("datetime.date"): DATES,
    Scalar("datetime.datetime"): st.datetimes().map(datetime.isoformat),
    Scalar("datetime.time"): st.times().map(time.isoformat),
    Scalar("uuid.UUID"): st.uuids().map(str),
    Literal(("a", "b", 1, True, None)): st.sampled_from(["a", "b", "c", 0, 1, True, False, None]),
    Generic("set", (INT,)): st.lists(NUMBERS),
    Generic("frozenset", (STR,)): st.lists(TEXTS),
}


def nested(inner: st.SearchStrategy[Type]) -> st.SearchStrategy[Type]:
    few = Constraints(min_length=1, max_length=2)
    return st.one_of(
        st.builds(lambda one: Generic("list", (one,)), inner),
        st.builds(lambda one: Constrained(Generic("Sequence", (one,)), few), inner),
        st.builds(lambda key, one: Generic("dict", (key, one)), st.sampled_from([STR, INT]), inner),
        st.builds(lambda *both: Generic("tuple", both), inner, inner),
        st.builds(union, inner, inner),
        st.builds(record, inner, inner),
    )


def record(first: Type, second: Type) -> Type:
    other = Field.of("y", "member", union(second, NOTHING), default=None)
    return Record((Field.of("x", "member", first), other))


TYPES = st.recursive(st.sampled_from(list(LEAVES)), nested, max_leaves=4)


def fitting(type: Type) -> st.SearchStrategy[Any]:
    """Values most of which fit a type."""
    if type in LEAVES:
        return LEAVES[type]
    match type:
        case Constrained(base, _):
            return fitting(base)
        case Generic("dict", (key, value)):
            return st.dictionaries(TEXTS if key == STR else st.integers(0, 9).map(str), fitting(value), max_size=3)
        case Generic("tuple", items):
            return st.tuples(*map(fitting, items)).map(list) | st.lists(fitting(items[0]), max_size=3)
        case Generic(_, (item,)):
            return st.lists(fitting(item), max_size=3)
        case Record((first, second)):
            others = fitting(second.type)
            return st.fixed_dictionaries({"x": fitting(first.type)}, optional={"y": others, "z": others})
    return st.one_of(*map(fitting, type.children()))


def accepted(spec: Spec, value: Any) -> Iterator[Any]:
    """Yield what the value converts to, nothing if it does not."""
    try:
        yield spec.validate_inputs({"a": value})["a"]
    except ValidationError:
        return


@settings(CHECKED, max_examples=300)
@given(type=TYPES, data=st.data())
def test_a_schema_accepts_what_validation_takes_as_it_is(type: Type, data: st.DataObject) -> None:
    # None alone is no type for a field; a list of it is.
    spec = Spec([Field.of("a", "input", Generic("list", (type,)))], [Field.of("b", "output")])
    side = json_schema(spec)["properties"]["inputs"]
    validator = jsonschema.Draft202012Validator(side, format_checker=FORMATS)
    for value in ([data.draw(fitting(type))], [data.draw(JUNK)]):
        is_valid = validator.is_valid({"a": value})
        converted = list(accepted(spec, value))
        if is_valid:
            assert converted, (str(spec), value)
        if converted and json.dumps(json_value(converted[0])) == json.dumps(value):
            assert is_valid, (str(spec), value)
