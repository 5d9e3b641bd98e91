"""Typed values: DSPy's types and pydantic models, as a kind and fields.

| value | kind | arrives |
|---|---|---|
| a model that `dspy` exports: `Image`, `Audio`, `File`, `History`, `Code`, `Reasoning`, `ToolCalls`, … | `dspy.Image` | as the class where DSPy is loaded |
| any other pydantic model | `model:package.module:Outer.Inner` | as the class where its module is loaded |
| `dspy.Example` | `dspy.Example` | as the class, with its input keys, where DSPy is loaded |

Reading imports nothing: the class is looked up in what this process has loaded, must be a pydantic model there, and is
made by its own validation of the fields. Where it is not loaded, or takes the fields not, a `Record` comes instead;
sent on, that is the same bytes again. So it is where a model outside of DSPy would have other fields than were sent:
nobody is to be given what a default or a setting of this process says.

Fields travel as they are (no serializer of the model is asked), but for what is close to plain data: enums as their
values, dataclasses as dicts, paths and URLs as texts. Validation turns them into the fields' types again. Not sent:
private attributes, computed fields, which fields were set. A `dspy.Code["sql"]` travels as `dspy.Code`.

`dspy` and `pydantic` are never imported here: a value can only be of theirs where they are loaded.
"""  # noqa: E501

from __future__ import annotations

import sys
from dataclasses import fields as dataclass_fields
from dataclasses import is_dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import PurePath
from types import ModuleType
from typing import Any, Final, cast
from uuid import UUID

from bridge.protocol.prediction import Prediction
from bridge.protocol.record import EXAMPLE, Example, Record, make, make_example

_MODEL: Final = "model:"
_DSPY: Final = "dspy."
_ATOMS: Final = frozenset({type(None), bool, int, float, str, bytes})
# Most of what is neither a container nor an atom.
_LEAVES: Final = frozenset({datetime, date, time, timedelta, Decimal, UUID})
_MAX_KIND_CHARS: Final = 500
# What was read nests less deep.
_LEVELS: Final = 256


def is_example(value: Any) -> bool:
    """Tell whether a value is a row with its labels: a `dspy.Example`, no Prediction, or an `Example`."""
    bases = type(value).__mro__
    return Example in bases or (_loaded("dspy", "Example") in bases and _loaded("dspy", "Prediction") not in bases)


# --- from objects ---------------------------------------------------------------------------------


def opened(value: Any, levels: int) -> Record | Prediction | None:
    """Return a typed object as what travels for it, None for any other value.

    levels: how many containers deep it is looked into; what is beyond is left as it is. Raises TypeError with advice
    for what holds code, and whatever a hostile class raises.
    """
    cls = type(value)
    if cls in _LEAVES:
        return None
    if cls in (Record, Example, Prediction):
        return cast("Record | Prediction", value)
    bases = cls.__mro__
    if _loaded("pydantic.main", "BaseModel") in bases or _loaded("dspy", "Example") in bases:
        found: Record | Prediction = _Conversion().of(value, levels)
        return found
    return None


def travelling(value: Any, levels: int) -> Any:
    """Return `value` with typed objects, enums and dataclasses replaced by what travels for them.

    It looks into lists, tuples, sets and dicts. Everything else is left as it is: what cannot travel, what contains
    itself included, is told by its path when it is encoded.
    """
    return _Conversion().of(value, levels)


class _Conversion:
    """One conversion. too_deep: it has met what cannot be encoded, so the rest is left as it is."""

    __slots__ = ("too_deep",)

    def __init__(self) -> None:
        self.too_deep = False

    def of(self, value: Any, levels: int) -> Any:
        """Return a value converted, `levels` containers deep at most."""
        cls = type(value)
        if cls in _ATOMS:
            return value
        if levels < 0:
            self.too_deep = True
        if self.too_deep:
            return value
        below = levels - 1
        # By the type alone: a hostile object may raise where `isinstance` asks it for its class.
        if issubclass(cls, Enum):
            return self.of(value.value, below)
        if cls in (list, tuple, set, frozenset):
            return value if _ATOMS.issuperset(map(type, value)) else cls(self.of(item, below) for item in value)
        if issubclass(cls, dict):
            return {self.of(key, below): self.of(item, below) for key, item in value.items()}
        return self._object(value, cls, below)

    def _object(self, value: Any, cls: Any, below: int) -> Any:
        bases = cls.__mro__
        if _loaded("pydantic.main", "BaseModel") in bases:
            return Record(_kind_of(cls), self._fields(_model_state(value, cls), below))
        if _loaded("dspy", "Example") in bases:
            return self._row(value, bases, below)
        if cls is Prediction:
            return Prediction(self._fields(value.toDict(), below), **self.of(value._extras, below))
        if is_dataclass(cls):
            return self._fields({one.name: getattr(value, one.name) for one in dataclass_fields(cls)}, below)
        if issubclass(cls, PurePath) or _is_url(bases):
            return str(value)
        return value

    def _row(self, value: Any, bases: tuple[type, ...], below: int) -> Any:
        """Return a `dspy.Example`, or a `dspy.Prediction`, which is one."""
        fields = self._fields(dict(value.items(include_dspy=True)), below)
        if _loaded("dspy", "Prediction") not in bases:
            return Example(fields, getattr(value, "_input_keys", None))
        completions = {} if value.completions is None else dict(value.completions.items())
        # A single one is the fields.
        several = completions if any(len(values) > 1 for values in completions.values()) else None
        usage = value.get_lm_usage() or None
        return Prediction(fields, completions=self.of(several, below), usage=self.of(usage, below))

    def _fields(self, fields: dict[str, Any], below: int) -> dict[str, Any]:
        return {str(name): self.of(item, below) for name, item in fields.items()}


def _model_state(value: Any, cls: Any) -> dict[str, Any]:
    """Return the fields of a model, further ones that it allows too; none of its code is run."""
    if _loaded("dspy", "Tool") in cls.__mro__:
        raise TypeError("it is a dspy.Tool, which holds a function; give it to a module as one of its tools")
    state = object.__getattribute__(value, "__dict__")
    more = object.__getattribute__(value, "__pydantic_extra__") or {}
    # What `cached_property` keeps is in __dict__ too.
    return {**{name: state[name] for name in cls.__pydantic_fields__ if name in state}, **more}


def _kind_of(cls: Any) -> str:
    name: str = cls.__name__
    if _loaded("dspy", name) is cls:
        return f"{_DSPY}{name}"
    code = _loaded("dspy", "Code")
    if cls.__bases__ == (code,) and name == f"Code_{cls.language}":
        return f"{_DSPY}Code"
    return f"{_MODEL}{cls.__module__}:{cls.__qualname__}"


def _is_url(bases: tuple[type, ...]) -> bool:
    """Tell whether it is one of pydantic's URLs."""
    names = _names_of("pydantic.networks")
    return any(base in bases for base in (names.get("_BaseUrl"), names.get("_BaseMultiHostUrl")) if base is not None)


# --- to objects -----------------------------------------------------------------------------------


def made(kind: Any, fields: Any, input_keys: Any = None) -> Any:
    """Return what travelled: an instance of its class where that is loaded and takes the fields, else a Record.

    Raises ValueError for what is no kind with fields.
    """
    if type(kind) is not str or not kind.startswith((_DSPY, _MODEL)) or len(kind) > _MAX_KIND_CHARS:
        raise ValueError("not the kind of a typed value")
    if type(fields) is not dict or not all(type(name) is str for name in fields):
        raise ValueError("not the fields of a typed value")
    if kind == EXAMPLE:
        return _made_example(fields, input_keys)
    cls = class_of(kind)
    if cls is not None:
        try:
            value = make(cls, fields)
            if kind.startswith(_DSPY) or _has_only(value, cls, fields):
                return value
        except Exception:  # noqa: BLE001 - validators raise anything; whatever it is, these are not its fields
            return Record(kind, fields)
    return Record(kind, fields)


def _has_only(value: Any, cls: Any, sent: dict[str, Any]) -> bool:
    """Return whether a model has the fields that were sent, and no other."""
    state = _model_state(value, cls)
    if state.keys() != sent.keys():
        return False
    for name, item in sent.items():
        # The same object, as what is a model itself mostly is; equal, or equal as it would be sent.
        if (
            state[name] is not item
            and state[name] != item
            and travelling(state[name], _LEVELS) != travelling(item, _LEVELS)
        ):
            return False
    return True


def _made_example(fields: dict[str, Any], input_keys: Any) -> Any:
    if input_keys is not None and (type(input_keys) is not list or not all(type(key) is str for key in input_keys)):
        raise ValueError("not the input keys of an example")
    cls = _loaded("dspy", "Example")
    return Example(fields, input_keys) if cls is None else make_example(cls, fields, input_keys)


def class_of(kind: str) -> Any | None:
    """Return the model class of a kind, None if this process has loaded none. Nothing is imported and no code run."""
    if kind.startswith(_DSPY):
        found = _loaded("dspy", kind.removeprefix(_DSPY))
    else:
        module, _, name = kind.removeprefix(_MODEL).partition(":")
        first, *inner = name.split(".")
        found = _loaded(module, first)
        for step in inner:
            found = vars(found).get(step) if isinstance(found, type) else None
    base = _loaded("pydantic.main", "BaseModel")
    is_model = base is not None and isinstance(found, type) and base in found.__mro__ and found is not base
    return found if is_model and _kind_of(found) == kind else None


def _loaded(module: str, name: str) -> Any | None:
    """Return what a loaded module has under a name, None if there is none: neither is imported, nor made on demand."""
    return _names_of(module).get(name)


def _names_of(module: str) -> dict[str, Any]:
    found = sys.modules.get(module)
    # Not by `vars`: a module that loads itself when it is looked at would.
    return object.__getattribute__(found, "__dict__") if isinstance(found, ModuleType) else {}
