"""The allow-list a signature text passes before any parser that imports sees it.

DSPy's own parser imports every module a type name mentions. Here the text is only read: `ast` builds a tree, and
each node of it must be one that the grammar names.

Grammar: `name: type, name: type -> name: type`. A field without a type is a `str`. Types are those of
`PLAIN`, `GENERIC` and `DSPY`, nested subscripts of them, and unions with `|`.
"""

from __future__ import annotations

import ast
import difflib
from collections.abc import Callable
from typing import Final, NamedTuple, NoReturn

from signatures.errors import SignatureError

MAX_CHARS: Final = 20_000
MAX_DEPTH: Final = 20

# How many arguments a generic takes: (least, most), None = any number.
GENERIC: Final[dict[str, tuple[int, int | None]]] = {
    "list": (1, 1), "set": (1, 1), "frozenset": (1, 1), "dict": (2, 2), "tuple": (1, None),
    "List": (1, 1), "Set": (1, 1), "FrozenSet": (1, 1), "Dict": (2, 2), "Tuple": (1, None),
    "Optional": (1, 1), "Union": (1, None), "Literal": (1, None), "Annotated": (2, None),
}  # fmt: skip
BARE: Final = frozenset({"list", "set", "frozenset", "dict", "tuple", "List", "Set", "FrozenSet", "Dict", "Tuple"})
PLAIN: Final = frozenset({"str", "int", "float", "bool", "bytes", "complex", "Any"}) | BARE
# Reached as `typing.X`.
TYPING: Final = frozenset({"Any", *GENERIC}) - {"list", "set", "frozenset", "dict", "tuple"}
# Reached as `dspy.X`.
DSPY: Final = frozenset({"Image", "Audio", "File", "History", "Tool", "ToolCalls", "Code", "Reasoning"})
# Attributes of a signature itself, which a field of that name would hide.
RESERVED: Final = frozenset({"instructions", "signature", "fields"})
# Keyword arguments of a call that DSPy takes for itself.
RESERVED_INPUTS: Final = frozenset({"config", "demos", "lm", "new_signature"})

_ARROW: Final = "->"
_WRAP: Final = "def f("


class Names(NamedTuple):
    """The field names of an accepted signature text, in order."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def check(text: str) -> Names:
    """Return the field names of a signature text that keeps to the grammar.

    Raises SignatureError, with the place, for any other text. Imports nothing and runs nothing of the text.
    """
    if not isinstance(text, str):
        raise SignatureError(f"a signature is a text such as 'question -> answer', not {type(text).__name__}")
    if len(text) > MAX_CHARS:
        raise SignatureError(f"the signature has {len(text)} characters; at most {MAX_CHARS} are read")
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if text.count(_ARROW) != 1:
        _fail_at(text, _offset_of_arrow(text), _arrow_message(text))
    arrow = text.index(_ARROW)
    inputs = _Side(text, 0, arrow, taken=(), reserved=RESERVED | RESERVED_INPUTS).names()
    outputs = _Side(text, arrow + len(_ARROW), len(text), taken=inputs, reserved=RESERVED).names()
    if not outputs:
        _fail_at(text, arrow, "a signature needs at least one output after '->'")
    return Names(inputs, outputs)


class _Side:
    """One side of the arrow, parsed as the parameters of a function, which is how DSPy reads it."""

    def __init__(self, text: str, start: int, end: int, *, taken: tuple[str, ...], reserved: frozenset[str]) -> None:
        self._text = text
        self._start = start
        self._source = text[start:end]
        self._lines = self._source.split("\n")
        self._taken = taken
        self._reserved = reserved

    def names(self) -> tuple[str, ...]:
        """Return the field names of this side; raise SignatureError for the first fault."""
        args = self._parse()
        for node in (args.vararg, args.kwarg):
            if node is not None:
                self._fail(node, f"'*{node.arg}' is not possible in a signature: name each field")
        for default in (*args.defaults, *args.kw_defaults):
            if default is not None:
                self._fail(default, "a field of a signature text has no default value")
        if args.posonlyargs or args.kwonlyargs:
            self._fail_at_side("'/' and '*' are not possible in a signature: list the fields only")
        seen: list[str] = []
        for field in args.args:
            self._name(field, seen)
            seen.append(field.arg)
            if field.annotation is not None:
                self._field_type(field.annotation)
        return tuple(seen)

    def _parse(self) -> ast.arguments:
        try:
            tree = ast.parse(f"{_WRAP}{self._source}): pass")
        except SyntaxError as exc:
            self._syntax(exc)
        except (ValueError, RecursionError, MemoryError) as exc:
            self._fail_at_side(f"the signature cannot be read: {exc or type(exc).__name__}")
        match tree.body:
            case [ast.FunctionDef(body=[ast.Pass()], decorator_list=[], returns=None) as function]:
                return function.args
        self._fail_at_side("a signature lists fields only: 'name: type, name: type -> name: type'")

    def _name(self, field: ast.arg, seen: list[str]) -> None:
        name = field.arg
        if name.startswith("_"):
            self._fail(field, f"the field name '{name}' starts with an underscore")
        if name in self._reserved:
            self._fail(field, f"the field name '{name}' is taken by DSPy itself; choose another")
        if name in seen:
            self._fail(field, f"the field '{name}' is named twice")
        if name in self._taken:
            self._fail(field, f"the field '{name}' is an input and an output; the names must differ")

    def _field_type(self, node: ast.expr) -> None:
        if isinstance(node, ast.Constant) and node.value is None:
            self._fail(node, "None alone is no type of a field; write for example 'str | None'")
        self._type(node, 0)

    def _type(self, node: ast.expr, depth: int) -> None:
        if depth > MAX_DEPTH:
            self._fail(node, f"types are nested deeper than {MAX_DEPTH}")
        match node:
            case ast.Name(id=name):
                self._plain(node, name, PLAIN, set(PLAIN) | set(GENERIC))
            case ast.Attribute():
                self._dotted(node)
            case ast.Constant(value=None):
                return
            case ast.BinOp(left=left, op=ast.BitOr(), right=right):
                self._type(left, depth + 1)
                self._type(right, depth + 1)
            case ast.Subscript(value=base, slice=arguments):
                self._subscript(base, arguments, depth)
            case _:
                self._fail(node, f"'{_excerpt(node)}' is no type; write a type name such as str or list[str]")

    def _plain(self, node: ast.expr, name: str, allowed: frozenset[str], known: set[str]) -> None:
        if name in allowed:
            return
        if name in GENERIC:
            self._fail(node, f"'{name}' needs arguments, as in {_example(name)}")
        if name in DSPY:
            self._fail(node, f"unknown type '{name}'; did you mean 'dspy.{name}'?")
        self._unknown(node, name, known)

    def _dotted(self, node: ast.Attribute) -> str:
        """Return the last name of `typing.X` or `dspy.X`."""
        match node.value:
            case ast.Name(id="typing"):
                if node.attr not in TYPING:
                    self._unknown(node, f"typing.{node.attr}", {f"typing.{name}" for name in TYPING})
                if node.attr not in PLAIN:
                    self._fail(node, f"'typing.{node.attr}' needs arguments, as in {_example(node.attr)}")
            case ast.Name(id="dspy"):
                if node.attr not in DSPY:
                    self._unknown(node, f"dspy.{node.attr}", {f"dspy.{name}" for name in DSPY})
            case _:
                self._unknown(node, _excerpt(node), {f"dspy.{name}" for name in DSPY})
        return node.attr

    def _subscript(self, base: ast.expr, arguments: ast.expr, depth: int) -> None:
        items = arguments.elts if isinstance(arguments, ast.Tuple) else [arguments]
        match base:
            case ast.Name(id=name) if name in GENERIC:
                pass
            case ast.Attribute(value=ast.Name(id="typing"), attr=name) if name in TYPING and name in GENERIC:
                pass
            case ast.Attribute(value=ast.Name(id="dspy"), attr="Code"):
                self._constants(items, (str,), "dspy.Code takes the name of one language, as in dspy.Code['python']", 1)
                return
            case _:
                self._type(base, depth + 1)
                self._fail(base, f"'{_excerpt(base)}' takes no arguments")
        least, most = GENERIC[name]
        if len(items) < least or (most is not None and len(items) > most):
            count = str(least) if most == least else f"at least {least}"
            plural = "" if count in ("1", "at least 1") else "s"
            self._fail(base, f"'{name}' takes {count} argument{plural}, as in {_example(name)}, not {len(items)}")
        self._arguments(name, items, depth)

    def _arguments(self, name: str, items: list[ast.expr], depth: int) -> None:
        if name == "Literal":
            kinds = (str, int, bool, type(None))
            self._constants(items, kinds, "Literal takes texts, whole numbers, True, False or None")
            return
        if name == "Annotated":
            self._constants(items[1:], (str,), "Annotated takes a type and then texts")
            items = items[:1]
        if name in ("tuple", "Tuple") and len(items) == 2 and _is_ellipsis(items[1]):
            items = items[:1]
        for item in items:
            self._type(item, depth + 1)

    def _constants(self, items: list[ast.expr], kinds: tuple[type, ...], message: str, most: int = 1000) -> None:
        for item in items:
            if not isinstance(item, ast.Constant) or type(item.value) not in kinds:
                self._fail(item, message)
        if len(items) > most:
            self._fail(items[most], message)

    def _unknown(self, node: ast.expr, name: str, known: set[str]) -> NoReturn:
        close = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.6)
        hint = f"; did you mean '{close[0]}'?" if close else "; types are str, int, list[…], Literal[…], dspy.Image …"
        self._fail(node, f"unknown type '{name}'{hint}")

    def _fail(self, node: ast.expr | ast.arg, message: str) -> NoReturn:
        """Raise at a node of this side. The tree counts UTF-8 bytes from the wrapped first line."""
        line = self._lines[node.lineno - 1]
        before = node.col_offset - (len(_WRAP) if node.lineno == 1 else 0)
        column = len(line.encode("utf-8", "surrogatepass")[:before].decode("utf-8", "replace"))
        _fail_at(self._text, self._offset(node.lineno, column), message)

    def _syntax(self, exc: SyntaxError) -> NoReturn:
        line = min(max(exc.lineno or 1, 1), len(self._lines))
        column = max(0, (exc.offset or 1) - 1 - (len(_WRAP) if line == 1 else 0))
        offset = min(self._offset(line, column), self._start + len(self._source))
        _fail_at(self._text, offset, f"the signature cannot be read here: {exc.msg}")

    def _fail_at_side(self, message: str) -> NoReturn:
        blank = len(self._source) - len(self._source.lstrip())
        _fail_at(self._text, self._start + blank, message)

    def _offset(self, line: int, column: int) -> int:
        """Return the offset in the whole text of a place in this side."""
        return self._start + sum(len(one) + 1 for one in self._lines[: line - 1]) + column


def _fail_at(text: str, offset: int, message: str) -> NoReturn:
    before = text[:offset]
    raise SignatureError(message, text, before.count("\n") + 1, offset - (before.rfind("\n") + 1) + 1)


def _arrow_message(text: str) -> str:
    if _ARROW in text:
        return "a signature has exactly one '->'"
    if not text.strip():
        return "the signature is empty; write for example 'question -> answer'"
    return "a signature needs '->' between inputs and outputs, as in 'question -> answer'"


def _offset_of_arrow(text: str) -> int:
    """Return where the second arrow stands, or the end of a text that has none."""
    first = text.find(_ARROW)
    return len(text) if first < 0 else text.index(_ARROW, first + len(_ARROW))


def _is_ellipsis(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is ...


def _excerpt(node: ast.expr) -> str:
    """Return the node as text, short. A tree too deep to print is named by its kind."""
    render: Callable[[ast.AST], str] = ast.unparse
    try:
        text = render(node)
    except (RecursionError, ValueError):
        text = type(node).__name__
    return text if len(text) <= 40 else f"{text[:39]}…"


def _example(name: str) -> str:
    return {
        "Literal": "Literal['a', 'b']", "Union": "Union[str, int]", "Annotated": "Annotated[str, 'a note']",
        "dict": "dict[str, int]", "Dict": "Dict[str, int]", "tuple": "tuple[str, int]", "Tuple": "Tuple[str, int]",
    }.get(name, f"{name}[str]")  # fmt: skip
