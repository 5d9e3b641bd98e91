"""Declared signatures in Python sources, judged as far as their text alone allows."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from orchestrator.cli.signature_files import Finding
from signatures.errors import SignatureError

if TYPE_CHECKING:
    from orchestrator.cli.signature_sources import Source
    from signatures.types import Type

_ENGINE: Final = frozenset({"signatures.Signature", "signatures.declare.Signature"})
_DSPY: Final = frozenset({"dspy.Signature", "dspy.signatures.Signature", "dspy.signatures.signature.Signature"})
_MAKERS: Final = frozenset({"Field", "InputField", "OutputField"})
_WRITE: Final = "write = Field(input=True) or = Field(output=True)"


class Declared:
    """A class of signatures: `class Triage(Signature)`."""

    def __init__(self, source: Source, node: ast.ClassDef, *, is_engine: bool, is_root: bool) -> None:
        self._source = source
        self._node = node
        self._is_engine = is_engine
        self._is_root = is_root  # nothing is inherited

    def findings(self) -> Iterator[Finding]:
        """Yield what is certainly wrong with it."""
        kinds: list[str | None] = []
        for statement in self._node.body:
            match statement:
                case ast.AnnAssign(ast.Name(name), annotation, value) if not self._is_class_variable(annotation):
                    made = self._made(value)
                    kinds.append(self._kind(made))
                    yield from self._field(statement, name, annotation, made, has_value=value is not None)
                case ast.Assign([ast.Name(name)], value) if (made := self._made(value)) is not None:
                    kinds.append(self._kind(made))
                    yield from self._field(statement, name, None, made, has_value=True)
        if self._is_engine and self._is_root and kinds and not {"output", None} & set(kinds):
            text = f"the signature '{self._node.name}' has no output; write = Field(output=True) for one field at least"
            yield self._source.at(text, self._node)

    def _is_class_variable(self, annotation: ast.expr) -> bool:
        node = annotation.value if isinstance(annotation, ast.Subscript) else annotation
        return self._source.dotted(node).rpartition(".")[2] == "ClassVar"

    def _made(self, value: ast.expr | None) -> ast.Call | None:
        """Return the `Field(…)` of a field, None if its value is something else."""
        if isinstance(value, ast.Call) and self._source.dotted(value.func).rpartition(".")[2] in _MAKERS:
            return value
        return None

    def _kind(self, made: ast.Call | None) -> str | None:
        """Return "input", "output", "" if it is neither or both, or None if that is not certain."""
        if made is None:
            return None
        maker = self._source.dotted(made.func).rpartition(".")[2]
        if maker != "Field":
            return "input" if maker == "InputField" else "output"
        if any(each.arg is None for each in made.keywords):
            return None
        sides = {each.arg: each.value for each in made.keywords if each.arg in ("input", "output")}
        if not all(isinstance(side, ast.Constant) for side in sides.values()):
            return None
        chosen = [name for name, side in sides.items() if isinstance(side, ast.Constant) and side.value]
        return chosen[0] if len(chosen) == 1 else ""

    def _field(
        self, statement: ast.stmt, name: str, annotation: ast.expr | None, made: ast.Call | None, *, has_value: bool
    ) -> Iterator[Finding]:
        from signatures.names import name_problem

        kind = self._kind(made)
        if made is None and not has_value:
            what = _WRITE if self._is_engine else "write = dspy.InputField() or = dspy.OutputField()"
            yield self._source.at(f"'{name}' is neither an input nor an output; {what}", statement)
        if made is not None and kind == "" and self._is_engine:
            yield self._source.at(f"'{name}' must be either an input or an output; {_WRITE}", made)
        if kind and (problem := name_problem(name, kind)):
            yield self._source.at(problem, statement)
        unknown = list(self._unknown_names(annotation)) if annotation is not None else []
        yield from unknown
        if made is not None and kind and not unknown and not name_problem(name, kind):
            yield from self._constraints(name, kind, annotation, made)

    def _unknown_names(self, annotation: ast.expr) -> Iterator[Finding]:
        from signatures.names import close_name, type_names

        for node in ast.walk(_unquoted(annotation)):
            if isinstance(node, ast.Name) and not self._source.knows(node.id):
                near = close_name(node.id, type_names(self._source.classes()))
                hint = f"; did you mean '{near}'?" if near else "; import or define it"
                # Of a quoted annotation the quotes are the only place.
                place = annotation if isinstance(annotation, ast.Constant) else node
                yield self._source.at(f"unknown type '{node.id}'{hint}", place)

    def _constraints(self, name: str, kind: str, annotation: ast.expr | None, made: ast.Call) -> Iterator[Finding]:
        """Judge default and constraints by the type, where all of them are written out."""
        from signatures.annotations import place
        from signatures.model import Field
        from signatures.types import STR, Constraints

        type = STR if annotation is None else self._type(annotation)
        options = _literals(made)
        if type is None or options is None or not self._is_engine:
            return
        default = {key: options.pop(key) for key in ("default", "description") if key in options}
        try:
            tree, constraints = place(type, Constraints(**options))
            field = Field.of(name, "input" if kind == "input" else "output", tree, constraints=constraints, **default)
        except TypeError:  # an option that there is not: running the module says so
            return
        for problem in field.problems():
            yield self._source.at(problem, made)

    def _type(self, annotation: ast.expr) -> Type | None:
        """Return the type of an annotation, None if it names what is not known here, or a text has no such type."""
        from signatures.text.parser import read

        shown = ast.unparse(_unquoted(annotation))
        try:
            spec = read(f"a: {shown} -> b")
        except SignatureError:
            return None
        # An annotation is one field's, without constraints.
        found = spec.inputs[0]
        return found.type if len(spec.inputs) == 1 and not found.constraints else None


def _unquoted(annotation: ast.expr) -> ast.expr:
    """Return an annotation without the quotes around it, if it has some."""
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        try:
            return ast.parse(annotation.value, mode="eval").body
        except (SyntaxError, ValueError, MemoryError):  # the last where it is nested too deep
            return annotation
    return annotation


def _literals(made: ast.Call) -> dict[str, Any] | None:
    """Return the keywords of `Field(…)` but for the side, None unless all are literals."""
    if made.args:
        return None
    found: dict[str, Any] = {}
    for each in made.keywords:
        if each.arg in ("input", "output"):
            continue
        try:
            value = ast.literal_eval(each.value)
        except (ValueError, TypeError, SyntaxError):
            return None
        if each.arg is None:
            return None
        found[each.arg] = value
    return found


def declared(source: Source, tree: ast.Module) -> Iterator[Declared]:
    """Yield every class that is, by its bases in this module, one of signatures."""
    kinds: dict[str, bool] = {}  # class -> whether it is the engine's, not DSPy's
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    for node in sorted(classes, key=lambda each: each.lineno):
        bases = [source.dotted(base) for base in node.bases]
        own = [base in _ENGINE for base in bases if base in _ENGINE | _DSPY]
        inherited = [kinds[base] for base in bases if base in kinds]
        if own or inherited:
            kinds[node.name] = is_engine = (own + inherited)[0]
            yield Declared(source, node, is_engine=is_engine, is_root=len(bases) == 1 and not inherited)
