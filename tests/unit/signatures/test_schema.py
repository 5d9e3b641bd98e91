"""What JSON Schema is written for each type, default and class."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from enum import Enum
from typing import Any, NamedTuple, NotRequired, TypedDict

import jsonschema
import pytest
from pydantic import BaseModel
from pydantic import Field as PydanticField

from signatures import SignatureError, ValidationError
from signatures.converters import convert
from signatures.schema.json_values import NotJson, json_value
from signatures.schema.writer import DIALECT, json_schema
from signatures.text.parser import read
from tests.support.schemas import Schema, again, one

WRITTEN: list[tuple[str, Schema]] = [
    ("str", {"type": "string"}),
    ("int", {"type": "integer"}),
    ("float", {"type": "number"}),
    ("bool", {"type": "boolean"}),
    ("Any", {}),
    ("bytes", {"type": "string", "format": "binary"}),
    ("bytearray", {"type": "string", "format": "bytearray"}),
    ("complex", {"type": "string", "format": "complex"}),
    ("datetime", {"type": "string", "format": "date-time"}),
    ("date", {"type": "string", "format": "date"}),
    ("time", {"type": "string", "format": "time"}),
    ("timedelta", {"type": "string", "format": "duration"}),
    ("UUID", {"type": "string", "format": "uuid"}),
    ("Decimal[0..]", {"type": ["number", "string"], "format": "decimal", "minimum": 0}),
    ("int[0..100]", {"type": "integer", "minimum": 0, "maximum": 100}),
    ("float[0<..<1]", {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}),
    ("int[multiple_of=5]", {"type": "integer", "multipleOf": 5}),
    ("float[finite]", {"type": "number"}),
    ("float[..1e999]", {"type": "number"}),
    ("str[1..80, '^x']", {"type": "string", "minLength": 1, "maxLength": 80, "pattern": "^x"}),
    ("str[email]", {"type": "string", "format": "email"}),
    ("str[url]", {"type": "string", "format": "uri"}),
    ("str[json]", {"type": "string", "contentMediaType": "application/json"}),
    ("Literal['a', 'b']", {"enum": ["a", "b"]}),
    ("Literal[7]", {"const": 7}),
    ("Literal[1, True, None, b'x', 1e999]", {"enum": [1, True, None, "b'x'", "inf"]}),
    ("str | None", {"anyOf": [{"type": "string"}, {"type": "null"}]}),
    ("str[..5] | int", {"anyOf": [{"type": "string", "maxLength": 5}, {"type": "integer"}]}),
    ("Annotated[str, 'a note']", {"type": "string"}),
    ("list", {"type": "array"}),
    ("list[str][1..5]", {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 5}),
    ("Sequence[int[1..]]", {"type": "array", "items": {"type": "integer", "minimum": 1}}),
    ("tuple[int, ...]", {"type": "array", "items": {"type": "integer"}}),
    ("set[int]", {"type": "array", "items": {"type": "integer"}, "uniqueItems": True}),
    (
        "tuple[int, str]",
        {
            "type": "array",
            "prefixItems": [{"type": "integer"}, {"type": "string"}],
            "items": False,
            "minItems": 2,
            "maxItems": 2,
        },
    ),
    ("dict", {"type": "object"}),
    ("dict[str, int][..3]", {"type": "object", "additionalProperties": {"type": "integer"}, "maxProperties": 3}),
    (
        "dict[str['^k'], Any]",
        {"type": "object", "propertyNames": {"type": "string", "pattern": "^k"}, "additionalProperties": {}},
    ),
    (
        "dict[Literal['a', 1], int]",
        {"type": "object", "propertyNames": {"enum": ["a", "1"]}, "additionalProperties": {"type": "integer"}},
    ),
    (
        "dict[bool | None, int]",
        {
            "type": "object",
            "propertyNames": {"anyOf": [{"enum": ["true", "false", "True", "False"]}]},
            "additionalProperties": {"type": "integer"},
        },
    ),
    (
        "{name: str 'who', age: int = 3}",
        {
            "type": "object",
            "properties": {
                "name": {"type": "string", "description": "who"},
                "age": {"type": "integer", "default": 3},
            },
            "required": ["name"],
            "additionalProperties": False,
        },
    ),
    ("dspy.Image", {"title": "dspy.Image"}),
    ('dspy.Code["python"]', {"title": 'dspy.Code["python"]'}),
]


@pytest.mark.parametrize(("text", "schema"), WRITTEN, ids=[text for text, _ in WRITTEN])
def test_each_type_has_its_schema(text: str, schema: Schema) -> None:
    assert one(text) == schema


def test_a_signature_is_an_object_of_two_objects() -> None:
    spec = read("Answer briefly: question, n: int = 3 -> answer: str 'one sentence'")
    assert json_schema(spec, title="Ask") == {
        "$schema": DIALECT,
        "title": "Ask",
        "description": "Answer briefly",
        "type": "object",
        "properties": {
            "inputs": {
                "type": "object",
                "properties": {"question": {"type": "string"}, "n": {"type": "integer", "default": 3}},
                "required": ["question"],
                "additionalProperties": False,
            },
            "outputs": {
                "type": "object",
                "properties": {"answer": {"type": "string", "description": "one sentence"}},
                "required": ["answer"],
                "additionalProperties": False,
            },
        },
        "required": ["inputs", "outputs"],
        "additionalProperties": False,
    }


@pytest.mark.parametrize(
    ("field", "default"),
    [
        ("set[int] = [2, 1]", [1, 2]),
        ("tuple[int, str] = (1, 'a')", [1, "a"]),
        ("dict[int, str] = {7: 'a'}", {"7": "a"}),
        ("bytes = b'\\xc3\\xa9'", "é"),
        ("date = '2024-02-29'", "2024-02-29"),
        ("timedelta = 90061.5", "P1DT3661.500000S"),
        ("timedelta = -90", "-P0DT90S"),
        ("Decimal = '1.50'", "1.50"),
        ("complex = '1+2j'", "(1+2j)"),
    ],
)
def test_a_default_is_written_in_its_json_form(field: str, default: Any) -> None:
    spec = read(f"-> a: {field}")
    schema = json_schema(spec)["properties"]["outputs"]
    written = schema["properties"]["a"]["default"]
    assert convert(spec.outputs[0].type, spec.outputs[0].constraints, written, "a") == spec.validate_outputs({})["a"]
    assert json.loads(json.dumps(written)) is not None
    assert written == default or isinstance(spec.outputs[0].default, str | float | int | list)
    assert schema["required"] == []


@pytest.mark.parametrize("field", ["float = 1e999", "bytes = b'\\xff'", "Literal[b'x', 1] = b'x'"])
def test_a_default_that_json_cannot_hold_is_left_out(field: str) -> None:
    schema = json_schema(read(f"-> a: {field}"))["properties"]["outputs"]
    assert "default" not in schema["properties"]["a"]
    assert schema["required"] == []


def test_json_values_know_what_has_no_json_form() -> None:
    for value in (object(), math.inf, b"\xff", {(1, 2): 3}, {None: 1}):
        with pytest.raises(NotJson):
            json_value(value)
    deep: list[Any] = []
    deep.append(deep)
    with pytest.raises(NotJson):
        json_value(deep)


# --- classes ---


class Color(Enum):
    RED = "red"
    GREEN = 2
    BLUE = (0, 0, 255)


@dataclass
class Tree:
    value: int
    children: list[Tree] = field(default_factory=list)
    cached: int = field(default=0, init=False)


class Movie(TypedDict):
    title: str
    year: NotRequired[int]


class Point(NamedTuple):
    x: float
    y: float = 0.0


class Author(BaseModel):
    name: str = PydanticField(max_length=10)
    born: date | None = None


class Book(BaseModel):
    """A book."""

    title: str
    authors: list[Author] = []
    sequel: Book | None = None


class Opaque:
    pass


CLASSES = {
    "Color": Color, "Tree": Tree, "Movie": Movie, "Point": Point, "Author": Author, "Book": Book, "Opaque": Opaque,
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("Color", ["red", 2, "BLUE"], ["blue", True, [0, 0, 255]]),
        ("Tree", [{"value": 1}, {"value": 1, "children": [{"value": 2}]}], [{}, {"value": 1, "cached": 2}, 1]),
        ("Movie", [{"title": "a"}, {"title": "a", "year": 1}], [{"year": 1}, {"title": "a", "x": 1}, "a"]),
        ("Point", [{"x": 1}, {"x": 1, "y": 2.5}], [{}, {"x": 1, "z": 1}, "ab"]),
        ("Author", [{"name": "a"}, {"name": "a", "born": "2000-01-01"}], [{}, {"name": "a" * 11}, 3]),
        ("Book", [{"title": "a", "sequel": {"title": "b"}}], [{"title": "a", "sequel": {"title": 1}}]),
        ("Opaque", [], [{}, None, 1, "a"]),
    ],
)
def test_a_class_has_the_schema_of_what_makes_one(name: str, good: list[Any], bad: list[Any]) -> None:
    spec = read(f"a: {name} | list[{name}] -> b", types=CLASSES)
    schema = json_schema(spec)
    jsonschema.Draft202012Validator.check_schema(schema)
    empty = {"type": "object"}
    root = {**schema, "properties": {**schema["properties"], "outputs": empty}, "required": ["inputs"]}
    validator = jsonschema.Draft202012Validator(root)
    for value in (*good, good):
        assert validator.is_valid({"inputs": {"a": value}}), value
        assert spec.validate_inputs({"a": value})
    for value in (*bad, [bad[0]]):
        assert not validator.is_valid({"inputs": {"a": value}}), value
        with pytest.raises(ValidationError):
            spec.validate_inputs({"a": value})


def test_a_class_is_written_once_and_keeps_its_references() -> None:
    spec = read("a: Book, b: list[Book] -> c: Author, d: Tree", types=CLASSES)
    schema = json_schema(spec)
    assert set(schema["$defs"]) == {"Book", "Author", "Tree"}
    assert schema["properties"]["inputs"]["properties"]["b"]["items"] == {"$ref": "#/$defs/Book"}
    assert schema["$defs"]["Tree"]["properties"]["children"]["items"] == {"$ref": "#/$defs/Tree"}


def test_classes_of_one_name_are_kept_apart() -> None:
    class Holder:
        @dataclass
        class Author:
            pen_name: str

    spec = read("a: Pen, b: Book -> c: Author", types={**CLASSES, "Pen": Holder.Author})
    schema = json_schema(spec)
    inputs, outputs = (schema["properties"][side]["properties"] for side in ("inputs", "outputs"))
    own, book, other = (schema["$defs"][one["$ref"][8:]] for one in (inputs["a"], inputs["b"], outputs["c"]))
    assert list(own["properties"]) == ["pen_name"]
    assert list(other["properties"]) == ["name", "born"]
    author = schema["$defs"][book["properties"]["authors"]["items"]["$ref"][8:]]
    assert author == other


def test_a_model_without_a_schema_is_refused_by_its_name() -> None:
    class Hook(BaseModel):
        call: Callable[[], int]

    with pytest.raises(SignatureError, match="the pydantic model 'Hook' has no JSON Schema"):
        json_schema(read("a: Hook -> b", types={"Hook": Hook}))


def test_a_class_reads_back_as_a_record() -> None:
    spec = read("a: Author, b: Movie, c: Color -> d: Point", types=CLASSES)
    assert again(spec) == read(
        "a: {name: str[..10], born: date | None = None} 'x', b: {title: str, year: int | None = None},"
        "c: Literal['red', 2, 'BLUE'] -> d: {x: float, y: float | None = None}".replace(" 'x'", "")
    )
