"""Questions whose answer no single passage has: search, read, search again with what was found."""

from __future__ import annotations

from pathlib import Path

import dspy

from orchestrator import connect

CORPUS = Path(__file__).with_name("corpus.txt").read_text(encoding="utf-8").splitlines()


class MultiHop(dspy.Module):
    """`MultiHop(hops)(question="…")` has `answer`, and `notes`: the passages, in the order in which they were found."""

    def __init__(self, hops: int = 2) -> None:
        super().__init__()
        self.hops = hops
        self.ask = dspy.ChainOfThought("notes: list[str], question -> query")
        self.answer = dspy.ChainOfThought("notes, question -> answer")

    def forward(self, question: str) -> dspy.Prediction:
        notes: list[str] = []
        queries: list[str] = []
        for _ in range(self.hops):
            queries.append(self.ask(notes=notes, question=question).query)
            notes.append(_search(f"{queries[-1]} {' '.join(notes[-1:])}", notes))
        answer = self.answer(notes="\n".join(reversed(notes)), question=question).answer
        return dspy.Prediction(answer=answer, notes=notes, queries=queries)


def _search(query: str, known: list[str]) -> str:
    """Return the nearest passage that is not known yet: a call from inside the worker, to another operation."""
    found = connect().execute("dspy.Embeddings", {"query": query, "corpus": CORPUS, "k": len(known) + 1})
    return next(passage for passage in found.passages if passage not in known)
