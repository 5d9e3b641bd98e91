"""Programs whose answers are streamed."""

from __future__ import annotations

import asyncio
from typing import Any

import dspy  # type: ignore[import-untyped]


def weather(city: str) -> str:
    """Tell the weather of a city."""
    return f"sunny in {city}"


class TwoSteps(dspy.Module):  # type: ignore[misc]
    """Two predictors with a field of one name, the second called twice; on a thread."""

    def __init__(self) -> None:
        super().__init__()
        self.draft = dspy.Predict("question -> answer")
        self.polish = dspy.ChainOfThought("text -> answer")

    def forward(self, question: str) -> Any:
        first = self.draft(question=question)
        for _ in range(2):
            last = self.polish(text=first.answer)
        return dspy.Prediction(drafted=first.answer, answer=last.answer, reasoning=last.reasoning)


class TwoStepsAsync(TwoSteps):
    """The same on the event loop."""

    async def aforward(self, question: str) -> Any:
        first = await self.draft.acall(question=question)
        for _ in range(2):
            last = await self.polish.acall(text=first.answer)
        return dspy.Prediction(drafted=first.answer, answer=last.answer, reasoning=last.reasoning)


class AtOnce(dspy.Module):  # type: ignore[misc]
    """One predictor, called four times at once."""

    def __init__(self) -> None:
        super().__init__()
        self.ask = dspy.Predict("question -> answer")

    async def aforward(self, question: str) -> Any:
        asked = [self.ask.acall(question=f"{question} number {number}") for number in range(4)]
        return dspy.Prediction(answers=[one.answer for one in await asyncio.gather(*asked)])


class Fans(dspy.Module):  # type: ignore[misc]
    """Asks on threads that DSPy starts, the model itself too."""

    def __init__(self) -> None:
        super().__init__()
        self.ask = dspy.Predict("question -> answer")

    def forward(self, question: str) -> Any:
        parallel = dspy.Parallel(num_threads=2, disable_progress_bar=True)
        found = parallel([(self.ask, {"question": question}), (_Direct(), {"question": question})])
        return dspy.Prediction(answers=found)


class _Direct(dspy.Module):  # type: ignore[misc]
    def forward(self, question: str) -> Any:
        return str(dspy.settings.lm(question)[0])
