"""What mutation starts from: sound frames of every kind of message, and sound values, as single byte strings."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

import numpy

from bridge.protocol.codec import INLINE_BYTES, encode_frames, pack_outcomes
from bridge.protocol.errors import BridgeError, encode_error
from bridge.protocol.messages import (
    TYPES,
    Cancel,
    Credit,
    Event,
    Heartbeat,
    Hello,
    Message,
    Pause,
    Reply,
    Request,
    Resume,
    Taken,
    ToolCall,
    ToolReply,
    Welcome,
)
from bridge.protocol.prediction import Prediction
from bridge.protocol.record import Example, Record
from bridge.protocol.values import encode_value

# Between the frames of a list: no message begins so.
SEPARATOR: Final = b"\xc1\xfe\xc1\xfd"

VALUES: Final[tuple[Any, ...]] = (
    None, True, -1, 2**63, -(2**70), 1.5, float("nan"), "größe", "\ud800", b"\x00\xff", [], [1, [2, [3]]],
    {"question": "why?", "n": 3}, {1: "a", None: b"b", (1, 2): {"c": frozenset([1])}}, (1, (2,)), {1, 2},
    datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), date(2026, 1, 2), timedelta(1, 2, 3), Decimal("1.50"), UUID(int=7),
    numpy.arange(6, dtype="<f4").reshape(2, 3), numpy.float64(0.5), numpy.array([b"ab", b"c"]),
    Prediction({"answer": "4", "steps": [{"tool": "add"}]}), {"deep": [{"deep": [{"deep": [(1, {2})]}]}]},
    Prediction({"answer": "4"}, completions={"answer": ["4", "5"]}, usage={"m": {"total_tokens": 3}}),
    Record("dspy.Image", {"url": "data:image/png;base64,AA=="}), Example({"q": 1, "a": 2}, ["q"]),
    Record("model:package.module:Outer.Inner", {"root": [1, Record("dspy.Code", {"code": "x"})]}),
)  # fmt: skip


def message_lists() -> list[list[Message]]:
    """Return what a frame list may hold: each type alone, with its fields set, in company, and with bodies."""
    alone = [[kind(operation="echo") if kind is Request else kind()] for kind in TYPES.values()]
    request = Request(request_id=(1 << 40) + 1, operation="echo", payload=encode_value({"a": [1, "x"]}))
    full = Request(
        request_id=(2 << 40) + 9, operation="dspy.Predict", pool="general", principal="me", session="s", priority=0,
        deadline_ms=1500.0, idempotency_key="k", epoch=4, lm="default", traceparent="00-1-2-3", parent_request_id=3,
        depth=1, rows=2, flags=3, payload=encode_value(1) * 2, event_window=4,
    )  # fmt: skip
    shared = Request(request_id=6, operation="echo", segment="3f-1", shared_bytes=1 << 20, payload=b"\x01\x02")
    large = Request(request_id=5, operation="echo", payload=b"\xc5\x40\x00" + bytes(2 * INLINE_BYTES))
    reply = Reply(
        request_id=7, status=2, epoch=4, run_ms=0.5, tokens=9, cost_usd=0.25, worker="general-1.1", pool="general",
        payload=pack_outcomes([(0, encode_value("yes")), (1, encode_error(BridgeError("INTERNAL", "no")))]),
    )  # fmt: skip
    beat = Heartbeat(rss_bytes=1 << 27, running=2, attempts=[(4, 1.5, 0, 2, 0.1), (5, 0.5, 1, 0, 0.0)])
    others: list[list[Message]] = [
        [full],
        [request] * 20,
        [request, full, Cancel(request_id=5, force=True), Taken(bytes=1 << 20)],
        [large, request, large],
        [reply, reply],
        [beat],
        [
            shared,
            Reply(request_id=6, epoch=4, shared_bytes=1 << 20),
            Welcome(shared_dir="/dev/shm/d"),
        ],
        [
            ToolCall(request_id=9, name="search", epoch=4, number=2, deadline_ms=0.5, payload=encode_value({"q": 1})),
            ToolReply(request_id=9, status=1, epoch=4, number=2, payload=encode_value("found")),
        ],
        [Pause(request_id=9, epoch=4), Resume(request_id=9, epoch=4), Credit(request_id=9, epoch=4, events=3)],
        [Event(request_id=9, kind="token", epoch=4, sequence=7, payload=encode_value({"text": "a"}))] * 5,
        [Hello(package_version="1.0", run_id="a" * 32, pid=5, principal="me", token=b"t")],
    ]
    return [*alone, *others]


def frame_seeds() -> list[bytes]:
    """Return sound frame lists, each joined by SEPARATOR."""
    return [SEPARATOR.join(frames) for messages in message_lists() for frames in encode_frames(messages)]


def value_seeds() -> list[bytes]:
    """Return sound values, rows of them, outcomes and errors."""
    values = [encode_value(value) for value in VALUES]
    rows = [encode_value({"n": number}) * number for number in (2, 9)]
    errors = [encode_error(BridgeError("OVERLOADED", "full", retryable=True, details={"retry_after_s": 0.5}))]
    return [*values, *rows, pack_outcomes([(0, b"\x01"), (1, b"")]), *errors]


def frames_of(data: bytes) -> Sequence[bytes]:
    """Return the frame list that these bytes stand for."""
    return data.split(SEPARATOR)
