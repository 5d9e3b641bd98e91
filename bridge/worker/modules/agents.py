"""Modules that call tools in turns: ReAct, ReActV2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import dspy  # type: ignore[import-untyped]

from bridge.worker import arguments, tools
from bridge.worker.inputs import Field, Inputs
from bridge.worker.modules.plan import Blueprint, Kind


def _react(blueprint: Blueprint) -> Any:
    module = dspy.ReAct(blueprint.signature, tools_of(blueprint, taken=("finish",)), max_iters(blueprint, 20))
    module.react.update_config(**blueprint.config)
    module.extract.predict.update_config(**blueprint.config)
    return module


def _react_v2(blueprint: Blueprint) -> Any:
    module = dspy.ReActV2(blueprint.signature, tools_of(blueprint, taken=("submit",)), max_iters(blueprint, 20))
    module.react.update_config(**blueprint.config)
    return module


def _history(blueprint: Blueprint) -> Mapping[str, Field]:
    """Return the input by which a conversation goes on: the `history` of its last answer."""
    signature = dspy.Signature({"history": (dspy.History, dspy.InputField())})
    read = Inputs.of_signature(signature).fields["history"].convert
    assert read is not None

    def fresh(value: Any, path: str) -> Any:
        # ReActV2 appends to a History that it is given; of a mapping it makes one of its own, at each attempt.
        return {"messages": list(read(value, path).messages)}

    return {"history": Field(required=False, convert=fresh)}


def tools_of(blueprint: Blueprint, *, taken: tuple[str, ...]) -> list[Any]:
    """Return the tools that the options name. taken: names that the module has tools of its own for."""
    return tools.resolve(blueprint.options.get("tools"), "options.tools", taken=taken)


def max_iters(blueprint: Blueprint, default: int) -> int:
    """Return how many turns a module may take at most."""
    return arguments.whole(blueprint.options.get("max_iters", default), "options.max_iters", least=1, most=1000)


KINDS: Final = {
    "dspy.ReAct": Kind(_react, ("tools", "max_iters"), taken=frozenset({"trajectory", "max_iters"})),
    "dspy.ReActV2": Kind(_react_v2, ("tools", "max_iters"), taken=frozenset({"max_iters"}), extra=_history),
}
