"""Which input of a program takes the conversation of a session: a `dspy.History`, of a signature or of `forward`."""

from __future__ import annotations

from typing import Any

import dspy
import pytest

from bridge.worker.inputs import Inputs


class Asks(dspy.Module):  # type: ignore[misc]
    def forward(self, question: str, said: dspy.History | None = None) -> Any:
        return question


class AsksUntyped(dspy.Module):  # type: ignore[misc]
    def forward(self, question, history=None):  # type: ignore[no-untyped-def]
        return question


class AsksOddly(dspy.Module):  # type: ignore[misc]
    def forward(self, question: no_such_name, history: dspy.History) -> Any:  # type: ignore[name-defined]  # noqa: F821
        return question


@pytest.mark.parametrize(
    ("signature", "name"),
    [
        ("question, history: dspy.History -> answer", "history"),
        ("question, said: Optional[dspy.History] -> answer", "said"),
        ("question, history: list[dspy.History] -> answer", None),
        ("question, history -> answer", None),
        ("question -> history: dspy.History", None),
    ],
)
def test_the_history_of_a_signature(signature: str, name: str | None) -> None:
    assert Inputs.of_program(dspy.Predict(signature)).history == name


@pytest.mark.parametrize(("program", "name"), [(Asks, "said"), (AsksUntyped, None), (AsksOddly, None)])
def test_the_history_of_a_forward(program: type, name: str | None) -> None:
    assert Inputs.of_program(program()).history == name


def test_outside_of_a_session_there_is_none() -> None:
    inputs = Inputs.of_program(Asks())
    assert inputs.check({"question": "x"}, "it") == {"question": "x"}
    given = dspy.History(messages=[{"question": "a", "answer": "b"}])
    assert inputs.check({"question": "x", "said": given}, "it")["said"] == given
