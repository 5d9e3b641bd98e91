"""Events of an attempt: what travels within the window, what waits, and for how long."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from bridge.protocol.errors import CANCELLED, SLOW_CONSUMER, BridgeError
from bridge.protocol.messages import UNREAD_EVENTS, Event, Message, Request
from bridge.protocol.values import decode_value
from bridge.worker.call import Call, CallStopped
from bridge.worker.emitter import _AHEAD_CHARS, EVENT_BACKLOG, Emitter, WindowedEmitter, emitter


class Sent:
    """A windowed emitter, its call, and what it has sent."""

    def __init__(self, window: int, *, slow_s: float = 30.0) -> None:
        self.messages: list[Message] = []
        request = Request(operation="test", epoch=7, event_window=window)
        self.emitter = WindowedEmitter(request, self.messages.append, threading.Semaphore(0), slow_s)
        self.call = self.emitter.call = Call(1, 7, "test", events=self.emitter)

    def token(self, text: str, *, predictor: str = "self", field: str = "answer") -> None:
        self.emitter.put("token", {"predictor": predictor, "field": field, "text": text})

    @property
    def events(self) -> list[Event]:
        return [message for message in self.messages if isinstance(message, Event)]

    @property
    def fields(self) -> list[Any]:
        return [decode_value(event.payload or b"") for event in self.events]


def test_no_more_events_than_the_window_are_on_their_way() -> None:
    sent = Sent(2)
    for number in range(5):
        sent.emitter.put("number", {"number": number})
    assert sent.fields == [{"number": 0}, {"number": 1}]
    sent.emitter.grant(1)
    assert sent.fields[2:] == [{"number": 2}]
    sent.emitter.grant(2)
    assert sent.fields[3:] == [{"number": 3}, {"number": 4}]
    assert [(event.sequence, event.epoch, event.kind) for event in sent.events] == [
        (number, 7, "number") for number in range(1, 6)
    ]


def test_adjacent_tokens_of_one_field_that_wait_are_joined() -> None:
    sent = Sent(1)
    sent.token("first ")
    for text in ("a ", "b ", "c"):
        sent.token(text)
    sent.token("other", predictor="second")
    sent.token("!", predictor="second", field="title")
    sent.emitter.put("status", {"message": "between"})
    sent.token("?", predictor="second", field="title")
    for _ in range(9):
        sent.emitter.grant(1)
    assert [one.get("text", one.get("message")) for one in sent.fields] == [
        "first ", "a b c", "other", "!", "between", "?",
    ]  # fmt: skip


def test_a_window_and_its_credit_have_a_limit() -> None:
    sent = Sent(10**9)
    sent.emitter.grant(10**9)
    for number in range(EVENT_BACKLOG + 10):
        sent.emitter.put("number", {"number": number})
    assert len(sent.events) == EVENT_BACKLOG
    sent.emitter.grant(-5)
    assert len(sent.events) == EVENT_BACKLOG


def test_a_program_far_ahead_of_its_reader_waits_for_credit() -> None:
    sent = Sent(1)
    sent.token("x")
    sent.token("x" * _AHEAD_CHARS)
    with ThreadPoolExecutor(1) as threads:
        emitted = threads.submit(sent.call.emit, "number", {"number": 1})
        with pytest.raises(TimeoutError):
            emitted.result(0.05)
        sent.emitter.grant(1)
        emitted.result(10)
    assert [len(one.get("text", "")) for one in sent.fields] == [1, _AHEAD_CHARS]


def test_waiting_on_a_loop_holds_up_nobody() -> None:
    sent = Sent(1)

    async def both() -> list[str]:
        sent.token("x")
        sent.token("y")
        order: list[str] = []
        waiting = asyncio.create_task(sent.call.flush())
        waiting.add_done_callback(lambda _: order.append("flushed"))
        for _ in range(3):
            await asyncio.sleep(0.001)
        order.append("went on")
        sent.emitter.grant(1)
        await waiting
        return order

    assert asyncio.run(both()) == ["went on", "flushed"]
    assert [one["text"] for one in sent.fields] == ["x", "y"]


def test_a_reader_who_takes_nothing_ends_the_call() -> None:
    sent = Sent(1, slow_s=0.05)
    sent.token("x")
    sent.token("y")
    with pytest.raises(CallStopped) as caught:
        asyncio.run(sent.call.flush())
    assert caught.value.error.code == SLOW_CONSUMER
    with pytest.raises(CallStopped) as caught:  # the program's next boundary says so too
        sent.call.step()
    assert caught.value.error.code == SLOW_CONSUMER


def test_a_slow_reader_is_waited_for_as_long_as_it_takes_something() -> None:
    sent = Sent(1, slow_s=0.2)
    for number in range(4):
        sent.emitter.put("number", {"number": number})

    async def read() -> None:
        flushed = asyncio.create_task(sent.call.flush())
        for _ in range(3):
            await asyncio.sleep(0.12)
            sent.emitter.grant(1)
        await flushed

    asyncio.run(read())
    assert len(sent.events) == 4


@pytest.mark.parametrize("on_loop", [False, True])
def test_a_cancelled_call_waits_no_longer(on_loop: bool) -> None:
    sent = Sent(1)
    sent.token("x")
    sent.token("x" * (_AHEAD_CHARS + 1))
    timer = threading.Timer(0.05, sent.call.cancel)
    timer.start()
    began_s = time.monotonic()

    def emit() -> None:
        if on_loop:
            asyncio.run(sent.call.aemit("number", {}))
        else:
            sent.call.emit("number", {})

    with pytest.raises(CallStopped) as caught:
        emit()
    timer.join()
    assert caught.value.error.code == CANCELLED
    assert time.monotonic() - began_s < 5


def test_a_stream_that_nobody_reads_any_more_is_waited_for_no_longer() -> None:
    sent = Sent(1, slow_s=5.0)
    sent.token("x")
    sent.token("y" * (_AHEAD_CHARS + 1))
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(sent.call.emit, "number", {})
        sent.emitter.grant(UNREAD_EVENTS)
        waiting.result(2.0)
        asyncio.run(sent.call.flush())
    assert [one["text"] for one in sent.fields] == ["x"]


def test_nothing_is_sent_after_the_end() -> None:
    sent = Sent(1)
    sent.token("x")
    sent.token("y")
    sent.emitter.close()
    sent.token("z")
    sent.emitter.grant(5)
    asyncio.run(sent.call.flush())
    assert [one["text"] for one in sent.fields] == ["x"]


def test_what_cannot_travel_is_told_at_once() -> None:
    sent = Sent(0)
    with pytest.raises(BridgeError) as caught:
        sent.emitter.put("number", {"number": object()})
    assert caught.value.code == "INVALID_REQUEST"


def test_a_request_without_a_window_has_none() -> None:
    made = [emitter(Request(operation="x", event_window=n), print, threading.Semaphore(1)) for n in (0, 1)]
    assert [type(one) for one in made] == [Emitter, WindowedEmitter]


def test_without_a_window_what_cannot_wait_goes_beyond_the_room() -> None:
    messages: list[Any] = []
    room = threading.Semaphore(1)
    plain = Emitter(Request(operation="test", epoch=7), messages.append, room)
    plain.emit("number", {"number": 0})
    plain.put("number", {"number": 1})
    assert len(messages) == 2
    plain.sent()
    assert not room.acquire(blocking=False)
    plain.sent()
    asyncio.run(plain.aemit("number", {"number": 2}))
    assert [message.sequence for message in messages] == [1, 2, 3]
    assert not room.acquire(blocking=False)
