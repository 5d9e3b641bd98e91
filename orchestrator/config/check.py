"""Checks merged configuration against the models, and says what is wrong in words a reader can act on."""

from __future__ import annotations

import re
from typing import Any, Final

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from bridge.protocol.errors import closest
from orchestrator.config.fields import PATTERNS
from orchestrator.config.model import SHAPE_TAGS, FileModel, KeyPath, keys_at
from orchestrator.config.source import Layer, last_set, origin_of, show_path

# Values below keys that look like these are never shown.
SECRET_KEY: Final = re.compile(r"key|token|secret|passw|auth|credential", re.IGNORECASE)
# An address that may hold a password.
_WITH_PASSWORD: Final = re.compile(r"://\S*@|passw\w*=", re.IGNORECASE)
_SHOWN_CHARS: Final = 60


def check(layer: Layer) -> FileModel | None:
    """Return the configuration as a model, or None, having added every problem to the layer."""
    try:
        return FileModel.model_validate(layer.tree)
    except ValidationError as exc:
        for error in exc.errors(include_url=False):
            _add(layer, error)
        return None


def _add(layer: Layer, error: ErrorDetails) -> None:
    path: KeyPath = tuple(key for key in error["loc"] if key not in SHAPE_TAGS)
    if path and path[-1] == "[key]":
        path = path[:-1]
        message = _expectation(error)
    elif error["type"] == "extra_forbidden":
        message = _unknown_key(path)
    elif error["type"] == "missing":
        message = "is required"
    elif low := _bound_set_last(layer, path, error):
        message = f"must not be above max ({_value(layer.tree, path)}){_got(layer.tree, low)}"
        path = low
    else:
        message = _expectation(error) + _got(layer.tree, path)
    # Of a value that could not even be read, the reader said so.
    unread = show_path(path[:-1] if error["type"] == "missing" else path)
    if all(problem.path != unread for problem in layer.problems):
        layer.problem(origin_of(layer.origins, path), path, message)


def _unknown_key(path: KeyPath) -> str:
    known = keys_at(path[:-1])
    close = closest(str(path[-1]), known)
    if close:
        return f"unknown key; did you mean {' or '.join(map(repr, close))}?"
    return f"unknown key (known: {', '.join(known)})"


def _expectation(error: ErrorDetails) -> str:
    if error["type"] == "string_pattern_mismatch":
        return _pattern_words(error)
    if error["type"] in ("model_type", "dict_type"):
        return "must be a mapping of keys to values"
    if error["type"] == "string_type":
        return "must be text (numbers and words like `yes` need quotes)"
    return re.sub(r"^(Value error, |Input should be |\w+ should )", _verb, error["msg"])


def _verb(match: re.Match[str]) -> str:
    """Turn pydantic's `Input should be …`, `List should have …` into `must be …`, `must have …`."""
    return {"Value error, ": "", "Input should be ": "must be "}.get(match[0], "must ")


def _pattern_words(error: ErrorDetails) -> str:
    pattern = error.get("ctx", {}).get("pattern", "")
    return PATTERNS.get(pattern, error["msg"])


def _bound_set_last(layer: Layer, path: KeyPath, error: ErrorDetails) -> KeyPath:
    """Return the path of `min` if bounds are the wrong way round and it was set after `max`, by another source."""
    if error["type"] != "value_error" or keys_at(path[:-1]) != ["min", "max"]:
        return ()
    low = (*path[:-1], "min")
    return low if last_set(layer.origins, path, low) == low else ()


_NOTHING: Final = object()


def _value(tree: Any, path: KeyPath) -> Any:
    value = tree
    for key in path:
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError):
            return _NOTHING
    return value


def _got(tree: Any, path: KeyPath) -> str:
    value = _value(tree, path)
    if value is _NOTHING:
        return ""
    kind = _KIND.get(type(value), type(value).__name__)
    if any(isinstance(key, str) and SECRET_KEY.search(key) for key in path) or "env" in path:
        return f", got {kind} that is not shown"
    if isinstance(value, str) and _WITH_PASSWORD.search(value):
        return f", got {kind} that is not shown"
    # A mapping can hold a secret further down.
    if isinstance(value, dict) or (isinstance(value, list) and any(isinstance(item, dict | list) for item in value)):
        return f", got {kind}"
    text = repr(value)
    return f", got {text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + '…'}"


_KIND: Final = {str: "text", bool: "a boolean", int: "a number", float: "a number", dict: "a mapping", list: "a list"}
