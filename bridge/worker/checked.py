"""Types that DSPy parses by the engine's rules.

DSPy tells a language model about constraints, but reads its answer by the annotation alone: it takes 7 for a
`float[0..1]`. A checked type is an annotation that knows better. To DSPy and pydantic it is a class like any other,
with a validation and a JSON schema of its own: both are the engine's.
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, cast

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema

from bridge.worker.type_trees import holds
from signatures.converters import convert
from signatures.errors import ValidationError
from signatures.model import Field, Spec
from signatures.schema.writer import json_schema
from signatures.types import (
    NONE,
    NOTHING,
    STR,
    Annotated,
    Constrained,
    Constraints,
    Generic,
    Media,
    Record,
    Scalar,
    Type,
    Union,
)

# Checked types are kept: each costs pydantic some time where it is first used.
_KEPT = 512
# Classes in classes are told to the language model so far; a class may hold itself.
_CLASSES_WITHIN = 4


class _Meta(type):
    def __instancecheck__(cls, value: object) -> bool:
        """Tell whether a value is one of the type's: DSPy warns of inputs that are no instances of their annotation."""
        try:
            cls.read(value)  # type: ignore[attr-defined]
        except ValidationError:
            return False
        return True


class Checked(metaclass=_Meta):
    """A value of a type of the engine. plain: the nearest annotation that pydantic knows.

    Not to be instantiated: values are those of the type, a record's are dicts.
    """

    type: ClassVar[Type]
    plain: ClassVar[Any]

    @classmethod
    def read(cls, value: Any) -> Any:
        """Return a value converted. Raises signatures.ValidationError, a ValueError."""
        return convert(cls.type, NONE, value, "the value")

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Return the schema by which pydantic validates: the engine's converter, after DSPy's own for its types."""
        check = core_schema.no_info_plain_validator_function(cls.read)
        if not holds(cls.type, Media):
            return check
        return core_schema.chain_schema([handler.generate_schema(cls.plain), check])

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Return the JSON schema that DSPy shows to the language model."""
        base, constraints = parts(cls.type)
        field = Field.of("value", "output", base, constraints=constraints)
        whole = json_schema(Spec((), (field,)))
        own = whole["properties"]["outputs"]["properties"]["value"]
        return cast("dict[str, Any]", _inlined(own, whole.get("$defs", {}), 0))


class _TextMeta(_Meta, enum.EnumMeta):
    """Makes DSPy take an answer's text as it stands.

    It does so for `str`, and for an enumeration, whose members it looks up by the text. For any other class it repairs
    the text as JSON first: "007" would be 7, and a quoted text lose its quotes. Hence a constrained text is, to DSPy,
    the enumeration of all texts that keep the constraints.
    """

    @classmethod
    def __prepare__(mcs, name: str, bases: tuple[type, ...], /, **named: Any) -> dict[str, Any]:  # type: ignore[override]
        """Return the namespace of a class that has no members to make."""
        return {}

    def __new__(mcs, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **named: Any) -> Any:
        """Make a plain class."""
        return type.__new__(mcs, name, bases, namespace)

    @property
    def __members__(cls) -> Any:
        return _Members(cls)

    def __getitem__(cls, text: Any) -> Any:
        return cls.read_text(text)  # type: ignore[attr-defined]

    def __iter__(cls) -> Iterator[Any]:
        return iter(())

    def __len__(cls) -> int:
        return 0

    def __repr__(cls) -> str:
        return f"<class {cls.__name__!r}>"


class _Members:
    """Every text that a checked type takes."""

    def __init__(self, owner: Any) -> None:
        self._read = owner.read_text

    def __contains__(self, text: object) -> bool:
        # A text that does not fit raises: why it does not is a better answer than "is not a member".
        self._read(text)
        return True


class _CheckedText(Checked):
    @classmethod
    def read_text(cls, value: Any) -> Any:
        """Return a value of an answer converted: as DSPy does for `str`, another value is its text."""
        if not isinstance(value, str) and not (value is None and isinstance(cls.type, Union)):
            value = str(value)
        return cls.read(value)


@functools.lru_cache(maxsize=_KEPT)
def checked(type_: Type, plain: Any, name: str) -> type[Checked]:
    """Return the checked type. name: as DSPy calls the plain annotation in its prompts."""
    namespace = {"type": type_, "plain": plain, "__module__": __name__}
    if _is_text(type_):
        return cast("type[Checked]", _TextMeta(name, (_CheckedText,), namespace))
    return cast("type[Checked]", _Meta(name, (Checked,), namespace))


def parts(type_: Type) -> tuple[Type, Constraints]:
    """Return a type and its own constraints."""
    return (type_.base, type_.constraints) if isinstance(type_, Constrained) else (type_, NONE)


def is_checked(annotation: Any) -> bool:
    """Return whether an annotation is a checked type."""
    return isinstance(annotation, _Meta)


def needs_check(type_: Type) -> bool:
    """Return whether an annotation alone does not do what the engine does, somewhere in a type.

    It cannot say constraints and records; pydantic knows no bytearray and no Collection, and reads an Iterable when it
    is iterated over; DSPy takes no abstract type without arguments.
    """
    match type_:
        case Constrained() | Record() | Scalar("bytearray") | Generic("Iterable" | "Collection"):
            return True
        case Generic("Sequence" | "Mapping", ()):
            return True
    return any(map(needs_check, type_.children()))


def _inlined(schema: Any, classes: Mapping[str, Any], depth: int) -> Any:
    """Return a schema with the classes written out where they are named: pydantic's generator refuses foreign names."""
    if isinstance(schema, list):
        return [_inlined(one, classes, depth) for one in schema]
    if not isinstance(schema, dict):
        return schema
    if (name := schema.get("$ref")) is None:
        return {key: _inlined(one, classes, depth) for key, one in schema.items()}
    if depth == _CLASSES_WITHIN:
        return {}
    return _inlined(classes[name.removeprefix("#/$defs/")], classes, depth + 1)


def _is_text(type_: Type) -> bool:
    if isinstance(type_, Annotated | Constrained):
        return _is_text(type_.base)
    if isinstance(type_, Union):
        return NOTHING in type_.members and all(one == NOTHING or _is_text(one) for one in type_.members)
    return type_ == STR
