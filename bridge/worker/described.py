"""The signature of a program as a text that every reader understands."""

from __future__ import annotations

from enum import Enum
from typing import Any

from bridge.worker.dspy_signature import default_instructions, spec_of
from bridge.worker.type_trees import rewritten
from signatures.errors import SignatureError
from signatures.model import Field, Spec
from signatures.types import ANY, MISSING, Custom, Literal, Record, Type

_PLAIN = (str, int, float, bool, bytes, type(None))


def described(cls: Any) -> str | None:
    """Return the text of a DSPy signature class, None if no text can hold it.

    A class is known only where it stands: an Enum is told by its values, any other class as Any. Instructions that
    DSPy made of the fields are left out.
    """
    try:
        spec = spec_of(cls)
        inputs, outputs = (tuple(map(_field, side)) for side in (spec.inputs, spec.outputs))
        return str(Spec(inputs, outputs, "" if _is_made(cls) else spec.instructions))
    except SignatureError:
        return None


def _is_made(cls: Any) -> bool:
    """Tell whether the instructions are DSPy's, also if they were made before `reasoning` was put in."""
    return cls.instructions in (default_instructions(one) for one in (cls, cls.delete("reasoning")))


def _field(field: Field) -> Field:
    default = field.default
    if isinstance(default, Enum) and default is not MISSING:
        default = default.value
    return field.replace(type=rewritten(field.type, _told), typed=field.typed, default=default)


def _told(node: Type) -> Type:
    match node:
        case Custom(_, python):
            values = tuple(one.value for one in python) if issubclass(python, Enum) else ()
            return Literal(values) if values and all(type(value) in _PLAIN for value in values) else ANY
        case Record(members):
            return Record(tuple(map(_field, members)))
    return node
