"""What is wrong with a signature, and where; what is wrong with the values given to one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

# A window around the caret keeps a very long line readable.
_BEFORE_CARET = 80
_SHOWN_CHARS = 160


class Problem(NamedTuple):
    """One mistake, as one sentence that names the fix.

    path: of the value at fault (`docs[3].title`), the empty string for a text. line, column: of the first character at
    fault, both counted from 1; 0 where there is no text. In a class the line is its file's, and the column 0.
    """

    message: str
    path: str = ""
    line: int = 0
    column: int = 0


class SignatureError(ValueError):
    """A signature that is not accepted.

    problems: every mistake, in the order of their places. message, line, column: of the first. text: the whole
    signature text, empty for a declared class. file: where it was declared, `path:line`, or the empty string.
    `str()` tells all of them, each with its line and a caret below it; those of a class, each with path and line.
    """

    def __init__(
        self, problems: str | Sequence[Problem], text: str = "", line: int = 1, column: int = 1, *, file: str = ""
    ) -> None:
        found = (Problem(problems, "", line, column),) if isinstance(problems, str) else tuple(problems)
        super().__init__(found, text)
        self.problems = found
        self.text = text
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.problems, self.text), self.__dict__

    @property
    def message(self) -> str:
        """The first problem, without its place."""
        return self.problems[0].message

    @property
    def line(self) -> int:
        """Line of the first problem, counted from 1."""
        return self.problems[0].line or 1

    @property
    def column(self) -> int:
        """Column of the first problem, in characters, counted from 1."""
        return self.problems[0].column or 1

    def __str__(self) -> str:
        # In a class the lines are those of its file, and there are no columns.
        if self.file and not any(problem.column for problem in self.problems):
            path = self.file.rpartition(":")[0]
            return "\n".join(f"{path}:{problem.line}: {problem.message}" for problem in self.problems)
        told = "\n".join(_told(problem, self.text) for problem in self.problems)
        return f"{self.file}: {told}" if self.file else told


class ValidationError(ValueError):
    """Values that do not fit a signature. problems: every one of them, with its path."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__(self.problems)

    @property
    def message(self) -> str:
        """All problems, one a line; each names its path."""
        return "\n".join(problem.message for problem in self.problems)

    @property
    def path(self) -> str:
        """Path of the first problem."""
        return self.problems[0].path

    def __str__(self) -> str:
        return self.message


def _told(problem: Problem, text: str) -> str:
    lines = text.split("\n")
    if not text or not 1 <= problem.line <= len(lines):
        return problem.message
    start = max(0, problem.column - 1 - _BEFORE_CARET)
    shown = lines[problem.line - 1][start : start + _SHOWN_CHARS]
    # A control character would move the caret, or worse.
    shown = "".join(one if one.isprintable() else " " for one in shown)
    caret = " " * (problem.column - 1 - start) + "^"
    return f"{problem.message} (line {problem.line}, column {problem.column})\n  {shown}\n  {caret}"
