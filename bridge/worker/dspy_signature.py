"""Signatures of the engine as DSPy's, and back.

| the engine | DSPy |
|---|---|
| plain types | the same annotations as `dspy.Signature(text)` makes, so the same prompts |
| constraints, records | `checked` types: prompts tell them, and an answer that breaks them is refused |
| descriptions, defaults | `desc`, `default`; a missing input or output takes its default |
| an input without a type | `str`, flagged: any value goes into the prompt |
| instructions | the docstring; none = DSPy's own sentence |
| custom types | their classes |
| bytearray, Iterable, Collection | `checked` types |

`from_dspy(to_dspy(signature)) == signature`, but for what a DSPy class cannot hold: indentation of instructions
(DSPy cleans it), instructions that are DSPy's own sentence, a description `${name}` (DSPy's own), a name for a custom
type that is not its class's, and `= None` of an output that is a `checked` type or None (DSPy has it that way without).
"""

from __future__ import annotations

from typing import Annotated, Any, Final, cast

import dspy  # type: ignore[import-untyped]
from dspy.adapters.utils import get_annotation_name  # type: ignore[import-untyped]
from dspy.signatures.signature import make_signature  # type: ignore[import-untyped]
from pydantic.fields import FieldInfo

from bridge.worker.checked import Checked, checked, is_checked, needs_check, parts
from bridge.worker.type_trees import holds, rewritten
from signatures.annotations import read_annotation, to_annotation
from signatures.declare import Signature, SignatureMeta
from signatures.errors import Problem, SignatureError
from signatures.model import Field, Kind, Spec
from signatures.text.parser import read
from signatures.types import MISSING, NOTHING, Constraints, Generic, Media, Scalar, Type, Union, constrained

UNTYPED: Final = "IS_TYPE_UNDEFINED"
# What DSPy has words for; the rest is told in ours.
_IN_DSPYS_WORDS: Final = ("ge", "gt", "le", "lt", "multiple_of", "min_length", "max_length")


def to_dspy(signature: str | Spec | type[Signature], *, name: str | None = None) -> Any:
    """Return the `dspy.Signature` class that behaves as a signature does. name: of the class.

    Raises SignatureError for a text that is none, and for a signature that DSPy does not take: a field may be called
    as an attribute of its classes.
    """
    spec = as_spec(signature)
    if name is None:
        name = signature.__name__ if isinstance(signature, type) else "StringSignature"
    try:
        fields = {field.name: (_annotation(field), _info(field)) for field in (*spec.inputs, *spec.outputs)}
        return make_signature(fields, spec.instructions or None, name)
    except SignatureError:
        raise
    except Exception as exc:
        raise SignatureError(f"DSPy does not take this signature: {exc}", spec.text) from exc


def from_dspy(cls: Any) -> type[Signature]:
    """Return a DSPy signature class as a Signature. Raises SignatureError, which names every field it cannot hold."""
    place = {"__module__": cls.__module__, "__qualname__": cls.__qualname__}
    return cast("type[Signature]", SignatureMeta(cls.__name__, (Signature,), place, spec=spec_of(cls)))


def spec_of(cls: Any) -> Spec:
    """Return a DSPy signature class as a Spec; see `from_dspy`."""
    fields: list[Field] = []
    problems: list[Problem] = []
    for name, info in cls.fields.items():
        try:
            fields.append(field_of(name, info))
        except SignatureError as exc:
            problems += [Problem(f"the field '{name}': {problem.message}") for problem in exc.problems]
    if problems:
        raise SignatureError(problems)
    own = cls.instructions
    instructions = "" if own == default_instructions(cls) else own
    inputs = [field for field in fields if field.kind == "input"]
    return Spec(inputs, [field for field in fields if field.kind == "output"], instructions)


def as_spec(signature: str | Spec | type[Signature]) -> Spec:
    """Return the spec of a signature in any form. Raises SignatureError for a text that is none."""
    if isinstance(signature, Spec):
        return signature
    return read(signature) if isinstance(signature, str) else signature.spec


def default_instructions(cls: Any) -> str:
    """Return the sentence that DSPy instructs with where it is given nothing."""
    inputs, outputs = (", ".join(f"`{name}`" for name in side) for side in (cls.input_fields, cls.output_fields))
    return f"Given the fields {inputs}, produce the fields {outputs}."


# --- fields to DSPy ---------------------------------------------------------------------------


def _annotation(field: Field) -> Any:
    plain = _plain(field.type)
    whole = constrained(field.type, field.constraints)
    if not needs_check(whole):
        return plain
    if _keeps_media(field):
        return Annotated[plain, field.constraints]
    return checked(whole, _plain(rewritten(field.type, _known)), get_annotation_name(plain))


def _known(node: Type) -> Type:
    """Return the nearest type that pydantic knows and reads at once."""
    match node:
        case Generic("Iterable" | "Collection", arguments):
            return Generic("list", arguments)
        case Scalar("bytearray"):
            return Scalar("bytes")
    return node


def _plain(type_: Type) -> Any:
    return to_annotation(type_, media=_media, constrain=lambda annotation, _: annotation)


def _media(node: Media) -> Any:
    found = getattr(dspy, node.name)
    return found if node.argument is None else found[node.argument]


def _keeps_media(field: Field) -> bool:
    """Tell whether it is an input of DSPy's own types, which its adapters know by the annotation as it is."""
    return field.kind == "input" and holds(field.type, Media) and not needs_check(field.type)


def _info(field: Field) -> Any:
    given: dict[str, Any] = {}
    if field.description:
        given["desc"] = field.description
    if not field.required:
        given["default"] = field.default
    elif field.kind == "output" and _may_be_left_out(field):
        given["default"] = None
    numbers = {name: value for name, value in field.constraints.items().items() if name in _IN_DSPYS_WORDS}
    make = dspy.InputField if field.kind == "input" else dspy.OutputField
    info = make(**given, **({UNTYPED: not field.typed} if field.kind == "input" else {}))
    if words := _words(field.constraints, numbers):
        info.json_schema_extra["constraints"] = words
    return info


def _may_be_left_out(field: Field) -> bool:
    """Tell whether DSPy takes None for a missing output by its annotation, which a checked type hides from it."""
    whole = constrained(field.type, field.constraints)
    return isinstance(field.type, Union) and NOTHING in field.type.members and needs_check(whole)


def _words(constraints: Constraints, numbers: dict[str, Any]) -> str:
    """Return constraints as a prompt tells them: as DSPy does, where it does."""
    told = dspy.InputField(**numbers).json_schema_extra.get("constraints", "") if numbers else ""
    words = [told] if told else []
    if constraints.pattern is not None:
        words.append(f"matching the regular expression: {constraints.pattern}")
    if constraints.format is not None:
        words.append(f"in the format: {constraints.format}")
    if constraints.finite:
        words.append("neither infinite nor nan")
    return ", ".join(words)


# --- fields from DSPy -------------------------------------------------------------------------


def field_of(name: str, info: FieldInfo) -> Field:
    """Return one field of a DSPy signature. Raises SignatureError for a type that no signature can hold."""
    extra: dict[str, Any] = info.json_schema_extra  # type: ignore[assignment]
    kind: Kind = extra["__dspy_field_type"]
    type_, constraints = type_of(info)
    default = MISSING if info.is_required() else info.get_default(call_default_factory=True)
    if default is None and kind == "output" and is_checked(info.annotation) and isinstance(type_, Union):
        default = MISSING
    described = extra.get("desc", "")
    return Field.of(
        name, kind, type_, default=default, constraints=constraints, typed=not extra.get(UNTYPED),
        description=(info.description or "") if described == f"${{{name}}}" else described,
    )  # fmt: skip


def type_of(info: FieldInfo) -> tuple[Type, Constraints]:
    """Return the type of a field of DSPy's, and its constraints. Raises SignatureError; see `field_of`."""
    if is_checked(info.annotation):
        return parts(cast("type[Checked]", info.annotation).type)
    reading = read_annotation(info.rebuild_annotation())
    return reading.type, reading.constraints
