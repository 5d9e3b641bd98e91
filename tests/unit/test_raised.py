"""Tracebacks for callers: they begin where user code begins."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import pytest

from bridge.protocol.errors import CANCELLED, DEADLINE_EXCEEDED, INVALID_REQUEST, OVERLOADED, REMOTE_ERROR, BridgeError
from bridge.worker import arguments, imports
from bridge.worker.raised import outcome_error, remote_error
from orchestrator import errors


def text_of(exc: BaseException, action: Callable[[], object]) -> str:
    """The remote traceback of what `action` raises, an exception like `exc`; the frame of this test is left out."""
    with pytest.raises(type(exc)) as caught:
        action()
    caught.value.__traceback__ = caught.tb.tb_next
    return str(remote_error(caught.value).details["remote_traceback"])


def test_causes_begin_in_user_code_too() -> None:
    def convert() -> None:
        try:
            imports.find("os.path:nowhere", "x")
        except BridgeError as exc:
            raise KeyError("the effect") from exc

    text = text_of(KeyError(), convert)
    assert text.index("nowhere") < text.index("direct cause") < text.index("the effect")
    assert text.count("in convert") == 2


def test_what_stands_before_user_code_is_left_out() -> None:
    def user_code() -> None:
        raise ValueError("the root")

    with (
        pytest.raises(BridgeError, match="it could not be loaded: ValueError: the root") as caught,
        imports.importing("it"),
    ):
        user_code()
    assert caught.value.details["type"] == "ValueError"
    assert "in user_code" in caught.value.details["remote_traceback"]


def test_an_import_that_finds_nothing_shows_no_frames() -> None:
    text = text_of(ModuleNotFoundError(), lambda: importlib.import_module("no_such_module_here"))
    assert "in <lambda>" in text
    with pytest.raises(BridgeError) as caught:
        imports.find("no_such_module_here:x", "target")
    told = caught.value.details["remote_traceback"]
    assert told.splitlines()[-1] == "ModuleNotFoundError: No module named 'no_such_module_here'"
    assert "File" not in told


def test_an_error_of_the_worker_itself_keeps_its_frames() -> None:
    with pytest.raises(BridgeError) as caught:
        arguments.refuse([("x", "no")])
    caught.value.__traceback__ = caught.tb.tb_next
    assert "in refuse" in remote_error(caught.value).details["remote_traceback"]


def test_the_end_of_a_nested_request_keeps_its_code_at_every_level() -> None:
    refused = errors.Overloaded("the queue is full", retry_after_s=0.5, details={"nested": "ask"})
    told = outcome_error(refused)
    assert (told.code, told.message, told.retryable) == (OVERLOADED, "in ask: the queue is full", True)
    assert told.details["retry_after_s"] == 0.5
    assert "the queue is full" in told.details["remote_traceback"]
    again = errors.from_bridge(told)
    again.details["nested"] = "chain"
    outer = outcome_error(again)
    assert (outer.code, outer.message) == (OVERLOADED, "in chain: in ask: the queue is full")
    assert (outer.retryable, outer.details["retry_after_s"]) == (True, 0.5)


def test_a_program_that_calls_itself_is_named_once() -> None:
    once = outcome_error(errors.InvalidRequest("no", details={"nested": "chain"}))
    assert outcome_error(errors.from_bridge(once)).message == "in chain: no"
    assert once.code == INVALID_REQUEST


def test_a_program_whose_nested_request_did_not_begin_has_begun_itself() -> None:
    lost = outcome_error(errors.WorkerLost("it died", executed="no", signal=9))
    assert (lost.details["executed"], lost.details["signal"]) == ("maybe", 9)


@pytest.mark.parametrize("error", [errors.DeadlineExceeded("late", stage="running"), errors.Cancelled("ended")])
def test_a_nested_requests_end_is_not_taken_for_the_programs_own(error: errors.DspoolError) -> None:
    assert error.code in (CANCELLED, DEADLINE_EXCEEDED)
    told = outcome_error(error)
    assert (told.code, told.details["type"]) == (REMOTE_ERROR, f"orchestrator.errors.{type(error).__name__}")


def test_what_looks_like_an_error_of_ours_is_none() -> None:
    class Overloaded(Exception):
        code, message, retryable = OVERLOADED, "mine", True

    class Unmade(errors.DspoolError):
        def __init__(self) -> None:
            pass

    assert outcome_error(Overloaded("mine")).code == REMOTE_ERROR
    assert outcome_error(Unmade()).code == REMOTE_ERROR
