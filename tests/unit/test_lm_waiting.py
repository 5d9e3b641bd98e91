"""Waits of a language model: they end when their call does, not at a next look."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
import time
from collections.abc import Callable

import pytest

from bridge.worker.call import Call, CallStopped
from bridge.worker.lm.waiting import apause, aresult_of, pause, result_of

LONG_S = 30.0


def _pause(call: Call) -> None:
    pause(call, LONG_S)


def _apause(call: Call) -> None:
    asyncio.run(apause(call, LONG_S))


def _result_of(call: Call) -> None:
    future: concurrent.futures.Future[None] = concurrent.futures.Future()
    try:
        result_of(call, future)
    finally:
        assert future.cancelled()


def _aresult_of(call: Call) -> None:
    future: concurrent.futures.Future[None] = concurrent.futures.Future()
    try:
        asyncio.run(aresult_of(call, future))
    finally:
        assert future.cancelled()


@pytest.mark.parametrize("wait", [_pause, _apause, _result_of, _aresult_of])
def test_a_cancellation_ends_a_wait_at_once(wait: Callable[[Call], None]) -> None:
    def took_s() -> float:
        call, told = Call(1, 1, "test"), []
        timer = threading.Timer(0.06, lambda: (told.append(time.monotonic()), call.cancel()))
        timer.start()
        with pytest.raises(CallStopped) as stopped:
            wait(call)
        ended = time.monotonic()
        timer.join()
        assert stopped.value.error.code == "CANCELLED"
        assert not call._on_stop
        return ended - told[0]

    assert min(took_s() for _ in range(3)) < 0.015


@pytest.mark.parametrize("wait", [_pause, _apause, _result_of, _aresult_of])
def test_the_deadline_ends_a_wait(wait: Callable[[Call], None]) -> None:
    call, began = Call(1, 1, "test", deadline=time.monotonic() + 0.05), time.monotonic()
    with pytest.raises(CallStopped) as stopped:
        wait(call)
    assert stopped.value.error.code == "DEADLINE_EXCEEDED"
    assert 0.04 < time.monotonic() - began < LONG_S / 2


def test_without_a_call_it_is_only_time_that_passes() -> None:
    began = time.monotonic()
    pause(None, 0.01)
    asyncio.run(apause(None, 0.01))
    assert time.monotonic() - began >= 0.02
