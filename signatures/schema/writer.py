"""JSON Schema (2020-12) of a signature: the JSON form of the values it takes and gives.

What JSON Schema cannot say is left out, so that a schema may accept more than the signature does:

* `format` is an annotation: it says what a text of `date-time`, `uuid`, `decimal`, `complex` … is.
* `finite`, notes of `Annotated`, bounds of a Decimal given as text, bounds of the keys of a dict, and that a value of
  one of DSPy's own types is not null. `pattern` is in the dialect of the validator, not of ECMA 262.
* That the items of a set can be hashed, and that two keys of a dict stay two when they are converted.
* Lengths of `bytes` are characters in the schema, bytes of UTF-8 in the signature.

It may also accept less: `"7"` converts to an int, a repeated item to a set; the schema asks for the JSON type itself.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable
from enum import Enum
from typing import Any, Final

from signatures.converters import convert
from signatures.errors import ValidationError
from signatures.model import Field, Spec
from signatures.schema.classes import Classes, Schema, choices, object_of
from signatures.schema.json_values import NotJson, json_value, text_choice
from signatures.types import (
    NONE,
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
    Union,
)

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"

_SCALARS: Final[dict[str, Schema]] = {
    "str": {"type": "string"}, "int": {"type": "integer"}, "float": {"type": "number"}, "bool": {"type": "boolean"},
    "None": {"type": "null"}, "Any": {},
    "decimal.Decimal": {"type": ["number", "string"], "format": "decimal"},
}  # fmt: skip

# Scalars that are texts in JSON, by the format that says which. The last four are not of the standard. Bytes are the
# UTF-8 of their text, so no `contentEncoding` applies.
FORMATS: Final[dict[str, str]] = {
    "date-time": "datetime.datetime", "date": "datetime.date", "time": "datetime.time",
    "duration": "datetime.timedelta", "uuid": "uuid.UUID",
    "binary": "bytes", "bytearray": "bytearray", "complex": "complex", "decimal": "decimal.Decimal",
}  # fmt: skip
_FORMAT_OF: Final = {scalar: format for format, scalar in FORMATS.items()}

# Formats of `str`, as the keyword and value that say them.
TEXT_FORMATS: Final[dict[str, tuple[str, str]]] = {
    "email": ("format", "email"), "url": ("format", "uri"), "json": ("contentMediaType", "application/json"),
}  # fmt: skip

NUMBER_KEYWORDS: Final = {
    "ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum", "multiple_of": "multipleOf",
}  # fmt: skip
# Of which JSON type a pair bounds the length.
LENGTH_KEYWORDS: Final = {
    "string": ("minLength", "maxLength"), "array": ("minItems", "maxItems"),
    "object": ("minProperties", "maxProperties"),
}  # fmt: skip

# Keys of a dict are texts in JSON; these are the texts that convert.
_KEYS: Final[dict[str, Schema]] = {
    "int": {"pattern": r"^-?[0-9]+$"},
    "float": {"pattern": r"^-?[0-9]+(\.[0-9]+)?([eE][-+]?[0-9]{1,2})?$"},
    "decimal.Decimal": {"pattern": r"^-?[0-9]+(\.[0-9]+)?([eE][-+]?[0-9]{1,2})?$"},
    "bool": {"enum": ["true", "false", "True", "False"]},
}


def json_schema(spec: Spec, *, title: str = "") -> Schema:
    """Return the JSON Schema of a signature: an object of two objects, `inputs` and `outputs`.

    Instructions are its description; classes stand under `$defs`, each once. A default that JSON cannot hold (infinity,
    bytes that are no UTF-8) is left out; its field is not required all the same. Raises SignatureError if a pydantic
    model has a field without JSON Schema.
    """
    writer = _Writer()
    sides = {"inputs": writer.members(spec.inputs), "outputs": writer.members(spec.outputs)}
    made: Schema = {"$schema": DIALECT}
    if title:
        made["title"] = title
    if spec.instructions:
        made["description"] = spec.instructions
    made |= {"type": "object", "properties": sides, "required": list(sides), "additionalProperties": False}
    if writer.classes.schemas:
        made["$defs"] = writer.classes.schemas
    return made


class _Writer:
    """Writes types; collects the classes they name."""

    def __init__(self) -> None:
        self.classes = Classes(self._type)

    def members(self, fields: Iterable[Field]) -> Schema:
        """Return the schema of an object with these members and no others."""
        fields = tuple(fields)
        return object_of(
            {field.name: self._field(field) for field in fields}, [field.name for field in fields if field.required]
        )

    def _field(self, field: Field) -> Schema:
        made = self._type(field.type, field.constraints)
        if field.description:
            made["description"] = field.description
        if not field.required:
            with contextlib.suppress(NotJson, ValidationError):
                default = json_value(field.default)
                convert(field.type, field.constraints, default, field.name)
                made["default"] = default
        return made

    def _type(self, type: Type, constraints: Constraints = NONE) -> Schema:
        match type:
            case Scalar(name):
                made = dict(_SCALARS[name]) if name in _SCALARS else {"type": "string", "format": _FORMAT_OF[name]}
            case Generic():
                made = self._generic(type)
            case Literal(values):
                made = choices(map(text_choice, values))
            case Union(members):
                made = {"anyOf": [self._type(member) for member in members]}
            case Annotated(base, _):
                made = self._type(base)
            case Constrained(base, inner):
                made = self._type(base, inner)
            case Record(members):
                made = self.members(members)
            case Media():
                made = {"title": type.text}
            case Custom(_, python):
                made = self.classes.reference(python)
            case _:
                raise TypeError(f"{type!r} is no type of a signature")
        return made | _bounds(made.get("type"), constraints)

    def _generic(self, type: Generic) -> Schema:
        name, arguments = type.name, type.arguments
        if name in ("dict", "Mapping"):
            return self._dict(arguments)
        made: Schema = {"type": "array"}
        if name == "tuple" and arguments and not type.variadic:
            count = len(arguments)
            made["prefixItems"] = [self._type(argument) for argument in arguments]
            return made | {"items": False, "minItems": count, "maxItems": count}
        if arguments:
            made["items"] = self._type(arguments[0])
        if name in ("set", "frozenset"):
            made["uniqueItems"] = True
        return made

    def _dict(self, arguments: tuple[Type, ...]) -> Schema:
        made: Schema = {"type": "object"}
        if arguments:
            keys = self._key(arguments[0])
            if keys != {} and keys != {"type": "string"}:
                made["propertyNames"] = keys
            made["additionalProperties"] = self._type(arguments[1])
        return made

    def _key(self, type: Type, constraints: Constraints = NONE) -> Schema | bool:
        """Return the schema of the texts that are keys of a type; False where no text is one."""
        match type:
            case Annotated(base, _):
                return self._key(base, constraints)
            case Constrained(base, inner):
                return self._key(base, inner)
            case Scalar(name) if name in _KEYS:
                return dict(_KEYS[name])
            case Literal(values):
                return choices(map(str, values))
            case Union(members):
                keys = [key for key in map(self._key, members) if key is not False]
                return {"anyOf": keys} if keys else False
            case Custom(_, python) if issubclass(python, Enum):
                return choices([*(str(one.value) for one in python), *python.__members__])
            case Scalar(name) if name != "None":
                return self._type(type, constraints)
        return False


def _bounds(json_type: Any, constraints: Constraints) -> Schema:
    made: Schema = {}
    given = constraints.items()
    for name, keyword in NUMBER_KEYWORDS.items():
        if name not in given:
            continue
        if math.isfinite(given[name]):
            made[keyword] = given[name]
        elif (given[name] > 0) == (name in ("ge", "gt")):
            made["not"] = {}  # No JSON number is beyond infinity.
    for name, keyword in zip(("min_length", "max_length"), LENGTH_KEYWORDS.get(str(json_type), ()), strict=False):
        if name in given:
            made[keyword] = given[name]
    if "pattern" in given:
        made["pattern"] = given["pattern"]
    if "format" in given:
        keyword, value = TEXT_FORMATS[given["format"]]
        made[keyword] = value
    return made
