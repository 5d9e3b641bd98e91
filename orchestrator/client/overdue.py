"""Requests that are not answered though their deadline is over: the coordinator is stopped, stuck, or late."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

from orchestrator.client.future import Future
from orchestrator.errors import DeadlineExceeded

# How long past its deadline a request may be unanswered before it is failed here.
GUARD_S: Final = 0.2
# Where this process itself stood still, answers may be there that nobody has read: so it is failed at the second look.
_LOOK_AGAIN_S: Final = 0.1


class Overdue:
    """Finds them: those that were overdue at the last look, and still are."""

    def __init__(self) -> None:
        self._seen: set[int] = set()

    def look(self, futures: Mapping[int, Future], now: float) -> tuple[set[int], float]:
        """Return the ids of those that are to be failed, and when to look again."""
        due = {number: one.deadline for number, one in futures.items() if one.deadline is not None}
        overdue = {number for number, deadline in due.items() if deadline <= now - GUARD_S}
        failed = self._seen & overdue
        self._seen = overdue - failed
        # Many deadlines in a row are looked at together.
        next_s = min((deadline for number, deadline in due.items() if number not in failed), default=math.inf) + GUARD_S
        return failed, max(next_s, now + _LOOK_AGAIN_S)


def unanswered(coordinator_pid: int) -> DeadlineExceeded:
    """Return the error for one of them."""
    text = (
        f"the coordinator (pid {coordinator_pid}) has not answered {GUARD_S:g} s after the deadline: "
        "it may be stopped or stuck, or late on a busy machine"
    )
    return DeadlineExceeded(text, stage="coordinator")
