"""pydantic models to a signature: their fields become inputs and outputs.

Names are those of the fields; aliases are for the model's own JSON and are not taken over, nor are computed fields,
private attributes and the validators of the model as a whole. Models inside stay classes, with all they have.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Annotated, Any, Final

from signatures.annotations import read_annotation
from signatures.converters import convert
from signatures.converters.classes import is_model, is_root_model
from signatures.errors import Problem, SignatureError, ValidationError
from signatures.model import Field, Kind, Spec
from signatures.types import MISSING

_MARK: Final = 'Field(json_schema_extra={"input": True})'


def read_pydantic(inputs: Any, outputs: Any = None, *, instructions: str | None = None) -> Spec:
    """Return the spec whose inputs and outputs are the fields of two models.

    With one model, its fields marked `json_schema_extra={"input": True}` are the inputs, the others the outputs.
    instructions: None = the docstring of `outputs`, else of `inputs`. A default made by a factory is kept if two that
    it makes are equal. Raises SignatureError with every problem: no models, none marked, types and defaults that no
    signature holds.
    """
    models = [inputs] if outputs is None else [inputs, outputs]
    for model in models:
        _check_model(model)
    if instructions is None:
        docs = (vars(model).get("__doc__") for model in reversed(models))
        instructions = next((inspect.cleandoc(doc) for doc in docs if doc), "")
    sides = _divided(inputs) if outputs is None else (inputs.model_fields, outputs.model_fields)
    problems: list[Problem] = []
    fields = _fields(sides[0], "input", problems), _fields(sides[1], "output", problems)
    if problems:
        raise SignatureError(problems)
    return Spec(*fields, instructions)


def _check_model(model: Any) -> None:
    python = model if isinstance(model, type) else None
    if python is None or not is_model(python) or is_root_model(python) or not model.model_fields:
        shown = f"a {type(model).__name__}" if python is None else python.__name__
        raise SignatureError(f"give pydantic models with fields, such as class Inputs(BaseModel), not {shown}")
    if not model.__pydantic_complete__ and model.model_rebuild(raise_errors=False) is not True:
        raise SignatureError(f"'{model.__name__}' names a type that is not known yet; define it, then model_rebuild()")


def _divided(model: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the fields of one model that are inputs, and the others."""
    marked = {name: info for name, info in model.model_fields.items() if _is_input(info)}
    if not marked:
        raise SignatureError(
            f"'{model.__name__}' marks no field as an input; write {_MARK} for some, or give a second model: outputs"
        )
    return marked, {name: info for name, info in model.model_fields.items() if name not in marked}


def _is_input(info: Any) -> bool:
    extra = info.json_schema_extra
    return isinstance(extra, dict) and extra.get("input") is True


def _fields(infos: Mapping[str, Any], kind: Kind, problems: list[Problem]) -> list[Field]:
    found = []
    for name, info in infos.items():
        try:
            found.append(_field(name, info, kind))
        except SignatureError as exc:
            problems += exc.problems
        except ValidationError as exc:
            problems.append(Problem(f"the default of '{name}' does not fit its type: {exc.message}"))
    return found


def _field(name: str, info: Any, kind: Kind) -> Field:
    # pydantic keeps a field's own metadata apart from its annotation.
    annotation = Annotated[info.annotation, *info.metadata] if info.metadata else info.annotation
    reading = read_annotation(annotation, name=name)
    default = _default(name, info)
    if default is not MISSING:
        default = convert(reading.type, reading.constraints, default, "the default")
    return Field.of(
        name,
        kind,
        reading.type,
        default=default,
        description=info.description or reading.description,
        constraints=reading.constraints,
    )


def _default(name: str, info: Any) -> Any:
    if info.is_required():
        return MISSING
    if info.default_factory is None:
        return info.default
    if info.default_factory_takes_validated_data:
        raise SignatureError(f"the default of '{name}' depends on other fields; give a plain default, or none")
    try:
        first, second = info.default_factory(), info.default_factory()
        is_same = bool(first == second)
    except Exception as exc:
        raise SignatureError(f"the default of '{name}' cannot be made: {type(exc).__name__}: {exc}") from exc
    if not is_same:
        raise SignatureError(f"the default of '{name}' is another one each time; give a plain default, or none")
    return first
