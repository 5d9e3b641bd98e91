"""What a program takes: names, and types where a signature gives them. The rules of conversion are the engine's."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import dspy  # type: ignore[import-untyped]
import pydantic
from dspy.adapters.utils import annotation_allows_none  # type: ignore[import-untyped]
from pydantic import ConfigDict, TypeAdapter
from pydantic.errors import PydanticUserError
from pydantic.fields import FieldInfo

from bridge.protocol.record import as_plain
from bridge.worker import arguments, sessions, typed_inputs
from bridge.worker.checked import is_checked
from bridge.worker.dspy_signature import UNTYPED, type_of
from signatures.converters import convert
from signatures.errors import Problem, SignatureError, ValidationError
from signatures.types import Constraints, Custom, Media, Type

# What a class says of a value may hold all of it.
_MESSAGE_CHARS: Final = 500


# Modules whose inputs are those of their `signature`.
_BY_SIGNATURE: Final = (dspy.Predict, dspy.ReAct, dspy.ReActV2, dspy.ProgramOfThought, dspy.CodeAct, dspy.RLM)


class Field(NamedTuple):
    """One input.

    convert: (value, path) -> value, raises signatures.ValidationError; None where any value goes. default: makes the
    value of an input that is not given, None for one that may be left out or must be given. is_history: it takes a
    conversation, a `dspy.History`.
    """

    required: bool
    convert: Callable[[Any, str], Any] | None = None
    default: Callable[[], Any] | None = None
    is_history: bool = False


class Inputs:
    """The inputs of one program.

    names: in order. open: whether further names are passed on unchecked (a forward with **kwargs). history: the input
    that is given the conversation of the caller's session, unless the caller gives it; None: there is none.
    """

    def __init__(self, fields: Mapping[str, Field], *, is_open: bool = False) -> None:
        self.fields = dict(fields)
        self.names = tuple(self.fields)
        self.is_open = is_open
        self.history = next((name for name, field in self.fields.items() if field.is_history), None)

    @classmethod
    def of_signature(cls, signature: Any) -> Inputs:
        """Return the inputs of a DSPy signature class."""
        fields = {
            name: _typed_field(info)._replace(is_history=_is_history(info.annotation))
            for name, info in signature.input_fields.items()
        }
        return cls(fields)

    @classmethod
    def of_program(cls, program: Any) -> Inputs:
        """Return the inputs of a DSPy module, by its signature if it is a plain one, else by its `forward`."""
        signature = signature_of(program)
        if signature is not None:
            return cls.of_signature(signature)
        fields: dict[str, Field] = {}
        is_open = False
        forward = getattr(type(program), "forward", None) or type(program).aforward
        parameters = list(inspect.signature(forward).parameters.values())[1:]
        hints = _hints(forward)
        for parameter in parameters:
            if parameter.kind is parameter.VAR_KEYWORD:
                is_open = True
            elif parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                fields[parameter.name] = Field(
                    parameter.default is parameter.empty, is_history=_is_history(hints.get(parameter.name))
                )
        return cls(fields, is_open=is_open)

    def check(self, given: Any, owner: str) -> dict[str, Any]:
        """Return the inputs, a mapping or an Example, with their values as the types want them, and defaults filled in.

        Raises one INVALID_REQUEST that lists everything missing, unknown or of another type.
        """
        if isinstance(given, dspy.Example | Mapping):
            given = dict(given.items())
        if not isinstance(given, dict):
            raise arguments.invalid("inputs", f"the inputs of {owner} are a mapping, got {arguments.shown(given)}")
        if (
            self.history is not None
            and self.history not in given
            and (said := sessions.history(self.history)) is not None
        ):
            given = {**given, self.history: said}
        problems = [
            (f"inputs.{name}", f"inputs.{name} is missing")
            for name, field in self.fields.items()
            if field.required and name not in given
        ]
        if self.is_open:
            problems += [(f"inputs.{name}", f"inputs.{name} is no name") for name in given if not isinstance(name, str)]
        else:
            problems += arguments.unknown_names(given, self.names, owner, "inputs.")
        values = {name: typed_inputs.real(value, f"inputs.{name}", problems) for name, value in given.items()}
        for name, field in self.fields.items():
            if name not in given:
                if field.default is not None:
                    values[name] = field.default()
            elif field.convert is not None:
                try:
                    values[name] = field.convert(as_plain(values[name]), f"inputs.{name}")
                except ValidationError as exc:
                    problems += [(problem.path, problem.message) for problem in exc.problems]
        if problems:
            arguments.refuse(problems)
        return values


def signature_of(program: Any) -> Any | None:
    """Return the signature whose inputs are the program's, for DSPy's own modules; None for others."""
    if type(program) in _BY_SIGNATURE:
        return program.signature
    if type(program) is dspy.ChainOfThought:
        return program.predict.signature
    return None


def _hints(function: Any) -> dict[str, Any]:
    """Return the annotations of a function, none of them if they cannot be read."""
    try:
        return typing.get_type_hints(function)
    except Exception:  # noqa: BLE001 - an annotation may be any text, and evaluating it raise anything
        return {}


def _is_history(annotation: Any) -> bool:
    """Tell whether an annotation is `dspy.History`, or that or None."""
    members = [one for one in typing.get_args(annotation) if one is not type(None)]
    return annotation is dspy.History or (members == [dspy.History] and annotation_allows_none(annotation))


def _typed_field(info: FieldInfo) -> Field:
    given = info.is_required()
    default = None if given else functools.partial(info.get_default, call_default_factory=True)
    required = given and not annotation_allows_none(info.annotation)
    # As DSPy does: a field without a type in its text is prompted as text, whatever is given.
    extra: dict[str, Any] = info.json_schema_extra or {}  # type: ignore[assignment]
    if info.annotation is Any or extra.get(UNTYPED):
        return Field(required, None, default)
    try:
        type_, constraints = type_of(info)
    except SignatureError:
        # A type beyond signatures, such as a TypeVar: pydantic may know it.
        return Field(required, _by_pydantic(info.annotation, info.annotation), default)
    if _is_dspys(type_):
        taken = info.annotation if is_checked(info.annotation) else typed_inputs.annotation_of(type_)
        return Field(required, _by_pydantic(taken, info.annotation), default)
    return Field(required, _by_engine(type_, constraints), default)


def _is_dspys(type_: Type) -> bool:
    """Tell whether DSPy's own classes are in a type: they make themselves of texts and more."""
    if isinstance(type_, Custom):
        return issubclass(type_.python, dspy.Type)
    return isinstance(type_, Media) or any(map(_is_dspys, type_.children()))


def _by_engine(type_: Type, constraints: Constraints) -> Callable[[Any, str], Any]:
    return lambda value, path: convert(type_, constraints, value, path)


def _by_pydantic(annotation: Any, told: Any) -> Callable[[Any, str], Any]:
    """Return the conversion to an annotation; told: the annotation that messages name."""
    adapter = _adapter(annotation)
    # `list[int]` has the __name__ of `list`.
    expects = told.__name__ if isinstance(told, type) else str(told).replace("typing.", "")

    def converted(value: Any, path: str) -> Any:
        try:
            return adapter.validate_python(value)
        except pydantic.ValidationError as exc:
            raise ValidationError([Problem(_mistyped(expects, value, path, exc), path)]) from exc
        except Exception as exc:  # a class of the user's or of DSPy's raises what it likes
            text = f"{path} must be {expects}, got {arguments.shown(value)}: {type(exc).__name__}: {exc}"
            raise ValidationError([Problem(text[:_MESSAGE_CHARS], path)]) from exc

    return converted


def _adapter(annotation: Any) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True))
    except PydanticUserError:
        # A type with a configuration of its own takes no other.
        return TypeAdapter(annotation)


def _mistyped(expects: str, value: Any, path: str, exc: pydantic.ValidationError) -> str:
    first = exc.errors(include_url=False, include_input=False, include_context=False)[0]
    steps = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in first["loc"])
    detail = f"{steps.lstrip('.')}: {first['msg']}" if steps else first["msg"]
    return f"{path} must be {expects}, got {arguments.shown(value)}: {detail}"[:_MESSAGE_CHARS]
