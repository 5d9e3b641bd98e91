"""What is wrong with a signature text, and where."""

from __future__ import annotations


class SignatureError(ValueError):
    """A signature text that is not accepted.

    message: one sentence, without the place. text: the whole signature text. line, column: of the first character
    at fault, both counted from 1. `str()` adds the place and the line with a caret below it.
    """

    def __init__(self, message: str, text: str = "", line: int = 1, column: int = 1) -> None:
        super().__init__(message, text, line, column)
        self.message = message
        self.text = text
        self.line = line
        self.column = column

    def __str__(self) -> str:
        lines = self.text.split("\n")
        if not self.text or not 1 <= self.line <= len(lines):
            return self.message
        # A window around the caret keeps a very long line readable.
        start = max(0, self.column - 1 - 80)
        shown = lines[self.line - 1][start : start + 160].replace("\t", " ")
        caret = " " * (self.column - 1 - start) + "^"
        return f"{self.message} (line {self.line}, column {self.column})\n  {shown}\n  {caret}"
