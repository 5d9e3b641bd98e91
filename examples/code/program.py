"""A program that has the model write Python, runs it in a sandbox, and answers with what it computed."""

from __future__ import annotations

import dspy


class Calculator(dspy.Module):
    """`Calculator()(question="…").answer`, an exact number however large the sum is."""

    def __init__(self) -> None:
        super().__init__()
        self.compute = dspy.ProgramOfThought("question -> answer: float", max_iters=2)

    def forward(self, question: str) -> dspy.Prediction:
        return self.compute(question=question)
