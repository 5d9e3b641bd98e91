"""Running one attempt: bytes in, user code, bytes out. Whatever user code raises becomes an error that travels."""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final, cast

from bridge.protocol.codec import pack_outcomes
from bridge.protocol.errors import DEADLINE_EXCEEDED, BridgeError, encode_error
from bridge.protocol.messages import ERROR, NOT_RUN, OK, ROWS, Reply, Request
from bridge.protocol.names import bare
from bridge.protocol.values import decode_value, encode_value, read_plain_rows, split_values
from bridge.protocol.worker_spec import WorkerSpec
from bridge.worker.call import Call, CallStopped, InlineCall
from bridge.worker.raised import outcome_error, redacted
from bridge.worker.sessions import Sessions
from bridge.worker.slots import StartedSlots
from bridge.worker.spec_secrets import secrets_of

if TYPE_CHECKING:
    from bridge.worker.batch_members import Claimed
    from bridge.worker.operations import Asynchronous, Operation, Operations

Outcome = tuple[int, bytes]

# What an outcome of a row takes in a reply besides its payload, at most.
_OUTCOME_BYTES: Final = 7
# A row is not begun while less than this part of a reply is free, unless it is the first.
_FREE_PART: Final = 4


class Runs(functools.partial[Reply]):
    """What runs an attempt to its end on the thread that calls it. May take long, or wait."""


class RunsAtOnce(Runs):
    """The same for one that only computes and never waits. Not to be called while another one is.

    Python runs one thread at a time: more that want to would hold up each other, and the io thread.
    """


class Runner:
    """Runs attempts against the operations, within the limits of the spec. Thread-safe."""

    def __init__(self, operations: Operations, spec: WorkerSpec, slots: StartedSlots) -> None:
        self.inline = operations.inline
        self._find = operations.find
        self._unknown = operations.unknown
        self._nesting = spec.nesting
        self.message_bytes = spec.message_bytes
        self.mark = slots.mark
        self._secrets = secrets_of(spec)
        self.batched = operations.batched
        self.sessions = Sessions(spec)

    def run(self, request: Request, call: Call) -> Reply:
        """Run the attempt to its end and return its reply. Raises nothing that user code raised."""
        self.mark(request.epoch)
        started = perf_counter()
        payload = request.payload or b""
        operation = self._find(request.operation)
        if request.rows > 1:
            status, payload = self._run_rows(operation, payload, request.rows, call)
        else:
            status, payload = self._run_payload(operation, payload, call, self.message_bytes)
        return _reply(request, call, started, status, payload)

    def enter(self, attempt: Claimed) -> Reply | None:
        """Begin a claimed attempt in its session; return the reply to one that cannot."""
        try:
            attempt.request = self.sessions.enter(attempt.request, attempt.call)
        except BridgeError as error:
            return refuse(attempt.request, error)
        return None

    def run_in_session(self, request: Request) -> Reply:
        """Run an attempt of an inline operation in its session, like `run`."""
        call = InlineCall(request.request_id, request.epoch, request.operation)
        try:
            request = self.sessions.enter(request, call)
        except BridgeError as error:
            return refuse(request, error)
        assert call.visit is not None
        return self.sessions.answered(call.visit, self.run(request, call))

    def value_of(self, payload: bytes) -> Any:
        """Return an argument value. Raises BridgeError."""
        return decode_value(payload, nesting=self._nesting)

    def outcome_of(self, make: Callable[[], Any], call: Call) -> Outcome:
        """Return what `make` returns or raises, as it travels."""
        try:
            return OK, self._encoded(make(), call, self.message_bytes)
        except BaseException as exc:  # noqa: BLE001 - as in `run`
            return self.failure(exc, call)

    def failure(self, exc: BaseException, call: Call) -> Outcome:
        """Return an exception as it travels."""
        return ERROR, self._told(exc, call)

    def begin(self, request: Request, call: Call) -> Runs | Coroutine[Any, Any, Reply]:
        """Return what runs the attempt like `run`: on a thread, or on an event loop, where it belongs."""
        operation = self._find(request.operation)
        if getattr(operation, "is_async", None) is None:
            return Runs(self.run, request, call)
        operation = cast("Asynchronous", operation)
        self.mark(request.epoch)  # to be asked where it runs, an operation may import code of users
        payload = request.payload or b""
        try:
            rows = [payload] if request.rows <= 1 else split_values(payload, request.rows)
            first = decode_value(rows[0], nesting=self._nesting)
        except BridgeError:
            return Runs(self.run, request, call)  # which tells what is wrong
        kind = Runs
        if call.streams or operation.is_async(first):
            if call.streams or not operation.at_once(first, call):
                return self._arun(operation, request, rows, call)
            kind = RunsAtOnce
        if request.rows > 1:
            return kind(self.run, request, call)
        return kind(self._run_first, request, operation, first, call)

    def _run_first(self, request: Request, operation: Operation, value: Any, call: Call) -> Reply:
        """Run an attempt of one row, decoded."""
        started = perf_counter()
        return _reply(request, call, started, *self._run_value(operation, value, call, self.message_bytes))

    async def _arun(self, operation: Asynchronous, request: Request, rows: list[Any], call: Call) -> Reply:
        started = perf_counter()
        if request.rows > 1:
            outcome = await self._arun_rows(operation, rows, call)
        else:
            outcome = await self._arun_payload(operation, rows[0], call, self.message_bytes)
        return _reply(request, call, started, *outcome)

    async def _arun_rows(self, operation: Asynchronous, rows: list[Any], call: Call) -> Outcome:
        """Run every row, one after the other, by the rules of `_run_rows`."""
        outcomes: list[Outcome] = []
        left_bytes = self.message_bytes - _OUTCOME_BYTES * len(rows)
        needed_bytes = self.message_bytes // _FREE_PART
        for number, row in enumerate(rows):
            if left_bytes < needed_bytes and outcomes:
                outcomes += [(NOT_RUN, b"")] * (len(rows) - len(outcomes))
                break
            try:
                call.rows_done = number
                call.step()
            except CallStopped as stop:
                outcome = ERROR, encode_error(stop.error)
            else:
                outcome = await self._arun_payload(operation, row, call, max(left_bytes, 0))
            left_bytes -= len(outcome[1])
            needed_bytes = max(needed_bytes, len(outcome[1]))
            outcomes.append(outcome)
        return ROWS, pack_outcomes(outcomes)

    async def _arun_payload(self, operation: Asynchronous, payload: Any, call: Call, max_bytes: int) -> Outcome:
        try:
            value = decode_value(payload, nesting=self._nesting)
        except BridgeError as error:
            return ERROR, encode_error(error)
        try:
            return OK, self._encoded(await operation.run_async(value, call), call, max_bytes)
        except BaseException as exc:  # noqa: BLE001 - as below
            return ERROR, self._told(exc, call)

    def _run_rows(self, operation: Operation | None, payload: bytes, count: int, call: Call) -> Outcome:
        """Run every row; a row's error is its own. Rows after a cancellation or the deadline get that error.

        What the rows return travels in one message: those for which it has no room any more are NOT_RUN.
        """
        rows = read_plain_rows(payload, count)
        run: Callable[[Operation | None, Any, Call, int], Outcome] = self._run_value
        if rows is None:
            run = self._run_payload
            try:
                rows = split_values(payload, count)
            except BridgeError as error:
                return ERROR, encode_error(error)
        outcomes: list[Outcome] = []
        left_bytes = self.message_bytes - _OUTCOME_BYTES * count
        needed_bytes = self.message_bytes // _FREE_PART
        for number, row in enumerate(rows):
            if left_bytes < needed_bytes and outcomes:
                outcomes += [(NOT_RUN, b"")] * (count - len(outcomes))
                break
            try:
                call.rows_done = number
                call.step()
            except CallStopped as stop:
                outcome = ERROR, encode_error(stop.error)
            else:
                outcome = run(operation, row, call, left_bytes if left_bytes > 0 else 0)
            size = len(outcome[1])
            left_bytes -= size
            if size > needed_bytes:
                needed_bytes = size
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
            return OK, self._encoded(operation(value, call), call, max_bytes)
        except BaseException as exc:  # noqa: BLE001 - sys.exit() in a program ends the call, never the process
            return ERROR, self._told(exc, call)

    def _encoded(self, result: Any, call: Call, max_bytes: int) -> bytes:
        try:
            return encode_value(result, nesting=self._nesting, max_bytes=max_bytes)
        except BridgeError as error:
            message = f"the result of {call.operation} cannot be returned: {error.message}"
            raise BridgeError(error.code, message, details=error.details) from None

    def _told(self, exc: BaseException, call: Call) -> bytes:
        """Return what is told of an exception that ended a row."""
        if not isinstance(exc, Exception):
            try:
                if not isinstance(exc, CallStopped):
                    call.check()  # a cancelled task, or a group of them: the call's own end
            except CallStopped as stop:
                exc = stop
            if isinstance(exc, CallStopped):
                return encode_error(exc.error)
        return encode_error(redacted(outcome_error(exc), self._secrets))


def _reply(request: Request, call: Call, started: float, status: int, payload: bytes) -> Reply:
    """Return the reply to an attempt that has run. started: by `perf_counter`."""
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


# --- replies to attempts that do not run ----------------------------------------------------------


def refuse(request: Request, error: BridgeError) -> Reply:
    """Return the reply to an attempt that ends without running."""
    return Reply(request_id=request.request_id, payload=encode_error(error), status=ERROR, epoch=request.epoch)


def expired(request: Request) -> Reply:
    """Return the reply to an attempt whose deadline passed before it started."""
    text = f"the deadline of {bare(request.operation)} passed before a worker could start it"
    return refuse(request, BridgeError(DEADLINE_EXCEEDED, text, details={"stage": "queued"}))
