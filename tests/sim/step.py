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
    this step. may_wait: those that are settled in this step, or else to be sent again. heirs: those that are settled,
    or else wait for the resend of another's attempt, and how often that one was resent. must_settle, must_tell,
    must_answer: the cases that must get their outcome, whose worker must be asked to stop or to give back, whose
    cancellation must be answered. must_be_open: those that a breaker refused. must_fence: rows that come too late.
    asking: the request that the event brings, until the fleet has taken or refused it. pushed_out: those that make room
    for it. must_end: nested ones that must be settled, or told to stop. shed: what was given up for its age last.
    """

    __slots__ = (
        "asking", "bad_id", "event", "heard", "heirs", "invalid", "lost", "may_wait", "must_answer", "must_be_open",
        "must_end", "must_fence", "must_settle", "must_tell", "number", "pushed_out", "shed",
    )  # fmt: skip

    def __init__(self) -> None:
        self.number = 0
        self.event: Any = None
        self.heard: Case | None = None
        self.lost: set[int] = set()
        self.may_wait: list[Case] = []
        self.must_settle: list[Case] = []
        self.must_tell: list[Case] = []
        self.must_answer: list[Case] = []
        self.must_fence = 0
        self.must_end: list[Case] = []
        self.must_be_open: list[Case] = []
        self.pushed_out: list[Case] = []
        self.shed: Case | None = None
        self.heirs: list[tuple[Case, int]] = []
        self.asking: Case | None = None
        self.bad_id = False
        self.invalid = False
