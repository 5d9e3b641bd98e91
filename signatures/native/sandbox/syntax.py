"""What a template may be written with: an allow-list of syntax, and the counting that is woven into the rest."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Final

from jinja2 import TemplateSyntaxError, nodes
from jinja2.ext import Extension
from jinja2.lexer import Token, TokenStream
from jinja2.visitor import NodeTransformer

from signatures.names import close_name
from signatures.native.sandbox.callables import TESTS
from signatures.native.sandbox.filters import FILTERS
from signatures.native.sandbox.values import MAX_INT_BITS

MAX_TOKENS: Final = 10_000
MAX_DEPTH: Final = 64

_ALLOWED: Final = (
    nodes.Template, nodes.Output, nodes.For, nodes.If, nodes.Macro, nodes.CallBlock, nodes.FilterBlock, nodes.With,
    nodes.Assign, nodes.AssignBlock, nodes.Name, nodes.NSRef, nodes.Const, nodes.TemplateData, nodes.Tuple, nodes.List,
    nodes.Dict, nodes.Pair, nodes.Keyword, nodes.CondExpr, nodes.Filter, nodes.Test, nodes.Call, nodes.Getitem,
    nodes.Getattr, nodes.Slice, nodes.Concat, nodes.Compare, nodes.Operand, nodes.BinExpr, nodes.UnaryExpr, nodes.Scope,
)  # fmt: skip
_TAGS: Final[dict[type[nodes.Node], str]] = {
    nodes.Include: "include", nodes.Import: "import", nodes.FromImport: "import", nodes.Extends: "extends",
    nodes.Block: "block", nodes.ScopedEvalContextModifier: "autoescape",
}  # fmt: skip


class TokenLimit(Extension):
    """Stops reading a template that has too many parts: compiling takes far more memory than the text itself."""

    def filter_stream(self, stream: TokenStream) -> Iterator[Token]:
        """Pass the tokens on, up to the most there may be."""
        for index, token in enumerate(stream):
            if index >= MAX_TOKENS:
                raise TemplateSyntaxError(
                    f"the template has more than {MAX_TOKENS:,} names, signs and pieces of text; split it", token.lineno
                )
            yield token


def check(template: nodes.Template) -> None:
    """Raise TemplateSyntaxError, with the line, for what a template may not hold or nests too deep."""
    waiting: list[tuple[nodes.Node, int]] = [(template, 0)]
    while waiting:
        node, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise TemplateSyntaxError(f"the template is nested deeper than {MAX_DEPTH}; use fewer levels", node.lineno)
        problem = _problem(node)
        if problem:
            raise TemplateSyntaxError(problem, node.lineno)
        waiting.extend((child, depth + 1) for child in node.iter_child_nodes())


def _problem(node: nodes.Node) -> str | None:
    match node:
        case nodes.Filter() if node.name not in FILTERS:
            return _unknown("filter", node.name, FILTERS)
        case nodes.Test() if node.name not in TESTS:
            return _unknown("test", node.name, TESTS)
        case nodes.Filter() | nodes.Test() | nodes.Call() | nodes.CallBlock() if _starred(node):
            return "'*' and '**' in a call are not taken; write the arguments out"
        case nodes.Name(name="self" | "super"):
            return f"'{node.name}' has a meaning of its own in templates; rename the value"
        case nodes.Const(value=int()) if node.value.bit_length() > MAX_INT_BITS:
            return f"a whole number has more than {MAX_INT_BITS} bits; use a float"
        case nodes.Const(value=float()) if not math.isfinite(node.value):
            return "a number is too large; the largest is about 1.8e308"
        case node if isinstance(node, _ALLOWED):
            return None
    tag = _TAGS.get(type(node), type(node).__name__.lower())
    return f"'{tag}' is not taken; a template stands alone and its text is plain: remove the tag"


def _starred(node: nodes.Node) -> bool:
    call: Any = node.call if isinstance(node, nodes.CallBlock) else node
    return call.dyn_args is not None or call.dyn_kwargs is not None


def _unknown(what: str, name: str, known: dict[str, Any]) -> str:
    close = close_name(name, known)
    return f"unknown {what} '{name[:80]}'; " + (
        f"did you mean '{close}'?" if close else f"use one of: {_listed(known)}"
    )


def _listed(names: dict[str, Any]) -> str:
    return ", ".join(sorted(name for name in names if name.isidentifier()))


class Counted(NodeTransformer):
    """Weaves the counting into a checked template: what Jinja2 would compile to bare Python becomes an internal filter.

    A loop's body and a macro's are charged each time by how many nodes they hold, so that what is not charged by
    itself (`and`, `not`, names) is bounded too.
    """

    def visit_For(self, node: nodes.For) -> nodes.Node:
        """Count the turns, and the test of each."""
        work = _size(node.test) if node.test else 0
        tick = _tick(node)
        self.generic_visit(node)
        node.iter = _filter("(for)", node.iter, nodes.Const(1 + work))
        node.body.insert(0, tick)
        return node

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        """Count the calls."""
        tick = _tick(node)
        self.generic_visit(node)
        node.body.insert(0, tick)
        return node

    visit_CallBlock = visit_Macro

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        """Charge comparisons by what they compare."""
        self.generic_visit(node)
        rest: list[nodes.Expr] = [part for operand in node.ops for part in (nodes.Const(operand.op), operand.expr)]
        return _filter("(compare)", node.expr, *rest)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        """Charge the text that is made."""
        self.generic_visit(node)
        return _filter("(concat)", *node.nodes)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        """Charge slices; single items are read by the environment."""
        self.generic_visit(node)
        part = node.arg
        if not isinstance(part, nodes.Slice):
            return node
        return _filter("(slice)", node.node, *(one or nodes.Const(None) for one in (part.start, part.stop, part.step)))

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        """Check keys before they are hashed."""
        self.generic_visit(node)
        return _filter("(dict)", nodes.Const(None), *(part for pair in node.items for part in (pair.key, pair.value)))


def _tick(node: nodes.For | nodes.Macro | nodes.CallBlock) -> nodes.Node:
    work = sum(_size(child) for child in node.body)
    return nodes.ExprStmt(_filter("(tick)", nodes.Const(1 + work)), lineno=node.lineno)


def _size(node: nodes.Node) -> int:
    return 1 + sum(1 for _ in node.find_all(nodes.Node))


def _filter(name: str, value: nodes.Node, *args: nodes.Expr) -> nodes.Filter:
    made = nodes.Filter(value, name, list(args), [], None, None)
    made.set_lineno(value.lineno or 1)
    return made
