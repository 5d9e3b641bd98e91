"""What a real worker process answers to attempts: values, errors, rows, events."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bridge.protocol import codec
from bridge.protocol.errors import (
    CANCELLED,
    DEADLINE_EXCEEDED,
    INVALID_REQUEST,
    NOT_FOUND,
    REMOTE_ERROR,
    TOO_LARGE,
    decode_error,
)
from bridge.protocol.messages import (
    FLAG_EVENTS,
    NOT_RUN,
    OK,
    ROWS,
    Event,
    Reply,
)
from bridge.protocol.values import Prediction, decode_value, encode_value
from tests.support.waiting import wait_until
from tests.support.worker_process import WorkerProcess, cancel, error_of, value_of

LARGE = b"x" * 10_000


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[WorkerProcess]:
    """Two slots."""
    with WorkerProcess(tmp_path) as process:
        yield process.boot()


@pytest.fixture
def single(tmp_path: Path) -> Iterator[WorkerProcess]:
    """One slot: what comes second waits."""
    with WorkerProcess(tmp_path, slots=1) as process:
        yield process.boot()


# --- calls ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", ["echo", "queued_echo"])
@pytest.mark.parametrize(
    "args", [{"t": "x" * 120, "i": 5}, LARGE, {1: (2, {3})}, None], ids=["dict", "large", "odd", "none"]
)
def test_a_value_goes_in_and_comes_back(worker: WorkerProcess, operation: str, args: Any) -> None:
    request = worker.request(operation, args)
    reply = worker.reply_to(request)
    assert (reply.status, reply.request_id) == (OK, request.request_id)
    assert value_of(reply) == args
    assert reply.run_ms > 0


def test_what_a_call_used_is_in_its_reply(worker: WorkerProcess) -> None:
    reply = worker.reply_to(worker.request("usage"))
    assert (reply.lm_calls, reply.tokens, reply.cost_usd, reply.cached) == (2, 30, 0.5, True)
    assert value_of(reply) == Prediction({"answer": "4"})


def test_every_attempt_has_a_context_of_its_own(single: WorkerProcess) -> None:
    for number in range(3):
        seen, is_current, lm, request_id, thread = single.call("context", lm=f"lm{number}", request_id=number + 1)
        assert (seen, is_current, lm, request_id) == ("nothing", True, f"lm{number}", number + 1)
        assert thread == "executor[0]"


@pytest.mark.parametrize(
    ("how", "type_name", "text"),
    [
        ("anything", "ValueError", "bad value 'anything'"),
        ("exit", "SystemExit", "bye"),
        ("interrupt", "KeyboardInterrupt", ""),
        ("generator", "GeneratorExit", ""),
        ("memory", "MemoryError", ""),
        ("recursion", "RecursionError", "maximum recursion depth"),
        ("text", "tests.support.worker_operations.BadText", "its __str__ raised KeyboardInterrupt"),
        ("long", "ValueError", "characters left out"),
    ],
)
def test_what_user_code_raises_is_told_and_survived(worker: WorkerProcess, how: str, type_name: str, text: str) -> None:
    error = error_of(worker.reply_to(worker.request("fail", how)))
    assert error.code == REMOTE_ERROR
    assert error.details["type"] == type_name
    assert text in error.message
    assert "in fail" in error.details["remote_traceback"]
    assert "attempt.py" not in error.details["remote_traceback"]
    assert worker.call("queued_echo", how) == how


def test_typed_errors_keep_their_code(worker: WorkerProcess) -> None:
    error = error_of(worker.reply_to(worker.request("fail", "typed")))
    assert (error.code, error.message, error.details) == (INVALID_REQUEST, "no such thing", {"path": "a.b"})
    assert error_of(worker.reply_to(worker.request("fail", "stopped"))).message == "by itself"


def test_unknown_operations_are_named(worker: WorkerProcess) -> None:
    error = error_of(worker.reply_to(worker.request("ecko")))
    assert (error.code, error.details["suggestions"]) == (NOT_FOUND, ["echo"])


@pytest.mark.parametrize(
    ("args", "code", "text"),
    [
        ("object", INVALID_REQUEST, "the result of results cannot be returned: the value cannot travel"),
        ("inner", INVALID_REQUEST, "a[1] cannot travel"),
        ("large", TOO_LARGE, "the limit is 50,000"),
    ],
)
def test_results_that_cannot_travel(worker: WorkerProcess, args: str, code: str, text: str) -> None:
    error = error_of(worker.reply_to(worker.request("results", args)))
    assert error.code == code
    assert text in error.message


@pytest.mark.parametrize("operation", ["echo", "queued_echo"])
@pytest.mark.parametrize("payload", [b"", b"\xc1", b"\x91" * 40, b"\x01\x01"], ids=bytes.hex)
def test_arguments_that_cannot_be_read(worker: WorkerProcess, operation: str, payload: bytes) -> None:
    error = error_of(worker.reply_to(worker.request(operation, payload=payload)))
    assert error.code == INVALID_REQUEST
    assert worker.call("echo", 1) == 1


# --- rows -------------------------------------------------------------------------------------------


def rows(*values: Any) -> dict[str, Any]:
    return {"payload": b"".join(map(encode_value, values)), "rows": len(values)}


def outcomes_of(reply: Reply) -> list[tuple[int, bytes]]:
    assert reply.status == ROWS
    return codec.unpack_outcomes(reply.payload or b"")


@pytest.mark.parametrize("operation", ["echo", "queued_echo"])
@pytest.mark.parametrize("count", [2, 64, 1000])
def test_rows_come_back_in_order(worker: WorkerProcess, operation: str, count: int) -> None:
    outcomes = outcomes_of(worker.reply_to(worker.request(operation, **rows(*range(count)))))
    assert [(status, decode_value(payload)) for status, payload in outcomes] == [(OK, row) for row in range(count)]


def test_the_error_of_a_row_is_its_own(worker: WorkerProcess) -> None:
    request = worker.request("echo", payload=b"\x01" + b"\x81\x90\x01" + b"\x03", rows=3)
    first, second, third = outcomes_of(worker.reply_to(request))
    assert (first, third) == ((OK, b"\x01"), (OK, b"\x03"))
    assert decode_error(second[1]).code == INVALID_REQUEST
    outcomes = outcomes_of(worker.reply_to(worker.request("fail", **rows("exit", "typed"))))
    assert [decode_error(payload).code for _, payload in outcomes] == [REMOTE_ERROR, INVALID_REQUEST]


def test_rows_that_do_not_add_up_are_refused(worker: WorkerProcess) -> None:
    for count in (2, 4):
        error = error_of(worker.reply_to(worker.request("echo", payload=b"\x01\x02\x03", rows=count)))
        assert error.code == INVALID_REQUEST


@pytest.mark.parametrize("code", [CANCELLED, DEADLINE_EXCEEDED])
def test_rows_after_a_cancellation_or_the_deadline_do_not_run(worker: WorkerProcess, code: str) -> None:
    request = worker.hold(**rows(1, 2, 3), deadline_ms=300.0 if code == DEADLINE_EXCEEDED else None)
    if code == CANCELLED:
        worker.send(cancel(request))
    outcomes = outcomes_of(worker.reply_to(request))
    assert [decode_error(payload).code for _, payload in outcomes] == [code] * 3
    assert worker.others() == []  # one "holding", taken above: the other rows never began


def test_all_rows_together_fit_in_a_message(worker: WorkerProcess) -> None:
    outcomes = outcomes_of(worker.reply_to(worker.request("results", **rows("fine", "fine", "fine", "fine"))))
    assert [status for status, _ in outcomes] == [OK, OK, NOT_RUN, NOT_RUN]


# --- events -----------------------------------------------------------------------------------------


def test_events_are_numbered_and_come_before_the_reply(worker: WorkerProcess) -> None:
    request = worker.request("events", {"count": 5000, "pad": 50}, flags=FLAG_EVENTS)
    reply = worker.reply_to(request)
    events = worker.others()
    assert value_of(reply) is True
    assert [event.sequence for event in events if type(event) is Event] == list(range(1, 5001))
    assert [decode_value(event.payload or b"")["number"] for event in events] == list(range(5000))


def test_events_are_sent_only_when_asked_for(worker: WorkerProcess) -> None:
    assert worker.call("events", {"count": 3}) is False
    assert worker.others() == []


def test_a_program_that_floods_waits_and_can_be_cancelled(worker: WorkerProcess) -> None:
    request = worker.request("events", {"count": 10**9, "pad": 5000}, flags=FLAG_EVENTS)
    worker.event_of(request)
    # Nobody reads: the program comes to rest, and its memory with it.
    wait_until(lambda: cpu_rests(worker), 10, "the program waits")
    worker.send(cancel(request))
    assert error_of(worker.reply_to(request)).code == CANCELLED


def cpu_rests(worker: WorkerProcess) -> bool:
    """Whether the worker used next to no processor time (under 30 ms) in 0.3 s."""
    before = cpu_ticks(worker)
    with contextlib.suppress(subprocess.TimeoutExpired):
        worker.process.wait(0.3)
    return cpu_ticks(worker) - before <= 3


def cpu_ticks(worker: WorkerProcess) -> int:
    return sum(map(int, Path(f"/proc/{worker.process.pid}/stat").read_text().split()[13:15]))
