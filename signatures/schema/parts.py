"""Schemas taken apart: references, `allOf`, keywords with their kinds, and every problem with its JSON pointer."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final
from urllib.parse import unquote

from signatures.errors import Problem, SignatureError
from signatures.types import MAX_DEPTH

MAX_NODES: Final = 1_000
MAX_PROBLEMS: Final = 20
# 4,000 digits: Python writes no much longer number as text.
MAX_BITS: Final = 13_287
_SHOWN: Final = 200

_KINDS: Final[dict[type, str]] = {
    bool: "a bool", type(None): "null", str: "a text", int: "a whole number", float: "a number",
    list: "a list", dict: "an object",
}  # fmt: skip

_REF: Final = re.compile(r"#/(\$defs|definitions)/([^/]+)")

REFUSED: Final = frozenset({
    "not", "if", "then", "else", "patternProperties", "dependentSchemas", "dependentRequired", "dependencies",
    "contains", "minContains", "maxContains", "unevaluatedItems", "unevaluatedProperties", "propertyDependencies",
    "$dynamicRef", "$recursiveRef", "extends", "disallow", "divisibleBy",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Part:
    """A schema and its place. Several parts are what `allOf` has: a value must fit each.

    pointer: where it stands. root: what holds the definitions. refs: the references that led here. depth: how many
    schemas it is inside.
    """

    schema: Any
    pointer: str
    root: Any
    refs: tuple[str, ...] = ()
    depth: int = 0

    def child(self, schema: Any, *keys: object) -> Part:
        """Return a schema inside this one."""
        pointer = "/".join([self.pointer, *(str(key)[:_SHOWN].replace("~", "~0").replace("/", "~1") for key in keys)])
        return replace(self, schema=schema, pointer=pointer, depth=self.depth + 1)

    def without(self, *keywords: str) -> Part:
        """Return this without some keywords."""
        return replace(self, schema={key: value for key, value in self.schema.items() if key not in keywords})


class Parts:
    """Takes schemas apart: follows references, flattens `allOf`, looks keywords up, notes every problem."""

    def __init__(self) -> None:
        # A dict, because a schema that is looked at twice tells its problems once.
        self._problems: dict[Problem, None] = {}
        self._nodes = 0

    def problem(self, pointer: str, text: str) -> None:
        """Note what is wrong at a place."""
        self._problems.setdefault(Problem(f"{pointer}: {text[: 2 * _SHOWN]}", pointer))

    def fail_if_any(self) -> None:
        """Raise SignatureError with all the problems there are."""
        if not self._problems:
            return
        found = list(self._problems)
        more = len(found) - MAX_PROBLEMS
        raise SignatureError(found[:MAX_PROBLEMS] + ([Problem(f"and {more} more")] if more > 0 else []))

    def count(self, nodes: int, pointer: str) -> None:
        """Count schemas and choices that are read. Raises SignatureError for too many."""
        self._nodes += nodes
        if self._nodes > MAX_NODES:
            text = f"{pointer}: the schema has more than {MAX_NODES:,} parts; split it, or leave some out"
            raise SignatureError([Problem(text, pointer)])

    def flat(self, parts: Iterable[Part]) -> list[Part]:
        """Return schemas without `$ref` and `allOf`, as the objects that they come to."""
        return [one for part in parts for one in self._expand(part)]

    def _expand(self, part: Part) -> Iterator[Part]:
        self.count(1, part.pointer)
        schema = part.schema
        if part.depth > MAX_DEPTH:
            self.problem(part.pointer, f"it is nested deeper than {MAX_DEPTH}; take a part of it out")
        elif schema is False:
            self.problem(part.pointer, "false accepts nothing; leave this out")
        elif schema is not True and not isinstance(schema, dict):
            self.problem(part.pointer, f"a schema is an object, true or false, not {kind(schema)}")
        elif schema is not True:
            self._refuse_keywords(part)
            yield part.without("$ref", "allOf")
            if "$ref" in schema and (target := self._target(part)) is not None:
                yield from self._expand(target)
            for index, one in self.listed(part, "allOf"):
                yield from self._expand(part.child(one, "allOf", index))

    def _refuse_keywords(self, part: Part) -> None:
        for keyword in part.schema:
            if not isinstance(keyword, str):
                self.problem(part.pointer, f"a keyword is a text, not {kind(keyword)}")
            elif keyword in REFUSED:
                self.problem(part.child(None, keyword).pointer, f"'{keyword}' cannot be kept; leave it out")
            elif keyword == "$id" and part.depth:
                self.problem(part.child(None, keyword).pointer, "'$id' moves what '#' means; leave it out")

    def _target(self, part: Part) -> Part | None:
        ref = part.schema["$ref"]
        pointer = part.child(None, "$ref").pointer
        if not isinstance(ref, str):
            self.problem(pointer, f"'$ref' must be a text, not {kind(ref)}")
            return None
        ref = ref[:_SHOWN]
        found = _REF.fullmatch(ref)
        if found is None:
            fix = "only '#/$defs/NAME' is followed, and nothing is fetched; copy the schema under '$defs'"
            self.problem(pointer, f"the reference {ref!r} is not followed: {fix}")
            return None
        place, name = found[1], unquote(found[2]).replace("~1", "/").replace("~0", "~")
        definitions = part.root.get(place) if isinstance(part.root, dict) else None
        if not isinstance(definitions, dict) or name not in definitions:
            self.problem(pointer, f"there is no {ref!r}; define it, or correct the name")
            return None
        if ref in part.refs:
            self.problem(
                pointer, f"{ref!r} contains itself, which the type of a field cannot; write {{}} or an object here"
            )
            return None
        base = part.pointer.partition("#")[0]
        refs = (*part.refs, ref)
        return replace(part, schema=definitions[name], pointer=base + ref, refs=refs, depth=part.depth + 1)

    # --- keywords -----------------------------------------------------------------------------

    def listed(self, part: Part, keyword: str) -> list[tuple[int, Any]]:
        """Return the numbered items of a keyword that holds some, nothing if it is not there."""
        if keyword not in part.schema:
            return []
        items = part.schema[keyword]
        if not isinstance(items, list) or not items:
            self.problem(part.child(None, keyword).pointer, f"'{keyword}' must be a list with something in it")
            return []
        return list(enumerate(items))

    def children(self, parts: Iterable[Part], keyword: str) -> list[Part]:
        """Return the schemas that a keyword holds, one from each part that has it."""
        return [part.child(part.schema[keyword], keyword) for part in parts if keyword in part.schema]

    def values(self, parts: Iterable[Part], keyword: str, python: type | tuple[type, ...], words: str) -> list[Any]:
        """Return what the parts say by a keyword, as far as it is of the right kind. words: the kind, in words."""
        found = []
        for part in parts:
            if keyword in part.schema:
                value = part.schema[keyword]
                pointer = part.child(None, keyword).pointer
                if not isinstance(value, python) or (python is not bool and isinstance(value, bool)):
                    self.problem(pointer, f"'{keyword}' must be {words}, not {kind(value)}")
                elif isinstance(value, int | float) and not is_plain(value):
                    self.problem(pointer, f"'{keyword}' is out of all bounds; give a smaller number")
                else:
                    found.append(value)
        return found

    def one(self, parts: list[Part], keyword: str, python: type | tuple[type, ...], words: str) -> Any:
        """Return the only value of a keyword, None if it has none."""
        found = self.values(parts, keyword, python, words)
        if any(value != found[0] for value in found):
            self.problem(parts[0].pointer, f"'{keyword}' is said twice and differs; leave one")
        return found[0] if found else None

    def refuse(self, parts: Iterable[Part], keywords: Collection[str]) -> None:
        """Note every use of keywords that have no meaning for a signature where they stand."""
        for part in parts:
            for keyword in part.schema:
                if keyword in keywords:
                    self.problem(part.child(None, keyword).pointer, f"'{keyword}' cannot be kept here; leave it out")

    def text(self, parts: list[Part], keyword: str) -> str:
        """Return the first text of an annotation, empty if there is none."""
        found = self.values(parts, keyword, str, "a text")
        return found[0] if found else ""


def kind(value: object) -> str:
    """Return what a value is in JSON, in words."""
    return _KINDS.get(type(value), f"a {type(value).__name__}")


def is_plain(value: object) -> bool:
    """Tell whether a value is a text, a number, a bool or null that a signature's text can hold."""
    if type(value) is int:
        return value.bit_length() <= MAX_BITS
    return type(value) in (str, bool, type(None)) or (type(value) is float and value == value)
