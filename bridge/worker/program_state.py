"""The state of a program: what DSPy's `dump_state` tells of its predictors, checked before it is loaded.

DSPy knows the fields of a signature by their place alone, and takes the state of any other one without a word. Their
names stand in it nowhere, but what is derived from them does: a field without a description of its own has "${name}",
one without a prefix of its own has the name in words. See `_fits` for what is compared. A state that was checked here
names its fields: `{"name", "prefix", "description"}`, which DSPy reads like any other.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any, Final

import dspy  # type: ignore[import-untyped]
import pydantic_core
from dspy.signatures.signature import infer_prefix  # type: ignore[import-untyped]

from bridge.protocol.errors import TOO_LARGE, BridgeError
from bridge.worker import arguments

# As JSON. Each worker is told of the state of every program.
MAX_STATE_BYTES: Final = 16 << 20

_MAX_TOLD_BYTES: Final = 1 << 20
_KEYS: Final = ("demos", "fields", "lm", "signature", "traces", "train")
_DEFAULT_DESCRIPTION: Final = re.compile(r"\$\{(\w+)\}")


def load(module: Any, state: Any) -> dict[str, Any]:
    """Load a state into a module; return it as it is to be kept: without language models, with its fields named.

    The request names the language model. Raises BridgeError: INVALID_REQUEST, with the path, for what is no JSON, of
    another program or of another signature; TOO_LARGE.
    """
    given = dict(arguments.mapping(state, "state"))
    given.pop("metadata", None)  # of a file that DSPy saved
    plain(given, "state")
    # A predictor alone keeps its state without a name; DSPy counts it as its own parameter "self".
    alone = isinstance(module, dspy.Predict)
    parameters = {"": module} if alone else dict(module.named_parameters())
    states = {"": given} if alone else given
    if set(states) != set(parameters):
        text = f"state is of another program: it has the predictors {sorted(states)}, this one has {sorted(parameters)}"
        raise arguments.invalid("state", text)
    clean = {name: _checked(f"state.{name}".rstrip("."), states[name], parameters[name]) for name in parameters}
    kept: dict[str, Any] = clean[""] if alone else clean
    if (size := len(json.dumps(kept))) > MAX_STATE_BYTES:
        text = f"the state has {size:,} bytes as JSON, more than a program may have ({MAX_STATE_BYTES:,})"
        raise BridgeError(TOO_LARGE, text, details={"path": "state"})
    try:
        module.load_state(kept)
    except Exception as exc:
        raise arguments.invalid("state", f"state cannot be loaded: {type(exc).__name__}: {exc}") from exc
    return kept


def named(program: Any, state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state that a program's `dump_state` made, its fields named and without language models."""
    if isinstance(program, dspy.Predict):
        return _named(program, state)
    parameters = dict(program.named_parameters())
    return {name: _named(parameters[name], one) for name, one in state.items()}


def told(module: Any) -> dict[str, Any] | None:
    """Return what the predictors of a program are now, in the form of a state, for readers: nothing loads it.

    None if it has none, or more than anybody would read.
    """
    found = {}
    for name, predictor in module.named_parameters() if isinstance(module, dspy.Module) else ():
        if isinstance(predictor, dspy.Predict):
            signature = _named(predictor, {"signature": predictor.signature.dump_state()})["signature"]
            demos = [demo.toDict() if isinstance(demo, dspy.Example) else demo for demo in predictor.demos]
            found["" if predictor is module else name] = {"signature": signature, "demos": demos}
    told: dict[str, Any] = pydantic_core.to_jsonable_python(found, fallback=str, serialize_unknown=True)
    return told if told and len(json.dumps(told)) <= _MAX_TOLD_BYTES else None


def plain(value: Any, path: str) -> None:
    """Raise INVALID_REQUEST with the path of what JSON cannot hold: it would not come back from the store."""
    match value:
        case None | bool() | int():
            return
        case float():
            if math.isfinite(value):
                return
        case str():
            if value.isascii() or not any("\ud800" <= char <= "\udfff" for char in value):
                return
        case list() | tuple():
            for index, item in enumerate(value):
                plain(item, f"{path}[{index}]")
            return
        case dict():
            for key, item in value.items():
                if not isinstance(key, str):
                    text = f"{path} must be JSON: its keys are texts, not {arguments.shown(key)}"
                    raise arguments.invalid(path, text)
                plain(item, f"{path}.{key}")
            return
    raise arguments.invalid(path, f"{path} must be JSON, got {arguments.shown(value)}")


# --- one predictor ------------------------------------------------------------------------------------


def _checked(path: str, state: Any, parameter: Any) -> dict[str, Any]:
    """Return the state of one parameter, checked, without a language model."""
    one = arguments.mapping(state, path)
    predicts = isinstance(parameter, dspy.Predict)
    # DSPy sets whatever a state names as an attribute.
    known = {*parameter.dump_state(), *(_KEYS if predicts else ())}
    if problems := arguments.unknown_names(one, known, path, f"{path}."):
        arguments.refuse(problems)
    clean = {**one, "lm": None} if "lm" in known else dict(one)
    if predicts:
        for key in ("demos", "traces", "train"):
            _check_rows(clean.setdefault(key, []) if key != "demos" else clean.get(key), f"{path}.{key}")
        clean["signature"] = _checked_signature(path, clean.get("signature"), parameter.signature)
    return clean


def _check_rows(rows: Any, path: str) -> None:
    if not isinstance(rows, list) or (path.endswith(".demos") and not all(isinstance(row, dict) for row in rows)):
        kind = "a list of mappings" if path.endswith(".demos") else "a list"
        raise arguments.invalid(path, f"{path} must be {kind}, got {arguments.shown(rows)}")


def _checked_signature(path: str, value: Any, signature: Any) -> dict[str, Any]:
    told = arguments.mapping(value, f"{path}.signature")
    if not isinstance(told.get("instructions"), str):
        where = f"{path}.signature.instructions"
        raise arguments.invalid(where, f"{where} must be a text, got {arguments.shown(told.get('instructions'))}")
    fields = told.get("fields")
    if not isinstance(fields, list) or not all(map(_is_field, fields)):
        where = f"{path}.signature.fields"
        text = f"{where} must be a list of mappings with prefix and description, got {arguments.shown(fields)}"
        raise arguments.invalid(where, text)
    own = list(signature.fields)
    if len(fields) != len(own):
        text = f"{path} is of another signature: it has {len(fields)} fields, this one {len(own)} ({', '.join(own)})"
        raise arguments.invalid(path, text)
    wrong = [index for index, field in enumerate(fields) if not _fits(field, index, signature)]
    if wrong:
        theirs = ", ".join(_name(field, own, signature) for field in fields)
        text = f"{path} is of another signature: its fields are {theirs}; those of this one are {', '.join(own)}"
        raise arguments.invalid(f"{path}.signature.fields[{wrong[0]}]", text)
    return {**told, "fields": [{"name": name, **field} for name, field in zip(own, fields, strict=True)]}


def _is_field(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(key), str) for key in ("prefix", "description"))


def _fits(field: Mapping[str, str], index: int, signature: Any) -> bool:
    """Tell whether the state of a field can be that of the signature's field in the same place.

    A name in it decides. Else a description "${name}" does, unless the field's own is just that text. Else its prefix
    is the field's own, or its name in words; or, for the last field, whose prefix COPRO rewrites, its description is
    the field's own.
    """
    name, info = list(signature.fields.items())[index]
    own_prefix, own_description = info.json_schema_extra["prefix"], info.json_schema_extra["desc"]
    prefix, description = field["prefix"], field["description"]
    if "name" in field:
        return bool(field["name"] == name)
    default = _DEFAULT_DESCRIPTION.fullmatch(description)
    if default is not None and (default[1] == name or description != own_description):
        return bool(default[1] == name)
    if prefix in (own_prefix, f"{infer_prefix(name)}:"):
        return True
    return bool(index == len(signature.fields) - 1 and description == own_description)


def _name(field: Mapping[str, str], known: list[str], signature: Any) -> str:
    """Return the name of a state's field as far as it can be told."""
    if "name" in field:
        return str(field["name"])
    if (default := _DEFAULT_DESCRIPTION.fullmatch(field["description"])) is not None:
        return default[1]
    prefixes = {signature.fields[name].json_schema_extra["prefix"]: name for name in known}
    prefixes |= {f"{infer_prefix(name)}:": name for name in known}
    return prefixes.get(field["prefix"], repr(field["prefix"]))


def _named(parameter: Any, state: Mapping[str, Any]) -> dict[str, Any]:
    clean = {**state, "lm": None} if "lm" in state else dict(state)
    if isinstance(parameter, dspy.Predict):
        names = list(parameter.signature.fields)
        fields = [{"name": name, **field} for name, field in zip(names, clean["signature"]["fields"], strict=True)]
        clean["signature"] = {**clean["signature"], "fields": fields}
    return clean
