"""Classes that values are converted to, values that make trouble, and how to look at what comes of them."""

from __future__ import annotations

import dataclasses
import enum
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pydantic
import pytest
import typing_extensions

from signatures.annotations import from_annotation
from signatures.converters import convert
from signatures.errors import ValidationError
from signatures.types import NONE, Constraints, Type


class Color(enum.Enum):
    RED = "r"
    GREEN = 2
    TRUE = True


class Size(enum.IntEnum):
    SMALL = 1


class Name(str):
    __slots__ = ()


class Whole(int):
    def __int__(self) -> int:
        raise ZeroDivisionError


class Items(list):  # type: ignore[type-arg]
    def __iter__(self) -> Iterator[Any]:
        raise ZeroDivisionError


class Hostile:
    """Whatever is asked of it, it raises."""

    def __repr__(self) -> str:
        raise ZeroDivisionError

    __str__ = __hash__ = __len__ = __iter__ = __bool__ = __int__ = __float__ = __repr__  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        raise ZeroDivisionError


class BadMapping(Mapping[Any, Any]):
    def __getitem__(self, key: Any) -> Any:
        raise ZeroDivisionError

    def __iter__(self) -> Iterator[Any]:
        raise ZeroDivisionError

    def __len__(self) -> int:
        return 2


class Endless(Mapping[Any, Any]):
    def __getitem__(self, key: Any) -> Any:
        return key

    def __iter__(self) -> Iterator[Any]:
        number = 0
        while True:
            yield number
            number += 1

    def __len__(self) -> int:
        return 2


@dataclasses.dataclass
class Node:
    value: int
    next: Node | None = None
    others: list[Node] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Left:
    x: Left | Right | int
    y: int


@dataclasses.dataclass
class Right:
    x: Left | Right | int
    y: str


@dataclasses.dataclass
class Positive:
    n: int

    def __post_init__(self) -> None:
        if self.n < 0:
            raise ValueError("n is below 0")


class Point(typing.NamedTuple):
    x: int
    y: int = 0


class Ticket(typing.TypedDict, total=False):
    title: typing.Required[str]
    tags: list[str]


class Strictly(typing.TypedDict):
    title: str
    note: typing.NotRequired[str]


class Model(pydantic.BaseModel):
    count: int
    names: list[str] = []

    @pydantic.field_validator("count")
    @classmethod
    def _not_13(cls, value: int) -> int:
        if value == 13:
            raise ValueError("13 brings bad luck")
        return value


class Plain:
    pass


@dataclasses.dataclass
class Caller:
    call: Callable[[Any], int]
    n: int


class Fixed(typing_extensions.TypedDict):
    title: typing_extensions.ReadOnly[str]
    n: typing_extensions.ReadOnly[typing_extensions.NotRequired[int]]


class SulkyError(Exception):
    def __str__(self) -> str:
        raise ZeroDivisionError


@dataclasses.dataclass
class Sulky:
    n: int

    def __post_init__(self) -> None:
        raise SulkyError


class SulkyModel(pydantic.BaseModel, extra="forbid"):
    n: int

    @pydantic.model_validator(mode="after")
    def _never(self) -> SulkyModel:
        raise SulkyError


def chain(length: int) -> dict[str, Any]:
    value: dict[str, Any] = {"value": 1}
    for _ in range(length - 1):
        value = {"value": 1, "next": value}
    return value


def knotted() -> list[Any]:
    knot: list[Any] = []
    knot.append(knot)
    return knot


def same(one: Any, other: Any) -> bool:
    """Equal in value and type, all the way down; a nan is a nan."""
    return _written(one) == _written(other)


def _written(value: Any) -> str:
    if isinstance(value, list | tuple):
        inside = [_written(one) for one in value]
    elif isinstance(value, dict):
        inside = [f"{_written(key)}: {_written(one)}" for key, one in value.items()]
    elif isinstance(value, set | frozenset):
        inside = sorted(_written(one) for one in value)
    else:
        inside = [repr(value)]
    return f"{type(value).__name__}({', '.join(inside)})"


def tree(annotation: Any) -> Type:
    """Return the type tree of an annotation; a tree stays as it is."""
    return annotation if isinstance(annotation, Type) else from_annotation(annotation)


def problem(annotation: Any, value: Any, constraints: Constraints = NONE, path: str = "v") -> str:
    """Return the message of the ValidationError that a value must raise."""
    with pytest.raises(ValidationError) as caught:
        convert(tree(annotation), constraints, value, path)
    return caught.value.message
