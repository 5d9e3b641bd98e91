"""Typed values whose class is not here: their fields, readable, and the way back to the class."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, TypeVar

T = TypeVar("T")

EXAMPLE: Final = "dspy.Example"
_ATOMS: Final = frozenset({type(None), bool, int, float, str, bytes})


class Record(Mapping[str, Any]):
    """A value of a class that this process has not loaded: a read-only mapping whose fields are attributes too.

    kind: what it is, `dspy.Image` or `model:package.module:Class`; an attribute where no field has the name. A field
    named like a method (`keys`, `to`, …) is reached by `record["keys"]` only. Records are equal when kind and fields
    are; they may be pickled, and travel on as what they are.
    """

    __slots__ = ("_fields", "_kind")

    def __init__(self, kind: str, fields: Mapping[str, Any]) -> None:
        self._kind = kind
        self._fields = dict(fields)

    @property
    def _parts(self) -> dict[str, Any]:
        """The fields, not a copy."""
        return self._fields

    def to(self, cls: type[T]) -> T:
        """Return the value as an instance of `cls`, a pydantic model or one of DSPy's types.

        Raises what the class raises for fields that are not its own (pydantic.ValidationError).
        """
        made: T = make(cls, self._fields)
        return made

    def toDict(self) -> dict[str, Any]:
        """Return the fields as a new dict, records within them too; the name is the one DSPy's users know."""
        return {name: as_plain(value) for name, value in self._fields.items()}

    def __getitem__(self, name: str) -> Any:
        return self._fields[name]

    def __getattr__(self, name: str) -> Any:
        # Only for what is no slot: `_fields` itself is missing while a copy is being built.
        if not name.startswith("_"):
            if name in self._fields:
                return self._fields[name]
            if name == "kind":
                return self._kind
        known = "" if name.startswith("_") else f" (fields: {', '.join(self._fields)})"
        raise AttributeError(f"the {self._kind if known else 'record'} has no field {name!r}{known}")

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Record):
            return NotImplemented
        return type(self) is type(other) and self._kind == other._kind and self._fields == other._fields

    def __hash__(self) -> int:
        # Fields may hold what has no hash.
        return hash((self._kind, frozenset(self._fields)))

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), "kind", *self._fields]

    def __repr__(self) -> str:
        return f"<{self._kind} {', '.join(f'{name}={value!r}' for name, value in self._fields.items())}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._kind, self._fields)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        """Tell pydantic, and so DSPy's prompts, that a record is written as its fields."""
        from pydantic_core import core_schema

        told = core_schema.plain_serializer_function_ser_schema(cls.toDict)
        return core_schema.is_instance_schema(cls, serialization=told)


class Example(Record):
    """A row with its labels, as `dspy.Example` is one; input_keys: which of the fields are inputs, None if unsaid."""

    __slots__ = ("_input_keys",)

    def __init__(self, fields: Mapping[str, Any], input_keys: Iterable[str] | None = None) -> None:
        super().__init__(EXAMPLE, fields)
        self._input_keys = None if input_keys is None else frozenset(input_keys)

    @property
    def input_keys(self) -> frozenset[str] | None:
        """Which of the fields are inputs."""
        return self._input_keys

    def with_inputs(self, *keys: str) -> Example:
        """Return the same row with these fields as its inputs."""
        return Example(self._fields, keys)

    def inputs(self) -> Example:
        """Return the inputs alone. Raises ValueError where it was not said which they are."""
        keys = self._known_keys()
        return Example({name: value for name, value in self._fields.items() if name in keys}, keys)

    def labels(self) -> Example:
        """Return what is no input. Raises ValueError where it was not said what is."""
        keys = self._known_keys()
        return Example({name: value for name, value in self._fields.items() if name not in keys})

    def to(self, cls: type[T]) -> T:
        """Return the row as a `dspy.Example`, with its input keys."""
        made: T = make_example(cls, self._fields, self._input_keys)
        return made

    def _known_keys(self) -> frozenset[str]:
        if self._input_keys is None:
            raise ValueError("which fields are inputs was not said; say it by with_inputs(…)")
        return self._input_keys

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Example):
            return NotImplemented
        return self._fields == other._fields and self._input_keys == other._input_keys

    __hash__ = Record.__hash__

    def __reduce__(self) -> tuple[Any, ...]:
        return Example, (self._fields, self._input_keys)


def as_plain(value: Any) -> Any:
    """Return a value with the records within it, in lists, tuples and dicts too, as dicts."""
    if isinstance(value, Record):
        return value.toDict()
    if type(value) in (list, tuple) and not _ATOMS.issuperset(map(type, value)):
        return type(value)(map(as_plain, value))
    if type(value) is dict:
        return {key: as_plain(item) for key, item in value.items()}
    return value


def make(cls: Any, fields: Mapping[str, Any]) -> Any:
    """Return the instance of a pydantic model class that has these fields. Raises what its validation raises."""
    data = {name: as_plain(value) for name, value in fields.items()}
    if cls.__pydantic_root_model__:
        return cls.model_validate(data["root"], strict=False)
    # By the names that the fields have in Python: an alias is for the outside.
    return cls.model_validate(data, strict=False, by_name=True)


def make_example(cls: Any, fields: Mapping[str, Any], input_keys: Iterable[str] | None) -> Any:
    """Return the instance of `dspy.Example` (or of a class under it) that has these fields and input keys."""
    # Not as keywords: a field may be named `base`.
    example = cls(dict(fields))
    return example if input_keys is None else example.with_inputs(*input_keys)
