"""Constraints read from tokens: the bracket behind a type, and `Field(ge=0)` inside `Annotated[…]`."""

from __future__ import annotations

from typing import Any, Final

from signatures.names import FORMS, GENERICS, MEDIA, SCALARS
from signatures.text.cursor import ENDS
from signatures.text.tokens import NAMED, NUMBER, STRING, Token, normal, short
from signatures.text.values import SIGNS, Values
from signatures.types import STR, Annotated, Constraints, Type, measure

_NUMBERS: Final = ("ge", "gt", "le", "lt", "multiple_of")
_LENGTHS: Final = ("min_length", "max_length")
_TEXTS: Final = ("pattern", "format", "description")
_KEYWORDS: Final = frozenset({*_NUMBERS, *_LENGTHS, *_TEXTS})
_EXAMPLES: Final = {"value": "[0..100]", "length": "[1..80]"}
_RANGE_ENDS: Final = ENDS | {",", "]"}


class Bounds(Values):
    """Reads constraints."""

    def opens_constraints(self) -> bool:
        """Tell whether the bracket that opens here holds constraints rather than types."""
        inside = self.peek()
        return (
            inside.kind in (NUMBER, "..", "<")
            or inside.kind in SIGNS
            or (inside.kind == NAMED and self.peek(2).kind == "=")
        )

    def constraints(self, base: Type) -> Constraints:
        """Return the constraints in the bracket that opens here. base: the type before it."""
        opening, kind = self.token, measure(base)
        inside = self.peek()
        is_type = inside.kind == NAMED and self.peek(2).kind != "=" and _is_type(inside.text)
        if is_type:
            self.tell(opening, f"'{base.text}' takes no arguments; remove the bracket")
        elif kind is None:
            self.tell(opening, f"'{base.text}' takes no constraints; numbers take ranges, texts and containers lengths")
        elif inside.kind == "]":
            self.tell(opening, f"the bracket is empty; write for example {base.text}{_EXAMPLES[kind]}, or remove it")
        else:
            return self._bracket(base, kind, opening)
        self.skip_brackets()
        return Constraints()

    def _bracket(self, base: Type, kind: str, opening: Token) -> Constraints:
        before = self.told
        found: dict[str, tuple[Any, Token]] = {}
        self.items(opening, lambda: self._one(kind, found))
        if self.token.kind == "[":
            self.fault("write all constraints in one bracket, divided by commas")
        return self._sound(base, found, opening) if self.told == before else Constraints()

    def _sound(self, base: Type, found: dict[str, tuple[Any, Token]], place: Token) -> Constraints:
        """Return the constraints, after telling what is wrong with them."""
        constraints = Constraints(**{name: value for name, (value, _) in found.items()})
        problem = constraints.problem(base)
        if problem is None:
            return constraints
        if "pattern" in found and (base.base if isinstance(base, Annotated) else base) == STR:
            # A pattern that is none stands where it stands; all else is of the bracket.
            pattern, token = found["pattern"]
            if Constraints(pattern=pattern).problem(STR) == problem:
                place = token
        self.tell(place, problem)
        return Constraints()

    def _one(self, kind: str, found: dict[str, tuple[Any, Token]]) -> None:
        token = self.token
        if token.kind == STRING:
            pattern = self.strings()
            if self.token.kind == "..":
                self.fault(f"a range is made of numbers, as in {_EXAMPLES[kind]}", token)
            if isinstance(pattern, bytes):
                self.fault("a pattern is a text; remove the b before the quote", token)
            self._set(found, "pattern", pattern, token, "there is one pattern for a type; join the two with '|'")
        elif token.kind == NAMED:
            self._word(kind, found)
        else:
            self._range(kind, found)

    def _word(self, kind: str, found: dict[str, tuple[Any, Token]]) -> None:
        token = self.advance()
        name = token.text
        if self.token.kind == "=":
            self.advance()
            if name != "multiple_of":
                hint = self.hint(name, lambda: {"multiple_of"})
                known = f"did you mean '{hint}'?" if hint else f"ranges and lengths are written {_EXAMPLES[kind]}"
                self.fault(f"unknown constraint '{short(name)}'; {known}", token)
            self._set(found, name, self.real("int[multiple_of=5]"), token, "'multiple_of' is given twice; remove one")
        elif name == "finite":
            self._set(found, name, True, token, "'finite' is given twice; remove one")
        else:
            # What formats need is loaded with the first one.
            from signatures.native.validators import FORMATS

            if name not in FORMATS:
                hint = self.hint(name, lambda: {*FORMATS, "finite", "multiple_of"})
                known = f"did you mean '{hint}'?" if hint else f"formats are {', '.join(sorted(FORMATS))}"
                self.fault(f"unknown constraint '{short(name)}'; {known}", token)
            self._set(found, "format", name, token, "a text has one format; remove one")

    def _range(self, kind: str, found: dict[str, tuple[Any, Token]]) -> None:
        start, example = self.token, _EXAMPLES[kind]
        low = self._end(kind) if start.kind == NUMBER or start.kind in SIGNS else None
        is_above = self._open_end(kind)
        dots = self.token
        if dots.kind != "..":
            self._no_dots(start, low, example)
        self.advance()
        is_below = self._open_end(kind)
        high = None
        if self.token.kind not in _RANGE_ENDS or is_below:
            if self.token.kind != NUMBER and self.token.kind not in SIGNS:
                self.fault(f"a range is made of numbers, as in {example}")
            high = self._end(kind)
        if low is None and high is None:
            self.fault(f"a range has at least one end, as in {example}", dots)
        if is_above and low is None:
            self.fault(f"a number must stand before the '<', as in {example}", start)
        if any(name in found for name in (*_NUMBERS[:4], *_LENGTHS)):
            self.fault("there is one range for a type; write it as one", start)
        names = _LENGTHS if kind == "length" else ("gt" if is_above else "ge", "lt" if is_below else "le")
        found.update({name: (end, start) for name, end in zip(names, (low, high), strict=True) if end is not None})

    def _no_dots(self, start: Token, low: int | float | None, example: str) -> None:
        if self.token.kind in ("...", "-", ":"):
            self.fault(f"write '..' between the ends of a range, as in {example}")
        if low is not None and self.token.kind in _RANGE_ENDS:
            shown = short(self.text[start.start : self.tokens[self.at - 1].end])
            self.fault(f"a range has two ends; write [..{shown}], [{shown}..] or [{shown}..{shown}]", start)
        self.fault_unexpected(f"write a range such as {example}, a pattern in quotes, or a format")

    def _open_end(self, kind: str) -> bool:
        if self.token.kind != "<":
            return False
        if kind == "length":
            self.fault("lengths are whole numbers; write both ends without '<', as in [1..80]")
        self.advance()
        return True

    def _end(self, kind: str) -> int | float:
        token = self.token
        value = self.real(_EXAMPLES[kind])
        if kind == "length" and not isinstance(value, int):
            self.fault("a length is a whole number, as in [1..80]", token)
        return value

    def _set(self, found: dict[str, tuple[Any, Token]], name: str, value: Any, token: Token, twice: str) -> None:
        if name in found:
            self.tell(token, twice)
        found[name] = (value, token)

    # --- Field(…) -----------------------------------------------------------------------------

    def field_arguments(self, found: dict[str, tuple[Any, Token]]) -> None:
        """Read `Field(ge=0, description="…")`, of which the bracket opens here, into `found`."""
        self.items(self.token, lambda: self._keyword(found))

    def _keyword(self, found: dict[str, tuple[Any, Token]]) -> None:
        token = self.token
        if token.kind != NAMED or self.peek().kind != "=":
            self.fault(f"'{short(token.text)}' has no name; write for example Field(ge=0, description='how many')")
        name = normal(self.advance().text)
        self.advance()
        if name not in _KEYWORDS:
            if name == "default":
                self.fault("a default stands behind the type: 'a: int = 3'", token)
            hint = self.hint(name, lambda: set(_KEYWORDS))
            known = f"did you mean '{hint}'?" if hint else f"Field takes {', '.join(sorted(_KEYWORDS))}"
            self.fault(f"unknown argument '{short(name)}'; {known}", token)
        self._set(found, name, self._argument(name), token, f"'{name}' is given twice; remove one")

    def _argument(self, name: str) -> Any:
        start = self.token
        if name in _TEXTS:
            value = self.strings() if start.kind == STRING else None
            if not isinstance(value, str):
                self.fault(f"'{name}' is a text; put it in quotes", start)
            return value
        number = self.real(f"Field({name}=5)")
        if name in _LENGTHS and not isinstance(number, int):
            self.fault(f"'{name}' is a whole number, as in Field({name}=5)", start)
        return number


def _is_type(name: str) -> bool:
    return name in SCALARS or name in GENERICS or name in FORMS or name in MEDIA or name in ("dspy", "typing")
