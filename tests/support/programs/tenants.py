"""Programs that say in what surroundings they find themselves, for tests on what one request sees of another."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import dspy  # type: ignore[import-untyped]

from bridge import nesting


def _seen() -> dict[str, Any]:
    settings, parent = dspy.settings, nesting.current()
    return {
        "temperature": settings.lm.kwargs["temperature"],
        "adapter": type(settings.adapter).__name__,
        "principal": None if parent is None else parent.principal,
        "request_id": None if parent is None else parent.request_id,
        "history": len(settings.lm.history),
        "trace": len(settings.trace),
        "listeners": len(settings.stream_listeners),
        "streams": settings.send_stream is not None,
    }


class Sync(dspy.Module):  # type: ignore[misc]
    """Asks on a thread; tells what it saw before and after."""

    def __init__(self) -> None:
        super().__init__()
        self.ask = dspy.Predict("question -> answer")

    def forward(self, question: str) -> Any:
        before = _seen()
        answer = self.ask(question=question).answer
        # Room for another tenant to come in between.
        threading.Event().wait(0.001)
        return dspy.Prediction(
            answer=answer,
            before=before,
            after=_seen(),
            history=len(self.history),
            where=threading.current_thread().name,
        )


class Async(Sync):
    """Does the same on the event loop."""

    async def aforward(self, question: str) -> Any:
        before = _seen()
        answer = (await self.ask.acall(question=question)).answer
        await asyncio.sleep(0.001)
        return dspy.Prediction(
            answer=answer,
            before=before,
            after=_seen(),
            history=len(self.history),
            where=threading.current_thread().name,
        )


class AsyncOnly(dspy.Module):  # type: ignore[misc]
    """Has no `forward`."""

    async def aforward(self, question: str) -> Any:
        await asyncio.sleep(0)
        return dspy.Prediction(answer=question.upper())


class Blocks(dspy.Module):  # type: ignore[misc]
    """Holds up the event loop, as an asynchronous program should not."""

    async def aforward(self, seconds: float) -> Any:
        threading.Event().wait(seconds)
        return dspy.Prediction(answer="at last")
