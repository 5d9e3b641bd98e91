"""Which of several equal LM calls this one is.

DSPy keeps `rollout_id` and `n` from an engine: a BestOfN sends the same request N times, and n=3 sends it three
times within one call. An answer that may differ between them needs to know; so does every cache or journal key.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any, NamedTuple

import dspy  # type: ignore[import-untyped]


class Rollout(NamedTuple):
    """rollout_id: as the program set it, None if it did not. number: 0 … n-1 within one call."""

    rollout_id: Any
    number: int

    @property
    def variation(self) -> int:
        """A number >= 0, equal for equal rollouts, 0 for the first answer of a call without a rollout_id."""
        rollout_id = self.rollout_id
        if rollout_id is None:
            return self.number
        if isinstance(rollout_id, int):
            return abs(rollout_id) + self.number
        return int.from_bytes(hashlib.sha256(repr(rollout_id).encode()).digest()[:4], "big") + self.number


_current: ContextVar[tuple[Any, Iterator[int]] | None] = ContextVar("dspool_rollout", default=None)


def next_rollout() -> Rollout:
    """Return the rollout of the request an engine is about to answer. An engine calls it once per request."""
    current = _current.get()
    return Rollout(None, 0) if current is None else Rollout(current[0], next(current[1]))


class RolloutLM(dspy.LM):  # type: ignore[misc]
    """A language model whose engines find the rollout of the call that they answer, on its thread or task.

    A callback would do too, and cost each call a tenth of a predictor's time.
    """

    def __call__(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> Any:
        """Call the model; the requests of the call are counted from 0."""
        token = _current.set((kwargs.get("rollout_id", self.kwargs.get("rollout_id")), itertools.count()))
        try:
            return super().__call__(prompt, messages=messages, **kwargs)
        finally:
            _current.reset(token)

    async def acall(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> Any:
        """Call the model like `__call__`."""
        token = _current.set((kwargs.get("rollout_id", self.kwargs.get("rollout_id")), itertools.count()))
        try:
            return await super().acall(prompt, messages=messages, **kwargs)
        finally:
            _current.reset(token)
