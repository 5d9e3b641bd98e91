"""What users hold: `class Triage(Signature)`, `@signature("…")`, `parse("…")`. A thin skin over a Spec."""

from __future__ import annotations

import copyreg
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from types import FrameType, MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NoReturn, dataclass_transform

from signatures.annotations import merged, place, read_annotation
from signatures.body import Body, Declaration
from signatures.converters.explain import Found, Full
from signatures.errors import Problem, SignatureError, ValidationError
from signatures.model import Field, Spec
from signatures.names import name_problem
from signatures.text import prefix
from signatures.text.parser import read
from signatures.types import Constraints, Type
from signatures.validate import validator

_KEEP: Final[Any] = object()
# What every class has; anything else in a class body is lost when the class travels by value.
_PLAIN: Final = frozenset(
    {
        *("__module__", "__qualname__", "__doc__", "__annotations__", "__dict__", "__weakref__", "_spec"),
        *("__firstlineno__", "__static_attributes__", "__annotate__", "__annotate_func__", "__annotations_cache__"),
    }
)


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(Field,))
class SignatureMeta(type):
    """The class of signature classes.

    Two of them are equal when their specs are. They are frozen: edits return new classes, plain ones without the
    methods of a declared class. Its attributes cannot be hidden by fields of the same names.
    """

    _spec: Spec

    @classmethod
    def __prepare__(mcs, name: str, bases: tuple[type, ...], /, **kwargs: Any) -> Body:
        """Return the namespace for a class body, which remembers lines."""
        return Body()

    def __new__(
        mcs, name: str, bases: tuple[type, ...], namespace: dict[str, Any], *, spec: Spec | None = None
    ) -> SignatureMeta:
        """Make a class. spec: instead of fields in the body. Raises SignatureError with every mistake and its line."""
        inherited = [base.spec for base in bases if isinstance(base, SignatureMeta) and "_spec" in vars(base)]
        body = dict(namespace)
        if "__annotations__" in body:
            body["__annotations__"] = dict(body["__annotations__"])
        if spec is None and any(isinstance(base, SignatureMeta) for base in bases):
            frame = _frame_of(namespace.get("__module__"))
            spec = Declaration(namespace.get("__qualname__", name), inherited, namespace, frame).spec()
        if spec is not None:
            body = {key: value for key, value in body.items() if not isinstance(value, Field)}
            body |= {"_spec": spec, "__doc__": spec.instructions or None}
        return super().__new__(mcs, name, bases, body)

    def __init__(cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **_: Any) -> None:
        super().__init__(name, bases, namespace)

    # --- what it is ---------------------------------------------------------------------------

    @property
    def spec(cls) -> Spec:
        """The signature as a value. Raises AttributeError for `Signature` itself."""
        found = vars(cls).get("_spec")
        if found is None:
            raise AttributeError(f"'{cls.__name__}' has no fields; derive a class from it, or use parse()")
        return found  # type: ignore[no-any-return]

    @property
    def inputs(cls) -> tuple[Field, ...]:
        """The inputs in order."""
        return cls.spec.inputs

    @property
    def outputs(cls) -> tuple[Field, ...]:
        """The outputs in order."""
        return cls.spec.outputs

    @property
    def fields(cls) -> Mapping[str, Field]:
        """Inputs, then outputs, by name; read-only."""
        return MappingProxyType(cls.spec.fields)

    @property
    def instructions(cls) -> str:
        """What stands before the fields, or in the docstring; the empty string if nothing does."""
        return cls.spec.instructions

    @property
    def sha256(cls) -> str:
        """Hexadecimal digest of `str(cls)`: the same in every process."""
        return cls.spec.sha256

    def json_schema(cls) -> dict[str, Any]:
        """Return the JSON Schema (2020-12) of an object with `inputs` and `outputs`."""
        from signatures.schema.writer import json_schema

        return json_schema(cls.spec, title=cls.__name__)

    def validate_inputs(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the inputs converted to their types, in order, with defaults filled in.

        Raises ValidationError that lists every missing, unknown or unfit value with its path.
        """
        return cls.spec.validate_inputs(values)

    def validate_outputs(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the outputs converted to their types; see `validate_inputs`."""
        return cls.spec.validate_outputs(values)

    # --- edits --------------------------------------------------------------------------------

    def with_instructions(cls, instructions: str) -> type[Signature]:
        """Return a class with other instructions."""
        return cls._edited(cls.spec.with_instructions(instructions))

    def append(cls, name: str, field: Field, type: Any = None) -> type[Signature]:
        """Return a class with one more field, the last of its side.

        field: `Field(input=True)` or `Field(output=True)`. type: a Python type, or its text such as "list[str]"; None =
        none is given. Raises SignatureError for a field that does not fit.
        """
        return cls._edited(cls.spec.append(cls._named(name, field, type)))

    def prepend(cls, name: str, field: Field, type: Any = None) -> type[Signature]:
        """Return a class with one more field, the first of its side; see `append`."""
        return cls._edited(cls.spec.prepend(cls._named(name, field, type)))

    def delete(cls, name: str) -> type[Signature]:
        """Return a class without a field. Raises KeyError if there is none of that name."""
        return cls._edited(cls.spec.delete(name))

    def with_updated_field(
        cls, name: str, *, type: Any = None, default: Any = _KEEP, description: str | None = None, **constraints: Any
    ) -> type[Signature]:
        """Return a class with one field changed, in its place.

        type: as of `append`; a new type brings its own constraints, the old ones go. default: MISSING takes it away.
        constraints: those of `Field`; None takes one away. Raises KeyError if there is no field of that name.
        """
        changes: dict[str, Any] = {}
        known = cls.spec.field(name)
        if type is not None or constraints:
            tree, own = (known.type, known.constraints) if type is None else cls._typed(name, type)
            tree, own = place(tree, _changed(own, constraints))
            changes = {"type": tree, "constraints": own, "typed": known.typed or type is not None}
        if description is not None:
            changes["description"] = description
        if default is not _KEEP:
            changes["default"] = default
        return cls._edited(cls.spec.with_updated_field(name, **changes))

    def _named(cls, name: str, field: Field, type: Any) -> Field:
        if not isinstance(field, Field) or field.kind == "member":
            raise SignatureError(f"give '{name}' a Field(input=True) or a Field(output=True)")
        if type is None:
            return field.replace(name=name, typed=False)
        tree, constraints = cls._typed(name, type)
        tree, constraints = place(tree, merged(constraints, field.constraints))
        return field.replace(name=name, type=tree, constraints=constraints)

    def _typed(cls, name: str, type: Any) -> tuple[Type, Constraints]:
        if not isinstance(type, str):
            reading = read_annotation(type, name=name)
            return reading.type, reading.constraints
        if problem := name_problem(name, "member"):
            raise SignatureError(problem)
        first, *others = read(f"-> {name}: {type}", types=cls.spec.customs).outputs
        if others or first.description or not first.required:
            raise SignatureError(f"{type!r} is more than a type; write for example 'list[str]'")
        return first.type, first.constraints

    def _edited(cls, spec: Spec) -> type[Signature]:
        return _plain(spec, cls.__name__, cls.__module__)

    # --- identity -----------------------------------------------------------------------------

    def __eq__(cls, other: object) -> bool:
        if not isinstance(other, SignatureMeta):
            return NotImplemented
        mine = vars(cls).get("_spec")
        return cls is other or (mine is not None and mine == vars(other).get("_spec"))

    def __hash__(cls) -> int:
        mine = vars(cls).get("_spec")
        return type.__hash__(cls) if mine is None else hash(mine)

    def __str__(cls) -> str:
        return cls.spec.text if "_spec" in vars(cls) else super().__repr__()

    def __repr__(cls) -> str:
        return f"<signature {cls.__name__} {cls.spec.text!r}>" if "_spec" in vars(cls) else super().__repr__()

    def __setattr__(cls, name: str, value: object) -> NoReturn:
        raise AttributeError(f"signatures are frozen; an edit of '{cls.__name__}' such as append() returns a new one")

    def __delattr__(cls, name: str) -> NoReturn:
        raise AttributeError(f"signatures are frozen; an edit of '{cls.__name__}' such as delete() returns a new one")


class Signature(metaclass=SignatureMeta):
    """The base of declared signatures.

    Annotations are the types; `Field` says on which side a value stands:

        class Triage(Signature):
            ticket: str = Field(input=True, max_length=4000)
            team: Literal["billing", "tech"] = Field(output=True)

    The docstring holds the instructions; a class without one has its base's. A derived class adds fields, and one that
    it names again keeps its place. The class is checked when it is made.

    An instance is one example: its inputs, and those outputs that are known. It is made from keywords alone, validated
    and frozen; the values are its attributes, and `example.as_dict()` has them by name. Raises ValidationError.
    (Type checkers ask for all values without a default, outputs too.)
    """

    def __init__(self, /, **values: Any) -> None:
        spec = type(self).spec
        known = tuple(field for field in spec.outputs if field.name in values or not field.required)
        fields = spec.fields
        problems = _unknown(values, fields)
        try:
            check = validator((*spec.inputs, *known))
            vars(self).update(check({name: value for name, value in values.items() if name in fields}))
        except ValidationError as exc:
            problems += exc.problems
        if problems:
            raise ValidationError(problems)

    def as_dict(self) -> dict[str, Any]:
        """Return the values by name, in the order of the fields.

        Where a field has this name: `Signature.as_dict(example)`.
        """
        return dict(vars(self))

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        yield from vars(self).items()

    if not TYPE_CHECKING:
        # Checkers would take it to mean that every attribute is there.
        def __getattr__(self, name: str) -> NoReturn:
            if not name.startswith("_") and name in type(self).fields:
                raise AttributeError(f"this {type(self).__name__} has no '{name}': it was made without that output")
            raise AttributeError(
                f"'{type(self).__name__}' has no field '{name}'; it has {', '.join(type(self).fields)}"
            )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Signature):
            return NotImplemented
        same: bool = SignatureMeta.__eq__(type(self), type(other))
        return same and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((type(self), *vars(self).values()))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self)})"

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"a {type(self).__name__} is frozen; make another one")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"a {type(self).__name__} is frozen; make another one")


def parse(
    text: str, *, types: Mapping[str, type] | None = None, instructions: str | None = None, name: str = "Signature"
) -> type[Signature]:
    """Return the signature that a text says.

    types: classes by the names that the text has for them; nothing is ever imported. instructions: for a text that has
    none itself. name: of the class. Raises SignatureError with every mistake, its place, and the caller's file.
    """
    frame = sys._getframe(1)
    spec = _read(text, types, instructions, _place(frame))
    return _plain(spec, name, frame.f_globals.get("__name__", __name__))


def signature(text: str, *, types: Mapping[str, type] | None = None) -> Callable[[Callable[..., Any]], type[Signature]]:
    """Return a decorator that makes a signature of a function or of a class without bases, from a text.

    The docstring becomes the instructions, unless the text has some: both are an error. Of a function, name and module
    are kept; its body never runs. Of a class, also its attributes and methods; the text may name classes in its body.
    Raises SignatureError as `parse` does, when the module is imported.
    """
    file = _place(sys._getframe(1))
    if not isinstance(text, str):
        raise SignatureError("write the text first, as in @signature('question -> answer')", file=file)

    def declare(decorated: Any) -> type[Signature]:
        is_class = isinstance(decorated, type)
        if not is_class and not inspect.isfunction(decorated):
            kind = type(decorated).__name__
            raise SignatureError(f"@signature stands before a function or a class, not {kind}", text, file=file)
        body = {key: value for key, value in vars(decorated).items() if key not in ("__dict__", "__weakref__")}
        if is_class and (decorated.__bases__ != (object,) or any(isinstance(one, Field) for one in body.values())):
            raise SignatureError(
                f"the class '{decorated.__name__}' under @signature has bases or a Field; "
                "its fields are those of the text, or write class X(Signature) with fields",
                file=file,
            )
        inside = {key: value for key, value in body.items() if is_class and isinstance(value, type)}
        doc = inspect.cleandoc(decorated.__doc__) if decorated.__doc__ else None
        if doc and prefix.split(text):
            raise SignatureError("the docstring and the text both give instructions; leave one out", text, file=file)
        spec = _read(text, {**inside, **(types or {})}, doc, file)
        namespace = {**(body if is_class else {}), "__module__": decorated.__module__}
        return _made(spec, decorated.__name__, {**namespace, "__qualname__": decorated.__qualname__})

    return declare


def _read(text: str, types: Mapping[str, type] | None, instructions: str | None, file: str) -> Spec:
    try:
        return read(text, types=types, instructions=instructions)
    except SignatureError as exc:
        exc.file = file
        raise


def _place(frame: FrameType) -> str:
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def _unknown(values: Mapping[str, Any], fields: Mapping[str, Field]) -> list[Problem]:
    found = Found()
    with suppress(Full):
        for name in values:
            if name not in fields:
                found.unknown(name, name, fields)
    return found.problems


def _made(spec: Spec, name: str, namespace: dict[str, Any]) -> type[Signature]:
    made: Any = SignatureMeta(name, (Signature,), namespace, spec=spec)
    return made  # type: ignore[no-any-return]


def _plain(spec: Spec, name: str, module: str) -> type[Signature]:
    return _made(spec, name, {"__module__": module, "__qualname__": name})


def _changed(own: Constraints, changes: Mapping[str, Any]) -> Constraints:
    try:
        return Constraints(**{**own.items(), **changes})
    except TypeError:
        known = ", ".join(Constraints.__dataclass_fields__)
        unknown = next(name for name in changes if name not in Constraints.__dataclass_fields__)
        raise SignatureError(f"'{unknown}' is no constraint; constraints are {known}") from None


def _frame_of(module: object) -> FrameType:
    """Return the frame that runs the class statement: the nearest one of that module, else the nearest outside."""
    nearest = frame = sys._getframe(2)
    while frame.f_back is not None:
        if frame.f_globals.get("__name__") == module:
            return frame
        frame = frame.f_back
    return frame if frame.f_globals.get("__name__") == module else nearest


def _reduced(cls: SignatureMeta) -> str | tuple[Any, ...]:
    """Say how a class travels: by reference where it can be imported, else by value."""
    found: Any = sys.modules.get(cls.__module__)
    for part in cls.__qualname__.split("."):
        found = getattr(found, part, None)
    qualname: str = cls.__qualname__
    if found is cls:
        return qualname
    if cls.__bases__ == (Signature,) and set(vars(cls)) <= _PLAIN:
        return _plain, (cls.spec, cls.__name__, cls.__module__)
    raise TypeError(f"'{qualname}' cannot be pickled: it is not found in '{cls.__module__}', and is more than fields")


copyreg.pickle(SignatureMeta, _reduced)
