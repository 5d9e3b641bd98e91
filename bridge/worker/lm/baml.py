"""The JSON schema of an output field, read from the words by which DSPy's BAMLAdapter describes it.

`string`, `int`, `float`, `boolean`, `"a" or "b"`, `T or null`, `T[]`, `dict[K, V]`, `{ name: T, … }`, `[ { … } ]` for
a list of those; a line that begins with `#` is a comment. What is not understood is a string.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from bridge.worker.lm.schema import Schema

_COMMENT = re.compile(r"^\s*#.*$", re.MULTILINE)
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|\[\]|[{}\[\]:,]|[^\s{}\[\]:,"]+')
_NAMES: Mapping[str, Schema] = {
    "string": {"type": "string"},
    "int": {"type": "integer"},
    "float": {"type": "number"},
    "boolean": {"type": "boolean"},
    "null": {"type": "null"},
    "date": {"type": "string", "format": "date"},
    "datetime": {"type": "string", "format": "date-time"},
    "time": {"type": "string", "format": "time"},
    "timedelta": {"type": "string", "format": "duration"},
    "true": {"const": True},
    "false": {"const": False},
}


def read_baml(text: str) -> Schema:
    """Return the schema of a type as BAMLAdapter writes it."""
    reader = _Reader(_TOKEN.findall(_COMMENT.sub("", text)))
    try:
        return reader.union()
    except IndexError:
        return {"type": "string"}


class _Reader:
    """Reads tokens from the left. Raises IndexError when they end too early."""

    def __init__(self, tokens: list[str]) -> None:
        self._tokens = tokens[::-1]

    def union(self) -> Schema:
        """Read `T or T or …`; literals alone are the choices of an enum."""
        members = [self._one()]
        while self._next() == "or":
            self._take()
            members.append(self._one())
        choices = [one["const"] for one in members if "const" in one]
        others = [one for one in members if "const" not in one]
        kinds: list[Schema] = [{"enum": choices}, *others] if choices else others
        return kinds[0] if len(kinds) == 1 else {"anyOf": kinds}

    def _one(self) -> Schema:
        found = self._plain(self._take())
        while self._next() == "[]":
            self._take()
            found = {"type": "array", "items": found}
        return found

    def _plain(self, token: str) -> Schema:
        if token == "{":
            return self._record()
        if token == "[":
            items = self.union()
            self._take()
            return {"type": "array", "items": items}
        if token == "dict" and self._next() == "[":
            self._take()
            self.union()
            self._take()
            values = self.union()
            self._take()
            return {"type": "object", "additionalProperties": values}
        if token.startswith('"'):
            return {"const": json.loads(token)}
        if re.fullmatch(r"-?\d+", token):
            return {"const": int(token)}
        return _NAMES.get(token, {"type": "string"})

    def _record(self) -> Schema:
        fields: dict[str, Any] = {}
        while (name := self._take()) != "}":
            if name == ",":
                continue
            self._take()
            fields[name] = self.union()
        return {"type": "object", "properties": fields}

    def _next(self) -> str:
        return self._tokens[-1] if self._tokens else ""

    def _take(self) -> str:
        return self._tokens.pop()
