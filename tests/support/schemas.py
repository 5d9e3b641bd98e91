"""JSON Schemas in tests: short ways to write and read them, and what they cannot say."""

from __future__ import annotations

import contextlib
import json
import math
import re
from typing import Any

import jsonschema
import pytest

from signatures import SignatureError, ValidationError
from signatures.converters import convert
from signatures.model import Field, Spec
from signatures.schema.json_values import NotJson, json_value
from signatures.schema.reader import read_json_schema
from signatures.schema.writer import json_schema
from signatures.text.parser import read
from signatures.types import (
    MISSING,
    NONE,
    NOTHING,
    STR,
    Annotated,
    Constrained,
    Constraints,
    Custom,
    Generic,
    Literal,
    Media,
    Record,
    Scalar,
    Type,
    constrained,
    union,
)

Schema = dict[str, Any]


def one(text: str) -> Schema:
    """The schema of the one output of a type."""
    return json_schema(read(f"-> a: {text}"))["properties"]["outputs"]["properties"]["a"]


def again(spec: Spec) -> Spec:
    return read_json_schema(json.loads(json.dumps(json_schema(spec))))


def outputs(**properties: Any) -> Schema:
    return {"type": "object", "properties": properties, "required": list(properties)}


def problems_of(schema: Any = None, **sides: Any) -> tuple[str, ...]:
    with pytest.raises(SignatureError) as raised:
        read_json_schema(schema, **sides)
    return tuple(problem.message for problem in raised.value.problems)


WIDENED = {"frozenset": "set", "Sequence": "list", "Iterable": "list", "Collection": "list", "Mapping": "dict"}


class Unsaid(Exception):
    """JSON Schema says something else, which the table of single cases shows."""


def said(type: Type, constraints: Constraints = NONE) -> tuple[Type, Constraints]:
    """What a schema says of a type: all that it loses, in one place."""
    kept = constraints.items()
    kept.pop("finite", None)
    for name in ("ge", "gt", "le", "lt"):
        if name in kept and math.isinf(kept[name]) and (kept.pop(name) > 0) == (name in ("ge", "gt")):
            raise Unsaid("a bound that no number keeps to")
    constraints = Constraints(**kept)
    match type:
        case Annotated(base, _):
            return said(base, constraints)
        case Constrained(base, inner):
            type, inner = said(base, inner)
            return constrained(type, inner), constraints
        case Generic("tuple", arguments, variadic) if not arguments or variadic:
            return Generic("list", tuple(map(inside, arguments))), constraints
        case Generic("dict" | "Mapping", (key, value)):
            return Generic("dict", (said_key(key), inside(value))), constraints
        case Generic("set" | "frozenset", (item,)):
            if holds_lists(inside(item)):
                raise Unsaid("a set of lists or objects in JSON")
            return Generic("set", (inside(item),)), constraints
        case Generic(name, arguments):
            return Generic(WIDENED.get(name, name), tuple(map(inside, arguments))), constraints
        case Literal(values):
            if any(isinstance(value, bytes) or value in (math.inf, -math.inf) for value in values):
                raise Unsaid("choices that are texts in JSON")
            return Literal(tuple({(type_of(value), value): value for value in values}.values())), constraints
        case Record(members):
            return Record(tuple(map(said_field, members))), constraints
        case Custom():
            raise Unsaid("a class is read as a record")
        case Media(_, argument) if argument is not None and not re.fullmatch(r"[\w+#.-]{1,40}", argument):
            raise Unsaid("an argument that is no plain name")
    if children := tuple(type.children()):
        members = [inside(child) for child in children]
        found = union(*members)
        if isinstance(found, Constrained):
            return found.base, found.constraints
        return found, constraints
    return type, constraints


def type_of(value: object) -> type:
    return value.__class__


def holds_lists(type: Type) -> bool:
    """Whether values are, or hold, what Python cannot put into a set."""
    is_list = isinstance(type, Record) or (isinstance(type, Generic) and type.name != "tuple")
    return is_list or any(map(holds_lists, type.children()))


def inside(type: Type) -> Type:
    return constrained(*said(type))


def said_key(type: Type) -> Type:
    found = inside(type)
    base = found.base if isinstance(found, Constrained) else found
    if found == Scalar("Any"):
        return STR
    if base != STR and not (isinstance(base, Literal) and all(isinstance(value, str) for value in base.values)):
        raise Unsaid("keys that are texts in JSON")
    return found


def said_field(field: Field) -> Field:
    type, constraints = said(field.type, field.constraints)
    if type == NOTHING and field.kind != "member":
        raise Unsaid("None alone")
    default = field.default
    if default is not MISSING:
        try:
            default = convert(type, constraints, json_value(default), "a")
        except (NotJson, ValidationError) as exc:
            raise Unsaid("a default that JSON cannot hold") from exc
    made = Field.of(field.name, field.kind, type, constraints=constraints, description=field.description)
    return made.replace(default=default)


def said_spec(spec: Spec) -> Spec:
    return Spec(map(said_field, spec.inputs), map(said_field, spec.outputs), spec.instructions)


def check_round_trip(spec: Spec) -> str:
    """Check that a spec reads back as far as its schema says it; return why that cannot be told, if it cannot."""
    schema = json_schema(spec)
    jsonschema.Draft202012Validator.check_schema(schema)
    assert json.loads(json.dumps(schema, allow_nan=False)) == schema
    try:
        expected = said_spec(spec)
    except Unsaid as exc:
        with contextlib.suppress(SignatureError):
            again(spec)
        return str(exc)
    assert again(spec) == expected
    # What was said once is said in full.
    assert again(expected) == expected
    return ""
