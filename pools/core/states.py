"""The state tables, as data. An unlisted transition raises."""

from __future__ import annotations

from typing import Final

# Request states, and the events that move between them.
QUEUED: Final = "queued"
WAITING: Final = "waiting"  # in no queue: for a resend's time, for a worker of its own, or for another's outcome
DISPATCHED: Final = "dispatched"
RUNNING: Final = "running"
SETTLED: Final = "settled"

ON_DISPATCH: Final = "dispatch"
ON_START: Final = "start"
ON_RETURN: Final = "return"
ON_WAIT: Final = "wait"
ON_RESUME: Final = "resume"
ON_SETTLE: Final = "settle"

# Worker states, and their events.
LAUNCHING: Final = "launching"
BOOTING: Final = "booting"
READY: Final = "ready"
DRAINING: Final = "draining"
EXITED: Final = "exited"

ON_HELLO: Final = "hello"
ON_READY: Final = "ready"
ON_DRAIN: Final = "drain"
ON_EXIT: Final = "exit"


class IllegalTransitionError(Exception):
    """A state machine was asked for a transition that its table does not list: a bug in the fleet."""


class Moves(dict[str, str]):
    """event -> next state, from one state."""

    def __init__(self, state: str, moves: dict[str, str]) -> None:
        super().__init__(moves)
        self.state = state

    def __missing__(self, event: str) -> str:
        raise IllegalTransitionError(f"{self.state} has no transition on {event}")


def _table(rows: dict[str, dict[str, str]]) -> dict[str, Moves]:
    return {state: Moves(state, moves) for state, moves in rows.items()}


REQUEST_MOVES: Final = _table(
    {
        QUEUED: {ON_DISPATCH: DISPATCHED, ON_WAIT: WAITING, ON_SETTLE: SETTLED},
        WAITING: {ON_RESUME: QUEUED, ON_SETTLE: SETTLED},
        DISPATCHED: {ON_START: RUNNING, ON_RETURN: QUEUED, ON_WAIT: WAITING, ON_SETTLE: SETTLED},
        RUNNING: {ON_WAIT: WAITING, ON_SETTLE: SETTLED},
        SETTLED: {},
    }
)

WORKER_MOVES: Final = _table(
    {
        LAUNCHING: {ON_HELLO: BOOTING, ON_DRAIN: DRAINING, ON_EXIT: EXITED},
        BOOTING: {ON_READY: READY, ON_DRAIN: DRAINING, ON_EXIT: EXITED},
        READY: {ON_DRAIN: DRAINING, ON_EXIT: EXITED},
        DRAINING: {ON_EXIT: EXITED},
        EXITED: {},
    }
)
