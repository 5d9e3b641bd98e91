"""What single values of a configuration may be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Final

from pydantic import AfterValidator, Field, PlainValidator, WithJsonSchema

from bridge.protocol.names import is_taken

MAX_SECONDS: Final = 30 * 24 * 3600.0


def auto_or_number(low: int, high: int, *, otherwise: str = "") -> tuple[Any, ...]:
    """Return the annotations of a value that is `auto` or a whole number."""

    def checked(value: Any) -> Any:
        if value == "auto" or (type(value) is int and low <= value <= high):
            return value
        numbers = f"a whole number from {low} to {high}"
        raise ValueError(f"must be auto, {numbers} or {otherwise}" if otherwise else f"must be auto or {numbers}")

    shape = {"anyOf": [{"const": "auto"}, {"type": "integer", "minimum": low, "maximum": high}]}
    return PlainValidator(checked), WithJsonSchema(shape)


def check(condition: Callable[[Any], bool], message: str) -> AfterValidator:
    """Return the annotation of a value for which a condition holds; `message` says which."""

    def checked(value: Any) -> Any:
        if not condition(value):
            raise ValueError(message)
        return value

    return AfterValidator(checked)


def is_plain(value: Any) -> bool:
    """Tell whether a value is JSON with text keys and finite numbers."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and is_plain(item) for key, item in value.items())
    if isinstance(value, list):
        return all(map(is_plain, value))
    return value is None or isinstance(value, str | bool | int) or (isinstance(value, float) and value - value == 0)


# What each pattern means, for those who meet it in an error.
PATTERNS: Final = {
    (_POOL_NAME := r"^[a-z][a-z0-9_-]{0,39}$"): "must be lower-case letters, digits, _ and -, up to 40, a letter first",
    (_LM_NAME := r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,79}$"): "must be letters, digits, _ . and -, up to 80",
    (_VARIABLE_NAME := r"^[A-Za-z_][A-Za-z0-9_]*$"): "must be the name of an environment variable",
    (MODEL := r"^[^/\s]+/\S+$"): "must be provider/name, such as openai/gpt-4o-mini or offline/knn",
    (MODULE := r"^[^\W\d]\w*(\.[^\W\d]\w*)*$"): "must be the name of a module, such as mypkg.models",
    (URL := r"^https?://[^\s/]\S*$"): "must be an http:// or https:// address",
    (_PROGRAM_NAME := r"^[A-Za-z_][A-Za-z0-9_.-]{0,99}$"): "must be letters, digits, _ . -, up to 100, no digit first",
}

PoolName = Annotated[str, Field(pattern=_POOL_NAME)]
LMName = Annotated[str, Field(pattern=_LM_NAME)]
ServerName = LMName
ProgramName = Annotated[
    str,
    Field(pattern=_PROGRAM_NAME),
    check(lambda name: not is_taken(name), "must not be a built-in operation's name"),
]
VariableName = Annotated[str, Field(pattern=_VARIABLE_NAME)]
AnyText = Annotated[str, check(lambda text: "\0" not in text, "must not hold a NUL character")]
Text = Annotated[AnyText, Field(min_length=1)]
Seconds = Annotated[float, Field(gt=0, le=MAX_SECONDS)]
Part = Annotated[float, Field(gt=0, le=1)]
OperationName = Annotated[str, Field(min_length=1, max_length=200)]
