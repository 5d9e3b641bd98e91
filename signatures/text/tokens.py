"""The tokens of a signature text, and the values of those that are Python literals.

One regular expression reads every token together with the blanks before it. It takes time linear in the text: what
repeats is possessive or bounded.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final, NamedTuple

# Beyond ASCII a name may hold anything but blanks, signs that look like ours, and what does not print.
_NEVER: Final = (
    "\x80-\xa0\xab\xad\xbb\u1680\u2000-\u206f\u2190-\u21ff\u2212\u27f0-\u27ff\u2794-\u27be"
    "\u3000-\u3002\ud800-\udfff\ufe00-\ufe0f\ufeff\uff08\uff09\uff0c\uff0d\uff1a-\uff1e\uff3b\uff3d\uff5b-\uff5d\ufff0-\uffff"
)
_START: Final = rf"[^\x00-@\[-\^`{{-\x7f{_NEVER}]"
_NEXT: Final = rf"[^\x00-/:-@\[-\^`{{-\x7f{_NEVER}]"
# A word that stands where a name is wanted; whether it is an identifier is not said by that.
NAME: Final = rf"{_START}{_NEXT}*+"
BLANKS: Final = r"\s*+(?:(?:\#[^\n\r]*+|\\\r?\n)\s*+)*+"

_TOKEN: Final = re.compile(
    rf"""{BLANKS}(?:
    (?P<string>(?:[rR][bB]?|[bB][rR]?|[uU])?+(?:
        '''(?:[^\\]|\\[\s\S])*?''' | \"\"\"(?:[^\\]|\\[\s\S])*?\"\"\"
        | '(?!'')(?:[^'\\\n\r]|\\(?:\r\n|[\s\S]))*+' | "(?!"")(?:[^"\\\n\r]|\\(?:\r\n|[\s\S]))*+"))
    | (?P<name>{NAME})
    | (?P<number>(?:[0-9][0-9_]*+(?:\.(?!\.)[0-9_]*+)?|\.[0-9][0-9_]*+)(?:[eE][+-]?[0-9][0-9_]*+)?{_NEXT}*+)
    | (?P<arrow>->|-{{2,9}}>|=>|[\u2212\u2013\u2014~]>|[\u2190\u2192\u21d2\u21e8\u27f6\u27f9\u2794\u279c\u279d]
        |<-(?!\s*[0-9.])|-[\ \t]++>)
    | (?P<op>\.\.\.|\.\.|\|\||::|:=|==|[-+*/&%^~<>=:,|.()\[\]{{}}])
    | (?P<quote>(?:'''|\"\"\")[\s\S]*+|['"][^\n\r]*+)
    | (?P<end>\Z)
    | (?P<other>[\s\S])
    )""",
    re.VERBOSE,
)

# What is written in place of a sign that it looks like, or that means the same elsewhere.
_MEANT: Final[dict[str, str]] = {
    "||": "|", "::": ":", ":=": "=", "==": "=", ";": ",", "\uff0c": ",", "\uff1b": ",", "\u3001": ",", "\uff1a": ":",
    "\uff3b": "[", "\uff3d": "]", "\uff08": "(", "\uff09": ")", "\uff5b": "{", "\uff5d": "}", "\uff1d": "=",
    "\uff5c": "|", "\u2212": "-", "\u2013": "-", "\u2014": "-", "\uff0d": "-", "\u2026": "...",
}  # fmt: skip
_CURLY_QUOTES: Final = frozenset("\u2018\u2019\u201a\u201b\u201c\u201d\u201e\u201f\xab\xbb")

# Kinds of tokens; a sign's kind is the sign itself, ARROW for what stands for one.
NAMED: Final = "name"
NUMBER: Final = "number"
STRING: Final = "string"
OTHER: Final = "other"
ARROW: Final = "->"
END: Final = "end"
# A character that was told about already.
TOLD: Final = "told"
_AS_THEY_ARE: Final = frozenset({NAMED, NUMBER, STRING})
_PLAIN_SIGNS: Final = frozenset({",", ":", "[", "]", "->", "=", "|", "{", "}", "(", ")", "..", "."})


class Token(NamedTuple):
    """One token. start: its offset in the whole text."""

    kind: str
    text: str
    start: int

    @property
    def end(self) -> int:
        """Offset of the first character behind it."""
        return self.start + len(self.text)


class Tokens(NamedTuple):
    """What a text is made of. The last token is of kind END, and so is one more behind it.

    problems: (offset, message). broken: a quote is not closed, so that the rest of the text was not read.
    """

    tokens: list[Token]
    problems: list[tuple[int, str]]
    broken: bool


def tokenize(text: str, start: int = 0) -> Tokens:
    """Return the tokens of a text from an offset on."""
    tokens: list[Token] = []
    problems: list[tuple[int, str]] = []
    broken = False
    # This loop is half of what reading costs: a named tuple's own constructor would be a third of it.
    keep, new = tokens.append, tuple.__new__
    for found in _TOKEN.finditer(text, start):
        group = found.lastgroup or END
        shown = found[group]
        at = found.end() - len(shown)
        if group in _AS_THEY_ARE:
            keep(new(Token, (group, shown, at)))
            continue
        if group == "end":
            break
        if group == "quote":
            problems.append((at, f"the quote {shown[0]} is not closed on its line; put {shown[0]} behind the text"))
            broken = True
            break
        if shown in _PLAIN_SIGNS:
            keep(new(Token, (shown, shown, at)))
            continue
        kind, problem = _sign(group, shown)
        if problem:
            problems.append((at, problem))
        keep(new(Token, (kind, shown, at)))
    # A problem of the end stands behind the last token, not behind the blanks.
    end = Token(END, "", tokens[-1].end if tokens else start)
    tokens += (end, end)
    return Tokens(tokens, problems, broken)


def _sign(group: str, shown: str) -> tuple[str, str]:
    """Return the kind of a sign, and what is wrong with it."""
    if group == "arrow":
        return ARROW, "" if shown == ARROW else f"write '->' instead of '{shown}'"
    if (meant := _MEANT.get(shown)) is not None:
        return meant, f"write '{meant}' instead of '{shown}'"
    if group == "op":
        return shown, ""
    if shown.isascii() and shown.isprintable():
        return OTHER, ""
    return TOLD, _strange(shown)


def _strange(character: str) -> str:
    if character in _CURLY_QUOTES:
        return f"{character} is no quote of a signature; write ' or \""
    if character.isprintable():
        return f"'{character}' cannot stand here; names are made of letters, digits and underscores"
    return f"the character U+{ord(character):04X} cannot stand in a signature; remove it"


class BadLiteral(ValueError):
    """A token that looks like a literal and is none; the message says why."""


_MAX_DIGITS: Final = 1_000
_LARGEST: Final = 10**_MAX_DIGITS


def number(text: str) -> int | float | complex:
    """Return the value of a number token without its sign. Raises BadLiteral."""
    # Digits of other scripts are numbers to int(), and none to Python's grammar.
    if not text.isascii():
        raise BadLiteral(f"'{short(text)}' is no number")
    try:
        value: int | float | complex
        if text[-1] in "jJ" and text[:2] not in ("0x", "0X"):
            value = complex(0.0, float(text[:-1]))
        elif text.isdigit() or text[1:2] in tuple("xXoObB"):
            value = int(text, 0)
        else:
            value = _plain_number(text)
    except ValueError:
        if len(text) > _MAX_DIGITS:
            raise BadLiteral(f"a number has at most {_MAX_DIGITS} digits") from None
        raise BadLiteral(f"'{short(text)}' is no number") from None
    if isinstance(value, int) and value >= _LARGEST:
        raise BadLiteral(f"a number has at most {_MAX_DIGITS} digits")
    return value


def _plain_number(text: str) -> int | float:
    return int(text, 0) if text.replace("_", "").isdigit() else float(text)


_ESCAPE: Final = re.compile(
    r"\\(?:([0-7]{1,3})|x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|N\{([^{}]{1,80})\}|(\r?\n)|([\s\S]))"
)
_PLAIN_ESCAPES: Final = {
    "\\": "\\", "'": "'", '"': '"', "a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v",
}  # fmt: skip


def string(text: str) -> str | bytes:
    """Return the value of a string token, its prefix and quotes included. Raises BadLiteral.

    As in Python, but a backslash before any other character is those two characters without a warning.
    """
    first = text[0]
    if first in "'\"" and "\\" not in text and text[:3] not in ("'''", '"""'):
        return text[1:-1]
    quote = min(place for place in (text.find("'"), text.find('"')) if place >= 0)
    letters = text[:quote].lower()
    width = 3 if text[quote : quote + 3] in ("'''", '"""') and len(text) - quote >= 6 else 1
    inside = text[quote + width : len(text) - width].replace("\r\n", "\n")
    is_bytes = "b" in letters
    if is_bytes and not inside.isascii():
        raise BadLiteral("bytes are written in ASCII; write other characters as an escape, such as \\xe4")
    if "r" not in letters and "\\" in inside:
        inside = _ESCAPE.sub(_byte_escaped if is_bytes else _escaped, inside)
    return inside.encode("latin-1") if is_bytes else inside


def _escaped(found: re.Match[str]) -> str:
    octal, two, four, eight, name, line, other = found.groups()
    if other is not None:
        if other in "xuUN":
            raise BadLiteral(f"the escape \\{other} is not complete; write \\\\{other} for a backslash")
        return _PLAIN_ESCAPES.get(other, f"\\{other}")
    if line is not None:
        return ""
    if name is not None:
        try:
            return unicodedata.lookup(name)
        except KeyError:
            raise BadLiteral(f"the escape \\N{{{short(name)}}} names no character") from None
    code = int(octal, 8) if octal is not None else int(two or four or eight, 16)
    if code > 0x10FFFF:
        raise BadLiteral(f"the escape {found[0]} is beyond the last character, \\U0010ffff")
    return chr(code)


def _byte_escaped(found: re.Match[str]) -> str:
    octal, two, _four, _eight, _name, line, other = found.groups()
    if octal is not None:
        if int(octal, 8) > 255:
            raise BadLiteral(f"the escape {found[0]} is beyond the last byte, \\377")
        return chr(int(octal, 8))
    if two is not None:
        return chr(int(two, 16))
    if other == "x":
        raise BadLiteral("the escape \\x is not complete; write two hexadecimal digits behind it")
    if line is not None:
        return ""
    return _PLAIN_ESCAPES.get(other, found[0]) if other is not None else found[0]


def normal(name: str) -> str:
    """Return a name as Python knows it: in Unicode's normal form KC."""
    return name if name.isascii() else unicodedata.normalize("NFKC", name)


def short(text: str, limit: int = 60) -> str:
    """Return a text, cut if it is long."""
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
