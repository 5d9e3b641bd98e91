"""Modules that ask another module several times and keep the best answer: BestOfN, Refine."""

from __future__ import annotations

import inspect
import sys
from typing import Any, Final

import dspy  # type: ignore[import-untyped]

from bridge.worker import arguments, metrics
from bridge.worker.modules.plan import Blueprint, Kind

_OPTIONS: Final = ("module", "N", "reward", "threshold", "fail_count")


class _Tolerance:
    """Counts failures exactly: so many attempts may fail, the next failure is raised.

    DSPy compares the number of an attempt with `fail_count`, which it lowers at each failure: that raises early, late
    or never. Here the attribute is always beyond that number while a failure is tolerated, then always below it.
    """

    allowed = 0
    failures = 0

    @property
    def fail_count(self) -> int:
        """What DSPy compares the number of an attempt that failed with."""
        return sys.maxsize if self.failures < self.allowed else -1

    @fail_count.setter
    def fail_count(self, value: int) -> None:
        """Count a failure: DSPy has lowered the attribute."""
        if value == sys.maxsize - 1:
            self.failures += 1


class _BestOfN(_Tolerance, dspy.BestOfN):  # type: ignore[misc]
    """`dspy.BestOfN` that tolerates as many failures as it is told."""


class _Refine(_Tolerance, dspy.Refine):  # type: ignore[misc]
    """`dspy.Refine` that tolerates as many failures as it is told."""


class BestOf(dspy.Module):  # type: ignore[misc]
    """`dspy.BestOfN` or `dspy.Refine`, which count failures on themselves, made anew for each call.

    tolerated: so many attempts may fail; the next failure is raised. That all fail is never an answer.
    """

    def __init__(
        self, module: Any, n: int, reward: metrics.Reward, threshold: float, tolerated: int, *, refines: bool = False
    ) -> None:
        super().__init__()
        self.module = module
        self.n = n
        self.reward = reward
        self.threshold = threshold
        self.tolerated = min(tolerated, n - 1)
        self.refines = refines

    def forward(self, **inputs: Any) -> Any:
        """Return the best of n answers."""
        chooser = (_Refine if self.refines else _BestOfN)(self.module, self.n, self.reward, self.threshold)
        chooser.allowed = self.tolerated
        return chooser(**inputs)


def _best_of_n(blueprint: Blueprint) -> BestOf:
    return _build(blueprint, refines=False)


def _refine(blueprint: Blueprint) -> BestOf:
    return _build(blueprint, refines=True)


def _build(blueprint: Blueprint, *, refines: bool) -> BestOf:
    options = blueprint.options
    if options.get("reward") is None:
        text = f"{blueprint.kind} needs options.reward: 'filled:FIELD', 'concise:FIELD' or an import path"
        raise arguments.invalid("options.reward", f"{text} 'package.module:name'")
    n = arguments.whole(options.get("N", 3), "options.N", least=1, most=100)
    threshold = arguments.number(options.get("threshold", 1.0), "options.threshold", least=-1e12)
    tolerated = arguments.whole(options.get("fail_count", n), "options.fail_count", most=100)
    reward = metrics.find_reward(options["reward"], "options.reward")
    if refines:
        _check_source(reward, options["reward"])
    return BestOf(blueprint.module, n, reward, threshold, tolerated, refines=refines)


def _check_source(reward: metrics.Reward, name: str) -> None:
    """Refuse a reward without source: Refine shows it to the language model."""
    try:
        inspect.getsource(reward)
    except (OSError, TypeError) as exc:
        text = f"options.reward: the source of {name} cannot be read, and dspy.Refine shows it to the language model"
        raise arguments.invalid("options.reward", text) from exc


KINDS: Final = {
    "dspy.BestOfN": Kind(_best_of_n, _OPTIONS, calls_another=True),
    "dspy.Refine": Kind(_refine, _OPTIONS, calls_another=True),
}


def check_adapter(kind: str, adapter: Any) -> None:
    """Refuse an adapter that a module cannot work with."""
    if kind == "dspy.Refine" and isinstance(adapter, dspy.TwoStepAdapter):
        # It makes an adapter of the same class for its hints, without the language model that this one needs.
        raise arguments.invalid("options.adapter", "dspy.Refine does not work with the adapter two_step")
