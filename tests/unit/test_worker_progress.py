"""How far an attempt is: what counts as a step, and what a beat is told."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from bridge.protocol.errors import BridgeError, not_found
from bridge.protocol.messages import Message, Reply, Request
from bridge.worker.attempt import Runner
from bridge.worker.call import Call, CallStopped
from bridge.worker.executor import Executor
from bridge.worker.slots import PAGE_BYTES, StartedSlots
from tests.support.operations import SPEC

STEPS: dict[str, Callable[[Call], None]] = {
    "step": Call.step,
    "event": lambda call: call.emit("event", {}),
    "LM call": lambda call: call.used(lm_calls=1),
}


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_a_step_ends_the_quiet(step: Callable[[Call], None]) -> None:
    call = Call(7, 9, "test")
    began_s = time.monotonic()
    assert call.progress(began_s) is None
    call.started_s = began_s - 5
    assert call.progress(began_s) == (9, 5000.0, 0, 0, 5000.0)
    step(call)
    ended_s = time.monotonic()
    told = call.progress(ended_s)
    assert told is not None
    epoch, run_ms, rows_done, lm_calls, quiet_ms = told
    assert (epoch, rows_done, lm_calls) == (9, 0, call.lm_calls)
    assert run_ms == pytest.approx((ended_s - began_s + 5) * 1e3)
    assert 0 <= quiet_ms <= (ended_s - began_s) * 1e3


def test_looking_whether_to_stop_is_no_step() -> None:
    call = Call(7, 9, "test")
    call.started_s = 0.0
    call.check()
    assert call.progress(3.0) == (9, 3000.0, 0, 0, 3000.0)


@pytest.mark.parametrize("step", [Call.step, lambda call: call.emit("event", {})])
@pytest.mark.parametrize("why", ["CANCELLED", "DEADLINE_EXCEEDED"])
def test_a_step_may_be_the_last(step: Callable[[Call], None], why: str) -> None:
    call = Call(7, 9, "test", deadline=0.0 if why == "DEADLINE_EXCEEDED" else None)
    if why == "CANCELLED":
        call.cancel()
    with pytest.raises(CallStopped) as caught:
        step(call)
    assert caught.value.error.code == why


# --- of many attempts --------------------------------------------------------------------------------


class Gate:
    """The operations of a worker whose one operation passes when it is let through."""

    inline: frozenset[str] = frozenset()

    def __init__(self) -> None:
        self._open = threading.Semaphore(0)
        self.entered = threading.Semaphore(0)

    def let_through(self, count: int) -> None:
        self._open.release(count)

    def find(self, name: str) -> Any:
        return self._pass

    def batched(self, name: str) -> None:
        return None

    def unknown(self, name: str) -> BridgeError:
        return not_found("operation", name, ["pass"])

    def _pass(self, args: Any, call: Call) -> Any:
        self.entered.release()
        assert self._open.acquire(timeout=10)
        return args


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def executor(gate: Gate) -> Iterator[Executor]:
    """Four threads."""
    fd = os.memfd_create("slots")
    os.ftruncate(fd, PAGE_BYTES)
    replies: list[Message] = []
    executor = Executor(4, replies.append)
    executor.start(Runner(gate, SPEC, StartedSlots(fd)))  # type: ignore[arg-type]
    os.close(fd)
    yield executor
    gate.let_through(1000)
    executor.close()


def submit(executor: Executor, epoch: int, rows: int = 1) -> None:
    executor.submit(Request(operation="pass", payload=b"\x01" * rows, rows=rows, epoch=epoch), time.monotonic())


def test_what_runs_is_told_the_longest_running_first(executor: Executor, gate: Gate) -> None:
    for epoch in range(1, 8):
        submit(executor, epoch)
        if epoch <= 4:  # the others wait for a thread
            assert gate.entered.acquire(timeout=10)
    told = executor.progress(time.monotonic(), 64)
    assert [epoch for epoch, *_ in told] == [1, 2, 3, 4]
    assert [one[1] for one in told] == sorted((one[1] for one in told), reverse=True)
    assert [epoch for epoch, *_ in executor.progress(time.monotonic(), 3)] == [1, 2, 3]


def test_rows_are_counted_as_they_are_done(executor: Executor, gate: Gate) -> None:
    submit(executor, 5, rows=3)
    for done in range(3):
        assert gate.entered.acquire(timeout=10)
        ((epoch, run_ms, rows_done, _, quiet_ms),) = executor.progress(time.monotonic(), 64)
        assert (epoch, rows_done) == (5, done)
        assert 0 <= quiet_ms <= run_ms
        gate.let_through(1)


def test_what_is_settled_is_told_no_more(executor: Executor, gate: Gate) -> None:
    submit(executor, 5)
    assert gate.entered.acquire(timeout=10)
    executor.settled(Reply(epoch=5))
    assert executor.progress(time.monotonic(), 64) == []
