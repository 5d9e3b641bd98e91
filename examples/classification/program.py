"""What does a guest of a hotel write about? A classifier with a reason for its answer."""

from __future__ import annotations

from typing import Literal

import dspy

Topic = Literal["booking", "breakfast", "noise", "parking"]


class Classify(dspy.Signature):
    """Say what a guest's message is about."""

    message: str = dspy.InputField(desc="what the guest wrote")
    topic: Topic = dspy.OutputField(desc="what it is about")


class Classifier(dspy.Module):
    """Classifies one message: `Classifier()(message="…").topic`."""

    def __init__(self) -> None:
        super().__init__()
        self.classify = dspy.ChainOfThought(Classify)

    def forward(self, message: str) -> dspy.Prediction:
        return self.classify(message=message)
