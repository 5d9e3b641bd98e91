"""Where signatures stand in files: Python sources, YAML, JSON, plain lines. Files are read, never imported."""

from __future__ import annotations

import bisect
import json
import keyword
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from signatures.errors import SignatureError

if TYPE_CHECKING:
    from orchestrator.cli.signature_declared import Declared

KEY: Final = "signature"
# Possessive: what has been read is not kept for going back, which would take room for each character.
_JSON_STRING: Final = re.compile(r'"(?:[^"\\]++|\\.)*+"')
# Of a line this many characters are shown.
_SHOWN: Final = 240
_JSON_COLON: Final = re.compile(r"\s*:\s*")


@dataclass(frozen=True, slots=True)
class Written:
    """A signature text in a file.

    line, column: of its first character, or of the literal that makes it; counted from 1, in characters. verbatim: the
    file has it as it is, without escapes, later lines beginning at `later_column`. types: names that may stand for
    classes in it. lenient: other unknown names may too.
    """

    text: str
    line: int
    column: int
    verbatim: bool = True
    later_column: int = 1
    types: frozenset[str] = frozenset()
    lenient: bool = False

    def findings(self) -> Iterator[Finding]:
        """Yield what is wrong with it, at the places in the file."""
        from signatures.text.parser import read

        try:
            read(self.text, types=placeholders(self.types))
        except SignatureError as exc:
            line, column = 1, 1
            for problem in exc.problems:
                if self.lenient and problem.message.startswith("unknown type"):
                    continue
                # How many more there are is told where the last one is.
                line, column = (problem.line, problem.column) if problem.line else (line, column)
                yield self._placed(problem.message, line, column)

    def _placed(self, message: str, line: int, column: int) -> Finding:
        if not self.verbatim:
            return Finding(f"{message} (line {line}, column {column} of the text)", self.line, self.column)
        first = self.column if line <= 1 else self.later_column
        return Finding(message, self.line + max(line, 1) - 1, first + max(column, 1) - 1)


@dataclass(frozen=True, slots=True)
class Finding:
    """A mistake, at a place in a file."""

    message: str
    line: int
    column: int


@dataclass(frozen=True, slots=True)
class Checked:
    """A file that was read: how many signatures it has, what is wrong with them in order, its lines."""

    name: str
    signatures: int
    findings: tuple[Finding, ...]
    lines: tuple[str, ...]

    def told(self) -> Iterator[str]:
        """Yield each finding as text: its place and message, the line, a caret."""
        for one in self.findings:
            yield f"{self.name}:{one.line}:{one.column}: {one.message}"
            line = self.lines[one.line - 1] if one.line <= len(self.lines) else ""
            # Of a long line, as of JSON in one, the part around the place.
            first = max(0, one.column - 1 - _SHOWN // 2) if len(line) > _SHOWN else 0
            shown = line[first : first + _SHOWN]
            # A control character would move the caret, or worse.
            yield "  " + "".join(each if each.isprintable() else " " for each in shown)
            yield "  " + " " * (one.column - 1 - first) + "^"


class Unreadable(Exception):
    """A file that cannot be read, or is not what its name says."""


def check_file(path: Path) -> Checked:
    """Check every signature in a file, by its suffix. Raises Unreadable."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as exc:
        raise Unreadable(f"{path}: {exc.strerror}") from None
    except UnicodeDecodeError as exc:
        raise Unreadable(f"{path}: no UTF-8 text (byte {exc.start})") from None
    try:
        return check_text(str(path), text, path.suffix.lower())
    except RecursionError:
        raise Unreadable(f"{path}: is nested too deep") from None


def check_text(name: str, text: str, suffix: str = "") -> Checked:
    """Check every signature in a file's text. Raises Unreadable."""
    try:
        if suffix in (".py", ".pyi"):
            from orchestrator.cli.signature_sources import in_python

            found: list[Written | Declared] = list(in_python(text))
        elif suffix in (".yaml", ".yml"):
            found = list(in_yaml(text))
        elif suffix == ".json":
            found = list(in_json(text))
        elif suffix == ".jsonl":
            found = list(in_json_lines(text))
        else:
            found = list(in_lines(text))
    except Unreadable as exc:
        raise Unreadable(f"{name}: {exc}") from None
    findings = sorted((each for one in found for each in one.findings()), key=lambda each: (each.line, each.column))
    return Checked(name, len(found), tuple(findings), tuple(text.split("\n")))


def in_lines(text: str) -> Iterator[Written]:
    """Yield a signature for each line that is neither blank nor a comment."""
    for number, line in enumerate(text.split("\n"), 1):
        shown = line.strip()
        if shown and not shown.startswith("#"):
            yield Written(shown, number, line.index(shown) + 1)


def in_json(text: str, line: int = 1) -> Iterator[Written]:
    """Yield every text under a key `signature`. Raises Unreadable. line: the number of the text's first line."""
    try:
        # Numbers stay text: one of very many digits is JSON, but no int.
        json.loads(text, parse_int=str, parse_float=str)
    except json.JSONDecodeError as exc:
        place = f"line {line + exc.lineno - 1}, column {exc.colno}"
        raise Unreadable(f"no JSON: {exc.msg} ({place})") from None
    # It is JSON: strings can be told from the rest by their quotes, and keys from values by the colon after them.
    ends = [found.start() for found in re.finditer("\n", text)]
    value_at = -1
    for token in _JSON_STRING.finditer(text):
        if token.start() == value_at:
            value = json.loads(token[0])
            row = bisect.bisect(ends, value_at)
            column = value_at - (ends[row - 1] if row else -1)
            verbatim = token[0][1:-1] == value
            yield Written(value, line + row, column + verbatim, verbatim)
        colon = _JSON_COLON.match(text, token.end())
        value_at = colon.end() if colon is not None and json.loads(token[0]) == KEY else -1


def in_json_lines(text: str) -> Iterator[Written]:
    """Yield what `in_json` does, for each line."""
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield from in_json(line, number)


def in_yaml(text: str) -> Iterator[Written]:
    """Yield every text under a key `signature`. Raises Unreadable."""
    import yaml

    try:
        documents = list(yaml.compose_all(text, Loader=yaml.SafeLoader))
    except yaml.YAMLError as exc:
        raise Unreadable(f"no YAML: {' '.join(str(exc).split())}") from None
    seen: set[int] = set()
    left: list[Any] = [one for one in reversed(documents) if one is not None]
    while left:
        node = left.pop()
        if id(node) in seen:  # an alias
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            left += reversed(node.value)
        elif isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if key.value == KEY and isinstance(value, yaml.ScalarNode) and value.tag.endswith(":str"):
                    yield _in_yaml_at(text, value)
            left += [value for _, value in reversed(node.value)]


def _in_yaml_at(text: str, node: Any) -> Written:
    value, start = str(node.value), node.start_mark
    line, column = start.line + 1, start.column + 1
    raw = text[start.index : node.end_mark.index]
    if node.style is None:
        return Written(value, line, column, verbatim=raw.rstrip() == value)
    if node.style in ("'", '"'):
        verbatim = raw[1:-1] == value
        return Written(value, line, column + verbatim, verbatim)
    below = text.split("\n")[start.line + 1 :]
    wanted = value.rstrip("\n").split("\n")
    indent = len(below[0]) - len(below[0].lstrip(" ")) if below else 0
    verbatim = node.style == "|" and [each[indent:] for each in below[: len(wanted)]] == wanted
    if not verbatim:
        return Written(value, line, column, verbatim=False)
    return Written(value, line + 1, indent + 1, later_column=indent + 1)


# --- types whose classes are not at hand ----------------------------------------------------------


class _Anything(type):
    """Of a class whose instances are not known: everything may be one."""

    def __instancecheck__(cls, instance: object) -> bool:
        return True


def placeholders(names: Iterable[str]) -> Mapping[str, type]:
    """Return a class for each name that can be one and is no type's own: it stands for what cannot be looked at."""
    from signatures.names import type_names

    known = type_names()
    free = (name for name in names if name not in known and all(map(_is_name, name.split("."))))
    return {name: _Anything(name, (), {}) for name in free}


def _is_name(part: str) -> bool:
    # As Python reads names: of letters that are written in several ways, one is the name.
    is_normal = unicodedata.normalize("NFKC", part) == part
    return is_normal and part.isidentifier() and not keyword.iskeyword(part)
