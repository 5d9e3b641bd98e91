"""JSON Schema to the types of fields."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from signatures.names import MEDIA
from signatures.schema.parts import Part, Parts, is_plain
from signatures.schema.writer import FORMATS, LENGTH_KEYWORDS, NUMBER_KEYWORDS, TEXT_FORMATS
from signatures.types import (
    ANY,
    NONE,
    NOTHING,
    Constrained,
    Constraints,
    Generic,
    Literal,
    Media,
    Record,
    Scalar,
    Type,
    constrained,
    union,
)

# A type and its own constraints, which are a field's where it is the type of one.
Read = tuple[Type, Constraints]

_MEDIA: Final = re.compile(r'dspy\.([A-Za-z]+)(?:\["([\w+#.-]{1,40})"\])?')
_CONTENT: Final = {value: format for format, (keyword, value) in TEXT_FORMATS.items() if keyword == "contentMediaType"}
_TEXT: Final = {value: format for format, (keyword, value) in TEXT_FORMATS.items() if keyword == "format"}

_JSON_TYPES: Final[dict[type, str]] = {
    str: "string", bool: "boolean", int: "integer", float: "number", type(None): "null",
}  # fmt: skip
_TYPES: Final = ("string", "integer", "number", "boolean", "null", "array", "object")
# Keywords that say nothing without a type beside them.
_TYPED: Final = {
    **dict.fromkeys(NUMBER_KEYWORDS.values(), "number"),
    **{keyword: name for name, keywords in LENGTH_KEYWORDS.items() for keyword in keywords},
    **dict.fromkeys(("pattern", "format"), "string"),
    **dict.fromkeys(("items", "prefixItems", "uniqueItems", "additionalItems"), "array"),
    **dict.fromkeys(("properties", "required", "additionalProperties", "propertyNames"), "object"),
}


class Types:
    """Reads types from schemas. What is wrong becomes a problem of `parts`, and Any stands in for it.

    read_object: returns the type of a schema with the type "object".
    """

    def __init__(self, parts: Parts, read_object: Callable[[list[Part], str], Read]) -> None:
        self.parts = parts
        self._object = read_object

    def read(self, parts: list[Part]) -> Read:
        """Return the type of values that fit all of the parts, which must be flat, and its own constraints."""
        for number, part in enumerate(parts):
            for keyword in ("anyOf", "oneOf"):
                if keyword in part.schema:
                    others = [*parts[:number], part.without(keyword), *parts[number + 1 :]]
                    others = [one for one in others if one.schema]
                    return self._choice(others, part, keyword)
        if any(self.parts.values(parts, "nullable", bool, "true or false")):
            inner = self.read([part.without("nullable") for part in parts])
            return union(constrained(*inner), NOTHING), NONE
        if any(keyword in part.schema for part in parts for keyword in ("enum", "const")):
            return self._literal(parts), NONE
        names = self.type_names(parts)
        return self._untyped(parts) if names is None else self._typed(parts, names)

    def inner(self, parts: list[Part]) -> Type:
        """Return a type with its constraints, for inside another."""
        return constrained(*self.read(self.parts.flat(parts)))

    def _choice(self, others: list[Part], part: Part, keyword: str) -> Read:
        members = [
            self.inner([*others, part.child(one, keyword, number)]) for number, one in self.parts.listed(part, keyword)
        ]
        if not members:
            return ANY, NONE
        # Choices with a title each are often written so.
        if keyword == "oneOf" and len(members) > 1 and all(isinstance(member, Literal) for member in members):
            values = [value for member in members if isinstance(member, Literal) for value in member.values]
            return Literal(tuple({(type(value), value): value for value in values}.values())), NONE
        found = union(*members)
        return (found.base, found.constraints) if isinstance(found, Constrained) else (found, NONE)

    def type_names(self, parts: list[Part]) -> list[str] | None:
        """Return the JSON types that all parts allow, None if none of them names any."""
        allowed: list[str] | None = None
        for part in parts:
            if "type" not in part.schema:
                continue
            pointer = part.child(None, "type").pointer
            given = part.schema["type"]
            names = given if isinstance(given, list) else [given]
            if not names or not all(isinstance(name, str) and name in _TYPES for name in names):
                self.parts.problem(pointer, f"'type' must be one or some of {', '.join(_TYPES)}")
                return []
            allowed = list(dict.fromkeys(names)) if allowed is None else _both(allowed, names)
            if not allowed:
                self.parts.problem(pointer, "no value has this type and the others; leave one")
        return allowed

    def _untyped(self, parts: list[Part]) -> Read:
        for part in parts:
            for keyword in part.schema:
                if keyword in _TYPED:
                    self.parts.problem(
                        part.child(None, keyword).pointer,
                        f'\'{keyword}\' means nothing without a type; write "type": "{_TYPED[keyword]}" beside it',
                    )
        found = _MEDIA.fullmatch(self.parts.text(parts, "title")[:80])
        if found and found[1] in MEDIA and (found[2] is None or found[1] == "Code"):
            return Media(found[1], found[2]), NONE
        return ANY, NONE

    def _typed(self, parts: list[Part], names: list[str]) -> Read:
        reads = {
            "string": self._string, "integer": self._number, "number": self._number, "boolean": self._plain,
            "null": self._plain, "array": self._array, "object": self._object,
        }  # fmt: skip
        if {"number", "string"} <= set(names) and self._format(parts) == "decimal":
            names = [name for name in names if name != "string"]
        found = []
        for name in names:
            type, constraints = reads[name](parts, name)
            if constraints and (problem := constraints.problem(type)):
                self.parts.problem(parts[0].pointer, problem)
                constraints = NONE
            found.append((type, constraints))
        if not found:
            return ANY, NONE
        return found[0] if len(found) == 1 else (union(*(constrained(*one) for one in found)), NONE)

    def _plain(self, parts: list[Part], name: str) -> Read:
        return (NOTHING if name == "null" else Scalar("bool")), NONE

    def _number(self, parts: list[Part], name: str) -> Read:
        bounds: dict[str, Any] = {}
        for ours, keyword in NUMBER_KEYWORDS.items():
            found = self.parts.values(parts, keyword, (int, float), "a number")
            if ours == "multiple_of" and len(set(found)) > 1:
                self.parts.problem(parts[0].pointer, f"'{keyword}' is said twice and differs; leave one")
            if found:
                bounds[ours] = max(found) if ours in ("ge", "gt") else min(found)
        plain = Scalar("int" if name == "integer" else "float")
        return (Scalar("decimal.Decimal") if self._format(parts) == "decimal" else plain), Constraints(**bounds)

    def _string(self, parts: list[Part], name: str) -> Read:
        format = self._format(parts)
        lengths = self.lengths(parts, name)
        pattern = self.parts.one(parts, "pattern", str, "a text")
        content = self.parts.one(parts, "contentMediaType", str, "a text")
        ours = _TEXT.get(format) or _CONTENT.get(str(content))
        return Scalar(FORMATS.get(format, "str")), replace(lengths, pattern=pattern, format=ours)

    def _format(self, parts: list[Part]) -> str:
        return str(self.parts.one(parts, "format", str, "a text") or "")

    def lengths(self, parts: list[Part], name: str) -> Constraints:
        """Return the bounds of a length, by the keywords of a JSON type."""
        low, high = (self.parts.values(parts, keyword, int, "a whole number") for keyword in LENGTH_KEYWORDS[name])
        return Constraints(min_length=max(low, default=None), max_length=min(high, default=None))

    def _literal(self, parts: list[Part]) -> Type:
        # A format beside choices is an annotation, `int32` for example.
        self.parts.refuse(parts, _TYPED.keys() - {"format"})
        names = self.type_names(parts)
        words = [(part, word) for part in parts for word in ("enum", "const") if word in part.schema]
        # 1 and True are equal in Python, and two values in JSON.
        first, *others = ({(type(one), one): one for one in self._choices(*word)} for word in words)
        values = [value for key, value in first.items() if all(key in other for other in others)]
        fitting = tuple(value for value in values if names is None or _is_of(value, names))
        if not fitting:
            self.parts.problem(parts[0].pointer, "there is no value to choose; give one that fits")
        return Literal(fitting) if fitting else ANY

    def _choices(self, part: Part, keyword: str) -> list[Any]:
        is_one = keyword == "const"
        given = [part.schema[keyword]] if is_one else [value for _, value in self.parts.listed(part, keyword)]
        self.parts.count(len(given), part.pointer)
        fitting = [value for value in given if is_plain(value)]
        if len(fitting) != len(given):
            pointer = part.child(None, keyword).pointer
            self.parts.problem(pointer, "a choice is a text, a number, a bool or null; leave the others out")
        return fitting

    def _array(self, parts: list[Part], name: str) -> Read:
        for part in parts:
            if "prefixItems" in part.schema or isinstance(part.schema.get("items"), list):
                return self._tuple(parts, part), NONE
        items = self.parts.children(parts, "items")
        arguments = (self.inner(items),) if items else ()
        is_set = any(self.parts.values(parts, "uniqueItems", bool, "true or false"))
        if is_set and any(_is_unhashable(argument) for argument in arguments):
            self.parts.problem(
                parts[0].pointer, "a set holds no lists, sets or objects; leave 'uniqueItems' out, so that it is a list"
            )
        return Generic("set" if is_set else "list", arguments), self.lengths(parts, "array")

    def _tuple(self, parts: list[Part], part: Part) -> Type:
        """Return a tuple: by `prefixItems`, or by a list of `items` as older schemas have it."""
        keyword, rest = ("prefixItems", "items") if "prefixItems" in part.schema else ("items", "additionalItems")
        items = self.parts.listed(part, keyword)
        self.parts.refuse([one for one in parts if one is not part], ("items", "prefixItems"))
        lengths = self.lengths(parts, "array")
        low, high = lengths.min_length or 0, lengths.max_length
        closed = part.schema.get(rest) is False and (high is None or high >= len(items))
        if low > len(items) or not (closed or high == len(items)):
            self.parts.problem(
                part.child(None, keyword).pointer,
                f'a tuple has a fixed length; write "{rest}": false and "minItems": {len(items)}',
            )
        if any(self.parts.values(parts, "uniqueItems", bool, "true or false")):
            self.parts.problem(part.pointer, "'uniqueItems' cannot be kept for a tuple; leave it out")
        return Generic("tuple", tuple(self.inner([part.child(one, keyword, number)]) for number, one in items))


def _is_unhashable(type: Type) -> bool:
    if isinstance(type, Record) or (isinstance(type, Generic) and type.name != "tuple"):
        return True
    return any(_is_unhashable(child) for child in type.children())


def _both(allowed: list[str], names: list[str]) -> list[str]:
    """Return the JSON types that two lists have in common; an integer is a number."""
    common = [name for name in allowed if name in names or (name == "integer" and "number" in names)]
    return common + [name for name in names if name == "integer" and "number" in allowed and name not in common]


def _is_of(value: Any, names: list[str]) -> bool:
    own = _JSON_TYPES[type(value)]
    return own in names or (own == "integer" and "number" in names)
