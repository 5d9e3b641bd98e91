"""Types read from tokens, by recursive descent. No name is looked up anywhere but in tables."""

from __future__ import annotations

import keyword
from collections.abc import Mapping
from typing import Any, Final, NamedTuple, NoReturn

from signatures.names import ARITY, FORMS, GENERICS, MEDIA, SCALARS, type_names
from signatures.text.bounds import Bounds
from signatures.text.cursor import CLOSING, ENDS
from signatures.text.tokens import NAMED, NUMBER, OTHER, STRING, TOLD, Token, normal, short
from signatures.text.values import CONSTANTS, SIGNS
from signatures.types import (
    ANY,
    MAX_DEPTH,
    NONE,
    NOTHING,
    Annotated,
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

# Trees are frozen: those without parts are made once.
_SCALARS: Final = {name: Scalar(plain) for name, plain in SCALARS.items()}
_BARE: Final = {name: Generic(plain) for name, plain in GENERICS.items()}
_MEDIA: Final = {f"dspy.{name}": Media(name) for name in MEDIA}
_EXAMPLES: Final = {
    "Literal": "Literal['a', 'b']", "Union": "Union[str, int]", "Annotated": "Annotated[str, 'a note']",
    "dict": "dict[str, int]", "Mapping": "Mapping[str, int]", "tuple": "tuple[str, int]",
}  # fmt: skip
# What other languages call them.
_ELSEWHERE: Final = {
    "string": "str", "text": "str", "integer": "int", "boolean": "bool", "number": "float", "array": "list",
    "object": "dict", "json": "dict", "null": "None", "true": "bool", "false": "bool",
}  # fmt: skip
_NOT_UNIONS: Final = frozenset({"or", "and", "+", "&", "/", "*", "-", "^"})
_KINDS: Final = (str, int, bool, bytes, float, type(None))
_CHOICES: Final = "Literal takes texts in quotes, numbers, True, False or None"


class Read(NamedTuple):
    """A type that was read, with what is of the field rather than of the type."""

    type: Type
    constraints: Constraints = NONE
    description: str = ""


class Expressions(Bounds):
    """Reads types."""

    def __init__(self, text: str, start: int, customs: Mapping[str, type]) -> None:
        super().__init__(text, start)
        self._customs = customs

    def record(self, depth: int) -> Record:
        """Return the record that opens here."""
        raise NotImplementedError

    def read_type(self, depth: int = 0) -> Read:
        """Return the type that stands here. depth: how many types it is in. Raises Fault."""
        start = self.token
        first = self._part(depth)
        if self.token.kind != "|":
            self._ends()
            return first
        members = [self._alone(first, start)]
        while self.token.kind == "|":
            self.advance()
            start = self.token
            members.append(self._alone(self._part(depth), start))
        self._ends()
        return Read(union(*members))

    def inner(self, depth: int) -> Type:
        """Return a type inside another."""
        start = self.token
        return self._alone(self.read_type(depth), start)

    def _alone(self, read: Read, start: Token) -> Type:
        if read.description:
            self.tell(start, "a description is of the field itself; write it behind the whole type")
        return constrained(read.type, read.constraints)

    def _ends(self) -> None:
        if self.token.text in _NOT_UNIONS:
            self.fault(f"write '|' instead of '{self.token.text}' between types, as in int | str")

    def _part(self, depth: int) -> Read:
        token = self.token
        if depth >= MAX_DEPTH:
            self.fault(f"the type is nested deeper than {MAX_DEPTH}; use a class of your own for a part of it")
        if token.kind == NAMED:
            return self._behind(self._named(depth), token)
        if token.kind == "(":
            return self._group(depth)
        if token.kind == "{":
            return self._behind(Read(self.record(depth)), token)
        self._no_type()

    def _no_type(self) -> NoReturn:
        token = self.token
        if token.kind == STRING:
            self.fault(f"a type stands without quotes; remove the quotes around {short(token.text)}")
        if token.kind in ENDS or token.kind in CLOSING or token.kind in (",", "|", "=", ":"):
            self.fault("a type is missing here; write for example 'a: str'")
        if token.kind == "[":
            self.fault("'[' begins no type; a list is written list[int]")
        if token.kind == "...":
            self.fault("'...' is no type; write a type such as str, or tuple[int, ...]")
        if token.kind in (OTHER, TOLD):
            self.fault_unexpected("write a type such as str or list[str]")
        self.fault(f"'{short(token.text)}' is no type; write a type such as str or list[str]")

    def _group(self, depth: int) -> Read:
        opening = self.advance()
        read = self.read_type(depth + 1)
        if self.token.kind == ",":
            self.fault("several types in a row are a tuple; write for example tuple[int, str]")
        self.close(opening)
        return read

    def _behind(self, read: Read, start: Token) -> Read:
        """Return a part with the constraints behind it."""
        token = self.token
        if token.kind == "[":
            if read.constraints:
                self.fault("write all constraints in one bracket, divided by commas")
            return read._replace(constraints=self.constraints(read.type))
        if token.kind == "(" and self.peek().kind == ")":
            self.fault(f"a type is not called; write '{short(self.text[start.start : token.start])}' without '()'")
        if token.kind in ("(", "{", "<"):
            self.fault(f"write '[' instead of '{token.text}': the arguments of a type stand in square brackets")
        return read

    # --- names --------------------------------------------------------------------------------

    def _named(self, depth: int) -> Read:
        start = self.advance()
        name = start.text
        while self.token.kind == ".":
            self.advance()
            if self.token.kind != NAMED:
                self.fault("a name must follow the '.'")
            name = f"{name}.{self.advance().text}"
        name = normal(name)
        known = self._customs.get(name)
        if known is not None:
            return Read(Custom(name, known))
        if (scalar := _SCALARS.get(name)) is not None:
            return Read(scalar)
        if name in GENERICS:
            return Read(self._generic(name, start, depth))
        if name in FORMS:
            return self._form(name, start, depth)
        if (media := _MEDIA.get(name)) is not None:
            return Read(self._code() if name == "dspy.Code" and self.token.kind == "[" else media)
        if keyword.iskeyword(name) and name not in CONSTANTS:
            self.fault(f"'{name}' is no type; write a type such as str or list[str]", start)
        self.tell(start, f"unknown type '{short(name)}'; {self._close(name)}")
        while self.token.kind in ("[", "("):
            self.skip_brackets()
        return Read(ANY)

    def _close(self, name: str) -> str:
        lower = name.lower()
        if name in MEDIA:
            found: str | None = f"dspy.{name}"
        else:
            found = _ELSEWHERE.get(lower) or _LOWER.get(lower)
        if found is None:
            # What names of one package have in common says nothing.
            package, _, last = name.rpartition(".")
            package = package.partition(".")[0]
            shared = f"{package}." if package in ("dspy", "typing") else ""
            wanted = f"{last if shared else name}"
            found = self.hint(wanted, lambda: _within(shared, type_names(self._customs)))
            found = found and shared + found
        if found:
            return f"did you mean '{found}'?"
        return (
            "types are str, int, list[…], Literal[…], dspy.Image …; "
            f"a class of your own is given as types={{'{short(name)}': …}}"
        )

    def _generic(self, name: str, start: Token, depth: int) -> Type:
        plain = GENERICS[name]
        if self.token.kind != "[" or self.opens_constraints():
            return _BARE[name]
        opening, before = self.token, self.told
        dots: list[Token] = []

        def argument() -> Type | None:
            if self.token.kind != "...":
                return self.inner(depth + 1)
            dots.append(self.advance())
            return None

        found = self.items(opening, argument)
        if dots:
            # Only `tuple[X, ...]` has them.
            if plain != "tuple":
                self.fault("'...' is only for tuples, as in tuple[int, ...]", dots[0])
            if len(found) != 2 or found[1] is not None or found[0] is None:
                self.fault("'...' stands behind one type, as in tuple[int, ...]", dots[0])
        arguments = tuple(one for one in found if one is not None)
        if not arguments and self.told == before:
            self.tell(opening, f"the bracket is empty; write for example {_example(plain)}, or only '{plain}'")
        elif self.told == before:
            self._arity(plain, len(arguments), start)
        return Generic(plain, arguments, bool(dots)) if arguments else _BARE[name]

    def _arity(self, name: str, given: int, place: Token) -> None:
        least, most = _ARITIES[name]
        if given < least or (most is not None and given > most):
            count = str(least) if most == least else f"at least {least}"
            plural = "" if least == 1 else "s"
            self.tell(place, f"'{name}' takes {count} argument{plural}, as in {_example(name)}, not {given}")

    # --- forms --------------------------------------------------------------------------------

    def _form(self, name: str, start: Token, depth: int) -> Read:
        plain = FORMS[name]
        opening = self.token
        if opening.kind != "[":
            if opening.kind in ("(", "{", "<"):
                self.fault(f"write '[' instead of '{opening.text}': the arguments of a type stand in square brackets")
            self.tell(start, f"'{plain}' needs arguments, as in {_example(plain)}")
            return Read(ANY)
        if self.peek().kind == "]":
            self.tell(opening, f"the bracket is empty; write for example {_example(plain)}")
            self.skip_brackets()
            return Read(ANY)
        if plain == "Literal":
            return Read(Literal(tuple(self._choices(depth).values())))
        if plain == "Annotated":
            return self._annotated(start, depth)
        before = self.told
        arguments = self.items(opening, lambda: self.inner(depth + 1))
        if self.told == before:
            self._arity(plain, len(arguments), start)
        if not arguments:
            return Read(ANY)
        return Read(union(*arguments, NOTHING) if plain == "Optional" else union(*arguments))

    def _choices(self, depth: int) -> dict[tuple[type, Any], Any]:
        """Return the choices of a Literal without repetitions: 1, 1.0 and True are three."""
        found: dict[tuple[type, Any], Any] = {}

        def choice() -> None:
            token = self.token
            if token.kind == NAMED and FORMS.get(token.text) == "Literal" and self.peek().kind == "[":
                if depth >= MAX_DEPTH:
                    self.fault(f"the type is nested deeper than {MAX_DEPTH}; write one Literal")
                self.advance()
                found.update(self._choices(depth + 1))
                return
            if not (token.kind in (STRING, NUMBER, *SIGNS) or token.text in CONSTANTS):
                self.fault(_CHOICES if token.kind != NAMED else f"{_CHOICES}; '{short(token.text)}' is none of these")
            value = self.value()
            if type(value) not in _KINDS:
                self.fault(_CHOICES, token)
            found[type(value), value] = value

        self.items(self.token, choice)
        return found

    def _annotated(self, start: Token, depth: int) -> Read:
        opening, before = self.token, self.told
        base: list[Read] = []
        notes: list[str] = []
        given: dict[str, tuple[Any, Token]] = {}
        place = start

        def item() -> None:
            nonlocal place
            if not base:
                base.append(self.read_type(depth + 1))
            elif self.token.kind == STRING:
                notes.append(self._note())
            elif self.token.kind == NAMED and self.token.text == "Field" and self.peek().kind == "(":
                place = self.advance()
                self.field_arguments(given)
            elif self.token.kind == NAMED and self.peek().kind == "(":
                self.fault(f"'{short(self.token.text)}' cannot be called here; only Field(…) can")
            else:
                self.fault("a note is a text in quotes; constraints are given by Field(…)")

        count = len(self.items(opening, item))
        if self.told == before:
            self._arity("Annotated", count, start)
        if not base:
            return Read(ANY)
        return self._noted(base[0], notes, given, place)

    def _noted(self, base: Read, notes: list[str], given: dict[str, tuple[Any, Token]], place: Token) -> Read:
        """Return a type with its notes. place: of the last Field(…)."""
        type_, constraints, description = base
        if "description" in given:
            if description:
                self.tell(place, "there are two descriptions; remove one")
            description = given.pop("description")[0]
        if isinstance(type_, Annotated):
            # Nested ones are one, as in Python.
            notes = [*type_.notes, *notes]
            type_ = type_.base
        elif notes:
            type_, constraints = constrained(type_, constraints), NONE
        if given and constraints:
            self.fault("write all constraints in one place", place)
        noted = Annotated(type_, tuple(notes)) if notes else type_
        if given:
            constraints = self._sound(noted, given, place)
        return Read(noted, constraints, description)

    def _note(self) -> str:
        token = self.token
        note = self.strings()
        if isinstance(note, bytes):
            self.fault("a note is a text; remove the b before the quote", token)
        return note

    def _code(self) -> Media:
        """Return `dspy.Code["python"]`, of which the bracket opens here."""
        example = "dspy.Code takes the name of one language, as in dspy.Code['python']"
        languages = self.items(self.token, lambda: self._note() if self.token.kind == STRING else self.fault(example))
        if len(languages) != 1:
            self.fault(example, self.tokens[self.at - 1])
        return Media("Code", languages[0])


_ARITIES: Final = {**ARITY, "Optional": (1, 1), "Union": (1, None), "Literal": (1, None), "Annotated": (2, None)}
_LOWER: Final = {name.lower(): name for name in sorted(type_names(), reverse=True)}


def _example(name: str) -> str:
    return _EXAMPLES.get(name, f"{name}[str]")


def _within(package: str, names: set[str]) -> set[str]:
    return {name.removeprefix(package) for name in names if name.startswith(package)}
