"""Running one attempt: bytes in, user code, bytes out. Whatever user code raises becomes an error that travels."""

from __future__ import annotations

import os
import time
import traceback
from types import TracebackType
from typing import TYPE_CHECKING, Final

from bridge.protocol.codec import pack_outcomes
from bridge.protocol.errors import (
    DEADLINE_EXCEEDED,
    INTERNAL,
    REMOTE_ERROR,
    BridgeError,
    encode_error,
)
from bridge.protocol.messages import ERROR, OK, ROWS, Reply, Request
from bridge.protocol.values import decode_value, encode_value, split_values
from bridge.protocol.worker_spec import WorkerSpec
from bridge.worker.call import Call, CallStopped
from bridge.worker.slots import StartedSlots

if TYPE_CHECKING:
    from bridge.worker.operations import Operations

Outcome = tuple[int, bytes]

_OWN_FOLDER: Final = os.path.dirname(os.path.abspath(__file__)) + os.sep


class Runner:
    """Runs attempts against the operations, within the limits of the spec. Thread-safe."""

    def __init__(self, operations: Operations, spec: WorkerSpec, slots: StartedSlots) -> None:
        self.inline = operations.inline
        self._operations = operations
        self._nesting = spec.nesting
        self._message_bytes = spec.message_bytes
        self._mark = slots.mark

    def run(self, request: Request, call: Call) -> Reply:
        """Run the attempt to its end and return its reply. Raises nothing that user code raised."""
        self._mark(request.epoch)
        started = time.perf_counter()
        payload = request.payload or b""
        if request.rows > 1:
            status, payload = self._run_rows(request, payload, call)
        else:
            status, payload = self._run_row(request.operation, payload, call, self._message_bytes)
        return Reply(
            request_id=request.request_id,
            payload=payload,
            status=status,
            epoch=request.epoch,
            run_ms=(time.perf_counter() - started) * 1e3,
            lm_calls=call.lm_calls,
            tokens=call.tokens,
            cost_usd=call.cost_usd,
            cached=call.cached,
        )

    def _run_rows(self, request: Request, payload: bytes, call: Call) -> Outcome:
        """Run every row; a row's error is its own. Rows after a cancellation or the deadline get that error."""
        try:
            rows = split_values(payload, request.rows)
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
                outcome = self._run_row(request.operation, row, call, max(left_bytes, 0))
            left_bytes -= len(outcome[1])
            outcomes.append(outcome)
        return ROWS, pack_outcomes(outcomes)

    def _run_row(self, name: str, payload: bytes, call: Call, max_bytes: int) -> Outcome:
        try:
            operation = self._operations.find(name)
            if operation is None:
                raise self._operations.unknown(name)
            result = operation(decode_value(payload, nesting=self._nesting), call)
            try:
                return OK, encode_value(result, nesting=self._nesting, max_bytes=max_bytes)
            except BridgeError as error:
                message = f"the result of {name} cannot be returned: {error.message}"
                return ERROR, encode_error(BridgeError(error.code, message, details=error.details))
        except CallStopped as stop:
            return ERROR, encode_error(stop.error)
        except BridgeError as error:
            return ERROR, encode_error(error)
        except BaseException as exc:  # noqa: BLE001 - sys.exit() in a program ends the call, never the process
            return ERROR, encode_error(remote_error(exc))


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
