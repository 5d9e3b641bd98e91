"""A program that remembers, in its session, how often it was called, and says what it has heard."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import dspy  # type: ignore[import-untyped]

from bridge.sessions import current_session
from orchestrator import connect


class Talker(dspy.Module):  # type: ignore[misc]
    def forward(
        self, question: str, history: dspy.History = None, wait_s: float = 0.0, fail: bool = False, mb: float = 0.0,
        begun: str = "", ask: str = "",
    ) -> Any:  # fmt: skip
        if begun:
            Path(begun).touch()
        session = current_session()
        count = 0
        if session is not None:
            count = session.state.get("count", 0)  # and whoever else runs in it between these two lines is lost
            time.sleep(wait_s)
            session.state["count"] = count = count + 1
            session.local["calls"] = session.local.get("calls", 0) + 1
            if mb:
                session.state["much"] = "x" * int(mb * (1 << 20))
        if ask:
            with connect() as client:
                return client.execute("talker", {"question": question}, session=ask)
        if fail:
            raise ValueError("as asked")
        return dspy.Prediction(
            answer=f"{question}!", count=count, pid=os.getpid(), session=None if session is None else session.id,
            local=0 if session is None else session.local["calls"],
            heard=[] if history is None else [message["question"] for message in history.messages],
        )  # fmt: skip
