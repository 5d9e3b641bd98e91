"""Modules that prompt once: Predict, ChainOfThought, MultiChainComparison."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import dspy  # type: ignore[import-untyped]

from bridge.worker import arguments
from bridge.worker.inputs import Field
from bridge.worker.modules.plan import Blueprint, Kind
from signatures.errors import Problem, ValidationError


def _predict(blueprint: Blueprint) -> Any:
    return dspy.Predict(blueprint.signature, **blueprint.config)


def _chain_of_thought(blueprint: Blueprint) -> Any:
    return dspy.ChainOfThought(blueprint.signature, **blueprint.config)


def _multi_chain_comparison(blueprint: Blueprint) -> Any:
    config = {"temperature": 0.7, **blueprint.config}
    return dspy.MultiChainComparison(blueprint.signature, M=_count(blueprint), **config)


def _completions(blueprint: Blueprint) -> Mapping[str, Field]:
    """Return the input for the answers that MultiChainComparison compares."""
    wanted = _count(blueprint)
    last = tuple(blueprint.signature.output_fields)[-1]

    def checked(value: Any, path: str) -> Any:
        if not isinstance(value, list) or len(value) != wanted:
            count = len(value) if isinstance(value, list) else arguments.shown(value)
            message = f"{path} must be a list of {wanted} answers (options.M), got {count}"
            raise ValidationError([Problem(message, path)])
        for index, one in enumerate(value):
            reasoning = one.get("rationale", one.get("reasoning")) if isinstance(one, Mapping) else None
            if not isinstance(reasoning, str) or last not in one:
                where = f"{path}[{index}]"
                wants = f"a mapping with the texts 'reasoning' and {last!r}"
                raise ValidationError([Problem(f"{where} must be {wants}, got {arguments.shown(one)}", where)])
        return value

    return {"completions": Field(required=True, convert=checked)}


def _count(blueprint: Blueprint) -> int:
    return arguments.whole(blueprint.options.get("M", 3), "options.M", least=1, most=50)


KINDS: Final = {
    "dspy.Predict": Kind(_predict),
    "dspy.ChainOfThought": Kind(_chain_of_thought),
    "dspy.MultiChainComparison": Kind(
        _multi_chain_comparison, ("M",), taken=frozenset({"completions"}), extra=_completions
    ),
}
