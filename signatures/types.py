"""The type tree: what a field may hold, as frozen values.

A type is its text: two trees are equal when they are written the same and their custom types are the same classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from signatures.text.literals import literal, quoted

if TYPE_CHECKING:
    from signatures.model import Field

MAX_DEPTH: Final = 20
Number = int | float


class Missing(Enum):
    """The default of a field that has none."""

    MISSING = "MISSING"

    def __repr__(self) -> str:
        return self.name

    def __bool__(self) -> bool:
        return False


MISSING: Final = Missing.MISSING


class Type:
    """The root of the tree's nodes."""

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Type):
            return NotImplemented
        return self is other or (self.text == other.text and self.customs == other.customs)

    def __hash__(self) -> int:
        return hash(self.text)

    def __str__(self) -> str:
        return self.text

    @cached_property
    def text(self) -> str:
        """The type as a signature text has it."""
        return self._text()

    @cached_property
    def customs(self) -> dict[str, type]:
        """The classes behind the custom names in it, by name."""
        return {name: python for child in self.children() for name, python in child.customs.items()}

    @cached_property
    def depth(self) -> int:
        """How many types are nested in one another, this one included."""
        return 1 + max((child.depth for child in self.children()), default=0)

    def children(self) -> Iterator[Type]:
        """Yield the types directly inside this one."""
        yield from ()

    def _text(self) -> str:
        raise NotImplementedError(type(self).__name__)


@dataclass(frozen=True, eq=False, repr=True)
class Scalar(Type):
    """A type without arguments, by its canonical name: `str`, `Any`, `None`, `datetime.date` and so on."""

    name: str

    def _text(self) -> str:
        return self.name


@dataclass(frozen=True, eq=False)
class Generic(Type):
    """A container. arguments: empty = bare. variadic: `tuple[X, ...]`, with one argument."""

    name: str
    arguments: tuple[Type, ...] = ()
    variadic: bool = False

    def children(self) -> Iterator[Type]:
        """Yield the arguments."""
        yield from self.arguments

    def _text(self) -> str:
        if not self.arguments:
            return self.name
        inside = [argument.text for argument in self.arguments] + (["..."] if self.variadic else [])
        return f"{self.name}[{', '.join(inside)}]"


@dataclass(frozen=True, eq=False)
class Literal(Type):
    """One of some values: texts, whole numbers, floats, bools, bytes, None."""

    values: tuple[str | int | float | bool | bytes | None, ...]

    def _text(self) -> str:
        return f"Literal[{', '.join(literal(value) for value in self.values)}]"


@dataclass(frozen=True, eq=False)
class Union(Type):
    """One of some types. members: two or more, distinct, none of them a union. Make it by `union()`."""

    members: tuple[Type, ...]

    def children(self) -> Iterator[Type]:
        """Yield the members."""
        yield from self.members

    def _text(self) -> str:
        return " | ".join(member.text for member in self.members)


@dataclass(frozen=True, eq=False)
class Annotated(Type):
    """A type with notes: kept, and without meaning here."""

    base: Type
    notes: tuple[str, ...]

    def children(self) -> Iterator[Type]:
        """Yield the base."""
        yield self.base

    def _text(self) -> str:
        return f"Annotated[{self.base.text}, {', '.join(quoted(note) for note in self.notes)}]"


@dataclass(frozen=True)
class Constraints:
    """What values of a type must keep to. Bounds of numbers, lengths in characters, bytes or items.

    format: a name of `native.validators.FORMATS`. finite: neither nan nor infinite. Empty constraints are false.
    """

    ge: Number | None = None
    gt: Number | None = None
    le: Number | None = None
    lt: Number | None = None
    multiple_of: Number | None = None
    min_length: int | None = None
    max_length: int | None = None
    pattern: str | None = None
    format: str | None = None
    finite: bool = False

    def __bool__(self) -> bool:
        return bool(self.items())

    def items(self) -> dict[str, Any]:
        """Return those that are set, by name."""
        return {name: value for name, value in self.__dict__.items() if value is not None and value is not False}

    @property
    def text(self) -> str:
        """The bracket that stands for them, the empty string for none."""
        ranges = _range(self.ge, self.gt, self.le, self.lt), _range(self.min_length, None, self.max_length, None)
        parts = [one for one in ranges if one]
        if self.multiple_of is not None:
            parts.append(f"multiple_of={literal(self.multiple_of)}")
        if self.pattern is not None:
            parts.append(quoted(self.pattern))
        if self.format is not None:
            parts.append(self.format)
        if self.finite:
            parts.append("finite")
        return f"[{', '.join(parts)}]" if parts else ""

    def problem(self, base: Type) -> str | None:
        """Return why these cannot constrain a type, None if they can."""
        return _constraint_problem(self, base)


NONE: Final = Constraints()


@dataclass(frozen=True, eq=False)
class Constrained(Type):
    """A type with constraints, inside another: a field's own are the field's."""

    base: Type
    constraints: Constraints

    def children(self) -> Iterator[Type]:
        """Yield the base."""
        yield self.base

    def _text(self) -> str:
        return f"{self.base.text}{self.constraints.text}"


@dataclass(frozen=True, eq=False)
class Record(Type):
    """A mapping with named members, each a Field of kind `member`: `{name: str, age: int = 3}`."""

    members: tuple[Field, ...]

    def children(self) -> Iterator[Type]:
        """Yield the types of the members."""
        for member in self.members:
            yield member.type

    def _text(self) -> str:
        return f"{{{', '.join(str(member) for member in self.members)}}}"


@dataclass(frozen=True, eq=False)
class Media(Type):
    """One of DSPy's own types, by its name under `dspy`: `Image`, `History` … argument: of `dspy.Code["python"]`."""

    name: str
    argument: str | None = None

    def _text(self) -> str:
        return f"dspy.{self.name}" + ("" if self.argument is None else f"[{quoted(self.argument)}]")


@dataclass(frozen=True, eq=False)
class Custom(Type):
    """A class that was registered under a name, or stands in a declared signature."""

    name: str
    python: type = field(repr=False)

    @cached_property
    def customs(self) -> dict[str, type]:
        """The class itself."""
        return {self.name: self.python}

    def _text(self) -> str:
        return self.name


STR: Final = Scalar("str")
ANY: Final = Scalar("Any")
NOTHING: Final = Scalar("None")


def union(*members: Type) -> Type:
    """Return the union of types: flat, without repetitions; the type itself if it is only one."""
    flat: dict[Type, None] = {}
    for member in members:
        for one in member.members if isinstance(member, Union) else (member,):
            flat.setdefault(one)
    return next(iter(flat)) if len(flat) == 1 else Union(tuple(flat))


def constrained(base: Type, constraints: Constraints) -> Type:
    """Return a type with constraints; the type itself if there are none."""
    return Constrained(base, constraints) if constraints else base


NUMBERS: Final = frozenset({"int", "float", "decimal.Decimal"})
_SIZED_SCALARS: Final = frozenset({"str", "bytes", "bytearray"})
_OF_NUMBERS: Final[tuple[str, ...]] = ("ge", "gt", "le", "lt", "multiple_of")
_OF_TEXTS: Final[tuple[str, ...]] = ("pattern", "format")


def measure(base: Type) -> str | None:
    """Return what a range bounds in a type: its "value", its "length", or None if it can have none."""
    if isinstance(base, Annotated):
        return measure(base.base)
    if isinstance(base, Scalar):
        return "value" if base.name in NUMBERS else "length" if base.name in _SIZED_SCALARS else None
    if isinstance(base, Generic):
        return None if base.name == "tuple" and base.arguments and not base.variadic else "length"
    return None


def _constraint_problem(constraints: Constraints, base: Type) -> str | None:
    given = constraints.items()
    if problem := _kinds_problem(given):
        return problem
    kind = measure(base)
    inner = base.base if isinstance(base, Annotated) else base
    if kind is None and given:
        return f"'{base.text}' takes no constraints; numbers take ranges, texts and containers take lengths"
    if kind != "value" and (wrong := [name for name in _OF_NUMBERS if name in given]):
        return f"'{base.text}' takes no '{wrong[0]}'; that is for int, float and Decimal"
    if kind == "value" and (wrong := [name for name in ("min_length", "max_length") if name in given]):
        return f"'{base.text}' takes no '{wrong[0]}'; that is for texts and containers"
    if inner != STR and (wrong := [name for name in _OF_TEXTS if name in given]):
        return f"'{base.text}' takes no '{wrong[0]}'; that is for str"
    if constraints.finite and inner != Scalar("float"):
        return f"'{base.text}' takes no 'finite'; that is for float"
    return _bounds_problem(constraints) or _text_problem(constraints)


def tree_problems(type: Type) -> Iterator[str]:
    """Yield what is wrong with a type in itself, as sentences: constraints inside it, members of records."""
    if isinstance(type, Constrained) and (problem := type.constraints.problem(type.base)):
        yield problem
    if isinstance(type, Record):
        seen: set[str] = set()
        for member in type.members:
            if member.name in seen:
                yield f"the member '{member.name}' is named twice; rename one"
            seen.add(member.name)
            yield from member.problems()
    else:
        for child in type.children():
            yield from tree_problems(child)


def _kinds_problem(given: dict[str, Any]) -> str | None:
    for name, value in given.items():
        if name in _OF_NUMBERS and (isinstance(value, bool) or not isinstance(value, int | float) or value != value):
            return f"'{name}' must be a number, not {value!r}"
        if name in ("min_length", "max_length") and (isinstance(value, bool) or not isinstance(value, int)):
            return f"'{name}' must be a whole number, not {value!r}"
        if name in _OF_TEXTS and not isinstance(value, str):
            return f"'{name}' must be a text, not {value!r}"
    return None


def _text_problem(one: Constraints) -> str | None:
    if one.pattern is None and one.format is None:
        return None
    # What patterns need is loaded with the first one.
    from signatures.native import validators

    if one.format is not None and one.format not in validators.FORMATS:
        known = ", ".join(sorted(validators.FORMATS))
        return f"unknown format '{one.format}'; formats are {known}"
    return None if one.pattern is None else validators.check_pattern(one.pattern)


def _bounds_problem(one: Constraints) -> str | None:
    lower = [bound for bound in (one.ge, one.gt, one.min_length) if bound is not None]
    upper = [bound for bound in (one.le, one.lt, one.max_length) if bound is not None]
    if len(lower) > 1 or len(upper) > 1:
        return "a range has one lower and one upper end; write for example [0..1] or [0<..<1]"
    if any(length is not None and length < 0 for length in (one.min_length, one.max_length)):
        return "a length is 0 or more; write for example [1..80]"
    if one.multiple_of is not None and one.multiple_of <= 0:
        return "'multiple_of' must be above 0"
    is_open = one.gt is not None or one.lt is not None
    if lower and upper and (lower[0] > upper[0] or (is_open and lower[0] == upper[0])):
        return f"the range holds nothing: {literal(lower[0])} is not below {literal(upper[0])}; swap the ends"
    return None


def _range(ge: Number | None, gt: Number | None, le: Number | None, lt: Number | None) -> str:
    low = literal(ge) if ge is not None else f"{literal(gt)}<" if gt is not None else ""
    high = literal(le) if le is not None else f"<{literal(lt)}" if lt is not None else ""
    return f"{low}..{high}" if low or high else ""
