"""JSON Schema to fields: the properties of objects, and objects as types."""

from __future__ import annotations

from dataclasses import replace

from signatures.converters import convert
from signatures.errors import ValidationError
from signatures.model import Field, Kind
from signatures.names import name_problem
from signatures.schema.parts import Part, Parts
from signatures.schema.types import Read, Types
from signatures.types import (
    ANY,
    MISSING,
    NONE,
    NOTHING,
    STR,
    Generic,
    Record,
    Type,
    Union,
    constrained,
    union,
)


class Fields:
    """Reads fields from schemas of objects."""

    def __init__(self) -> None:
        self.parts = Parts()
        self.types = Types(self.parts, self.object)

    def sides(self, parts: list[Part]) -> list[list[Part]]:
        """Return the schemas of inputs and outputs in the schema of both."""
        self._check_object(parts, "the schema of a signature is an object")
        found = self._properties(parts)
        if "outputs" not in found or found.keys() - {"inputs", "outputs"}:
            self.parts.problem(
                "#", "a signature has the properties 'inputs' and 'outputs' alone; or give inputs= and outputs="
            )
        return [found.get("inputs", []), found.get("outputs", [])]

    def side(self, parts: list[Part], kind: Kind) -> tuple[Field, ...]:
        """Return the fields that the properties of an object are."""
        parts = self.parts.flat(parts)
        self._check_object(parts, f"the {kind}s are an object")
        return self._members(parts, self._properties(parts), kind)

    def _check_object(self, parts: list[Part], text: str) -> None:
        self.parts.refuse(parts, ("minProperties", "maxProperties", "propertyNames", "anyOf", "oneOf", "enum", "const"))
        if self.types.type_names(parts) not in (None, [], ["object"]):
            self.parts.problem(parts[0].pointer, f'{text}; write "type": "object"')

    def object(self, parts: list[Part], name: str) -> Read:
        """Return the type of an object: a record if it has named properties, else a dict."""
        properties = self._properties(parts)
        if properties or any(part.schema.get("additionalProperties") is False for part in parts):
            self.parts.refuse(parts, ("minProperties", "maxProperties", "propertyNames"))
            return Record(self._members(parts, properties, "member")), NONE
        self.parts.refuse([part for part in parts if part.schema.get("required") != []], ("required",))
        keys, values = (self.parts.children(parts, keyword) for keyword in ("propertyNames", "additionalProperties"))
        # The names are texts, whether or not that is written.
        key = self.types.inner([*keys, replace(keys[0], schema={"type": "string"})]) if keys else STR
        arguments = (key, self.types.inner(values) if values else ANY) if keys or values else ()
        return Generic("dict", arguments), self.types.lengths(parts, "object")

    def _properties(self, parts: list[Part]) -> dict[str, list[Part]]:
        found: dict[str, list[Part]] = {}
        for part in parts:
            for given in self.parts.values([part], "properties", dict, "an object"):
                for name, schema in given.items():
                    if not isinstance(name, str):
                        self.parts.problem(part.child(None, "properties").pointer, "the name of a property is a text")
                        continue
                    found.setdefault(name, []).append(part.child(schema, "properties", name))
        return found

    def _members(self, parts: list[Part], properties: dict[str, list[Part]], kind: Kind) -> tuple[Field, ...]:
        for part in parts:
            self._check_closed(part, properties)
        required = {name for part in parts for _, name in self._required(part)}
        if unknown := [name[:80] for name in required if name not in properties]:
            self.parts.problem(parts[0].pointer, f"'required' names {unknown[0]!r}, which is no property; define it")
        return tuple(
            self._member(name, self.parts.flat(schemas), schemas[0].pointer, kind, name in required)
            for name, schemas in properties.items()
        )

    def _required(self, part: Part) -> list[tuple[int, str]]:
        given = self.parts.values([part], "required", list, "a list of names")
        names = list(enumerate(given[0])) if given else []
        if wrong := [number for number, name in names if not isinstance(name, str)]:
            self.parts.problem(part.child(None, "required", wrong[0]).pointer, "a name is a text")
        return [(number, name) for number, name in names if isinstance(name, str)]

    def _check_closed(self, part: Part, properties: dict[str, list[Part]]) -> None:
        rest = part.schema.get("additionalProperties", True)
        pointer = part.child(None, "additionalProperties").pointer
        if rest is False:
            own = part.schema.get("properties")
            if any(name not in own for name in properties) if isinstance(own, dict) else properties:
                self.parts.problem(pointer, "it forbids properties that other parts have; leave it out")
        elif rest is not True and rest != {}:
            self.parts.problem(pointer, "an object has named properties or others, not both; leave this out")

    def _member(self, name: str, parts: list[Part], pointer: str, kind: Kind, required: bool) -> Field:
        if problem := name_problem(name, kind):
            fix = "; or give the whole object without properties, as a dict" if kind == "member" else ""
            self.parts.problem(pointer, problem + fix)
        type, constraints = self.types.read(parts)
        given = [part for part in parts if "default" in part.schema]
        default = given[0].schema["default"] if given else MISSING if required else None
        if default is None and not required and not _takes_none(type):
            type, constraints = union(constrained(type, constraints), NOTHING), NONE
        if given:
            try:
                default = convert(type, constraints, default, "the default")
            except ValidationError as exc:
                self.parts.problem(given[0].child(None, "default").pointer, exc.message)
        description = self.parts.text(parts, "description")
        return Field.of(name, kind, type, default=default, description=description, constraints=constraints)


def _takes_none(type: Type) -> bool:
    return type in (ANY, NOTHING) or (isinstance(type, Union) and NOTHING in type.members)
