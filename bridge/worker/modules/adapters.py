"""DSPy's adapters by name: how a prompt is written and its answer read.

| name | DSPy's |
|---|---|
| chat | ChatAdapter, the default; `json_fallback: false` keeps it from asking again by JSON what it could not read |
| json | JSONAdapter |
| xml | XMLAdapter |
| baml | BAMLAdapter: JSON, its types told in few words |
| two_step | TwoStepAdapter: free text, which the language model `extraction_lm` then reads |
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import dspy  # type: ignore[import-untyped]
from dspy.adapters.baml_adapter import BAMLAdapter  # type: ignore[import-untyped]

from bridge.protocol.errors import closest
from bridge.worker import arguments

OPTIONS: Final = ("adapter", "json_fallback", "extraction_lm")
NAMES: Final = ("chat", "json", "xml", "two_step", "baml")


def read_adapter(options: dict[str, Any], models: Callable[[str], Any]) -> Any | None:
    """Take the adapter out of the options and return it, None if they name none: then it is DSPy's default.

    models: the language model of a name, "" = default. Raises BridgeError: INVALID_REQUEST with the path of an option,
    NOT_FOUND for an unknown language model.
    """
    given = {name: options.pop(name) for name in OPTIONS if options.get(name) is not None}
    for name in OPTIONS:
        options.pop(name, None)
    name = given.get("adapter", "chat")
    if name not in NAMES:
        near = closest(name, NAMES)[:1] if isinstance(name, str) else []
        hint = f"; did you mean {near[0]!r}?" if near else f" (adapters: {', '.join(NAMES)})"
        raise arguments.invalid("options.adapter", f"there is no adapter {arguments.shown(name)}{hint}")
    if "json_fallback" in given and name != "chat":
        raise arguments.invalid("options.json_fallback", f"options.json_fallback is of the adapter chat, not of {name}")
    if "extraction_lm" in given and name != "two_step":
        text = f"options.extraction_lm is of the adapter two_step, not of {name}"
        raise arguments.invalid("options.extraction_lm", text)
    if name == "chat":
        return _chat(given)
    if name == "two_step":
        return dspy.TwoStepAdapter(models(_extraction_lm(given)))
    return {"json": dspy.JSONAdapter, "xml": dspy.XMLAdapter, "baml": BAMLAdapter}[name]()


def _chat(given: dict[str, Any]) -> Any | None:
    if not given:
        return None
    fallback = given.get("json_fallback", True)
    if not isinstance(fallback, bool):
        text = f"options.json_fallback must be true or false, got {arguments.shown(fallback)}"
        raise arguments.invalid("options.json_fallback", text)
    return dspy.ChatAdapter(use_json_adapter_fallback=fallback)


def _extraction_lm(given: dict[str, Any]) -> str:
    name = given.get("extraction_lm")
    return "" if name is None else arguments.text(name, "options.extraction_lm")
