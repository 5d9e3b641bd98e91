"""`dspy.majority`: the answer that most completions give."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

import dspy  # type: ignore[import-untyped]
from dspy.predict.aggregation import default_normalize  # type: ignore[import-untyped]

from bridge.worker import arguments
from bridge.worker.call import Call
from bridge.worker.plain import to_plain

NAME: Final = "dspy.majority"


def majority(args: Any, call: Call) -> Any:
    """Operation `dspy.majority {completions: [mapping, …], field, normalize}` -> the first of the most common.

    field: that is compared; None = the last of the first completion. normalize: compare texts without case, articles
    and punctuation, and leave out those that are empty then, as DSPy does; false = as they are.
    """
    fields = arguments.read(args, NAME, required=("completions",), optional=("field", "normalize"))
    completions = fields["completions"]
    if not isinstance(completions, list | tuple) or not completions:
        text = f"completions must be a list of mappings that is not empty, got {arguments.shown(completions)}"
        raise arguments.invalid("completions", text)
    field = fields.get("field")
    if field is None:
        first = completions[0]
        field = list(first)[-1] if isinstance(first, Mapping) and first else ""
    for index, one in enumerate(completions):
        if not isinstance(one, Mapping) or field not in one:
            path = f"completions[{index}]"
            raise arguments.invalid(path, f"{path} must be a mapping with {field!r}, got {arguments.shown(one)}")
    normalize = fields.get("normalize", True)
    if not isinstance(normalize, bool):
        raise arguments.invalid("normalize", f"normalize must be true or false, got {arguments.shown(normalize)}")
    rows = [dict(one) for one in completions]
    return to_plain(dspy.majority(rows, normalize=_normalized if normalize else _key, field=field))


def _normalized(value: Any) -> Any:
    return default_normalize(value) if isinstance(value, str) else _key(value)


def _key(value: Any) -> Any:
    """Return what equal values have in common: the value itself, or a text where it cannot be a key."""
    if isinstance(value, str | int | float | bool | None):
        return value
    return json.dumps(value, sort_keys=True, default=repr)
