"""Walking through the tokens of a text: what is told, where, and how reading goes on after a mistake."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from typing import Final, NoReturn, TypeVar

from signatures.errors import Problem
from signatures.names import close_name
from signatures.text.tokens import ARROW, END, NAMED, NUMBER, OTHER, STRING, TOLD, Token, short, tokenize

MAX_PROBLEMS: Final = 20
# Close names are slow to find; a text with more mistakes than this has other troubles.
_MAX_HINTS: Final = 8

CLOSERS: Final = {"(": ")", "[": "]", "{": "}"}
CLOSING: Final = frozenset(CLOSERS.values())
WORDS: Final = frozenset({NAMED, NUMBER, STRING})
ENDS: Final = frozenset({ARROW, END})

T = TypeVar("T")


class Fault(Exception):
    """The field that is read cannot be read on; why has been told. Never leaves the reader."""


class Cursor:
    """A place among the tokens of a text. token: the next one to be read."""

    def __init__(self, text: str, start: int) -> None:
        self.text = text
        self.tokens, found, self.broken = tokenize(text, start)
        self._told: dict[int, str] = {}
        self._hints = _MAX_HINTS
        for at, message in found:
            self.tell(at, message)
        self.at = 0
        self.token = self.tokens[0]

    # --- walking ------------------------------------------------------------------------------

    def advance(self) -> Token:
        """Return the token and step behind it; never behind the end."""
        token = self.token
        if token.kind != END:
            self.at += 1
            self.token = self.tokens[self.at]
        return token

    def peek(self, steps: int = 1) -> Token:
        """Return a token further on."""
        return self.tokens[min(self.at + steps, len(self.tokens) - 1)]

    def skip(self, begin: int, stops: frozenset[str]) -> None:
        """Step on to the next comma outside of brackets, a stop outside of brackets, an arrow or the end.

        begin: index of the first token of what is skipped, before the cursor; brackets count from there.
        """
        depth = 0
        index = begin
        while True:
            kind = self.tokens[index].kind
            if index >= self.at and (kind in ENDS or (depth == 0 and (kind == "," or kind in stops))):
                break
            if kind in CLOSERS:
                depth += 1
            elif kind in CLOSING:
                depth = max(0, depth - 1)
            index += 1
        self.at = index
        self.token = self.tokens[index]

    def skip_brackets(self) -> None:
        """Step behind the bracket that opens here, without a look into it."""
        opening = self.token
        depth = 0
        while self.token.kind not in ENDS:
            kind = self.advance().kind
            depth += (kind in CLOSERS) - (kind in CLOSING)
            if depth == 0:
                return
        self.fault_unclosed(opening)

    # --- telling ------------------------------------------------------------------------------

    @property
    def told(self) -> int:
        """How many problems were told so far."""
        return len(self._told)

    def tell(self, place: Token | int, message: str) -> None:
        """Keep a problem. A second one of the same place follows from the first, and is dropped."""
        self._told.setdefault(place if isinstance(place, int) else place.start, message)

    def fault(self, message: str, place: Token | None = None) -> NoReturn:
        """Tell a problem, of the token if no place is given, and end the reading of this field."""
        token = place or self.token
        if token.kind != TOLD and not (self.broken and self.token.kind == END):
            self.tell(token, message)
        raise Fault

    def fault_unclosed(self, opening: Token) -> NoReturn:
        """Tell that a bracket stays open."""
        self.fault(f"the '{opening.text}' is not closed; put '{CLOSERS[opening.kind]}' where it ends", opening)

    def fault_unexpected(self, wanted: str) -> NoReturn:
        """Tell that something cannot stand here. wanted: what to write, as a sentence without a full stop."""
        kind, shown = self.token.kind, short(self.token.text)
        if kind in CLOSING:
            self.fault(f"there is no bracket for '{shown}' to close; remove the '{shown}'")
        if shown == "?":
            self.fault("'?' is no part of a signature; an optional value has '| None' behind its type")
        if kind == OTHER:
            self.fault(f"'{shown}' cannot stand here; names are made of letters, digits and underscores")
        self.fault(f"'{shown}' cannot stand here; {wanted}")

    def hint(self, name: str, known: Callable[[], set[str]]) -> str | None:
        """Return the known name that a name was meant to be, None if there is none."""
        if self._hints == 0:
            return None
        self._hints -= 1
        return close_name(name, known())

    # --- brackets -----------------------------------------------------------------------------

    def close(self, opening: Token) -> None:
        """Step behind the bracket that closes another. Raises Fault if it does not stand here."""
        wanted = CLOSERS[opening.kind]
        if self.token.kind == wanted:
            self.advance()
        elif self.token.kind in ENDS or self.token.kind == "=":
            self.fault_unclosed(opening)
        elif self.token.kind == ":":
            self.fault(f"close the '{opening.text}' with '{wanted}' before the ':', or write a comma instead of it")
        elif self.token.kind in CLOSING:
            self.fault(f"write '{wanted}' instead of '{self.token.text}', to close the '{opening.text}'")
        else:
            self.fault_unexpected(f"close the '{opening.text}' with '{wanted}'")

    def items(self, opening: Token, read: Callable[[], T]) -> list[T]:
        """Return what stands between two brackets, divided by commas; both are read."""
        found: list[T] = []
        self.advance()
        closer = CLOSERS[opening.kind]
        while self.token.kind != closer:
            if self.token.kind == ",":
                self.tell(self.token, "there is a comma too many; remove it")
                self.advance()
                continue
            found.append(read())
            if self.token.kind == ",":
                self.advance()
            elif self.token.kind in WORDS:
                self.tell(self.token, f"put a comma between these, before '{short(self.token.text)}'")
            elif self.token.kind == "|":
                self.fault("write a comma instead of '|'")
            elif self.token.kind != closer:
                self.close(opening)
        self.advance()
        return found

    # --- places -------------------------------------------------------------------------------

    def placed(self) -> list[Problem]:
        """Return the problems in the order of their places: at most `MAX_PROBLEMS`, then how many more there are."""
        starts = [0]
        while (found := self.text.find("\n", starts[-1]) + 1) > 0:
            starts.append(found)
        problems = []
        for at in sorted(self._told)[:MAX_PROBLEMS]:
            line = bisect_right(starts, at)
            problems.append(Problem(self._told[at], "", line, at - starts[line - 1] + 1))
        if (more := len(self._told) - MAX_PROBLEMS) > 0:
            problems.append(Problem(f"and {more} more problems" if more > 1 else "and 1 more problem"))
        return problems
