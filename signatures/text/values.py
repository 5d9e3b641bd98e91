"""Python literals read from tokens: defaults, and what brackets hold. Nothing is evaluated."""

from __future__ import annotations

from typing import Any, Final

from signatures.text.cursor import Cursor
from signatures.text.literals import MAX_DEPTH
from signatures.text.tokens import NAMED, NUMBER, STRING, BadLiteral, number, short, string

CONSTANTS: Final = {"None": None, "True": True, "False": False}
SIGNS: Final = frozenset({"-", "+"})
_CALCULATIONS: Final = frozenset({"+", "-", "*", "/", "%", "&", "|", "^", "~", "<", ">", "."})


class Values(Cursor):
    """Reads literals."""

    def value(self, depth: int = 0) -> Any:
        """Return the literal that stands here. depth: how many containers it is in. Raises Fault."""
        token = self.token
        if depth > MAX_DEPTH:
            self.fault(f"a default is nested deeper than {MAX_DEPTH}; make it flatter")
        if token.kind == STRING:
            return self.strings()
        if token.kind == NUMBER or token.kind in SIGNS:
            return self._sum()
        if token.kind == NAMED and token.text in CONSTANTS:
            return CONSTANTS[self.advance().text]
        match token.kind:
            case "[":
                return self.items(token, lambda: self.value(depth + 1))
            case "(":
                return self._tuple(depth)
            case "{":
                return self._mapping(depth)
        if token.kind == NAMED:
            self.fault(f"'{short(token.text)}' is no literal; a text stands in quotes")
        self.fault(f"'{token.text}' is no literal; write for example 3, 'text', True, None or [1, 2]")

    def whole_value(self) -> Any:
        """Return the literal that stands here; nothing may be calculated from it."""
        value = self.value()
        if self.token.kind in _CALCULATIONS:
            self.fault(f"nothing is calculated in a signature; write one literal, without '{self.token.text}'")
        return value

    def strings(self) -> str | bytes:
        """Return the text of a string, or of several in a row."""
        parts = [self.one_string()]
        while self.token.kind == STRING:
            token = self.token
            part = self.one_string()
            if type(part) is not type(parts[0]):
                self.fault("a text and bytes cannot be joined; put a comma between", token)
            parts.append(part)
        return parts[0] if len(parts) == 1 else type(parts[0])().join(parts)  # type: ignore[arg-type]

    def one_string(self) -> str | bytes:
        """Return the text of the string that stands here."""
        try:
            value = string(self.token.text)
        except BadLiteral as exc:
            self.fault(str(exc))
        self.advance()
        return value

    def number(self) -> int | float | complex:
        """Return the number that stands here, with its sign. Raises Fault."""
        negative = False
        sign = self.token
        while self.token.kind in SIGNS:
            negative ^= self.advance().kind == "-"
        if self.token.kind != NUMBER:
            self.fault(f"a number must follow the '{sign.text}'" if sign.kind in SIGNS else "a number is missing", sign)
        try:
            value = number(self.token.text)
        except BadLiteral as exc:
            self.fault(str(exc))
        self.advance()
        return -value if negative else value

    def real(self, wanted: str) -> int | float:
        """Return the number that stands here, which is not a complex one. wanted: an example of it."""
        start = self.token
        if start.kind != NUMBER and start.kind not in SIGNS:
            self.fault(f"a number belongs here, as in {wanted}")
        value = self.number()
        if isinstance(value, complex):
            self.fault(f"a plain number belongs here, as in {wanted}", start)
        return value

    def _sum(self) -> int | float | complex:
        value = self.number()
        # The one calculation that is a literal: 1+2j.
        if self.token.kind in SIGNS and self.peek().text[-1:] in ("j", "J") and self.peek().kind == NUMBER:
            start = self.token
            try:
                return value + self.number()
            except OverflowError:
                self.fault("the number is too large", start)
        return value

    def _tuple(self, depth: int) -> Any:
        opening = self.token
        items = self.items(opening, lambda: self.value(depth + 1))
        is_grouped = len(items) == 1 and self.tokens[self.at - 2].kind != ","
        return items[0] if is_grouped else tuple(items)

    def _mapping(self, depth: int) -> dict[Any, Any] | set[Any]:
        opening = self.token
        entries = self.items(opening, lambda: self._entry(depth + 1))
        paired = [entry for entry in entries if len(entry) == 2]
        if len(paired) == len(entries):
            return dict(paired)
        if paired:
            self.fault("write every entry of a dict as 'key: value', or none for a set", opening)
        return {entry[0] for entry in entries}

    def _entry(self, depth: int) -> tuple[Any, ...]:
        """Return a key and its value, or what stands alone."""
        start = self.token
        key = self.value(depth)
        try:
            hash(key)
        except TypeError:
            self.fault("a key of a dict, and a member of a set, cannot be a list, set or dict; write a tuple", start)
        if self.token.kind != ":":
            return (key,)
        self.advance()
        return key, self.value(depth)
