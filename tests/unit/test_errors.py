from __future__ import annotations

import copy
import pickle
import traceback

import pytest

import signatures.errors
from bridge.protocol import errors as codes
from bridge.protocol.errors import BridgeError, decode_error, encode_error, error_code
from orchestrator import errors

LOST = {"cause": "signal 9", "signal": 9, "executed": "no", "worker": "general-1.2"}
PROBLEMS = [{"where": "dspool.yaml:1", "path": "", "message": "x"}]
CASES = [
    (codes.INTERNAL, errors.DspoolError, {}),
    (codes.REMOTE_ERROR, errors.RemoteError, {"type": "ValueError", "remote_traceback": "Traceback …\nValueError: no"}),
    (codes.WORKER_LOST, errors.WorkerLost, LOST),
    (codes.DEADLINE_EXCEEDED, errors.DeadlineExceeded, {"stage": "queued"}),
    (codes.CANCELLED, errors.Cancelled, {}),
    (codes.OVERLOADED, errors.Overloaded, {"retry_after_s": 0.5}),
    (codes.CIRCUIT_OPEN, errors.CircuitOpen, {"retry_after_s": 9.5}),
    (codes.POISON_REQUEST, errors.PoisonRequest, {}),
    (codes.INVALID_REQUEST, errors.InvalidRequest, {"path": "inputs.docs[3]"}),
    (codes.SIGNATURE_ERROR, errors.SignatureError, {"text": "a -> b", "line": 1, "column": 3}),
    (codes.TOO_LARGE, errors.TooLarge, {}),
    (codes.NOT_FOUND, errors.NotFound, {"suggestions": ["echo"]}),
    (codes.UNAVAILABLE, errors.Unavailable, {}),
    (codes.UNAUTHENTICATED, errors.Unauthenticated, {}),
    (codes.VERSION_MISMATCH, errors.VersionMismatch, {}),
    (codes.LM_ERROR, errors.LMError, {"provider": "openai", "status": 429}),
    (codes.SANDBOX_MISSING, errors.SandboxMissing, {"sandbox": "deno", "module": "dspy.RLM"}),
    (codes.STORAGE, errors.StorageError, {"file": "/data/store.sqlite3", "reason": "full"}),
    (codes.SESSION_LOST, errors.SessionLost, {"reason": "expired", "session": "user-42"}),
    (codes.WORKER_BUSY, errors.WorkerBusy, {"worker": "general-1.2", "session": "user-42"}),
    (errors.CONFIG_ERROR, errors.ConfigError, {"path": "pools", "problems": PROBLEMS}),
]  # fmt: skip


def all_codes() -> set[str]:
    return {value for name, value in vars(codes).items() if name == value}


def test_every_code_of_the_wire_has_a_case() -> None:
    assert {code for code, _, _ in CASES} == all_codes() - {codes.SLOW_CONSUMER} | {errors.CONFIG_ERROR}


def test_a_client_that_was_too_slow_keeps_the_code_that_says_so() -> None:
    error = errors.from_bridge(BridgeError(codes.SLOW_CONSUMER, "read faster"))
    assert type(error) is errors.SlowConsumer
    assert isinstance(error, errors.Unavailable)
    assert (error.code, error.retryable) == ("SLOW_CONSUMER", False)
    assert pickle.loads(pickle.dumps(error)).code == "SLOW_CONSUMER"


@pytest.mark.parametrize(("code", "cls", "details"), CASES)
def test_an_error_that_travelled_has_its_class_and_its_details(
    code: str, cls: type[errors.DspoolError], details: dict[str, object]
) -> None:
    travelled = decode_error(encode_error(BridgeError(code, "what happened", retryable=True, details=details)))
    error = errors.from_bridge(travelled)
    assert type(error) is cls
    assert (error.code, error.message, error.retryable, error.details) == (code, "what happened", True, details)
    for name, value in details.items():
        assert getattr(error, name) == value


@pytest.mark.parametrize(("code", "cls", "details"), CASES)
@pytest.mark.parametrize("again", [lambda error: pickle.loads(pickle.dumps(error)), copy.copy], ids=["pickle", "copy"])
def test_errors_survive_pickling(code: str, cls: type[errors.DspoolError], details: dict[str, object], again) -> None:
    error = cls("what happened", **details)
    error.add_note("a note of the user's")
    other = again(error)
    assert type(other) is cls
    assert str(other) == str(error)
    assert (other.code, other.retryable, other.details) == (code, error.retryable, details)
    assert other.__notes__ == error.__notes__


def test_an_unknown_code_is_kept() -> None:
    error = errors.from_bridge(BridgeError("FROM_THE_FUTURE", "text"))
    assert type(error) is errors.DspoolError
    assert error.code == "FROM_THE_FUTURE"


@pytest.mark.parametrize(
    ("cls", "name", "default"),
    [
        (errors.WorkerLost, "executed", "maybe"),
        (errors.WorkerLost, "signal", None),
        (errors.WorkerLost, "worker", ""),
        (errors.Overloaded, "retry_after_s", None),
        (errors.CircuitOpen, "retry_after_s", None),
        (errors.DeadlineExceeded, "stage", ""),
        (errors.InvalidRequest, "path", ""),
        (errors.NotFound, "suggestions", []),
        (errors.LMError, "status", None),
        (errors.RemoteError, "type", "Exception"),
        (errors.ConfigError, "problems", []),
    ],
)
def test_attributes_have_values_without_details(cls: type[errors.DspoolError], name: str, default: object) -> None:
    assert getattr(cls("text"), name) == default


def test_a_misspelt_detail_is_refused() -> None:
    with pytest.raises(TypeError, match="WorkerLost has no detail singal"):
        errors.WorkerLost("text", singal=9)


def test_only_what_was_refused_for_now_is_retryable_by_itself() -> None:
    assert errors.Overloaded("full").retryable
    assert errors.CircuitOpen("open").retryable
    assert not errors.PoisonRequest("in quarantine").retryable
    assert not errors.Overloaded("full", retryable=False).retryable
    assert not errors.Unavailable("gone").retryable


def test_a_remote_error_shows_the_end_of_the_remote_traceback() -> None:
    remote = "\n".join(f"line {number}" for number in range(100))
    error = errors.RemoteError("no such row", type="KeyError", remote_traceback=remote)
    assert str(error) == "KeyError: no such row"
    shown = "".join(traceback.format_exception(error))
    assert "RemoteError: KeyError: no such row\nin the worker (last 30 lines):\nline 70\n" in shown
    assert shown.rstrip().endswith("line 99")
    assert error.remote_traceback == remote


def test_a_remote_error_without_text_names_its_type() -> None:
    assert str(errors.RemoteError("", type="TimeoutError")) == "TimeoutError"


def test_a_signature_error_is_both_and_shows_the_place() -> None:
    error = errors.from_bridge(
        BridgeError(codes.SIGNATURE_ERROR, "unknown type", details={"text": "a: foo -> b", "line": 1, "column": 4})
    )
    assert isinstance(error, signatures.errors.SignatureError)
    assert isinstance(error, ValueError)
    assert str(error) == "unknown type (line 1, column 4)\n  a: foo -> b\n     ^"


def test_a_signature_error_tells_every_problem() -> None:
    text = "a: foo,\nb: bar -> c"
    problems = [{"message": "no foo", "line": 1, "column": 4}, {"message": "no bar", "line": 2, "column": 4}]
    details = {"text": text, "line": 1, "column": 4, "problems": problems}
    travelled = decode_error(encode_error(BridgeError(codes.SIGNATURE_ERROR, "no foo", details=details)))
    error = errors.from_bridge(travelled)
    assert isinstance(error, errors.SignatureError)
    assert [(one.message, one.line, one.column) for one in error.problems] == [("no foo", 1, 4), ("no bar", 2, 4)]
    assert str(error) == (
        "no foo (line 1, column 4)\n  a: foo,\n     ^\nno bar (line 2, column 4)\n  b: bar -> c\n     ^"
    )
    for again in (pickle.loads(pickle.dumps(error)), copy.deepcopy(error)):
        assert (again.problems, again.details, str(again)) == (error.problems, error.details, str(error))
    engine = signatures.errors.SignatureError(error.problems, text, file="app.py:3")
    same = errors.SignatureError.of(engine)
    assert (same.problems, same.message, same.details) == (error.problems, error.message, error.details)
    assert str(same) == f"app.py:3: {error}" == str(pickle.loads(pickle.dumps(same)))


def test_config_errors_are_invalid_requests() -> None:
    assert issubclass(errors.ConfigError, errors.InvalidRequest)
    assert isinstance(errors.from_bridge(BridgeError(codes.INVALID_REQUEST, "x")), errors.InvalidRequest)
    assert type(errors.from_bridge(BridgeError(codes.INVALID_REQUEST, "x"))) is errors.InvalidRequest


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        (encode_error(BridgeError("CANCELLED", "no \udcff", details={"stage": "running"})), "CANCELLED"),
        (encode_error(BridgeError("CANCELLED", "x" * 1000, details={"y": ["x" * 1000] * 100})), "REMOTE_ERROR"),
        (b"", "INTERNAL"),
        (b"\x90", "INTERNAL"),
        (b"\x91\x05", "INTERNAL"),
        (b"\x94\xa2ok", "INTERNAL"),
        (b"\xc1", "INTERNAL"),
        (b"\x91" * 60_000, "INTERNAL"),
    ],
)
def test_the_code_of_an_error_is_read_without_the_rest(payload: bytes, code: str) -> None:
    assert error_code(payload) == code
