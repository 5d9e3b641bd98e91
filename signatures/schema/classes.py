"""Classes in a JSON Schema: each is written once under `$defs`, so that it may contain itself."""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import Enum
from typing import Any, Final

from signatures.converters.hints import class_members
from signatures.errors import SignatureError
from signatures.schema.json_values import text_choice
from signatures.types import Constraints, Type

Schema = dict[str, Any]

_REF: Final = "#/$defs/"
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9_.-]+")


class Classes:
    """The classes of one schema. schemas: what stands under `$defs`. write: returns the schema of a type."""

    def __init__(self, write: Callable[[Type, Constraints], Schema]) -> None:
        self.schemas: dict[str, Schema] = {}
        self._write = write
        self._names: dict[type, str] = {}

    def reference(self, python: type) -> Schema:
        """Return the schema that refers to a class; write the class if it is new."""
        if python not in self._names:
            if hasattr(python, "model_json_schema"):
                self._names[python] = self._merge_model(python)
            else:
                name = self._free(_plain_name(python))
                # Known before it is written: it may refer to itself.
                self._names[python] = name
                self.schemas[name] = {}
                self.schemas[name] = self._class(python)
        return {"$ref": _REF + self._names[python]}

    def _class(self, python: type) -> Schema:
        if issubclass(python, Enum):
            return choices(_enum_choice(member) for member in python)
        kind: Any = python
        members = class_members(kind)
        if members is None:
            # Only an instance is accepted, and JSON has none.
            return {"not": {}}
        entries = {one.name: self._write(one.type, one.constraints) for one in members}
        return object_of(entries, [one.name for one in members if one.required])

    def _merge_model(self, python: type) -> str:
        """Add a pydantic model and the definitions that it brings; return its name."""
        from pydantic.errors import PydanticUserError

        try:
            schema: Schema = python.model_json_schema(ref_template=_REF + "{model}")  # type: ignore[attr-defined]
        except PydanticUserError as exc:
            raise SignatureError(f"the pydantic model '{python.__name__}' has no JSON Schema: {exc.message}") from exc
        parts: dict[str, Schema] = schema.pop("$defs", {})
        if schema.keys() == {"$ref"}:
            name = str(schema["$ref"]).removeprefix(_REF)
        else:
            name = _plain_name(python)
            while name in parts:
                name += "_"
            parts[name] = schema
        if all(self.schemas.get(one, part) == part for one, part in parts.items()):
            self.schemas.update(parts)
            return name
        # Another class has one of the names: all of these get new ones, as they refer to one another.
        renamed: dict[str, str] = {}
        for one in parts:
            renamed[one] = self._free(one, taken=renamed.values())
        refs = {_REF + one: _REF + new for one, new in renamed.items()}
        self.schemas.update({renamed[one]: _with_refs(part, refs) for one, part in parts.items()})
        return renamed[name]

    def _free(self, name: str, taken: Any = ()) -> str:
        free, number = name, 1
        while free in self.schemas or free in taken:
            number += 1
            free = f"{name}_{number}"
        return free


def object_of(properties: dict[str, Schema], required: list[str]) -> Schema:
    """Return the schema of an object with these properties and no others."""
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def choices(values: Any) -> Schema:
    """Return the schema of one of some JSON values."""
    # 1 and True are equal in Python, and two values in JSON.
    found = list({(type(value), value): value for value in values}.values())
    return {"const": found[0]} if len(found) == 1 else {"enum": found}


def _enum_choice(member: Enum) -> Any:
    """Return what stands for a member in JSON: its value; its name if JSON has no such value."""
    value = member.value
    return text_choice(value) if isinstance(value, str | int | float | bytes | None) else member.name


def _plain_name(python: type) -> str:
    return _UNSAFE.sub("_", python.__name__).strip("_") or "Class"


def _with_refs(schema: Any, refs: dict[str, str]) -> Any:
    """Return a schema with its references renamed, those of a discriminator too."""
    match schema:
        case dict():
            return {key: _with_refs(value, refs) for key, value in schema.items()}
        case list():
            return [_with_refs(value, refs) for value in schema]
        case str():
            return refs.get(schema, schema)
    return schema
