"""What DSPy works out anew for each call of a predictor and what does not change between them, remembered.

The head of a prompt depends on the adapter and the signature alone, and is a fifth of what a predictor costs; to write
a text into it DSPy builds a pydantic adapter of `str`, another tenth. A DSPy that does this in another way is left as
it is. (See `handlers` for what it does with callbacks.)
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any, Final

import dspy  # type: ignore[import-untyped]
from dspy.adapters import utils  # type: ignore[import-untyped]
from dspy.adapters.base import Adapter  # type: ignore[import-untyped]

# Of these a prompt's head is known to depend on nothing else. An adapter of a user's own may do as it likes.
_KNOWN: Final = (dspy.ChatAdapter, dspy.JSONAdapter, dspy.XMLAdapter)
# Types whose pydantic adapters are equal for ever; a model can be rebuilt.
_PLAIN: Final = frozenset({str, int, float, bool, list, dict, tuple, type(None)})
_MARK: Final = "dspool_remembered"


def remember() -> None:
    """Have DSPy remember. Idempotent."""
    format_head = getattr(Adapter, "format_system_message", None)
    if callable(format_head) and not hasattr(format_head, _MARK):
        Adapter.format_system_message = heads(format_head)
    make = getattr(utils, "TypeAdapter", None)
    if callable(make) and not hasattr(make, _MARK):
        utils.TypeAdapter = type_adapters(make)


def heads(format_head: Callable[[Any, Any], str]) -> Callable[[Any, Any], str]:
    """Return a method that returns what `format_head` does, and asks it once for each adapter and signature."""
    known: dict[type, weakref.WeakKeyDictionary[Any, tuple[Any, str]]] = {
        adapter: weakref.WeakKeyDictionary() for adapter in _KNOWN
    }

    @functools.wraps(format_head)
    def head(self: Any, signature: Any) -> str:
        texts = known.get(type(self))
        if texts is None:
            return format_head(self, signature)
        found = texts.get(signature)
        state = _state(signature)
        if found is not None and found[0] == state:
            return found[1]
        text = format_head(self, signature)
        texts[signature] = state, text
        return text

    setattr(head, _MARK, True)
    return head


def _state(signature: Any) -> tuple[Any, ...]:
    """Return what of a signature can be changed in its place."""
    fields = signature.model_fields
    return signature.__doc__, [
        (name, field.annotation, {**field.json_schema_extra}, field.default) for name, field in fields.items()
    ]


def type_adapters(make: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that returns what `make` does, and asks it once for each plain type."""
    adapters = {kind: make(kind) for kind in _PLAIN}

    @functools.wraps(make, updated=())
    def adapter(kind: Any, *args: Any, **more: Any) -> Any:
        if not args and not more and isinstance(kind, type) and kind in adapters:
            return adapters[kind]
        return make(kind, *args, **more)

    setattr(adapter, _MARK, True)
    return adapter
