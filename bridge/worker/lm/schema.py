"""The type of an output field, read from the words by which a prompt describes it."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from typing import Any

Schema = Mapping[str, Any]

_SCALARS: Mapping[str, Schema] = {
    "str": {"type": "string"},
    "int": {"type": "integer"},
    "float": {"type": "number"},
    "bool": {"type": "boolean"},
    "dict": {"type": "object"},
    "list": {"type": "array"},
    "set": {"type": "array"},
    "tuple": {"type": "array"},
    "None": {"type": "null"},
    "NoneType": {"type": "null"},
}
_SEQUENCES = frozenset(
    {"list", "set", "frozenset", "tuple", "List", "Set", "FrozenSet", "Tuple", "Sequence", "Iterable"}
)
_JSON_NOTE = "must adhere to the JSON schema: "
_ENUM_NOTE = "must be one of: "
_BOUNDS = {
    "greater than or equal to": "minimum",
    "greater than": "exclusiveMinimum",
    "less than or equal to": "maximum",
    "less than": "exclusiveMaximum",
}
_BOUND = re.compile(r"((?:greater|less) than(?: or equal to)?): (-?\d+(?:\.\d+)?)")


def read_schema(annotation: str, note: str = "", constraints: str = "") -> Schema:
    """Return the JSON schema of a field.

    annotation: the type as DSPy writes it (`Literal['a', 'b']`, `list[str]`). note: what DSPy says about the
    value ("must adhere to the JSON schema: …"). constraints: its "Constraints:" line. What is not understood
    is a string.
    """
    schema = _from_note(note) or _from_annotation(annotation)
    bounds = {_BOUNDS[words]: float(number) for words, number in _BOUND.findall(constraints)}
    return {**schema, **bounds} if bounds else schema


def _from_note(note: str) -> Schema | None:
    _, found, text = note.partition(_JSON_NOTE)
    if found:
        try:
            schema = json.loads(text)
        except ValueError:
            return None
        return schema if isinstance(schema, dict) else None
    _, found, text = note.partition(_ENUM_NOTE)
    # The note of a Literal separates its choices by "; " too, but its annotation quotes them: that reading is exact.
    return {"enum": text.split("; ")} if found and "exactly match" not in note else None


def _from_annotation(annotation: str) -> Schema:
    try:
        return _from_node(ast.parse(annotation.strip(), mode="eval").body)
    except (SyntaxError, ValueError):
        return {"type": "string"}


def _from_node(node: ast.expr) -> Schema:
    if isinstance(node, ast.BinOp):
        return {"anyOf": [_from_node(node.left), _from_node(node.right)]}
    if isinstance(node, ast.Constant) and node.value is None:
        return {"type": "null"}
    if not isinstance(node, ast.Subscript):
        return _SCALARS.get(_name(node), {"type": "string"})
    name = _name(node.value)
    arguments = list(node.slice.elts) if isinstance(node.slice, ast.Tuple) else [node.slice]
    if name == "Literal":
        return {"enum": [ast.literal_eval(argument) for argument in arguments]}
    if name in ("tuple", "Tuple") and not any(isinstance(one, ast.Constant) and one.value is ... for one in arguments):
        return {"type": "array", "prefixItems": [_from_node(argument) for argument in arguments]}
    if name in _SEQUENCES:
        return {"type": "array", "items": _from_node(arguments[0])}
    if name == "Union":
        return {"anyOf": [_from_node(argument) for argument in arguments]}
    if name == "Optional":
        return {"anyOf": [_from_node(arguments[0]), {"type": "null"}]}
    if name == "Annotated":
        return _from_node(arguments[0])
    return {"type": "object"}


def _name(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
