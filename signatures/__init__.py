"""Signatures: what a program takes and gives. Imports no project code and no DSPy.

The names are loaded when they are first used, so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from signatures.declare import Signature, parse, signature
    from signatures.errors import SignatureError, ValidationError
    from signatures.model import Field
    from signatures.schema.reader import from_json_schema, from_pydantic
    from signatures.types import MISSING

__all__ = [
    "MISSING",
    "Field",
    "Signature",
    "SignatureError",
    "ValidationError",
    "from_json_schema",
    "from_pydantic",
    "parse",
    "signature",
]

_HOMES: Final = {
    "Signature": "declare", "parse": "declare", "signature": "declare",
    "SignatureError": "errors", "ValidationError": "errors",
    "Field": "model", "MISSING": "types",
    "from_json_schema": "schema.reader", "from_pydantic": "schema.reader",
}  # fmt: skip


if not TYPE_CHECKING:
    # Checkers would take it to mean that every name is there.
    def __getattr__(name: str) -> Any:
        home = _HOMES.get(name)
        if home is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = getattr(importlib.import_module(f"{__name__}.{home}"), name)
        globals()[name] = found
        return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
