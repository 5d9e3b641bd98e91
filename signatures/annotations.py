"""Python annotations to type trees and back.

Reading executes nothing: an annotation is an object already. DSPy's types are known by module and name, pydantic's and
annotated_types' metadata by what they carry, so none of these packages is imported.
"""

from __future__ import annotations

import collections.abc as abc
import dataclasses
import datetime
import decimal
import functools
import keyword
import re
import types
import typing
import uuid
from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple

from signatures.errors import SignatureError
from signatures.names import ARITY, FORMS, GENERICS, MEDIA, SCALARS
from signatures.types import (
    MAX_DEPTH,
    NONE,
    NOTHING,
    STR,
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
    constrained,
    union,
)

_SCALARS: Final[dict[Any, Scalar]] = {
    **{
        python: Scalar(f"{prefix}{python.__name__}")
        for prefix, classes in {
            "": (str, int, float, bool, bytes, bytearray, complex),
            "datetime.": (datetime.datetime, datetime.date, datetime.time, datetime.timedelta),
            "decimal.": (decimal.Decimal,),
            "uuid.": (uuid.UUID,),
        }.items()
        for python in classes
    },
    Any: Scalar("Any"),
    None: NOTHING,
    type(None): NOTHING,
}
_PYTHON: Final[dict[str, Any]] = {scalar.name: python for python, scalar in _SCALARS.items()} | {"None": None}

# A mutable or wider kind is read as the one that its values are converted to.
_GENERICS: Final[dict[Any, str]] = {
    **{python: python.__name__ for python in (list, dict, tuple, set, frozenset)},
    **{python: python.__name__ for python in (abc.Sequence, abc.Iterable, abc.Collection, abc.Mapping)},
    abc.MutableSequence: "list",
    abc.MutableMapping: "dict",
    abc.MutableSet: "set",
    abc.Set: "set",
}
# The abstract ones by typing's names: DSPy has them from there, and types compare by them.
_PYTHON_GENERICS: Final[dict[str, Any]] = {
    **{python.__name__: python for python in (list, dict, tuple, set, frozenset)},
    **{name: getattr(typing, name) for name in ("Sequence", "Iterable", "Collection", "Mapping")},
}
_TRANSPARENT: Final = frozenset({"Required", "NotRequired", "ReadOnly", "Final"})

_CONSTRAINTS: Final = tuple(one.name for one in dataclasses.fields(Constraints) if one.name not in ("format", "finite"))
# What these do to a value cannot be said in a signature, so that they are refused rather than lost.
_LOST: Final = frozenset(
    {
        *("BeforeValidator", "AfterValidator", "PlainValidator", "WrapValidator", "SkipValidation", "InstanceOf"),
        *("Strict", "Predicate", "Timezone", "UuidVersion", "PathType"),
    }
)
_LOST_FLAGS: Final = ("strict", "strip_whitespace", "to_upper", "to_lower", "ascii_only")


class Reading(NamedTuple):
    """What an annotation says: the type, the constraints of the outermost level, a description."""

    type: Type
    constraints: Constraints = NONE
    description: str = ""


def from_annotation(annotation: Any, *, name: str = "") -> Type:
    """Return the type tree of a Python annotation, constraints included.

    Texts inside it must have been resolved, as `typing.get_type_hints(…, include_extras=True)` does. name: of the
    field, for the message. Raises SignatureError that names the fix if the annotation is no type for a value.
    """
    reading = read_annotation(annotation, name=name)
    return constrained(reading.type, reading.constraints)


def read_annotation(annotation: Any, *, name: str = "") -> Reading:
    """Return what a field's annotation says, the outermost constraints apart; see `from_annotation`."""
    try:
        return _Reader().read(annotation)
    except SignatureError as exc:
        if not name:
            raise
        raise SignatureError(f"the type of '{name}': {exc.message}") from exc


def read_metadata(metadata: Iterable[Any]) -> tuple[tuple[str, ...], Constraints, str]:
    """Return the notes, the constraints and the description in the metadata of an Annotated type.

    Texts are notes. Constraints come from annotated_types, from pydantic (also in a FieldInfo) and from Constraints; of
    two of one name the later counts. Unknown objects are of no concern, as PEP 593 has it. Raises SignatureError for
    validators and the like, which a signature would lose.
    """
    notes: list[str] = []
    found: dict[str, Any] = {}
    description = ""
    for one in metadata:
        if isinstance(one, str):
            notes.append(one)
            continue
        found |= _constraints_in(one)
        told = getattr(one, "description", None) or getattr(one, "documentation", None)
        description = told if isinstance(told, str) else description
    return tuple(notes), Constraints(**found), description


def place(type: Type, constraints: Constraints) -> tuple[Type, Constraints]:
    """Return a type and its own constraints, for constraints given on the whole.

    Those of an optional type hold for what is not None, so they go into the union: `str[..5] | None`. Those of a
    constrained type are joined to its own.
    """
    if isinstance(type, Constrained):
        return type.base, merged(type.constraints, constraints)
    if constraints and isinstance(type, Union) and NOTHING in type.members and len(type.members) == 2:
        inner = (one if one == NOTHING else constrained(*place(one, constraints)) for one in type.members)
        return union(*inner), NONE
    return type, constraints


def merged(first: Constraints, second: Constraints) -> Constraints:
    """Return both; of two of one name the second counts."""
    return Constraints(**{**first.items(), **second.items()})


class _Reader:
    """Reads one annotation. aliases: those being read, for one that holds itself."""

    def __init__(self) -> None:
        self.aliases: list[Any] = []

    def read(self, annotation: Any, depth: int = 0) -> Reading:
        if depth > MAX_DEPTH:
            raise SignatureError(f"it is nested deeper than {MAX_DEPTH}; use a class of your own for a part of it")
        origin = typing.get_origin(annotation)
        if origin is typing.Annotated:
            return self._annotated(annotation, depth)
        if _kind(origin) in _TRANSPARENT:
            return self.read(typing.get_args(annotation)[0], depth)
        if isinstance(annotation, typing.NewType) or _kind(type(annotation)) == "NewType":
            return self.read(annotation.__supertype__, depth + 1)
        if _kind(type(annotation)) == "TypeAliasType":
            return self._alias(annotation, depth)
        if _is_email(annotation):
            return Reading(STR, Constraints(format="email"))
        return Reading(self._type(annotation, origin, depth))

    def _inner(self, annotation: Any, depth: int) -> Type:
        reading = self.read(annotation, depth + 1)
        return constrained(reading.type, reading.constraints)

    def _type(self, annotation: Any, origin: Any, depth: int) -> Type:
        if isinstance(scalar := _lookup(_SCALARS, annotation), Scalar):
            return scalar
        if origin is typing.Union or origin is types.UnionType:
            return union(*(self._inner(one, depth) for one in typing.get_args(annotation)))
        if origin is typing.Literal:
            return _literal(typing.get_args(annotation))
        # `typing.List` has the origin list, and no arguments.
        if container := _lookup(_GENERICS, origin or annotation):
            return self._container(container, annotation, depth)
        if origin is None and isinstance(annotation, type):
            return _class(annotation)
        raise SignatureError(_refusal(annotation))

    def _container(self, name: str, annotation: Any, depth: int) -> Type:
        arguments = typing.get_args(annotation)
        if name == "tuple":
            if not arguments and annotation not in (tuple, typing.Tuple):  # noqa: UP006
                raise SignatureError("tuple[()] holds nothing; write tuple, or name the types in it")
            if len(arguments) == 2 and arguments[1] is Ellipsis:
                return Generic(name, (self._inner(arguments[0], depth),), variadic=True)
        least, most = ARITY[name]
        if arguments and not least <= len(arguments) <= (most or len(arguments)):
            shown = f"{name}[{', '.join('X' * least)}]"
            takes = f"{least} argument{'' if least == 1 else 's'}"
            raise SignatureError(f"'{name}' takes {takes}, not {len(arguments)}; write for example {shown}")
        return Generic(name, tuple(self._inner(one, depth) for one in arguments))

    def _annotated(self, annotation: Any, depth: int) -> Reading:
        base, *metadata = typing.get_args(annotation)
        inner = self.read(base, depth + 1)
        notes, constraints, description = read_metadata(metadata)
        type, constraints = place(constrained(inner.type, inner.constraints), constraints)
        if notes and isinstance(type, Annotated):
            type = Annotated(type.base, (*type.notes, *notes))
        elif notes:
            type = Annotated(type, notes)
        return Reading(type, constraints, description or inner.description)

    def _alias(self, alias: Any, depth: int) -> Reading:
        if any(one is alias for one in self.aliases):
            raise SignatureError(f"the alias '{alias.__name__}' holds itself; use a class of your own instead")
        self.aliases.append(alias)
        try:
            return self.read(alias.__value__, depth + 1)
        except NameError as exc:
            raise SignatureError(f"the alias '{alias.__name__}': {exc}; define the name before it is used") from exc
        finally:
            self.aliases.pop()


def _lookup(table: dict[Any, Any], key: Any) -> Any:
    try:
        return table.get(key)
    except TypeError:
        # Not hashable: no type either.
        return None


def _kind(special: Any) -> str:
    """Return the name of one of typing's own forms, also where typing_extensions has another of that name."""
    name = getattr(special, "_name", None) or getattr(special, "__name__", None)
    known = getattr(special, "__module__", "") in ("typing", "typing_extensions")
    return name if known and isinstance(name, str) else ""


def _class(python: type) -> Type:
    module, name = str(python.__module__), python.__name__
    if module.partition(".")[0] == "dspy":
        if name in MEDIA:
            return Media(name)
        language = getattr(python, "language", None)
        if name == f"Code_{language}":
            return Media("Code", str(language))
    if python is object:
        raise SignatureError("'object' says nothing about a value; write Any")
    if module in ("typing", "typing_extensions", "collections.abc"):
        raise SignatureError(_refusal(python))
    if not name.isidentifier() or keyword.iskeyword(name):
        raise SignatureError(f"the class {name!r} has no name to write; derive one of your own: class Name({name})")
    if name in SCALARS or name in GENERICS or name in FORMS:
        raise SignatureError(f"the class {module}.{name} has the name of another type; rename it")
    return Custom(name, python)


def _is_email(annotation: Any) -> bool:
    """Tell whether this is pydantic's EmailStr, whose values are texts and never instances of it."""
    known = isinstance(annotation, type) and annotation.__name__ == "EmailStr"
    return known and annotation.__module__.startswith("pydantic.")


def _literal(values: tuple[Any, ...]) -> Literal:
    if not values:
        raise SignatureError("a Literal needs a value; write for example Literal['a', 'b']")
    for value in values:
        if value is not None and type(value) not in (str, int, float, bool, bytes):
            kind = type(value).__name__
            raise SignatureError(
                f"a Literal holds texts, numbers, bools, bytes and None; for a {kind} write {kind} itself"
            )
    return Literal(values)


def _refusal(annotation: Any) -> str:
    shown = annotation.__name__ if isinstance(annotation, type) else str(annotation)[:80]
    plain = shown.removeprefix("typing.").removeprefix("collections.abc.").lstrip("~+-")
    if isinstance(annotation, str):
        return f"the text {annotation!r} names no type here; write the type itself, or a name that the module has"
    if isinstance(annotation, typing.ForwardRef):
        name = annotation.__forward_arg__
        return f"the name '{name}' is not known here; define or import it before the signature"
    if _kind(type(annotation)) in ("TypeVar", "ParamSpec", "TypeVarTuple"):
        return f"'{plain}' is a type variable, and no value has it; write the type that you mean, or Any"
    origin = typing.get_origin(annotation) or annotation
    if plain.startswith("Callable") or origin is abc.Callable:
        return f"'{plain}' is no data; a signature holds values, so name a type of these or leave the field out"
    if isinstance(origin, type) and origin is not annotation:
        return f"'{plain}' has arguments that are lost at run time; derive a class of your own: class Name({plain})"
    if isinstance(annotation, type) or getattr(annotation, "__module__", "") in ("typing", "typing_extensions"):
        return f"'{plain}' is no type for a field; write a type of values, such as str, list[str] or a class, or Any"
    return f"{str(annotation)[:60]!r} ({type(annotation).__name__}) is no type; write a type such as str or list[str]"


def _constraints_in(one: Any) -> dict[str, Any]:
    """Return the constraints that a piece of metadata carries, by their names here."""
    if isinstance(one, Constraints):
        return one.items()
    root = type(one).__module__.partition(".")[0]
    if root not in ("annotated_types", "pydantic", "pydantic_core"):
        return {}
    if type(one).__name__ == "FieldInfo":
        return functools.reduce(lambda known, item: known | _constraints_in(item), one.metadata, {})
    kind = type(one).__name__
    if kind in _LOST:
        raise SignatureError(f"a signature cannot keep '{kind}'; use constraints such as ge or pattern, or a class")
    if lost := [name for name in _LOST_FLAGS if getattr(one, name, None)]:
        raise SignatureError(f"a signature cannot keep '{lost[0]}'; leave it out, or use a class")
    found = {name: value for name in _CONSTRAINTS if (value := getattr(one, name, None)) is not None}
    if isinstance(pattern := found.get("pattern"), re.Pattern):
        found["pattern"] = _pattern_text(pattern)
    if getattr(one, "allow_inf_nan", None) is False:
        found["finite"] = True
    # `min_length=0` is how annotated_types says "none".
    return {name: value for name, value in found.items() if (name, value) != ("min_length", 0)}


def _pattern_text(pattern: re.Pattern[Any]) -> Any:
    flags = "".join(
        letter
        for letter, flag in (("a", re.A), ("i", re.I), ("m", re.M), ("s", re.S), ("x", re.X))
        if pattern.flags & flag and not isinstance(pattern.pattern, bytes)
    )
    return f"(?{flags}){pattern.pattern}" if flags else pattern.pattern


def to_annotation(
    type: Type,
    constraints: Constraints = NONE,
    *,
    media: Callable[[Media], Any] | None = None,
    record: Callable[[Record], Any] | None = None,
    constrain: Callable[[Any, Constraints], Any] | None = None,
) -> Any:
    """Return the Python annotation of a type tree.

    media: gives the annotation of one of DSPy's types, without it Any. record: of a record, without it dict[str, Any].
    constrain: joins an annotation and constraints, without it `Annotated[annotation, constraints]`, which
    `from_annotation` reads again.
    """

    def made(type: Type) -> Any:
        match type:
            case Scalar(name):
                return _PYTHON[name]
            case Generic(name, arguments, variadic):
                python = _PYTHON_GENERICS[name]
                inside = (*map(made, arguments), *([...] if variadic else []))
                return python[inside if len(inside) > 1 else inside[0]] if inside else python
            case Literal(values):
                return typing.Literal[values]
            case Union(members):
                return typing.Union[tuple(map(made, members))]  # noqa: UP007 - made at run time
            case Annotated(base, notes):
                return typing.Annotated[(made(base), *notes)]
            case Constrained(base, within):
                return joined(made(base), within)
            case Media():
                return Any if media is None else media(type)
            case Record():
                return dict[str, Any] if record is None else record(type)
            case Custom(_, python):
                return python
        raise TypeError(f"no annotation stands for a {type.__class__.__name__}")

    def joined(annotation: Any, within: Constraints) -> Any:
        return typing.Annotated[annotation, within] if constrain is None else constrain(annotation, within)

    return joined(made(type), constraints) if constraints else made(type)
