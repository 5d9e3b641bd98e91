"""The names a signature text may use: of types, and what fields may not be called."""

from __future__ import annotations

import difflib
import keyword
from collections.abc import Iterable
from typing import Final

# Types without arguments, by every name they have; the value is the name they are written by.
SCALARS: Final[dict[str, str]] = {
    "str": "str", "int": "int", "float": "float", "bool": "bool", "bytes": "bytes", "bytearray": "bytearray",
    "complex": "complex", "Any": "Any", "None": "None", "NoneType": "None", "typing.Any": "Any",
    "datetime.datetime": "datetime.datetime", "datetime": "datetime.datetime",
    "datetime.date": "datetime.date", "date": "datetime.date",
    "datetime.time": "datetime.time", "time": "datetime.time",
    "datetime.timedelta": "datetime.timedelta", "timedelta": "datetime.timedelta",
    "decimal.Decimal": "decimal.Decimal", "Decimal": "decimal.Decimal",
    "uuid.UUID": "uuid.UUID", "UUID": "uuid.UUID",
}  # fmt: skip

# Containers, alike. How many arguments each takes is in ARITY.
GENERICS: Final[dict[str, str]] = {
    **{
        name: plain
        for plain, named in {
            "list": "List", "dict": "Dict", "tuple": "Tuple", "set": "Set", "frozenset": "FrozenSet",
        }.items()
        for name in (plain, named, f"typing.{named}")
    },
    **{
        name: one
        for one in ("Sequence", "Iterable", "Collection", "Mapping")
        for name in (one, f"typing.{one}")
    },
}  # fmt: skip

# (least, most) arguments of a container that has any; None = any number.
ARITY: Final[dict[str, tuple[int, int | None]]] = {
    "list": (1, 1), "set": (1, 1), "frozenset": (1, 1), "dict": (2, 2), "tuple": (1, None),
    "Sequence": (1, 1), "Iterable": (1, 1), "Collection": (1, 1), "Mapping": (2, 2),
}  # fmt: skip

# Forms that need arguments and are no containers.
FORMS: Final[dict[str, str]] = {
    name: one for one in ("Optional", "Union", "Literal", "Annotated") for name in (one, f"typing.{one}")
}

# DSPy's own types, reached as `dspy.X`.
MEDIA: Final = frozenset(
    {"Image", "Audio", "File", "History", "Tool", "ToolCalls", "ToolCallResults", "Code", "Reasoning"}
)

# Attributes of a DSPy signature that a field of that name would hide.
RESERVED: Final = frozenset(
    {
        "instructions", "signature", "fields", "input_fields", "output_fields",
        "model_config", "model_dump", "model_dump_json", "model_validate", "model_validate_json",
        "model_validate_strings",
    }
)  # fmt: skip
# Keyword arguments of a call that DSPy takes for itself.
RESERVED_INPUTS: Final = frozenset({"config", "demos", "lm", "new_signature", "self"})


def name_problem(name: str, kind: str) -> str | None:
    """Return what is wrong with the name of an "input", an "output" or a "member", None if nothing is."""
    if not name.isidentifier():
        return f"{name!r} is no name for a field; use letters, digits and underscores, and no digit first"
    if keyword.iskeyword(name):
        return f"'{name}' is a Python keyword; rename the field, for example '{name}_'"
    if name.startswith("_"):
        return f"the field name '{name}' starts with an underscore; rename it, for example '{name.strip('_') or 'a'}'"
    # A member is a key of a dict, which hides nothing.
    if kind != "member" and (name in RESERVED or (kind == "input" and name in RESERVED_INPUTS)):
        return f"the field name '{name}' is taken by DSPy itself; rename it, for example '{name}_'"
    return None


def close_name(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that looks most like this one, None if none does."""
    found = difflib.get_close_matches(name[:80], sorted(known), n=1, cutoff=0.65)
    return found[0] if found else None


def type_names(custom: Iterable[str] = ()) -> set[str]:
    """Return every name that can stand for a type."""
    return {*SCALARS, *GENERICS, *FORMS, *(f"dspy.{name}" for name in MEDIA), *custom}
