"""The instructions that may stand before the fields: `math problem: question -> answer: int`.

A prefix is what stands before the first colon and cannot be the beginning of fields. `written` and `split` are each
other's inverse.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from signatures.names import GENERICS, SCALARS
from signatures.text.literals import quoted
from signatures.text.tokens import BLANKS, NAME, BadLiteral, normal, string

_BLANKS: Final = re.compile(BLANKS)
_NAME: Final = re.compile(NAME)
_STRING: Final = re.compile(r"\"(?:[^\"\\\n]|\\.)*+\"|'(?:[^'\\\n]|\\.)*+'")
# Types that nobody calls a field.
_LONE: Final = frozenset({"str", "int", "float", "bool"})


class Prefix(NamedTuple):
    """What stands before the fields. start: offset of the first character after it. quoted: it is a string literal."""

    instructions: str
    start: int
    quoted: bool = False


def split(text: str) -> Prefix | None:
    """Return the prefix of a signature text, None if it has none. Takes time linear in the text's length."""
    begin = _skip(text, 0)
    if literal := _STRING.match(text, begin):
        colon = _skip(text, literal.end())
        if text.startswith(":", colon):
            return Prefix(_unquoted(literal[0]), colon + 1, quoted=True)
        return None
    if _begins_fields(text, begin):
        return None
    colon, arrow = text.find(":", begin), text.find("->", begin)
    if colon < 0 or 0 <= arrow < colon:
        return None
    return Prefix(text[begin:colon].strip(), colon + 1)


def is_lone_type(name: str, behind: str) -> bool:
    """Tell whether a first field is more likely a type behind a colon that was taken for a prefix's, as in `a b: int`.

    name: of the field. behind: kind of the token behind it.
    """
    if behind in ("[", "|", "."):
        return name in SCALARS or name in GENERICS or name in ("dspy", "typing", "datetime", "decimal", "uuid")
    return name in _LONE and behind != ":"


def written(instructions: str, first: str = "") -> str:
    """Return the text to put before the fields so that `split` gives these instructions again; "" for none.

    first: the name of the first field.
    """
    if not instructions:
        return ""
    if first in _LONE:
        return f"{quoted(instructions)}: "
    bare = f"{instructions}: "
    # A quote at the beginning may be closed by one of the fields'.
    if instructions[0] not in "\"'" and "\\" not in instructions and instructions.isprintable():
        found = split(f"{bare}a -> b")
        if found == Prefix(instructions, len(bare) - 1):
            return bare
    return f"{quoted(instructions)}: "


def _begins_fields(text: str, at: int) -> bool:
    """Tell whether pieces such as `name`, `name = …`, `name "…"`, divided by commas, stand here."""
    while True:
        at = _skip(text, at)
        if at == len(text) or text[at] in "*/,:=[({})]" or text.startswith("->", at):
            return True
        name = _NAME.match(text, at)
        if name is None:
            return False
        if not normal(name[0]).isidentifier():
            return False
        at = _skip(text, name.end())
        if at == len(text) or text[at] in ":=" or text.startswith("->", at):
            return True
        if text[at] in "\"'":
            # A description is set off by a blank; `user's` is a word.
            return at > name.end()
        if text[at] != ",":
            return False
        at += 1


def _skip(text: str, at: int) -> int:
    found = _BLANKS.match(text, at)
    return found.end() if found else at


def _unquoted(literal: str) -> str:
    try:
        return str(string(literal))
    except BadLiteral:
        # A bad escape: it is text all the same.
        return literal[1:-1]
