"""Running one attempt: bytes in, user code, bytes out. Whatever user code raises becomes an error that travels."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterable
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from bridge.protocol.codec import pack_outcomes
from bridge.protocol.errors import (
    DEADLINE_EXCEEDED,
    INTERNAL,
    REMOTE_ERROR,
    BridgeError,
    encode_error,
)
from bridge.protocol.messages import ERROR, OK, ROWS, Reply, Request
from bridge.protocol.values import decode_value, encode_value, read_plain_rows, split_values
from bridge.protocol.worker_spec import WorkerSpec
from bridge.worker.call import Call, CallStopped
from bridge.worker.slots import StartedSlots

if TYPE_CHECKING:
    from bridge.worker.operations import Operation, Operations

Outcome = tuple[int, bytes]

# A shorter key could be any word of a message.
_SECRET_CHARS: Final = 8
_REDACTED: Final = "[redacted]"
_OWN_FOLDER: Final = os.path.dirname(os.path.abspath(__file__)) + os.sep


class Runner:
    """Runs attempts against the operations, within the limits of the spec. Thread-safe."""

    def __init__(self, operations: Operations, spec: WorkerSpec, slots: StartedSlots) -> None:
        self.inline = operations.inline
        self._find = operations.find
        self._unknown = operations.unknown
        self._nesting = spec.nesting
        self._message_bytes = spec.message_bytes
        self._mark = slots.mark
        keys = {str(lm.get("api_key") or "") for lm in spec.lms.values()}
        self._secrets = tuple(key for key in keys if len(key) >= _SECRET_CHARS)

    def run(self, request: Request, call: Call) -> Reply:
        """Run the attempt to its end and return its reply. Raises nothing that user code raised."""
        self._mark(request.epoch)
        started = perf_counter()
        payload = request.payload or b""
        operation = self._find(request.operation)
        if request.rows > 1:
            status, payload = self._run_rows(operation, payload, request.rows, call)
        else:
            status, payload = self._run_payload(operation, payload, call, self._message_bytes)
        return Reply(
            request_id=request.request_id,
            payload=payload,
            status=status,
            epoch=request.epoch,
            run_ms=(perf_counter() - started) * 1e3,
            lm_calls=call.lm_calls,
            tokens=call.tokens,
            cost_usd=call.cost_usd,
            cached=call.cached,
        )

    def _run_rows(self, operation: Operation | None, payload: bytes, count: int, call: Call) -> Outcome:
        """Run every row; a row's error is its own. Rows after a cancellation or the deadline get that error."""
        rows = read_plain_rows(payload, count)
        run: Callable[[Operation | None, Any, Call, int], Outcome] = self._run_value
        if rows is None:
            run = self._run_payload
            try:
                rows = split_values(payload, count)
            except BridgeError as error:
                return ERROR, encode_error(error)
        outcomes: list[Outcome] = []
        left_bytes = self._message_bytes
        for row in rows:
            try:
                call.check()
            except CallStopped as stop:
                outcome = ERROR, encode_error(stop.error)
            else:
                # What the rows return travels in one message.
                outcome = run(operation, row, call, left_bytes if left_bytes > 0 else 0)
            left_bytes -= len(outcome[1])
            outcomes.append(outcome)
        return ROWS, pack_outcomes(outcomes)

    def _run_payload(self, operation: Operation | None, payload: bytes, call: Call, max_bytes: int) -> Outcome:
        try:
            value = decode_value(payload, nesting=self._nesting)
        except BridgeError as error:
            return ERROR, encode_error(error)
        return self._run_value(operation, value, call, max_bytes)

    def _run_value(self, operation: Operation | None, value: Any, call: Call, max_bytes: int) -> Outcome:
        try:
            if operation is None:
                raise self._unknown(call.operation)
            result = operation(value, call)
            try:
                return OK, encode_value(result, nesting=self._nesting, max_bytes=max_bytes)
            except BridgeError as error:
                message = f"the result of {call.operation} cannot be returned: {error.message}"
                raise BridgeError(error.code, message, details=error.details) from None
        except CallStopped as stop:
            return ERROR, encode_error(stop.error)
        except BridgeError as error:
            return ERROR, encode_error(redacted(error, self._secrets))
        except BaseException as exc:  # noqa: BLE001 - sys.exit() in a program ends the call, never the process
            return ERROR, encode_error(redacted(remote_error(exc), self._secrets))


# --- replies to attempts that do not run ----------------------------------------------------------


def refuse(request: Request, error: BridgeError) -> Reply:
    """Return the reply to an attempt that ends without running."""
    return Reply(request_id=request.request_id, payload=encode_error(error), status=ERROR, epoch=request.epoch)


def expired(request: Request) -> Reply:
    """Return the reply to an attempt whose deadline passed before it started."""
    text = f"the deadline of {request.operation} passed before a worker could start it"
    return refuse(request, BridgeError(DEADLINE_EXCEEDED, text, details={"stage": "queued"}))


# --- errors of user code --------------------------------------------------------------------------


def remote_error(exc: BaseException) -> BridgeError:
    """Return the error that tells the caller what user code raised; a BridgeError keeps its code.

    details: `type` (`ValueError`, `mypkg.errors.Odd`) and `remote_traceback`, without the worker's own frames.
    """
    details = {"type": _type_name(exc), "remote_traceback": _traceback_text(exc)}
    if isinstance(exc, BridgeError):
        return BridgeError(exc.code, exc.message, retryable=exc.retryable, details={**details, **exc.details})
    return BridgeError(REMOTE_ERROR, _message(exc), details=details)


def redacted(error: BridgeError, secrets: Iterable[str]) -> BridgeError:
    """Return the error without the secrets, which a program can have put into an exception of its own."""
    for secret in secrets:
        error.message = error.message.replace(secret, _REDACTED)
        for key, value in error.details.items():
            if isinstance(value, str):
                error.details[key] = value.replace(secret, _REDACTED)
    return error


def internal_error(exc: BaseException) -> BridgeError:
    """Return the error for a fault of the worker itself."""
    return BridgeError(INTERNAL, f"the worker failed: {_type_name(exc)}: {_message(exc)}")


def _type_name(exc: BaseException) -> str:
    cls = type(exc)
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"


def _message(exc: BaseException) -> str:
    try:
        return str(exc)
    except BaseException as problem:  # noqa: BLE001 - a __str__ of user code
        return f"<its __str__ raised {type(problem).__name__}>"


def _traceback_text(exc: BaseException) -> str:
    try:
        return "".join(traceback.format_exception(type(exc), exc, _user_frames(exc.__traceback__)))
    except BaseException as problem:  # noqa: BLE001 - out of memory, or hooks of user code
        return f"<no traceback: {type(problem).__name__}>"


def _user_frames(frames: TracebackType | None) -> TracebackType | None:
    """Return the traceback from the first frame that is not the worker's; all of it if there is none."""
    frame = frames
    while frame is not None and frame.tb_frame.f_code.co_filename.startswith(_OWN_FOLDER):
        frame = frame.tb_next
    return frame if frame is not None else frames
