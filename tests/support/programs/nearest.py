"""A program that embeds by a call of its own: the model is in another pool."""

from __future__ import annotations

from typing import Any

import dspy

from orchestrator import connect

CORPUS = ["the printer is on fire", "refund my invoice please", "where is the office in Zurich"]


class Nearest(dspy.Module):
    def forward(self, question: str) -> Any:
        examples = [dspy.Example(question=text).with_inputs("question") for text in CORPUS]
        with connect() as client:
            knn = dspy.KNN(k=1, trainset=examples, vectorizer=client.embedder())
            return dspy.Prediction(found=knn(question=question)[0].question)
