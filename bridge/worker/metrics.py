"""Metrics and rewards, by name or by import path.

The names are those of the native metrics, so that `f1:answer` here and `client.execute("metrics.f1", …)` judge alike.
A metric compares an example with a prediction: `metric(example, prediction)` or `metric(example, prediction, trace)`.
A reward judges a prediction alone: `reward(inputs, prediction)`. Both return a number or a bool.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any, Final

from bridge import native
from bridge.protocol.errors import REMOTE_ERROR, BridgeError
from bridge.worker import arguments, imports
from signatures.native import operations

Metric = Callable[[Any, Any, Any], float]
Reward = Callable[[dict[str, Any], Any], float]

_PREFIX: Final = "metrics."
NAMES: Final = tuple(name.removeprefix(_PREFIX) for name in operations.names() if name.startswith(_PREFIX))


def find_metric(name: Any, path: str = "metric") -> Metric:
    """Return the metric called `NAME:FIELD`, as in `f1:answer`, or the function at an import path.

    The result takes (example, prediction, trace) and returns a finite float; it raises REMOTE_ERROR for a metric
    that returns something else.
    """
    label = arguments.text(name, path)
    if (named := _named(label, NAMES, path)) is not None:
        return _native(*named, path)
    function = _function(label, path)
    takes_trace = _takes(function, 3)

    def measure(example: Any, prediction: Any, trace: Any = None) -> float:
        score = function(example, prediction, trace) if takes_trace else function(example, prediction)
        return _number(score, label)

    return measure


def find_reward(name: Any, path: str) -> Reward:
    """Return the reward called `filled:FIELD` or `concise:FIELD`, or the function at an import path."""
    label = arguments.text(name, path)
    if label_field(label) is not None:
        exist = "'filled:FIELD', 'concise:FIELD' or an import path 'package.module:name'"
        text = f"{path}: {label!r} compares with a label, and a request has none; use {exist}"
        raise arguments.invalid(path, text)
    if (field := _named(label, ("filled", "concise"), path)) is not None:
        kind, output = field
        return (_filled if kind == "filled" else _concise)(output, path)
    function = _function(label, path)

    # Who shows a reward's source to a language model shows the user's own.
    @functools.wraps(function)
    def reward(inputs: dict[str, Any], prediction: Any) -> float:
        return _number(function(inputs, prediction), label)

    return reward


def label_field(name: Any) -> str | None:
    """Return FIELD of `NAME:FIELD`: the one name that each row must then have. None for another metric."""
    kind, _, field = name.partition(":") if isinstance(name, str) else ("", "", "")
    return field if kind in NAMES else None


def _named(label: str, kinds: tuple[str, ...], path: str) -> tuple[str, str] | None:
    """Split `kind:FIELD`. A word that is no kind and no import path is refused here, where the kinds are known."""
    kind, _, field = label.partition(":")
    if kind in kinds:
        if not field.isidentifier():
            raise arguments.invalid(path, f"{path}: {kind} needs the name of a field, as in '{kind}:answer'")
        return kind, field
    if ":" not in label:
        names = ", ".join(f"'{one}:FIELD'" for one in kinds)
        raise arguments.invalid(path, f"{path} must be {names} or an import path 'package.module:name', got {label!r}")
    return None


def _function(target: str, path: str) -> Callable[..., Any]:
    function = imports.find(target, path).value
    if not callable(function):
        raise arguments.invalid(path, f"{path}: {target} is a {type(function).__name__}, not a function")
    return function  # type: ignore[no-any-return]


def _takes(function: Callable[..., Any], count: int) -> bool:
    try:
        inspect.signature(function).bind(*range(count))
    except (TypeError, ValueError):
        return False
    return True


def _number(score: Any, label: str) -> float:
    try:
        value = float(score)
    except (TypeError, ValueError) as exc:
        raise BridgeError(
            REMOTE_ERROR, f"{label} returned {arguments.shown(score)}; it must return a number or a bool",
            details={"type": "TypeError"},
        ) from exc  # fmt: skip
    if not math.isfinite(value):
        raise BridgeError(REMOTE_ERROR, f"{label} returned {value}", details={"type": "ValueError"})
    return value


def _native(name: str, field: str, path: str) -> Metric:
    def measure(example: Any, prediction: Any, trace: Any = None) -> float:
        given = {"prediction": _field(prediction, field, path), "reference": _field(example, field, path)}
        return float(native.run(f"{_PREFIX}{name}", given))

    return measure


def _filled(field: str, path: str) -> Reward:
    """1 for a text that is not blank, else 0."""

    def filled(inputs: dict[str, Any], prediction: Any) -> float:
        text = str(_field(prediction, field, path)).strip()
        return 1.0 if text else 0.0

    return filled


def _concise(field: str, path: str) -> Reward:
    """1 for one word, falling with each further one; 0 for none."""

    def concise(inputs: dict[str, Any], prediction: Any) -> float:
        words = len(str(_field(prediction, field, path)).split())
        return 1.0 / words if words else 0.0

    return concise


def _field(record: Any, name: str, path: str) -> Any:
    """Return a field of an example, a prediction or a dict; a lone text or number stands for any field."""
    if isinstance(record, str | int | float):
        return record
    try:
        return record[name]
    except (KeyError, TypeError, AttributeError):
        names = ", ".join(record.keys()) if hasattr(record, "keys") else f"a {type(record).__name__}"
        raise arguments.invalid(path, f"the answer has no field {name!r} to judge (it has {names})") from None
