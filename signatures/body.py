"""The body of a declared signature: what `class Triage(Signature)` says, read when the class is made."""

from __future__ import annotations

import inspect
import sys
import typing
from types import FrameType
from typing import Any, Final

from signatures.annotations import merged, place, read_annotation
from signatures.errors import Problem, SignatureError
from signatures.model import Field, Spec, same_name
from signatures.types import MISSING, NONE

# An annotation that is a text is the user's own code, and may fail in any way that expressions fail.
_FAILED: Final = (
    ArithmeticError,
    AttributeError,
    ImportError,
    LookupError,
    NameError,
    RecursionError,
    SyntaxError,
    TypeError,
    ValueError,
)


class Body(dict[str, Any]):
    """The namespace of a class body while it runs. It remembers lines, and fields written twice."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: dict[str, int] = {}
        self.twice: list[Problem] = []

    def __setitem__(self, name: str, value: Any) -> None:
        if name == "__annotations__" and not isinstance(value, _Annotations):
            value = _Annotations(self.lines)
        self.lines[name] = sys._getframe(1).f_lineno
        if isinstance(value, Field) and isinstance(self.get(name), Field):
            # Python itself would keep the last one.
            self.twice.append(Problem(same_name(name, both_sides=False), line=self.lines[name]))
        super().__setitem__(name, value)


class _Annotations(dict[str, Any]):
    """The annotations of a body; a bare annotation, too, has a line."""

    def __init__(self, lines: dict[str, int]) -> None:
        super().__init__()
        self.lines = lines

    def __setitem__(self, name: str, value: Any) -> None:
        self.lines.setdefault(name, sys._getframe(1).f_lineno)
        super().__setitem__(name, value)


class Declaration:
    """Reads one class body. bases: the specs of the base classes. frame: which runs the class statement."""

    def __init__(self, qualname: str, bases: list[Spec], body: dict[str, Any], frame: FrameType) -> None:
        self.bases = bases
        self.body = body
        self.frame = frame
        self.annotations: dict[str, Any] = dict(body.get("__annotations__", {}))
        self.lines: dict[str, int] = getattr(body, "lines", {})
        self.scope = _scope(qualname, body, frame)
        self.problems: list[Problem] = list(getattr(body, "twice", ()))

    def spec(self) -> Spec:
        """Return the signature.

        Raises SignatureError with every problem, each with the line of its field, in the order of the lines.
        """
        inherited = {name: field for base in reversed(self.bases) for name, field in base.fields.items()}
        own = {name: self._field(name, one) for name, one in self.body.items() if isinstance(one, Field)}
        self._check_rest(inherited)
        fields = inherited | own
        if all(field.kind == "input" for field in fields.values()):
            self._tell("", "a signature needs at least one output; write for example: answer: str = Field(output=True)")
        if not self.problems:
            try:
                return Spec(_side(fields, "input"), _side(fields, "output"), self._instructions())
            except SignatureError as exc:
                self._place(own, exc.problems)
        else:
            self._place(own, ())
        found = sorted(self.problems, key=lambda problem: problem.line)
        raise SignatureError(found, file=f"{self.frame.f_code.co_filename}:{found[0].line}")

    def _field(self, name: str, written: Field) -> Field:
        """Return the field, complete as far as it is sound."""
        if written.kind == "member":
            self._tell(name, f"'{name}' is either an input or an output; write Field(input=True) or Field(output=True)")
        told: object = written.description
        if not isinstance(told, str):
            kind = type(told).__name__
            self._tell(name, f"the description of '{name}' must be a text, not {kind}; write description=\"…\"")
            written = written.replace(description="")
        if name not in self.annotations:
            return written.replace(name=name, typed=False)
        try:
            reading = read_annotation(self._resolved(name), name=name)
        except SignatureError as exc:
            self._tell(name, exc.message)
            # What hangs on the type cannot be judged.
            return written.replace(name=name, constraints=NONE, default=MISSING)
        tree, constraints = place(reading.type, merged(reading.constraints, written.constraints))
        description = written.description or reading.description
        return written.replace(name=name, type=tree, constraints=constraints, description=description)

    def _resolved(self, name: str) -> Any:
        """Return an annotation with the texts in it resolved: in the body, the functions around it, the module."""
        holder = type("holder", (), {"__annotations__": {name: self.annotations[name]}})
        try:
            return typing.get_type_hints(holder, self.frame.f_globals, self.scope, include_extras=True)[name]
        except NameError as exc:
            raise SignatureError(
                f"the type of '{name}': the name '{exc.name}' is not known here; import or define it before the class, "
                "and not only for type checkers"
            ) from exc
        except _FAILED as exc:
            raise SignatureError(f"the type of '{name}' cannot be read: {exc}; write a type such as list[str]") from exc

    def _check_rest(self, inherited: dict[str, Field]) -> None:
        """Tell what looks like a field and is none."""
        for name, annotation in self.annotations.items():
            if isinstance(self.body.get(name), Field) or _is_class_variable(annotation):
                continue
            given = f", default={self.body[name]!r}"[:60] if name in self.body else ""
            self._tell(
                name,
                f"'{name}' has a type and no Field: write = Field(input=True{given}) or Field(output=True{given}); "
                "for an attribute of the class write ClassVar[…]",
            )
        for name, one in self.body.items():
            if name in inherited and not isinstance(one, Field) and name not in self.annotations:
                self._tell(name, f"'{name}' is a field of a base class; write = Field(…) or use another name")

    def _instructions(self) -> str:
        if isinstance(text := self.body.get("__doc__"), str):
            return inspect.cleandoc(text)
        return next((base.instructions for base in self.bases if base.instructions), "")

    def _place(self, own: dict[str, Field], whole: tuple[Problem, ...]) -> None:
        """Add the problems of the fields, each at its line, then the others of the signature."""
        for name, field in own.items():
            if field.kind != "member":
                for message in field.problems():
                    self._tell(name, message)
        told = {problem.message for problem in self.problems}
        for problem in whole:
            if problem.message not in told:
                self._tell("", problem.message)

    def _tell(self, name: str, message: str) -> None:
        self.problems.append(Problem(message, line=self.lines.get(name, self.frame.f_lineno)))


def _side(fields: dict[str, Field], kind: str) -> tuple[Field, ...]:
    return tuple(field for field in fields.values() if field.kind == kind)


def _scope(qualname: str, body: dict[str, Any], frame: FrameType) -> dict[str, Any]:
    """Return the names that the body sees beside the module's: of the functions and classes around it, and its own."""
    around = []
    at: FrameType | None = frame
    while at is not None:
        if qualname.startswith(f"{at.f_code.co_qualname}."):
            around.append(at.f_locals)
        at = at.f_back
    found = {name: value for names in reversed(around) for name, value in names.items()}
    # A field hides the type of its name: `date: date = Field(…)`.
    return found | {name: value for name, value in body.items() if not isinstance(value, Field)}


def _is_class_variable(annotation: Any) -> bool:
    if isinstance(annotation, str):
        return annotation.partition("[")[0].strip().rpartition(".")[2] == "ClassVar"
    return (typing.get_origin(annotation) or annotation) is typing.ClassVar
