"""What a program takes: names, and types where a signature gives them."""

from __future__ import annotations

import inspect
import types
from collections.abc import Mapping
from typing import Any, NamedTuple, Union, get_args, get_origin

import dspy  # type: ignore[import-untyped]
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError

from bridge.worker import arguments

_UNTYPED = "IS_TYPE_UNDEFINED"


class Field(NamedTuple):
    """One input. adapter: None where any value goes. expects: its type, as text."""

    required: bool
    adapter: TypeAdapter[Any] | None = None
    expects: str = ""


class Inputs:
    """The inputs of one program.

    names: in order. open: whether further names are passed on unchecked (a forward with **kwargs).
    """

    def __init__(self, fields: Mapping[str, Field], *, is_open: bool = False) -> None:
        self.fields = dict(fields)
        self.names = tuple(self.fields)
        self.is_open = is_open

    @classmethod
    def of_signature(cls, signature: Any) -> Inputs:
        """Return the inputs of a DSPy signature class."""
        return cls({name: _typed_field(info) for name, info in signature.input_fields.items()})

    @classmethod
    def of_program(cls, program: Any) -> Inputs:
        """Return the inputs of a DSPy module, by its signature if it is a plain one, else by its `forward`."""
        signature = signature_of(program)
        if signature is not None:
            return cls.of_signature(signature)
        fields: dict[str, Field] = {}
        is_open = False
        parameters = list(inspect.signature(type(program).forward).parameters.values())[1:]
        for parameter in parameters:
            if parameter.kind is parameter.VAR_KEYWORD:
                is_open = True
            elif parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                fields[parameter.name] = Field(required=parameter.default is parameter.empty)
        return cls(fields, is_open=is_open)

    def check(self, given: Any, owner: str) -> dict[str, Any]:
        """Return the inputs with their values as the types want them.

        Raises one INVALID_REQUEST that lists everything missing, unknown or of another type.
        """
        if not isinstance(given, dict):
            raise arguments.invalid("inputs", f"the inputs of {owner} are a mapping, got {arguments.shown(given)}")
        problems = [
            (f"inputs.{name}", f"inputs.{name} is missing")
            for name, field in self.fields.items()
            if field.required and name not in given
        ]
        if self.is_open:
            problems += [(f"inputs.{name}", f"inputs.{name} is no name") for name in given if not isinstance(name, str)]
        else:
            problems += arguments.unknown_names(given, self.names, owner, "inputs.")
        values = dict(given)
        for name, field in self.fields.items():
            if field.adapter is not None and name in given:
                try:
                    values[name] = field.adapter.validate_python(given[name])
                except ValidationError as exc:
                    problems.append(_mistyped(name, field, given[name], exc))
        if problems:
            arguments.refuse(problems)
        return values


def signature_of(program: Any) -> Any | None:
    """Return the signature whose inputs are the program's, for DSPy's own modules; None for others."""
    if type(program) in (dspy.Predict, dspy.ReAct):
        return program.signature
    if type(program) is dspy.ChainOfThought:
        return program.predict.signature
    return None


def _typed_field(info: Any) -> Field:
    annotation = info.annotation
    required = info.is_required() and not _allows_none(annotation)
    # As DSPy does: a field without a type in its text is prompted as text, whatever is given.
    if annotation is Any or (info.json_schema_extra or {}).get(_UNTYPED):
        return Field(required)
    return Field(required, _adapter(annotation), _type_text(annotation))


def _type_text(annotation: Any) -> str:
    # `list[int]` has the __name__ of `list`.
    return annotation.__name__ if isinstance(annotation, type) else str(annotation).replace("typing.", "")


def _adapter(annotation: Any) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True))
    except PydanticUserError:
        # A type with a configuration of its own takes no other.
        return TypeAdapter(annotation)


def _allows_none(annotation: Any) -> bool:
    return get_origin(annotation) in (Union, types.UnionType) and type(None) in get_args(annotation)


def _mistyped(name: str, field: Field, value: Any, exc: ValidationError) -> tuple[str, str]:
    first = exc.errors(include_url=False, include_input=False, include_context=False)[0]
    steps = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in first["loc"])
    where = f"inputs.{name}"
    detail = f"{steps.lstrip('.')}: {first['msg']}" if steps else first["msg"]
    return where, f"{where} must be {field.expects}, got {arguments.shown(value)}: {detail}"
