"""JSON Schemas of others: what is read, what is refused, and that nothing else happens."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from signatures import SignatureError
from signatures.model import Spec
from signatures.schema.parts import MAX_NODES
from signatures.schema.reader import read_json_schema
from signatures.text.parser import read
from signatures.types import (
    MAX_DEPTH,
)
from tests.support.schemas import Schema, check_round_trip, outputs, problems_of

CHECKED = settings(derandomize=True, deadline=None, max_examples=120)

READ: list[tuple[Schema, str]] = [
    ({}, "Any"),
    ({"title": "Some title", "x-order": 1, "examples": [1], "unknown": {}}, "Any"),
    ({"type": ["string", "null"], "maxLength": 5}, "str[..5] | None"),
    ({"type": "string", "nullable": True}, "str | None"),
    ({"type": ["integer", "string"], "minimum": 3, "maxLength": 9}, "int[3..] | str[..9]"),
    ({"type": "string", "enum": ["a", "b", 1]}, "Literal['a', 'b']"),
    ({"type": "number", "enum": [1, 2.5, True]}, "Literal[1, 2.5]"),
    ({"oneOf": [{"const": "a", "title": "A"}, {"const": "b", "title": "B"}]}, "Literal['a', 'b']"),
    ({"anyOf": [{"const": "a"}, {"const": "b"}]}, "Literal['a'] | Literal['b']"),
    ({"type": "string", "anyOf": [{"minLength": 3}, {"pattern": "^x"}]}, "str[3..] | str['^x']"),
    ({"anyOf": [{"type": "integer", "minimum": 1}]}, "int[1..]"),
    ({"type": "string", "format": "hostname"}, "str"),
    ({"type": "integer", "format": "int32", "enum": [1, 2, 2]}, "Literal[1, 2]"),
    ({"type": "array", "uniqueItems": True, "items": {"type": "integer"}, "minItems": 1}, "set[int][1..]"),
    ({"type": "string", "format": "date-time"}, "datetime.datetime"),
    ({"type": "string", "format": "decimal"}, "Decimal"),
    ({"type": "object"}, "dict"),
    ({"type": "object", "properties": {}, "required": []}, "dict"),
    ({"type": "object", "additionalProperties": True}, "dict[str, Any]"),
    ({"type": "object", "additionalProperties": {"type": "integer"}, "minProperties": 1}, "dict[str, int][1..]"),
    ({"type": "object", "properties": {"x": {"type": "integer"}}}, "{x: int | None = None}"),
    ({"type": "object", "properties": {"x": {"default": 3}}}, "{x: Any = 3}"),
    ({"type": "object", "properties": {"x": {"type": "string", "default": None}}}, "{x: str | None = None}"),
    ({"type": "array", "items": [{"type": "string"}], "additionalItems": False}, "tuple[str]"),
    ({"type": "array", "prefixItems": [{}, {"type": "string"}], "maxItems": 2}, "tuple[Any, str]"),
    ({"allOf": [{"type": "string"}]}, "str"),
    ({"allOf": [{"type": "string", "minLength": 1}, {"type": "string", "minLength": 2, "maxLength": 9}]}, "str[2..9]"),
    ({"allOf": [{"type": "number"}, {"type": "integer", "maximum": 3}, {"maximum": 5}]}, "int[..3]"),
    ({"allOf": [{"enum": ["a", "b"]}, {"enum": ["b", "c"]}]}, "Literal['b']"),
    (
        {
            "type": "object",
            "allOf": [
                {"properties": {"x": {"type": "string"}}, "required": ["x"]},
                {"properties": {"x": {"maxLength": 4}, "y": {"type": "integer"}}, "required": ["y"]},
            ],
        },
        "{x: str[..4], y: int}",
    ),
]


@pytest.mark.parametrize(("schema", "text"), READ, ids=[text for _, text in READ])
def test_what_others_write_is_read(schema: Schema, text: str) -> None:
    assert read_json_schema(outputs=outputs(a=schema)) == read(f"-> a: {text}")


def test_two_schemas_and_their_own_definitions_are_read() -> None:
    inputs = {
        "type": "object",
        "properties": {"a": {"$ref": "#/$defs/A~1b", "description": "mine", "default": "x"}},
        "$defs": {"A/b": {"type": "string", "maxLength": 3, "description": "not mine"}},
    }
    given = outputs(b={"$ref": "#/definitions/A"}) | {"definitions": {"A": {"$ref": "#/definitions/B"}, "B": True}}
    found = read_json_schema(inputs=inputs, outputs=given, instructions="Do it")
    assert found == read("Do it: a: str[..3] 'mine' = 'x' -> b: Any")


def test_a_field_keeps_its_description_default_and_order() -> None:
    schema = outputs(z={"type": "integer", "description": "last", "default": 7}, a={"type": "string"})
    assert read_json_schema(outputs=schema) == read("-> z: int 'last' = 7, a")


def test_every_unsupported_keyword_is_told_with_its_pointer() -> None:
    schema = {
        "type": "object",
        "properties": {
            "inputs": outputs(a={"type": "string", "not": {"const": "x"}}, b={"type": "array", "contains": {}}),
            "outputs": outputs(**{"c": {"anyOf": [{"if": {}, "then": {}}, {"$id": "x"}]}}),
        },
        "patternProperties": {},
    }
    told = [message.partition(":")[0] for message in problems_of(schema)]
    assert told == [
        "#/patternProperties",
        "#/properties/inputs/properties/a/not",
        "#/properties/inputs/properties/b/contains",
        "#/properties/outputs/properties/c/anyOf/0/if",
        "#/properties/outputs/properties/c/anyOf/0/then",
        "#/properties/outputs/properties/c/anyOf/1/$id",
    ]


REFUSED: list[tuple[Any, str]] = [
    (False, "false accepts nothing"),
    ([], "a schema is an object, true or false, not a list"),
    ({"type": "text"}, "'type' must be one or some of string"),
    ({"type": []}, "'type' must be one or some of string"),
    ({"type": [["string"]]}, "'type' must be one or some of string"),
    ({"type": "string", "minLength": "3"}, "'minLength' must be a whole number, not a text"),
    ({"type": "string", "minLength": True}, "'minLength' must be a whole number, not a bool"),
    ({"type": "integer", "exclusiveMinimum": True}, "'exclusiveMinimum' must be a number, not a bool"),
    ({"type": "integer", "minimum": math.nan}, "'minimum' is out of all bounds"),
    ({"type": "integer", "minimum": 10**5_000}, "'minimum' is out of all bounds"),
    ({"const": 10**5_000}, "a choice is a text, a number, a bool or null"),
    ({"type": "object", "properties": {10**5_000: {}}}, "the name of a property is a text"),
    ({"type": "integer", "minimum": 3, "maximum": 1}, "the range holds nothing"),
    ({"type": "string", "pattern": 5}, "'pattern' must be a text"),
    ({"type": "string", "pattern": "("}, "a: "),
    ({"type": "string", "format": "date", "maxLength": 3}, "takes no constraints"),
    ({"allOf": [{"type": "string"}, {"type": "integer"}]}, "no value has this type and the others"),
    ({"allOf": []}, "'allOf' must be a list with something in it"),
    ({"anyOf": {}}, "'anyOf' must be a list with something in it"),
    ({"enum": []}, "'enum' must be a list with something in it"),
    ({"enum": [{}]}, "a choice is a text, a number, a bool or null"),
    ({"const": math.nan}, "a choice is a text, a number, a bool or null"),
    ({"type": "string", "const": 1}, "there is no value to choose"),
    ({"minLength": 3}, '\'minLength\' means nothing without a type; write "type": "string"'),
    ({"properties": {}}, "'properties' means nothing without a type"),
    ({"$ref": 5}, "'$ref' must be a text, not a whole number"),
    ({"$ref": "#/$defs/Gone"}, "there is no '#/$defs/Gone'"),
    (
        {"$ref": "https://example.org/a.json#/$defs/A"},
        "only '#/$defs/NAME' is followed, and nothing is fetched",
    ),
    ({"$ref": "#"}, "is not followed"),
    ({"type": "array", "prefixItems": [{}]}, "a tuple has a fixed length"),
    (
        {"type": "array", "allOf": [{"items": {}}, {"prefixItems": [{}], "maxItems": 1}]},
        "allOf/0/items: 'items' cannot",
    ),
    ({"type": "array", "uniqueItems": True, "items": {"type": "object"}}, "a set holds no lists, sets or objects"),
    ({"type": "string", "enum": ["a"], "minLength": 1}, "'minLength' cannot be kept here"),
    ({"type": "array", "items": False}, "false accepts nothing"),
    ({"type": "object", "properties": {"x-y": {}}}, "'x-y' is no name for a field"),
    ({"type": "object", "properties": {"class": {}}}, "'class' is a Python keyword"),
    ({"type": "object", "properties": {1: {}}}, "the name of a property is a text"),
    ({"type": "object", "properties": []}, "'properties' must be an object, not a list"),
    ({"type": "object", "properties": {"x": {}}, "required": ["y"]}, "'required' names 'y', which is no property"),
    ({"type": "object", "required": ["y"]}, "'required' cannot be kept here"),
    ({"type": "object", "properties": {"x": {}}, "required": [1]}, "a name is a text"),
    ({"type": "object", "properties": {"x": {}}, "additionalProperties": {"type": "string"}}, "not both"),
    ({"type": "object", "properties": {"x": {}}, "minProperties": 1}, "'minProperties' cannot be kept here"),
    ({"type": "integer", "default": "many"}, "the default must be an integer, got str ('many')"),
    ({"description": 5}, "'description' must be a text, not a whole number"),
    ({5: "x"}, "a keyword is a text, not a whole number"),
]


@pytest.mark.parametrize(("schema", "told"), REFUSED, ids=[told[:50] for _, told in REFUSED])
def test_what_a_signature_cannot_hold_is_refused(schema: Any, told: str) -> None:
    assert any(told in message for message in problems_of(outputs=outputs(a=schema)))


def test_the_sides_are_objects() -> None:
    side = {"type": ["object", "null"], "properties": {"a": {}}, "anyOf": [{}]}
    assert problems_of(inputs=side, outputs={"type": "string"}) == (
        "inputs#/anyOf: 'anyOf' cannot be kept here; leave it out",
        'inputs#: the inputs are an object; write "type": "object"',
        'outputs#: the outputs are an object; write "type": "object"',
    )
    whole = {"type": "array", "properties": {"inputs": {}, "outputs": outputs(a={}), "others": {}}}
    assert problems_of(whole) == (
        '#: the schema of a signature is an object; write "type": "object"',
        "#: a signature has the properties 'inputs' and 'outputs' alone; or give inputs= and outputs=",
    )


def test_a_part_that_forbids_what_another_has_is_refused() -> None:
    parts = [{"properties": {"x": {}}, "additionalProperties": False}, {"properties": {"y": {}}}]
    (problem,) = problems_of(outputs=outputs(a={"type": "object", "allOf": parts}))
    assert problem.startswith("outputs#/properties/a/allOf/0/additionalProperties: it forbids properties")


@pytest.mark.parametrize("given", [{}, {"schema": {}, "outputs": {}}, {"schema": {}, "inputs": {}}])
def test_either_one_schema_or_two_are_given(given: Any) -> None:
    assert problems_of(**given) == ("give either one schema of inputs and outputs, or inputs= and outputs=",)


@pytest.mark.parametrize("schema", [{}, True, [], 5, "x", {"type": "object"}, outputs(a={}), {"properties": 3}])
def test_a_schema_without_the_two_sides_is_refused(schema: Any) -> None:
    assert problems_of(schema)


# --- hostile schemas ---


def definitions(**parts: Any) -> Schema:
    return outputs(a={"$ref": "#/$defs/A"}) | {"$defs": parts}


def test_a_schema_that_contains_itself_is_refused_where_it_does() -> None:
    (problem,) = problems_of(outputs=definitions(A=outputs(next={"$ref": "#/$defs/A"})))
    assert problem.startswith("outputs#/$defs/A/properties/next/$ref: '#/$defs/A' contains itself")


@pytest.mark.parametrize(
    "parts",
    [
        {"A": {"$ref": "#/$defs/A"}},
        {"A": {"allOf": [{"$ref": "#/$defs/B"}]}, "B": {"allOf": [{"$ref": "#/$defs/A"}]}},
        {"A": {"anyOf": [{"$ref": "#/$defs/A"}, {"$ref": "#/$defs/A"}]}},
        {
            "A": {"type": "array", "items": {"$ref": "#/$defs/B"}},
            "B": {"type": "array", "items": {"$ref": "#/$defs/A"}},
        },
    ],
)
def test_a_cycle_of_references_ends(parts: Any) -> None:
    assert any("contains itself" in problem for problem in problems_of(outputs=definitions(**parts)))


def test_too_many_parts_are_refused() -> None:
    wide = {"anyOf": [{"type": "string", "maxLength": number} for number in range(10_000)]}
    assert problems_of(outputs=outputs(a=wide)) == (
        f"outputs#/properties/a/anyOf/{MAX_NODES - 2}: the schema has more than 1,000 parts; "
        "split it, or leave some out",
    )
    assert "more than 1,000 parts" in problems_of(outputs=outputs(a={"enum": list(range(10_000))}))[0]
    # Each level doubles: 2 ** 19 references in a few lines.
    doubled = {f"D{n}": {"anyOf": [{"$ref": f"#/$defs/D{n + 1}"}] * 2} for n in range(19)}
    assert "more than 1,000 parts" in problems_of(outputs=definitions(A={"$ref": "#/$defs/D0"}, D19={}, **doubled))[0]


def test_deep_and_endless_schemas_are_refused() -> None:
    deep: Any = {"type": "string"}
    for _ in range(5_000):
        deep = {"type": "array", "items": deep}
    endless: Any = {"type": "array"}
    endless["items"] = endless
    merged: Any = {}
    merged["allOf"] = [merged]
    for schema in (deep, endless, merged):
        assert f"nested deeper than {MAX_DEPTH}" in problems_of(outputs=outputs(a=schema))[0]


def test_problems_are_bounded_and_short() -> None:
    many = {f"x-{n}": {"type": "y" * 10_000} for n in range(400)}
    told = problems_of(outputs={"type": "object", "properties": many | {"x" * 100_000 + "-": 5}})
    assert len(told) == 21
    assert re.fullmatch(r"and \d+ more", told[-1])
    assert all(len(problem) < 1_000 for problem in told)


KEYWORDS = (
    "type", "properties", "required", "items", "prefixItems", "enum", "const", "anyOf", "oneOf", "allOf", "$ref",
    "additionalProperties", "propertyNames", "format", "pattern", "minimum", "exclusiveMaximum", "multipleOf", "$id",
    "minLength", "maxItems", "uniqueItems", "default", "description", "title", "nullable", "contentMediaType", "not",
)  # fmt: skip
WORDS = st.sampled_from(
    ["string", "object", "array", "integer", "null", "#/$defs/a", "a", "decimal", "dspy.Image", "inputs"]
)
SCHEMAS = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 5) | st.floats() | WORDS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(KEYWORDS), inner, max_size=5)
        | st.dictionaries(st.sampled_from(["a", "b", "inputs", "outputs"]), inner, max_size=3)
    ),
    max_leaves=12,
)


@settings(CHECKED, max_examples=250)
@given(schema=SCHEMAS)
def test_any_value_is_read_or_refused(schema: Any) -> None:
    given = {"type": "object", "properties": {"a": schema}, "required": ["a"], "$defs": {"a": schema}}
    try:
        spec = read_json_schema(outputs=given)
    except SignatureError:
        return
    assert isinstance(spec, Spec)
    assert read(str(spec)) == spec
    check_round_trip(spec)
