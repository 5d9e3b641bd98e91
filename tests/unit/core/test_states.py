from __future__ import annotations

import itertools

import pytest

from pools.core import states
from pools.core.states import REQUEST_MOVES, WORKER_MOVES, IllegalTransitionError

# The tables of docs/architecture.md, section States, written out once more.
REQUEST_TABLE = {
    ("queued", "dispatch"): "dispatched",
    ("queued", "wait"): "waiting",
    ("queued", "settle"): "settled",
    ("waiting", "resume"): "queued",
    ("waiting", "settle"): "settled",
    ("dispatched", "start"): "running",
    ("dispatched", "return"): "queued",
    ("dispatched", "wait"): "waiting",
    ("dispatched", "settle"): "settled",
    ("running", "wait"): "waiting",
    ("running", "settle"): "settled",
}
WORKER_TABLE = {
    ("launching", "hello"): "booting",
    ("launching", "drain"): "draining",
    ("launching", "exit"): "exited",
    ("booting", "ready"): "ready",
    ("booting", "drain"): "draining",
    ("booting", "exit"): "exited",
    ("ready", "drain"): "draining",
    ("ready", "exit"): "exited",
    ("draining", "exit"): "exited",
}
REQUEST_STATES = ("queued", "waiting", "dispatched", "running", "settled")
REQUEST_EVENTS = ("dispatch", "start", "return", "wait", "resume", "settle")
WORKER_STATES = ("launching", "booting", "ready", "draining", "exited")
WORKER_EVENTS = ("hello", "ready", "drain", "exit")


@pytest.mark.parametrize(("state", "event"), list(itertools.product(REQUEST_STATES, REQUEST_EVENTS)))
def test_request_table(state: str, event: str) -> None:
    if (state, event) in REQUEST_TABLE:
        assert REQUEST_MOVES[state][event] == REQUEST_TABLE[state, event]
    else:
        with pytest.raises(IllegalTransitionError, match=f"{state} has no transition on {event}"):
            REQUEST_MOVES[state][event]


@pytest.mark.parametrize(("state", "event"), list(itertools.product(WORKER_STATES, WORKER_EVENTS)))
def test_worker_table(state: str, event: str) -> None:
    if (state, event) in WORKER_TABLE:
        assert WORKER_MOVES[state][event] == WORKER_TABLE[state, event]
    else:
        with pytest.raises(IllegalTransitionError, match=f"{state} has no transition on {event}"):
            WORKER_MOVES[state][event]


def test_the_tables_name_every_state_and_no_other() -> None:
    assert tuple(REQUEST_MOVES) == REQUEST_STATES
    assert tuple(WORKER_MOVES) == WORKER_STATES
    for table in (REQUEST_MOVES, WORKER_MOVES):
        assert {target for moves in table.values() for target in moves.values()} <= set(table)
    assert (states.SETTLED, states.EXITED) == ("settled", "exited")
