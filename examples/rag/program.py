"""Answers from a small corpus: the passages that are near to the question go in the prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dspy

from orchestrator import connect

CORPUS = Path(__file__).with_name("corpus.txt")


class AnswerFromContext(dspy.Signature):
    """Answer the question from the context alone."""

    context: str = dspy.InputField(desc="what is known, a passage a line")
    question: str = dspy.InputField()
    answer: str = dspy.OutputField(desc="one sentence")


class RAG(dspy.Module):
    """Retrieval, then generation: `RAG()(question="…")` has `answer` and `passages`."""

    def __init__(self, k: int = 2) -> None:
        super().__init__()
        passages = CORPUS.read_text(encoding="utf-8").splitlines()
        # Runs once in each worker. The vectors come from the neural pool, many callers' texts at once.
        self.search = dspy.retrievers.Embeddings(passages, embed, k=k)
        self.respond = dspy.ChainOfThought(AnswerFromContext)

    def forward(self, question: str) -> dspy.Prediction:
        passages = self.search(question).passages
        answer = self.respond(context="\n".join(passages), question=question).answer
        return dspy.Prediction(answer=answer, passages=passages)


def embed(texts: str | list[str]) -> Any:
    """Return vectors from the coordinator's embedder: in a worker, `connect` finds its own coordinator."""
    # Not kept: what it asks for belongs to the request that runs now, and DSPy's retriever lives longer than one.
    return connect().embedder()(texts)
