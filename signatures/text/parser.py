"""Signature texts to specs.

    signature := [prefix ":"] fields "->" fields
    fields    := [field {"," field} [","]]
    field     := name [":" type] [description] ["=" default]

A mistake ends the reading of its field only; the next is read on, so that all of them are told.
"""

from __future__ import annotations

import keyword
from collections.abc import Mapping
from typing import Any, Final, NoReturn

from signatures.errors import SignatureError
from signatures.model import MAX_FIELDS, Field, Kind, Spec, nested_too_deep, none_alone, same_name, too_many
from signatures.names import name_problem, type_names
from signatures.text import prefix
from signatures.text.cursor import CLOSING, ENDS, Fault
from signatures.text.expressions import Expressions, Read
from signatures.text.tokens import ARROW, END, NAMED, NUMBER, OTHER, STRING, Token, normal, short
from signatures.types import MAX_DEPTH, MISSING, STR, Record, Scalar

MAX_CHARS: Final = 20_000

_SIDE: Final = ENDS
_RECORD: Final = ENDS | CLOSING
_WRAPPERS: Final = {"(": "parentheses", "[": "brackets", "{": "braces"}
# What glues the parts of a name together elsewhere.
_GLUE: Final = frozenset({"-", ".", "$", "@"})
_AFTER_WORD: Final = frozenset({":", ",", "=", "[", ARROW, END, STRING, "}"})


def read(text: str, *, types: Mapping[str, type] | None = None, instructions: str | None = None) -> Spec:
    """Return the signature that a text is.

    types: classes by the names that stand for them in the text, `pkg.Thing` as well as `Thing`. instructions: for a
    text that has no prefix. Imports nothing and runs nothing that the text names; takes time linear in its length.
    Raises SignatureError, with the place of every mistake, and nothing else.
    """
    if not isinstance(text, str):
        raise SignatureError(f"a signature is a text such as 'question -> answer', not {type(text).__name__}")
    if len(text) > MAX_CHARS:
        raise SignatureError(f"the signature has {len(text)} characters; at most {MAX_CHARS} are read")
    if types is not None and not isinstance(types, Mapping):
        raise SignatureError(f"types= is a mapping of names to classes, not {type(types).__name__}", text)
    customs = dict(types) if types else {}
    if problem := _misuse(customs, instructions):
        raise SignatureError(problem, text)
    found = prefix.split(text)
    if found is not None and instructions:
        raise SignatureError("the instructions are given twice, as an argument and in the text; leave one out", text)
    parser = Parser(text, found, customs)
    inputs, outputs = parser.sides()
    if not parser.told:
        return Spec.of_sound(inputs, outputs, found.instructions if found else instructions or "")
    raise SignatureError(parser.placed(), text)


def _misuse(customs: Mapping[Any, Any], instructions: Any) -> str | None:
    if instructions is not None and not isinstance(instructions, str):
        return f"instructions are a text, not {type(instructions).__name__}"
    known = type_names() if customs else set()
    for name, python in customs.items():
        if not isinstance(name, str):
            return f"the names in types= are texts, not {type(name).__name__}"
        if not all(_is_plain(part) for part in name.split(".")):
            return f"{short(repr(name))} in types= is no name for a type; write for example 'Person'"
        if name in known:
            return f"'{name}' in types= is the name of a type already; choose another"
        if not isinstance(python, type):
            return f"'{name}' in types= must be a class, not {type(python).__name__}"
    return None


def _is_plain(name: str) -> bool:
    return name.isidentifier() and not keyword.iskeyword(name) and normal(name) == name


class Parser(Expressions):
    """Reads the two sides of a signature and the members of records."""

    def __init__(self, text: str, found: prefix.Prefix | None, customs: Mapping[str, type]) -> None:
        super().__init__(text, found.start if found else 0, customs)
        self._prefix = found
        self._names: dict[str, Kind] = {}
        self._count = 0
        self._surplus: Token | None = None

    def sides(self) -> tuple[list[Field], list[Field]]:
        """Return the inputs and the outputs, as far as they could be read."""
        sides = self._sides()
        if self._surplus is not None:
            self.tell(self._surplus, too_many(self._count))
        return sides

    def _sides(self) -> tuple[list[Field], list[Field]]:
        self._first()
        inputs = self._fields("input", self._names)
        arrow = self.token
        if arrow.kind != ARROW:
            if not self.broken:
                self.tell(arrow, self._no_arrow())
            return inputs, []
        self.advance()
        if self.token.kind == END and not self.broken:
            self.tell(arrow, "a signature needs at least one output after '->'")
        outputs = self._fields("output", self._names)
        if self.token.kind == ARROW:
            self.tell(self.token, "a signature has exactly one '->'; put commas between the outputs")
        while self.token.kind == ARROW:
            self.advance()
            outputs += self._fields("output", self._names)
        return inputs, outputs

    def _no_arrow(self) -> str:
        if self.at == 0 and self._prefix is None:
            # A text of blanks and comments begins at its first character.
            return "the signature is empty; write for example 'question -> answer'"
        return "a signature needs '->' between inputs and outputs, as in 'question -> answer'"

    def _first(self) -> None:
        """Tell what is wrong with the very beginning: a prefix that is none, or one that was not meant."""
        token, behind = self.token, self.peek()
        if self._prefix is None:
            if token.kind == STRING and behind.kind in (NAMED, NUMBER):
                self.advance()
                self.tell(behind, "put ':' between the instructions and the fields")
        elif not self._prefix.quoted and prefix.is_lone_type(token.text, behind.kind):
            shown = short(self._prefix.instructions, 40)
            self.tell(
                token,
                f"'{shown}' is read as instructions and '{token.text}' as a field's name; mend the fields before the "
                "':', or put the instructions in quotes",
            )
            self.skip(0, _SIDE)
            if self.token.kind == ",":
                self.advance()

    # --- fields -------------------------------------------------------------------------------

    def record(self, depth: int) -> Record:
        """Return the record that opens here."""
        opening = self.advance()
        if self.token.kind == "}":
            self.fault("a record has at least one member; write for example {name: str}, or dict", opening)
        members = self._fields("member", {}, opening, depth)
        self.close(opening)
        return Record(tuple(members))

    def _fields(self, kind: Kind, names: dict[str, Kind], opening: Token | None = None, depth: int = -1) -> list[Field]:
        """Return the fields up to what ends them. opening: the brace of a record."""
        found: list[Field] = []
        stops = _RECORD if opening else _SIDE
        while self.token.kind not in ENDS and not (opening and self.token.kind == "}"):
            begin = self.at
            try:
                if self.token.kind == ",":
                    self.tell(self.token, "there is a comma too many; remove it")
                elif (field := self._field(kind, names, depth + 1)) is not None:
                    found.append(field)
                self._behind_field(kind, begin, opening)
            except Fault:
                self.skip(begin, stops)
                if opening and self.token.kind in CLOSING:
                    break
            if self.token.kind == ",":
                self.advance()
        return found

    def _field(self, kind: Kind, names: dict[str, Kind], depth: int) -> Field | None:
        """Return the field that begins here, None if something is wrong with it. Raises Fault."""
        before = self.told
        name = self._name(kind, names)
        read, is_typed, description, default = Read(STR), False, "", MISSING
        if self.token.kind == ":":
            self.advance()
            place, is_typed, first = self.token, True, self.at
            read = self.read_type(depth)
            if isinstance(read.type, Scalar) and read.type.name == "None" and kind != "member":
                self.tell(place, none_alone(name))
            # So deep a type has many tokens: short ones need no look.
            if depth == 0 and self.at - first > MAX_DEPTH and read.type.depth > MAX_DEPTH:
                self.tell(place, nested_too_deep(name))
            description = read.description
        if self.token.kind == STRING:
            place = self.token
            if description:
                self.tell(place, "a field has one description; remove one")
            description = self._description()
        if self.token.kind == "=":
            place = self.tokens[self.at + 1]
            default = self._default()
        if self.told != before:
            return None
        field = Field.of(
            name, kind, read.type, default=default, description=description, constraints=read.constraints,
            typed=is_typed,
        )  # fmt: skip
        return field if default is MISSING else self._with_default(field, place)

    def _default(self) -> Any:
        self.advance()
        if self.token.kind in ENDS or self.token.kind in (",", "}", ":"):
            self.fault("a default is missing here; write a literal, or remove the '='")
        return self.whole_value()

    def _with_default(self, field: Field, place: Token) -> Field | None:
        """Return a field whose default has been judged, and converted as far as a literal can say it."""
        if (problem := field.default_problem()) is not None:
            self.tell(place, problem)
            return None
        return field.settled()

    def _name(self, kind: Kind, names: dict[str, Kind]) -> str:
        """Return the name that stands here, after telling what is wrong with it."""
        token = self.token
        if token.kind == STRING and self.peek().kind not in (NAMED, NUMBER):
            self.tell(token, "a name stands without quotes; remove the quotes")
            return str(self.one_string())
        if token.kind not in (NAMED, NUMBER):
            self._no_name()
        self.advance()
        name = normal(token.text)
        if self.token.start == token.end and self.token.text in _GLUE and self._glued(token):
            return name
        problem = name_problem(name, kind)
        if problem:
            self.tell(token, problem)
        if (earlier := names.get(name)) is None:
            names[name] = kind
        elif kind == "member":
            self.tell(token, f"the member '{name}' is named twice; rename one")
        else:
            self.tell(token, same_name(name, both_sides=earlier != kind))
        if kind != "member":
            self._count += 1
            if self._count == MAX_FIELDS + 1:
                self._surplus = token
        return name

    def _glued(self, start: Token) -> bool:
        """Read `a-b`, `a.b` or `a$` to its end and tell that it is no name; False for `a. b`."""
        if self.token.text in ("-", ".") and not (
            self.peek().start == self.token.end and self.peek().kind in (NAMED, NUMBER)
        ):
            return False
        end = start.end
        while self.token.start == end and (self.token.text in _GLUE or self.token.kind in (NAMED, NUMBER)):
            end = self.advance().end
        shown = short(self.text[start.start : end])
        self.tell(start, f"'{shown}' is no name for a field; use letters, digits and underscores, as in 'a_b'")
        return True

    def _no_name(self) -> NoReturn:
        token = self.token
        if token.text in ("*", "**"):
            behind = self.peek()
            if behind.kind == NAMED or behind.text == "*":
                self.fault("'*' is not possible in a signature; name each field")
            self.fault("'*' is not possible in a signature; list the fields only")
        if token.kind == "/":
            self.fault("'/' is not possible in a signature; list the fields only")
        if token.kind in _WRAPPERS:
            self.fault(f"a field begins with its name, without {_WRAPPERS[token.kind]}; remove the '{token.text}'")
        if token.kind in (":", "="):
            self.fault(f"a name is missing before the '{token.text}'")
        if token.kind in CLOSING:
            self.broken = True
        if token.kind == OTHER:
            self.fault(f"'{token.text}' cannot stand here; names are made of letters, digits and underscores")
        self.fault_unexpected("write the name of a field")

    def _description(self) -> str:
        token = self.token
        description = self.one_string()
        if isinstance(description, bytes):
            self.fault("a description is a text; remove the b before the quote", token)
        return description

    # --- between fields -----------------------------------------------------------------------

    def _behind_field(self, kind: Kind, begin: int, opening: Token | None) -> None:
        """Look at what stands behind a field: a comma, its end, or a mistake. The comma is left. May raise Fault."""
        token = self.token
        if token.kind == STRING:
            self._second_string(begin)
            token = self.token
        if token.kind == "," or token.kind in ENDS or (opening and token.kind == "}"):
            return
        if token.kind in (":", "="):
            self._second_part(token, begin)
        if token.kind in (NAMED, NUMBER):
            self._no_comma(kind, begin, opening)
        elif token.kind == "." or token.kind == "|":
            self.tell(token, f"write ',' instead of '{token.text}' between fields")
            self.advance()
        elif token.kind == "[" and not self._has(begin, ":"):
            self.fault(f"a type stands behind a colon; write for example '{short(self.tokens[begin].text)}: list[str]'")
        elif opening is not None:
            self.close(opening)
        else:
            if token.kind in CLOSING:
                # What follows a bracket too many was meant for another place.
                self.broken = True
            self.fault_unexpected("put a comma between fields")

    def _second_string(self, begin: int) -> None:
        token = self.token
        if self._has(begin, "="):
            self.tell(token, "the description comes before the default; swap them")
        else:
            self.tell(token, "a field has one description; remove one, or put a comma between")
        while self.token.kind == STRING:
            self.advance()

    def _second_part(self, token: Token, begin: int) -> None:
        if token.kind == "=":
            self.fault("a field has one default; remove one")
        if self._has(begin, "="):
            self.fault("the type comes before the default, as in 'a: int = 3'")
        if self._has(begin, ":"):
            self.fault("a field has one ':' and one type; put a comma between fields")
        self.fault("the type comes before the description, as in 'a: int \"how many\"'")

    def _no_comma(self, kind: Kind, begin: int, opening: Token | None) -> None:
        """Tell that two fields have no comma between them; the second is read if it looks like one."""
        token, last = self.token, self.tokens[self.at - 1]
        message = f"put a comma between '{short(last.text, 30)}' and '{short(token.text, 30)}'"
        if kind == "input" and opening is None and self._prefix is None and begin == 0 and self.at == 1:
            message += ", or a ':' behind instructions"
        self.tell(token, message)
        if keyword.iskeyword(token.text) or self.peek().kind not in _AFTER_WORD:
            raise Fault

    def _has(self, begin: int, kind: str) -> bool:
        """Tell whether a sign stood in the field that began at an index, outside of brackets."""
        depth = 0
        for token in self.tokens[begin : self.at]:
            if token.kind in _WRAPPERS:
                depth += 1
            elif token.kind in CLOSING:
                depth -= 1
            elif depth == 0 and token.kind == kind:
                return True
        return False
