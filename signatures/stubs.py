"""Stub files: what deployed programs take and give, for editors and type checkers. Text from specs, nothing else."""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterable, Mapping
from typing import Final

from signatures.model import Field, Spec
from signatures.text.literals import literal, quoted
from signatures.types import (
    Annotated,
    Constrained,
    Generic,
    Literal,
    Record,
    Scalar,
    Type,
    Union,
)

# Where the names in annotations come from. Modules are imported under names that no field can have.
_HOMES: Final = {
    **dict.fromkeys(
        ("str", "int", "float", "bool", "bytes", "bytearray", "complex", "list", "dict", "tuple", "set", "frozenset"),
        "builtins",
    ),
    **dict.fromkeys(("Any", "Literal", "NotRequired"), "typing"),
    **dict.fromkeys(("Sequence", "Iterable", "Collection", "Mapping"), "collections.abc"),
}
_MODULES: Final = ("builtins", "collections.abc", "datetime", "decimal", "typing", "uuid")
# What a Prediction has itself: a field of such a name is reached by prediction["name"] alone.
_OF_PREDICTIONS: Final = frozenset({"get", "items", "keys", "values", "meta", "toDict"})
_TAKEN: Final = frozenset({"Client", "Prediction", "Protocol", "TypedDict", "overload", *_HOMES})
_ARGUMENTS: Final = {"dict": "Any, Any", "Mapping": "Any, Any", "tuple": "Any, ..."}

_HEAD: Final = """\
# Made by `dspool signatures stubs`: what the deployed programs take and give. Made again, it is the same until they are
# deployed anew. Beside the module that uses it, as programs.pyi:
#
#     if TYPE_CHECKING:
#         from programs import Client
#
#     client = cast("Client", connect())
"""
_OPTIONS: Final = (
    "pool: str | None = ..., deadline_s: float | None = ..., lm: str | None = ..., priority: str = ..., "
    "idempotent: bool = ..."
)


def stubs(programs: Mapping[str, Spec | None]) -> str:
    """Return the text of a .pyi file, the same for the same programs in any order.

    programs: name -> signature; None where it is not known: such a program takes and gives anything. Of each there is a
    Protocol with a typed `__call__`, and a Prediction with typed attributes; `Client` is the client whose `program`
    knows them by name. A type that is a class of the program's own, or DSPy's, is Any.
    """
    names = _class_names(programs)
    writer = _Writer(names.values())
    classes: list[str] = []
    for name in sorted(programs):
        classes += writer.program(names[name], name, programs[name])
    classes.append(_client(names))
    return "\n".join([_HEAD, *writer.imports(), "", "", "\n\n".join(classes), ""])


def _class_names(programs: Iterable[str]) -> dict[str, str]:
    """Return a class's name for each program: `ticket-triage` is TicketTriage, a second one TicketTriage2."""
    found: dict[str, str] = {}
    used = set(_TAKEN)
    for program in sorted(programs):
        words = re.findall(r"[A-Za-z0-9]+", program)
        base = "".join(word[0].upper() + word[1:] for word in words) or "Program"
        base = base if base.isidentifier() and base not in _TAKEN and not keyword.iskeyword(base) else f"Program{base}"
        name, number = base, 1
        while {name, f"{name}Prediction"} & used:
            number += 1
            name = f"{base}{number}"
        used |= {name, f"{name}Prediction"}
        found[program] = name
    return found


def _client(names: Mapping[str, str]) -> str:
    lines = ["class Client(_Client):"]
    for program, name in sorted(names.items()):
        lines += [
            "    @overload",
            f"    def program(self, name: Literal[{quoted(program)}], *, {_OPTIONS}) -> {name}: ...",
        ]
    # One overload alone is an error.
    overload = ["    @overload"] if names else []
    lines += [*overload, f"    def program(self, name: str, *, {_OPTIONS}) -> Any: ..."]
    return "\n".join(lines)


class _Writer:
    """Writes classes, and keeps account of the modules and the helping classes that they need."""

    def __init__(self, names: Iterable[str]) -> None:
        self._used = {*_TAKEN, *(one for name in names for one in (name, f"{name}Prediction"))}
        self._modules: set[str] = set()
        self._plain: dict[str, set[str]] = {"typing": {"Any", "Literal", "Protocol", "overload"}}
        self._records: list[str] = []

    def imports(self) -> list[str]:
        """Return the lines of the imports, for all that was written."""
        lines = [f"import {module} as _{module.partition('.')[0]}" for module in _MODULES if module in self._modules]
        plain = {home: names for home, names in self._plain.items() if home != "builtins"}
        lines += [f"from {home} import {', '.join(sorted(names))}" for home, names in sorted(plain.items())]
        return [
            *lines, "", "from bridge.protocol.values import Prediction",
            "from orchestrator.client.client import Client as _Client",
        ]  # fmt: skip

    def program(self, name: str, program: str, spec: Spec | None) -> list[str]:
        """Return the classes of one program."""
        if spec is None:
            told = quoted(f"Program {program}, whose signature is not known.")
            call = "    def __call__(self, **inputs: Any) -> Any: ..."
            return [f"class {name}(Protocol):\n    {told}\n\n{call}\n"]
        outputs = self._outputs(name, spec)
        call = self._call(name, spec)
        told = quoted(f"Program {program}: {spec.text}")
        records, self._records = self._records, []
        return [*records, outputs, f"class {name}(Protocol):\n    {told}\n\n{call}\n"]

    def _outputs(self, name: str, spec: Spec) -> str:
        taken = frozenset(field.name for field in spec.outputs)
        lines = [f"class {name}Prediction(Prediction):"]
        for field in spec.outputs:
            shown = self.annotation(field.type, name + _camel(field.name), taken, given=False)
            hidden = field.name in _OF_PREDICTIONS
            line = f"    {'# ' if hidden else ''}{field.name}: {shown}"
            lines.append(line + (f'  # as prediction["{field.name}"]' if hidden else ""))
            if field.description and not hidden:
                lines.append(f"    {quoted(field.description)}")
        if all(field.name in _OF_PREDICTIONS for field in spec.outputs):
            lines.append("    ...")
        return "\n".join(lines) + "\n"

    def _call(self, name: str, spec: Spec) -> str:
        # In a stub a parameter may be called like a type: annotations are read outside the function.
        inputs = [self._parameter(field, name + _camel(field.name)) for field in spec.inputs]
        first = "_self" if any(field.name == "self" for field in spec.inputs) else "self"
        parameters = ", ".join([first, *(["*", *inputs] if inputs else [])])
        return f"    def __call__({parameters}) -> {name}Prediction: ..."

    def _parameter(self, field: Field, record: str) -> str:
        shown = self.annotation(field.type, record, frozenset(), given=True)
        return f"{field.name}: {shown}" if field.required else f"{field.name}: {shown} = ..."

    def annotation(self, type: Type, record: str, taken: frozenset[str], *, given: bool) -> str:
        """Return a type as an annotation.

        record: what a mapping with known members is called. taken: names that mean something else where this is
        written. given: it is a value that is given, not one that is got.
        """

        def inside(one: Type) -> str:
            return self.annotation(one, record, taken, given=given)

        match type:
            case Scalar("None"):
                return "None"
            case Scalar(name):
                return self._name(name, taken)
            case Generic(name, arguments, variadic):
                if arguments:
                    shown = ", ".join([*map(inside, arguments), *(["..."] if variadic else [])])
                else:
                    shown = _ARGUMENTS.get(name, "Any").replace("Any", self._name("Any", taken))
                return f"{self._name(name, taken)}[{shown}]"
            case Literal(values):
                return self._choices(values, taken)
            case Union(members):
                return " | ".join(dict.fromkeys(map(inside, members)))
            case Annotated(base) | Constrained(base):
                return inside(base)
            case Record():
                return self._record(type, record, given=given)
        return self._name("Any", taken)

    def _name(self, name: str, taken: frozenset[str]) -> str:
        home, dot, _ = name.partition(".")
        if dot:
            self._modules.add(home)
            return f"_{name}"
        home = _HOMES[name]
        if name in taken:
            self._modules.add(home)
            return f"_{home.partition('.')[0]}.{name}"
        self._plain.setdefault(home, set()).add(name)
        return name

    def _choices(self, values: tuple[str | int | float | bool | bytes | None, ...], taken: frozenset[str]) -> str:
        # Type checkers know no choices that are floats.
        texts = [literal(value) for value in values if not isinstance(value, float)]
        parts = [f"{self._name('Literal', taken)}[{', '.join(texts)}]"] if texts else []
        return " | ".join(parts + ([self._name("float", taken)] if len(texts) < len(values) else []))

    def _record(self, record: Record, name: str, *, given: bool) -> str:
        base, number = name, 1
        while name in self._used:
            number += 1
            name = f"{base}{number}"
        self._used.add(name)
        self._plain["typing"].add("TypedDict")
        taken = frozenset(member.name for member in record.members)
        lines = []
        for member in record.members:
            shown = self.annotation(member.type, name + _camel(member.name), taken, given=given)
            if given and not member.required:
                shown = f"{self._name('NotRequired', taken)}[{shown}]"
            lines.append(f"    {member.name}: {shown}")
        self._records.append("\n".join([f"class {name}(TypedDict):", *(lines or ["    ..."]), ""]))
        return name


def _camel(name: str) -> str:
    return "".join(word[:1].upper() + word[1:] for word in name.split("_"))
