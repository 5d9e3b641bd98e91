"""Regular expressions from strangers: bounded when compiled, timed when matched."""

from __future__ import annotations

import re
from functools import lru_cache
from importlib import import_module
from typing import Any, Final

MAX_PATTERN_CHARS: Final = 1_000
MAX_TEXT_CHARS: Final = 1024 * 1024
TIMEOUT_S: Final = 0.05
# Compiling copies what a quantifier repeats: nested counts multiply.
MAX_EXPANSION: Final = 10_000
MAX_GROUP_DEPTH: Final = 50

# An escape, a comment, a class, a group's start or end, a quantifier with its least and most, any other character.
_PIECE: Final = re.compile(
    r"""(?P<escape>\\.) | (?P<comment>\(\?\#) | (?P<call>\(\?(?:R|[+-]?\d|&|P>))
    | (?P<flags>\(\?[a-zA-Z0-9-]*x[a-zA-Z0-9-]*[:)])
    | \[\^?\]?(?P<set>(?:[^\]\\]|\\.)*)\] | (?P<open>\() | (?P<close>\))
    | (?P<count>\{(?P<least>\d*)(?P<more>,(?P<most>\d*))?\}|[*+?]) | (?P<other>.)""",
    re.VERBOSE | re.DOTALL,
)


def check_pattern(pattern: str) -> str | None:
    """Return why a pattern is not usable, None if it is.

    The syntax is that of Python's `re` (and of `regex`), in at most 1,000 characters, without verbose flag,
    comments and recursion, with `[` inside a class escaped, groups at most 50 deep, and counted repeats that unfold to
    at most 10,000 copies.
    """
    if len(pattern) > MAX_PATTERN_CHARS:
        return f"a pattern must be at most {MAX_PATTERN_CHARS:,} characters"
    try:
        _compiled(pattern)
    except ValueError as error:
        return str(error)
    return None


def matches(pattern: str, text: str) -> bool:
    """Return whether the pattern is found anywhere in the text.

    Raises ValueError for a pattern that `check_pattern` refuses, and TimeoutError for a text over 1,048,576 characters
    or when 0.05 s do not suffice. (The clock is read between steps: over the longest texts one step can take 0.5 s.)
    """
    if len(text) > MAX_TEXT_CHARS:
        raise TimeoutError(f"a text of more than {MAX_TEXT_CHARS:,} characters cannot be searched in time")
    if len(pattern) > MAX_PATTERN_CHARS:
        raise ValueError(f"a pattern must be at most {MAX_PATTERN_CHARS:,} characters")
    try:
        return _compiled(pattern).search(text, timeout=TIMEOUT_S) is not None
    except TimeoutError:
        raise TimeoutError(f"the pattern was not decided in {TIMEOUT_S} s; make it simpler") from None
    except (MemoryError, RecursionError):
        raise TimeoutError("the pattern needs too much memory for this text; make it simpler") from None


@lru_cache(maxsize=256)
def _compiled(pattern: str) -> Any:
    """Return the compiled pattern. Raises ValueError."""
    problem = _too_large(pattern)
    if problem:
        raise ValueError(problem)
    # It takes 20 ms to import, and most processes match nothing. It has no type information.
    regex: Any = import_module("regex")

    try:
        return regex.compile(pattern, cache_pattern=False)
    except regex.error as error:
        where = "" if error.pos is None else f" (character {error.pos + 1})"
        raise ValueError(f"the pattern cannot be read: {error.msg}{where}") from None
    except (RecursionError, MemoryError, OverflowError, KeyError, IndexError, TypeError) as error:
        raise ValueError(f"the pattern cannot be read: {error or type(error).__name__}") from None


def _too_large(pattern: str) -> str | None:
    """Return why compiling the pattern could take too much, None if it cannot.

    Groups are summed and quantified parts multiplied: `x{n}` by n, `x{n,m}` by n + 1, `x+` by 2, for the copies that
    come before the loop. A quantifier that only looks like one counts too.
    """
    # For each open group: what its closed parts unfold to, and its last part.
    totals, last = [0], [0]
    for piece in _PIECE.finditer(pattern):
        # Recursion can take hundreds of megabytes before the clock is read.
        if piece["call"]:
            return "a pattern may not call itself or its groups, as in '(?R)'; write out what repeats"
        # These two, and sets in sets, could hide a quantifier from this reading.
        if piece["comment"] or piece["flags"]:
            return "comments and the verbose flag 'x' are not taken in a pattern; write it without them"
        if piece["set"] is not None and re.search(r"(?:[^\\]|^)(?:\\\\)*\[", piece["set"]):
            return r"'[' inside a class must be escaped in a pattern, as in '[\[]'"
        if piece["open"]:
            totals.append(0)
            last.append(0)
            if len(totals) > MAX_GROUP_DEPTH:
                return f"the groups of a pattern may be {MAX_GROUP_DEPTH} deep"
        elif piece["close"]:
            if len(totals) == 1:
                return f"the pattern cannot be read: unbalanced parenthesis (character {piece.start() + 1})"
            inner = totals.pop() + last.pop()
            totals[-1] += last[-1]
            last[-1] = 1 + inner
        elif piece["count"]:
            last[-1] *= _copies(piece)
        else:
            totals[-1] += last[-1]
            last[-1] = 1
        if last[-1] > MAX_EXPANSION or totals[-1] > MAX_EXPANSION:
            return f"the pattern repeats too much: its counts unfold to more than {MAX_EXPANSION:,} copies; lower them"
    return None


def _copies(piece: re.Match[str]) -> int:
    if piece["count"] in ("*", "?"):
        return 1
    if piece["count"] == "+":
        return 2
    least = int(piece["least"][:9] or 0)
    return max(1, least + (1 if piece["more"] else 0))
