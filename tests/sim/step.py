"""What one event obliges the fleet to do, from the moment it is heard until all that follows from it is seen."""

from __future__ import annotations

from typing import Any, NoReturn

from tests.sim.ledger import Broken, Case


def broken(invariant: str, detail: str) -> NoReturn:
    """An invariant does not hold."""
    raise Broken(invariant, detail)


class Step:
    """One step of a history.

    heard: whose live attempt the event's Reply ends. lost: request ids that had started at a worker that is buried in
    this step. must_settle, must_tell, must_answer: the cases that must get their outcome, whose worker must be asked
    to stop or to give back, whose cancellation must be answered. must_fence: rows that come too late. asking: the
    request that the event brings, until the fleet has taken or refused it.
    """

    __slots__ = (
        "asking", "bad_id", "event", "heard", "invalid", "lost", "must_answer", "must_fence", "must_settle",
        "must_tell", "number",
    )  # fmt: skip

    def __init__(self) -> None:
        self.number = 0
        self.event: Any = None
        self.heard: Case | None = None
        self.lost: set[int] = set()
        self.must_settle: list[Case] = []
        self.must_tell: list[Case] = []
        self.must_answer: list[Case] = []
        self.must_fence = 0
        self.asking: Case | None = None
        self.bad_id = False
        self.invalid = False
