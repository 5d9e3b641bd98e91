"""`Field` and `Spec`: what a signature is, as frozen values. Edits return new ones."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any, Final, Literal, NoReturn, final

from signatures.converters import convert
from signatures.errors import Problem, SignatureError, ValidationError
from signatures.names import name_problem
from signatures.text import prefix
from signatures.text.literals import NotALiteral, literal, plain, quoted, shape
from signatures.types import MAX_DEPTH, MISSING, NONE, STR, Constraints, Number, Scalar, Type, tree_problems
from signatures.validate import validator

Kind = Literal["input", "output", "member"]
MAX_FIELDS: Final = 200


class Frozen:
    """Attributes are set once, by `_set`."""

    __slots__ = ()

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"a {type(self).__name__} is frozen; its edits return a new one")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"a {type(self).__name__} is frozen; its edits return a new one")


@final
class Field(Frozen):
    """One input or output of a signature, or one member of a record.

    name. kind: "input", "output" or "member". type: a node of the type tree. default: MISSING if there is none.
    description. constraints: of the type itself; those of types inside it are in the tree. typed: False for an input
    that was given no type; it is a text then.

    In the body of a declared signature, `Field(input=True)` or `Field(output=True)` says which it is, and may give a
    default, a description and constraints; name and type come from the annotation.
    """

    __slots__ = ("constraints", "default", "description", "kind", "name", "type", "typed")

    name: str
    kind: Kind
    type: Type
    default: Any
    description: str
    constraints: Constraints
    typed: bool

    # For type checkers a declared field has the type of its annotation: hence Any.
    def __new__(
        cls, *, input: bool = False, output: bool = False, default: Any = MISSING, description: str = "",
        ge: Number | None = None, gt: Number | None = None, le: Number | None = None, lt: Number | None = None,
        multiple_of: Number | None = None, min_length: int | None = None, max_length: int | None = None,
        pattern: str | None = None, format: str | None = None, finite: bool = False,
    ) -> Any:  # fmt: skip
        """Return a field without name and type. One that is not either input or output is refused where it is used."""
        constraints = Constraints(ge, gt, le, lt, multiple_of, min_length, max_length, pattern, format, finite)
        # A member stands only in records, so that this kind tells a mistake here.
        kind: Kind = "member" if input == output else "input" if input else "output"
        return cls.of("", kind, default=default, description=description, constraints=constraints)

    @classmethod
    def of(
        cls, name: str, kind: Kind, type: Type = STR, *, default: Any = MISSING, description: str = "",
        constraints: Constraints = NONE, typed: bool = True,
    ) -> Field:  # fmt: skip
        """Return a field, complete. It is checked where it becomes part of a Spec."""
        made: Field = object.__new__(cls)
        made._set(
            name=name, kind=kind, type=type, default=default, description=description, constraints=constraints,
            # Only of an input does DSPy care whether a type was given; its text shows one where there are constraints.
            typed=typed or kind != "input" or bool(constraints),
        )  # fmt: skip
        return made

    def replace(self, **changes: Any) -> Field:
        """Return this field with some attributes changed. A changed type is a given one."""
        if "type" in changes:
            changes.setdefault("typed", True)
        return Field.of(**{**{name: getattr(self, name) for name in self.__slots__}, **changes})

    @property
    def required(self) -> bool:
        """Whether a value must be given."""
        return self.default is MISSING

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with this field in itself, as sentences."""
        if problem := name_problem(self.name, self.kind):
            yield problem
        # By its name: a comparison would write the whole type as text.
        if isinstance(self.type, Scalar) and self.type.name == "None" and self.kind != "member":
            yield none_alone(self.name)
        if self.type.depth > MAX_DEPTH:
            yield nested_too_deep(self.name)
            return
        found = list(tree_problems(self.type))
        if self.constraints and (problem := self.constraints.problem(self.type)):
            found.append(problem)
        yield from (f"the type of '{self.name}': {problem}" for problem in found)
        # A default is judged by a type that is sound.
        if not found and (problem := self.default_problem()):
            yield problem

    def default_problem(self) -> str | None:
        """Return what is wrong with the default, None if nothing is or there is none."""
        if self.required:
            return None
        try:
            text = literal(self.default)
            expected = shape(convert(self.type, self.constraints, self.default, "the default"))
        except NotALiteral as exc:
            return f"the default of '{self.name}' cannot be kept: {exc}"
        except ValidationError as exc:
            return f"the default of '{self.name}' does not fit its type: {exc.message}"
        # Equal texts must mean equal defaults: the date in `Any = "2024-01-31"` would be a text when it is read again.
        try:
            if shape(convert(self.type, self.constraints, plain(self.default), "the default")) == expected:
                return None
        except (NotALiteral, ValidationError):
            pass
        told = f"written as {text[:60]} it does not read back as the same value"
        return f"the default of '{self.name}' cannot be kept: {told}; give a plain default, or a narrower type"

    def settled(self) -> Field:
        """Return this field with its default converted, so that the text of the field reads back as an equal one.

        The field must be sound. A default of somebody's class stays as written: an instance is made for each use.
        """
        if self.required or self.type.customs:
            return self
        default = convert(self.type, self.constraints, self.default, "the default")
        if default is self.default:
            return self
        made = self.replace(default=default, typed=self.typed)
        return self if made.default_problem() else made

    def __str__(self) -> str:
        """The field as a signature text has it."""
        constraints = self.constraints.text
        shown = self.name
        if self.type != STR or constraints or (self.kind == "input" and self.typed):
            shown += f": {self.type.text}{constraints}"
        if self.description:
            shown += f" {quoted(self.description)}"
        return shown if self.required else f"{shown} = {literal(self.default)}"

    def __repr__(self) -> str:
        return f"Field({self.kind} {self})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Field):
            return NotImplemented
        return self.kind == other.kind and str(self) == str(other) and self.type.customs == other.type.customs

    def __hash__(self) -> int:
        return hash((self.kind, str(self)))

    def __reduce__(self) -> tuple[Any, ...]:
        return _field_again, ({name: getattr(self, name) for name in self.__slots__},)


def _field_again(values: dict[str, Any]) -> Field:
    return Field.of(**values)


@final
class Spec(Frozen):
    """A signature as a value: its fields in order and its instructions ("" = none were given).

    Equal specs have the same text and the same classes behind their custom names. Raises SignatureError, with every
    problem, for fields that make no signature.
    """

    __slots__ = ("__dict__", "inputs", "instructions", "outputs")

    inputs: tuple[Field, ...]
    outputs: tuple[Field, ...]
    instructions: str

    def __init__(self, inputs: Iterable[Field], outputs: Iterable[Field], instructions: str = "") -> None:
        self._set(inputs=tuple(inputs), outputs=tuple(outputs), instructions=instructions)
        if problems := tuple(Problem(text) for text in self._problems()):
            raise SignatureError(problems)
        self._set(**{side: tuple(one.settled() for one in getattr(self, side)) for side in ("inputs", "outputs")})

    @classmethod
    def of_sound(cls, inputs: Iterable[Field], outputs: Iterable[Field], instructions: str) -> Spec:
        """Return a spec of what has been checked already, field by field and as a whole."""
        made: Spec = object.__new__(cls)
        made._set(inputs=tuple(inputs), outputs=tuple(outputs), instructions=instructions)
        return made

    @property
    def fields(self) -> dict[str, Field]:
        """Inputs, then outputs, by name."""
        return {field.name: field for field in (*self.inputs, *self.outputs)}

    @cached_property
    def text(self) -> str:
        """The signature as `parse` reads it."""
        inputs, outputs = (", ".join(map(str, side)) for side in (self.inputs, self.outputs))
        first = self.inputs[0].name if self.inputs else ""
        return f"{prefix.written(self.instructions, first)}{inputs}{' ' if inputs else ''}-> {outputs}"

    @cached_property
    def sha256(self) -> str:
        """Hexadecimal digest of the text: the same in every process and release."""
        return hashlib.sha256(self.text.encode("utf-8", "surrogatepass")).hexdigest()

    @cached_property
    def customs(self) -> dict[str, type]:
        """The classes behind custom type names, by name."""
        return {name: python for field in self.fields.values() for name, python in field.type.customs.items()}

    # --- values -------------------------------------------------------------------------------

    def validate_inputs(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the inputs converted to their types, in order, with defaults filled in.

        Raises ValidationError that lists every missing, unknown or unfit value with its path.
        """
        return self._check_inputs(values)

    def validate_outputs(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the outputs converted to their types; see `validate_inputs`."""
        return self._check_outputs(values)

    @cached_property
    def _check_inputs(self) -> Callable[[Any], dict[str, Any]]:
        return validator(self.inputs)

    @cached_property
    def _check_outputs(self) -> Callable[[Any], dict[str, Any]]:
        return validator(self.outputs)

    # --- edits --------------------------------------------------------------------------------

    def with_instructions(self, instructions: str) -> Spec:
        """Return this with other instructions."""
        return Spec(self.inputs, self.outputs, instructions)

    def append(self, field: Field) -> Spec:
        """Return this with one more field, the last of its side."""
        if field.kind == "input":
            return self._with((*self.inputs, field), self.outputs)
        return self._with(self.inputs, (*self.outputs, field))

    def prepend(self, field: Field) -> Spec:
        """Return this with one more field, the first of its side."""
        if field.kind == "input":
            return self._with((field, *self.inputs), self.outputs)
        return self._with(self.inputs, (field, *self.outputs))

    def delete(self, name: str) -> Spec:
        """Return this without a field. Raises KeyError if there is none of that name."""
        self.field(name)
        return self._with(*(tuple(one for one in side if one.name != name) for side in (self.inputs, self.outputs)))

    def with_updated_field(self, name: str, **changes: Any) -> Spec:
        """Return this with attributes of one field changed, in its place. Raises KeyError, see `delete`."""
        changed = self.field(name).replace(**changes)
        sides = (tuple(changed if one.name == name else one for one in side) for side in (self.inputs, self.outputs))
        return self._with(*sides)

    def _with(self, inputs: tuple[Field, ...], outputs: tuple[Field, ...]) -> Spec:
        return Spec(inputs, outputs, self.instructions)

    def field(self, name: str) -> Field:
        """Return the field of a name. Raises KeyError that tells the names there are."""
        found = self.fields.get(name)
        if found is None:
            raise KeyError(f"the signature has no field {name!r}; it has {', '.join(self.fields)}")
        return found

    # --- identity -----------------------------------------------------------------------------

    def _problems(self) -> Iterator[str]:
        told: object = self.instructions
        if not isinstance(told, str):
            yield f"instructions are a text, not {type(told).__name__}"
        if not self.outputs:
            yield "a signature needs at least one output after '->'"
        fields = (*self.inputs, *self.outputs)
        if len(fields) > MAX_FIELDS:
            yield too_many(len(fields))
            return
        seen: dict[str, Field] = {}
        for index, field in enumerate(fields):
            yield from field.problems()
            side = "input" if index < len(self.inputs) else "output"
            if field.kind != side:
                yield f"the field '{field.name}' is of the kind '{field.kind}' and stands among the {side}s"
            if (earlier := seen.get(field.name)) is not None:
                yield same_name(field.name, both_sides=earlier.kind != field.kind)
            seen[field.name] = field
        yield from self._customs_problems()

    def _customs_problems(self) -> Iterator[str]:
        known: dict[str, type] = {}
        for field in (*self.inputs, *self.outputs):
            for name, python in field.type.customs.items():
                if known.setdefault(name, python) is not python:
                    yield f"two different classes are called '{name}'; rename one"

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"Spec({self.text!r})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Spec):
            return NotImplemented
        return self is other or (self.text == other.text and self.customs == other.customs)

    def __hash__(self) -> int:
        return hash(self.text)

    def __reduce__(self) -> tuple[Any, ...]:
        return Spec, (self.inputs, self.outputs, self.instructions)


def same_name(name: str, *, both_sides: bool) -> str:
    """Return the sentence about two fields of one name."""
    if both_sides:
        return f"the field '{name}' is an input and an output; rename one"
    return f"the field '{name}' is named twice; rename one"


def none_alone(name: str) -> str:
    """Return the sentence about a field that can only be None."""
    return f"None alone is no type for '{name}'; write for example 'str | None'"


def nested_too_deep(name: str) -> str:
    """Return the sentence about a type with too many levels."""
    return f"the type of '{name}' is nested deeper than {MAX_DEPTH}; use a class of your own for a part of it"


def too_many(fields: int) -> str:
    """Return the sentence about a number of fields."""
    return f"a signature has at most {MAX_FIELDS} fields, not {fields}; group some in a record or a class"
