"""Tracebacks for callers: they begin where user code begins."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import pytest

from bridge.protocol.errors import BridgeError
from bridge.worker import arguments, imports
from bridge.worker.raised import remote_error


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
