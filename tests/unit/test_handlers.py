"""The handlers of callbacks: what is remembered is what DSPy finds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dspy
import pytest
from dspy.utils import callback as dspys
from dspy.utils.callback import BaseCallback
from dspy.utils.dummies import DummyLM

from bridge.worker.handlers import FINDERS, remember, remembered


class Custom(dspy.Module):  # type: ignore[misc]
    def forward(self) -> None:
        """Nothing."""


class Decides:
    """What DSPy takes for a language model by an attribute."""

    supports_decision_requests = True

    def ask(self) -> None:
        """Nothing."""


def tool() -> str:
    """Be a tool."""
    return "done"


LM = DummyLM([])
CALLS: dict[str, tuple[Any, Callable[..., Any]]] = {
    "predict": (dspy.Predict("a -> b"), dspy.Predict.__call__),
    "predict, awaited": (dspy.Predict("a -> b"), dspy.Predict.acall),
    "module": (Custom(), Custom.__call__),
    "language model": (LM, type(LM).__call__),
    "decisions": (Decides(), Decides.ask),
    "tool": (dspy.Tool(tool), dspy.Tool.__call__),
    "format": (dspy.ChatAdapter(), dspy.ChatAdapter.format),
    "parse": (dspy.JSONAdapter(), dspy.JSONAdapter.parse),
    "evaluate": (dspy.Evaluate(devset=[]), dspy.Evaluate.__call__),
    "compile": (dspy.LabeledFewShot(), dspy.LabeledFewShot.compile),
    "interpreter": (dspy.PythonInterpreter(), dspy.PythonInterpreter.execute),
}


@pytest.mark.parametrize("finder", FINDERS)
@pytest.mark.parametrize("call", CALLS)
def test_what_is_remembered_is_what_dspy_finds(finder: str, call: str) -> None:
    find = getattr(dspys, finder)
    find = getattr(find, "__wrapped__", find)
    quick, callback = remembered(find), BaseCallback()
    for _ in range(2):
        for instance, function in CALLS.values():
            quick(callback, instance, function)
        instance, function = CALLS[call]
        assert quick(callback, instance, function) == find(callback, instance, function)


def test_remembering_twice_changes_nothing_more() -> None:
    remember()
    once = [getattr(dspys, name) for name in FINDERS]
    remember()
    assert [getattr(dspys, name) for name in FINDERS] == once
    assert [one.__wrapped__.__name__ for one in once] == list(FINDERS)
