"""Signatures in Python sources, found by reading: texts given to calls and under keys, and declared classes.

What cannot be known without running the source is left alone: no false alarms.
"""

from __future__ import annotations

import ast
import builtins
import re
import warnings
from collections.abc import Iterator
from typing import Final, NamedTuple

from orchestrator.cli.signature_declared import Declared, declared
from orchestrator.cli.signature_files import KEY, Finding, Unreadable, Written

_ENGINE_CALLS: Final = frozenset(
    f"{home}.{name}" for home in ("signatures", "signatures.declare") for name in ("parse", "signature")
)
# What of dspy takes a signature first, by the last part of its name.
_DSPY_CALLS: Final = frozenset(
    {
        "Signature", "make_signature", "ensure_signature", "Predict", "ChainOfThought", "ReAct", "ProgramOfThought",
        "CodeAct", "MultiChainComparison", "RLM",
    }
)  # fmt: skip
# Beside one of these, a key `signature` is of a program or a call.
_SIBLINGS: Final = frozenset({"module", "inputs", "outputs"})
_QUOTE: Final = re.compile(r"[a-zA-Z]{0,2}('''|\"\"\"|'|\")")


def in_python(text: str) -> Iterator[Written | Declared]:
    """Yield every literal signature text and every declared class. Raises Unreadable."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about escapes and the like: not what is asked
            tree = ast.parse(text)
    except SyntaxError as exc:
        raise Unreadable(f"no Python: {exc.msg} (line {exc.lineno})") from None
    except ValueError as exc:
        raise Unreadable(f"no Python: {exc}") from None
    except MemoryError:  # so Python says that brackets or signs nest too deep for its parser
        raise Unreadable("is nested too deep") from None
    source = Source(text, tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield from _in_call(source, node)
        elif isinstance(node, ast.Dict):
            yield from _in_dict(source, node)
    yield from declared(source, tree)


class Literal(NamedTuple):
    """A string literal."""

    node: ast.expr
    value: str


class Source:
    """A module's text and what its names mean, as far as its imports say."""

    def __init__(self, text: str, tree: ast.Module) -> None:
        self.lines = text.split("\n")
        self.imported: dict[str, str] = {}
        self.bound: set[str] = set()
        self.has_star = False
        self._lent: dict[ast.expr, frozenset[str]] = {}  # a class's decorator -> names in the class's body
        for node in ast.walk(tree):
            self._bind(node)

    def _bind(self, node: ast.AST) -> None:
        match node:
            case ast.Import(names):
                for alias in names:
                    name = alias.asname or alias.name.partition(".")[0]
                    self.imported[name] = alias.name if alias.asname else name
            case ast.ImportFrom(module, names):
                self.has_star = self.has_star or any(alias.name == "*" for alias in names)
                for alias in names:
                    home = "." * node.level + (module or "")
                    self.imported[alias.asname or alias.name] = f"{home}.{alias.name}"
            case ast.ClassDef():
                self.bound.add(node.name)
                lent = frozenset(name for statement in node.body for name in _bound_by(statement))
                self._lent |= dict.fromkeys(node.decorator_list, lent)
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                self.bound.add(node.name)
            case ast.Name(name, ast.Store()):
                self.bound.add(name)
            case ast.arg(name):
                self.bound.add(name)

    def knows(self, name: str) -> bool:
        """Return whether a name may mean something in this module."""
        return self.has_star or name in self.bound or name in self.imported or hasattr(builtins, name)

    def classes(self) -> frozenset[str]:
        """Return the names that may be those of classes."""
        return frozenset(self.bound | self.imported.keys())

    def dotted(self, node: ast.expr) -> str:
        """Return what an expression names, imports resolved: `dspy.Predict`; the empty string if it is no name."""
        if isinstance(node, ast.Name):
            return self.imported.get(node.id, node.id)
        if isinstance(node, ast.Attribute):
            home = self.dotted(node.value)
            return f"{home}.{node.attr}" if home else ""
        return ""

    def lent(self, decorator: ast.expr) -> frozenset[str]:
        """Return the names in the body of the class that an expression decorates."""
        return self._lent.get(decorator, frozenset())

    def column(self, line: int, offset: int) -> int:
        """Return the column, in characters from 1, of a place that is given in UTF-8 bytes from 0."""
        return len(self.lines[line - 1].encode()[:offset].decode(errors="replace")) + 1

    def at(self, message: str, node: ast.expr | ast.stmt) -> Finding:
        """Return a finding at a node."""
        return Finding(message, node.lineno, self.column(node.lineno, node.col_offset))

    def written(self, literal: Literal, types: frozenset[str] = frozenset(), *, lenient: bool = False) -> Written:
        """Return the text of a string literal, and where it stands."""
        node, value = literal
        column = self.column(node.lineno, node.col_offset)
        raw = self._segment(node)
        quote = _QUOTE.match(raw)
        if quote is None or raw[quote.end() : -len(quote[1])] != value:
            return Written(value, node.lineno, column, verbatim=False, types=types, lenient=lenient)
        return Written(value, node.lineno, column + quote.end(), types=types, lenient=lenient)

    def _segment(self, node: ast.expr) -> str:
        last = node.end_lineno or node.lineno
        lines = [line.encode() for line in self.lines[node.lineno - 1 : last]]
        lines[-1] = lines[-1][: node.end_col_offset]
        lines[0] = lines[0][node.col_offset :]
        return b"\n".join(lines).decode(errors="replace")


def _bound_by(statement: ast.stmt) -> Iterator[str]:
    match statement:
        case ast.ClassDef(name):
            yield name
        case ast.Assign(targets):
            yield from (target.id for target in targets if isinstance(target, ast.Name))
        case ast.Import(names) | ast.ImportFrom(_, names):
            yield from (alias.asname or alias.name for alias in names)


# --- calls and keys -------------------------------------------------------------------------------


def _in_call(source: Source, call: ast.Call) -> Iterator[Written]:
    name = source.dotted(call.func)
    if name in _ENGINE_CALLS:
        if (text := _argument(call, 0, "text")) is not None:
            types, lenient = _registry(call)
            yield source.written(text, types | source.lent(call), lenient=lenient)
    elif name.startswith("dspy.") and name.rpartition(".")[2] in _DSPY_CALLS:
        if (text := _argument(call, 0, KEY)) is not None:
            # DSPy looks for classes in the caller's module.
            yield source.written(text, source.classes(), lenient=source.has_star)
    elif isinstance(call.func, ast.Attribute) and (text := _in_method(call, call.func.attr)) is not None:
        yield source.written(text)


def _registry(call: ast.Call) -> tuple[frozenset[str], bool]:
    """Return the names in `types={…}`, and whether there may be others."""
    given = next((each.value for each in call.keywords if each.arg == "types"), None)
    if given is None:
        return frozenset(), any(each.arg is None for each in call.keywords)
    if not isinstance(given, ast.Dict):
        return frozenset(), True
    keys = [text.value for key in given.keys if key is not None and (text := _literal(key)) is not None]
    return frozenset(keys), len(keys) < len(given.keys)


def _in_method(call: ast.Call, method: str) -> Literal | None:
    """Return the text in `client.predict("…")` and `client.module("dspy.…", "…")`. Others have such methods too."""
    if method == "predict":
        text = _argument(call, 0, KEY)
        return text if text is not None and "->" in text.value else None
    if method == "module":
        name = _argument(call, 0, "name")
        return _argument(call, 1, KEY) if name is not None and name.value.startswith("dspy.") else None
    return None


def _argument(call: ast.Call, place: int, name: str) -> Literal | None:
    """Return an argument that is a string literal."""
    given: ast.expr | None = next((each.value for each in call.keywords if each.arg == name), None)
    if len(call.args) > place and not any(isinstance(one, ast.Starred) for one in call.args[:place]):
        given = call.args[place]
    return None if given is None else _literal(given)


def _literal(node: ast.expr) -> Literal | None:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return Literal(node, node.value)
    return None


def _in_dict(source: Source, node: ast.Dict) -> Iterator[Written]:
    keys = [None if key is None or (text := _literal(key)) is None else text.value for key in node.keys]
    for key, value in zip(keys, node.values, strict=True):
        text = _literal(value) if key == KEY else None
        if text is not None and ("->" in text.value or _SIBLINGS & set(keys)):
            yield source.written(text)
