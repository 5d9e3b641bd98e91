"""Types in words, as error messages name them: "an integer from 0 to 100", "a list of strings"."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from typing import Any, Final, NamedTuple

from signatures.converters.shown import shown
from signatures.text.literals import literal
from signatures.types import (
    NONE,
    Annotated,
    Constrained,
    Constraints,
    Custom,
    Generic,
    Literal,
    Media,
    Record,
    Scalar,
    Type,
    Union,
)

_MAX_WORDS: Final = 300
_MAX_CHOICES: Final = 10


class Words(NamedTuple):
    """What to call one value of a type, and several."""

    one: str
    many: str

    @property
    def single(self) -> str:
        """The word for one, without its article."""
        return self.one.removeprefix("an ").removeprefix("a ")


_SCALARS: Final[dict[str, Words]] = {
    "str": Words("a string", "strings"),
    "int": Words("an integer", "integers"),
    "float": Words("a number", "numbers"),
    "bool": Words("true or false", "values, each true or false"),
    "bytes": Words("bytes", "byte strings"),
    "bytearray": Words("bytes", "byte strings"),
    "complex": Words("a complex number", "complex numbers"),
    "None": Words("None", "values, each None"),
    "Any": Words("any value", "items"),
    "datetime.datetime": Words("a date and time, like 2025-01-31T09:30:00", "dates and times"),
    "datetime.date": Words("a date, like 2025-01-31", "dates"),
    "datetime.time": Words("a time, like 09:30:00", "times"),
    "datetime.timedelta": Words("a duration in seconds, or like PT1H30M", "durations"),
    "decimal.Decimal": Words("a decimal number", "decimal numbers"),
    "uuid.UUID": Words("a UUID", "UUIDs"),
}
_FORMATS: Final[dict[str, Words]] = {
    "email": Words("an email address", "email addresses"),
    "url": Words("a URL", "URLs"),
    "json": Words("a JSON text", "JSON texts"),
}
_ITEMS: Final = Words("an item", "items")
_CONTAINERS: Final[dict[str, Words]] = {
    "set": Words("a set", "sets"),
    "frozenset": Words("a set", "sets"),
    "tuple": Words("a tuple", "tuples"),
    "dict": Words("a mapping", "mappings"),
    "Mapping": Words("a mapping", "mappings"),
}


def expects(type: Type, constraints: Constraints = NONE) -> str:
    """Return what a value must be, in at most 300 characters."""
    text = _words(type, constraints).one
    return text if len(text) <= _MAX_WORDS else f"{text[: _MAX_WORDS - 1]}…"


def _words(type: Type, constraints: Constraints = NONE) -> Words:
    match type:
        case Scalar():
            return _scalar(type.name, constraints)
        case Generic():
            return _generic(type, constraints)
        case Literal():
            return _each(_one_of(type.values))
        case Union():
            return _each(" or ".join(_few([_words(member).one for member in type.members])))
        case Annotated():
            return _words(type.base, constraints)
        case Constrained():
            return _words(type.base, type.constraints)
        case Media():
            return Words(f"a {type.text}", f"{type.text} values")
        case Record():
            return _with_names(member.name for member in type.members)
        case Custom():
            return _class(type)
    return Words(f"a {type.text}", f"{type.text} values")


def _each(one: str) -> Words:
    return Words(one, f"values, each {one}")


def _few(parts: Iterable[str]) -> list[str]:
    found = list(parts)
    return found if len(found) <= _MAX_CHOICES else [*found[:_MAX_CHOICES], f"{len(found) - _MAX_CHOICES} more"]


def _one_of(values: Iterable[Any]) -> str:
    found = [shown(value) or literal(value) for value in values]
    return found[0] if len(found) == 1 else f"one of {', '.join(_few(found))}"


def _with_names(names: Iterable[str]) -> Words:
    known = ", ".join(_few(names))
    if not known:
        return Words("an empty mapping", "empty mappings")
    return Words(f"a mapping with {known}", f"mappings with {known}")


def _class(type: Custom) -> Words:
    # Here, because what looks into classes needs the converters.
    from signatures.converters.classes import names_of

    python = type.python
    if issubclass(python, Enum):
        return _each(_one_of(member.value for member in python))
    article = "an" if type.name[:1] in "AEIOUaeiou" else "a"
    one, many = f"{article} {type.name}", f"{type.name} objects"
    # Whoever sends JSON does not know the class.
    names = names_of(python)
    if names is None:
        return Words(one, many)
    members = _with_names(names)
    return Words(f"{one} ({members.one})", f"{many} ({members.many})")


# --- constraints ----------------------------------------------------------------------------------


def _scalar(name: str, one: Constraints) -> Words:
    words = _FORMATS[one.format] if one.format in _FORMATS else _SCALARS[name]
    if one.finite:
        words = Words("a finite number", "finite numbers")
    if length := _count(one, "byte" if name.startswith("byte") else "character"):
        words = _and(words, f"of {length}")
    if numbers := _range(one):
        words = _and(words, numbers)
    if one.multiple_of is not None:
        words = _and(words, f"that {{}} of {literal(one.multiple_of)}", "is a multiple", "are multiples")
    if one.pattern is not None:
        words = _and(words, f"that {{}} {shown(one.pattern)}", "matches", "match")
    if one.format is not None and one.format not in _FORMATS:
        words = _and(words, f"in the format '{one.format}'")
    return words


def _and(words: Words, tail: str, one: str = "", many: str = "") -> Words:
    return Words(f"{words.one} {tail.replace('{}', one, 1)}", f"{words.many} {tail.replace('{}', many, 1)}")


def _range(one: Constraints) -> str:
    if one.ge is not None and one.le is not None:
        return f"from {literal(one.ge)} to {literal(one.le)}"
    ends = [
        f"{word} {literal(bound)}"
        for word, bound in (("of at least", one.ge), ("above", one.gt), ("of at most", one.le), ("below", one.lt))
        if bound is not None
    ]
    return " and ".join(ends)


def _count(one: Constraints, unit: str, units: str = "") -> str:
    units = units or f"{unit}s"
    low, high = one.min_length, one.max_length
    if low is not None and high is not None:
        count = f"{low}" if low == high else f"{low} to {high}"
        return f"{count} {unit if low == high == 1 else units}"
    if high is not None:
        return f"at most {high} {unit if high == 1 else units}"
    return "" if low is None else f"at least {low} {unit if low == 1 else units}"


def _generic(type: Generic, one: Constraints) -> Words:
    words = _CONTAINERS.get(type.name, Words("a list", "lists"))
    arguments = [_words(argument) for argument in type.arguments]
    if type.name in ("dict", "Mapping"):
        if arguments:
            words = _and(words, f"of {arguments[0].many} to {arguments[1].many}")
        length = _count(one, "item")
        return _and(words, f"with {length}") if length else words
    if type.name == "tuple" and arguments and not type.variadic:
        inside = ", ".join(_few(argument.one for argument in arguments))
        return Words(f"{words.one} ({inside})", f"{words.many} ({inside})")
    item = arguments[0] if arguments else _ITEMS
    if length := _count(one, item.single, item.many):
        return _and(words, f"of {length}")
    return _and(words, f"of {item.many}") if arguments else words
