from __future__ import annotations

import json

import pytest
import typer

from orchestrator import errors
from orchestrator.cli.failure import Exit, Held, NoCoordinator, command, exit_code


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.RemoteError("boom", type="ValueError"), Exit.FAILED),
        (errors.WorkerLost("gone"), Exit.FAILED),
        (errors.Cancelled("x"), Exit.FAILED),
        (errors.LMError("x"), Exit.FAILED),
        (errors.Unavailable("a pool cannot boot"), Exit.FAILED),
        (errors.DspoolError("x"), Exit.FAILED),
        (errors.InvalidRequest("x"), Exit.USAGE),
        (errors.ConfigError("x"), Exit.USAGE),
        (errors.NotFound("x"), Exit.USAGE),
        (errors.SignatureError("x"), Exit.USAGE),
        (errors.TooLarge("x"), Exit.USAGE),
        (Held("data_dir"), Exit.USAGE),
        (NoCoordinator("x"), Exit.NO_COORDINATOR),
        (errors.Overloaded("x"), Exit.TIMED_OUT),
        (errors.CircuitOpen("x"), Exit.TIMED_OUT),
        (errors.PoisonRequest("x"), Exit.FAILED),
        (errors.DeadlineExceeded("x"), Exit.TIMED_OUT),
        (TimeoutError("x"), Exit.TIMED_OUT),
        (KeyboardInterrupt(), Exit.INTERRUPTED),
    ],
)
def test_every_kind_of_failure_has_its_exit_code(error: BaseException, code: Exit) -> None:
    assert exit_code(error) is code

    @command
    def fails() -> None:
        raise error

    with pytest.raises(typer.Exit) as left:
        fails()
    assert left.value.exit_code == code


def test_what_is_no_failure_of_ours_is_not_hidden() -> None:
    @command
    def broken() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        broken()


def test_an_error_reads_like_advice_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    @command
    def fails() -> None:
        raise NoCoordinator("no coordinator is running: start one with `dspool up -d`")

    with pytest.raises(typer.Exit):
        fails()
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err == "error: no coordinator is running: start one with `dspool up -d`\n"


def test_a_remote_error_shows_the_remote_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    @command
    def fails() -> None:
        raise errors.RemoteError("bad [red]value", type="ValueError", remote_traceback="Traceback …\n  line 1\n")

    with pytest.raises(typer.Exit):
        fails()
    assert capsys.readouterr().err == "Traceback …\n  line 1\n\nerror: ValueError: bad [red]value\n"


def test_an_error_with_json_is_one_document(capsys: pytest.CaptureFixture[str]) -> None:
    @command
    def fails(as_json: bool) -> None:
        raise errors.NotFound("unknown pool", suggestions=["general"])

    with pytest.raises(typer.Exit):
        fails(as_json=True)
    told = capsys.readouterr()
    assert told.err == ""
    assert json.loads(told.out) == {
        "error": {
            "code": "NOT_FOUND",
            "message": "unknown pool",
            "retryable": False,
            "exit_code": 2,
            "details": {"suggestions": ["general"]},
        }
    }
