"""`Client`: methods return when the answer is there."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from types import TracebackType
from typing import Any, ClassVar, Final, Self, TypeVar

from bridge.protocol.messages import Event
from orchestrator.client import native
from orchestrator.client.api import Api
from orchestrator.client.calls import Callee
from orchestrator.client.core import Connection
from orchestrator.client.events import FleetEvent, Reading
from orchestrator.client.future import CancelOutcome, Future
from orchestrator.client.jobs import EventLog, Job, Steps
from orchestrator.client.remote import Waiting
from orchestrator.client.request import (
    ORDINARY,
    Call,
    Terms,
    Tools,
    check_request,
    encode_args,
    encode_payload,
    encode_rows,
    request_terms,
)
from orchestrator.client.rows import MAX_CHUNK_BYTES, MapPlan, RowMap
from orchestrator.client.sessions import Session, opening
from orchestrator.client.signature_text import DSPY, signing, takes_signature, with_text
from orchestrator.client.stream import WINDOW, Stream
from orchestrator.errors import DspoolError

T = TypeVar("T")

# How the names begin of operations that this side looks at: to all others that is one step.
_OURS: Final = (DSPY, *native.FIRST)


class Client(Waiting, Api):
    """A connection to a coordinator. Thread-safe; a context manager; for one process (connect() again after a fork).

    Raises Unavailable if no coordinator answers at `endpoint` within `timeout_s`.
    """

    def __init__(self, endpoint: str, *, principal: str = "default", run_id: str = "", timeout_s: float = 5.0) -> None:
        self.connection = Connection(endpoint, principal=principal, run_id=run_id, timeout_s=timeout_s)

    @property
    def endpoint(self) -> str:
        """Where the coordinator listens."""
        return self.connection.endpoint

    def cancel(self, request_id: int, force: bool = False) -> CancelOutcome:
        """Cancel a request of this client; see Future.cancel."""
        return self.connection.cancel_id(request_id, force)

    def session(
        self, id: str, *, ttl_s: float | None = None, affinity: str | None = None, on_loss: str | None = None
    ) -> Session:
        """Open the session of this name, or begin it; options that are given change it, the others are the configured.

        ttl_s: it expires when nobody has used it for so long. affinity: what a call does while the session's worker has
        no free slot: "hint" runs it elsewhere, "strict_queue" waits, "strict_fail_fast" raises WorkerBusy, also while
        another call of the session runs. on_loss: when its worker ends it is rebuilt elsewhere ("restore"), or its
        calls raise SessionLost until it is opened again ("fail"). Raises Overloaded where there are too many.
        """
        return Session(self, self._run(opening(id, ttl_s, affinity, on_loss)))

    def close(self) -> None:
        """Leave: what is queued is cancelled, what runs is asked to stop, futures end with Cancelled."""
        self.connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.endpoint}>"

    # --- what is done with plans --------------------------------------------------------------

    def _encode(self, args: Any) -> bytes:
        connection = self.connection
        return encode_args(args, connection.nesting, connection.message_bytes)

    def _encode_rows(self, rows: list[Any]) -> bytes | None:
        return encode_rows(rows, self.connection.nesting, MAX_CHUNK_BYTES)

    def _execute(self, operation: str, args: Any = None, *, pool: str | None = None, deadline_s: float | None = None,
                 lm: str | None = None, priority: str = "normal", idempotent: bool = False,
                 idempotency_key: str | None = None, session: str | None = None) -> Any:  # fmt: skip
        terms = request_terms(priority, idempotent, idempotency_key, session)
        return self._wait(self._put(operation, args, pool, deadline_s, lm, terms, lead=True)).result()

    def _submit(self, operation: str, args: Any = None, *, pool: str | None = None, deadline_s: float | None = None,
                lm: str | None = None, priority: str = "normal", idempotent: bool = False,
                idempotency_key: str | None = None, session: str | None = None) -> Future:  # fmt: skip
        terms = request_terms(priority, idempotent, idempotency_key, session)
        return self._put(operation, args, pool, deadline_s, lm, terms)

    # What has no plan: calls that can be as small as their overhead.
    without_plan: ClassVar = {"execute": _execute, "submit": _submit}

    def _put(
        self, operation: str, args: Any, pool: str | None, deadline_s: float | None, lm: str | None,
        terms: Terms = ORDINARY, *, on_event: Callable[[Event], object] | None = None, event_window: int = 0,
        tools: Tools | None = None, lead: bool = False,
    ) -> Future:  # fmt: skip
        check_request(operation, pool, deadline_s, lm)
        connection = self.connection
        if operation.startswith(_OURS):
            if takes_signature(operation):
                args = with_text(args)
            if pool is None and native.is_native(operation):
                return native.run(connection, operation, args)
        payload = encode_payload(args, connection.nesting, connection.message_bytes)
        serving = None if tools is None else tools.serve(connection)
        future = connection.submit(
            payload, connection.route(operation, pool or ""), lm=lm or "", deadline_s=deadline_s, terms=terms,
            on_event=on_event, event_window=event_window, on_tool_call=None if serving is None else serving.call,
            lead=lead,
        )  # fmt: skip
        if serving is not None:
            future.add_done_callback(serving.end)  # type: ignore[arg-type]
        return future

    def _wait(self, future: Future) -> Future:
        if future.done():  # it was run here
            return future
        try:
            self.connection.wait(future)
        except BaseException:
            # Interrupted (Ctrl-C): nobody will ask for the answer.
            future.cancel()
            raise
        return future

    def _run(self, call: Call[T]) -> T:
        future = self._put(
            call.operation, call.args, call.pool, call.deadline_s, call.lm, call.terms, tools=call.tools, lead=True
        )  # fmt: skip
        return call.value(self._wait(future))

    def _start(self, call: Call[T]) -> Job[T]:
        log = EventLog()
        on_event = log.add if call.events else None
        future = self._put(
            call.operation, call.args, call.pool, call.deadline_s, call.lm, call.terms, on_event=on_event
        )  # fmt: skip
        return Job(future, log, call, self.connection)

    def _callee(self, plan: Callable[[dict[str, Any]], Call[T]]) -> Callee[T, Stream]:
        return Callee(lambda inputs: self._run(plan(inputs)), lambda inputs: self._stream(plan(inputs)))

    def _stream(self, call: Call[Any]) -> Stream:
        return Stream(call, self.connection, lambda feed: self._put(
            call.operation, call.args, call.pool, call.deadline_s, call.lm, call.terms, on_event=feed.add,
            event_window=WINDOW, tools=call.tools,
        ))  # fmt: skip

    def _run_steps(self, steps: Steps) -> Any:
        value: Any = None
        while True:
            try:
                call = steps.send(value)
            except StopIteration as stop:
                return stop.value
            value = self._run(call)

    def _map(self, plan: MapPlan) -> Iterator[Any]:
        connection, operation = self.connection, plan.fields["operation"]
        if "pool" not in plan.fields and native.is_native(operation):
            return native.run_rows(connection, plan)
        encode, encode_rows = signing(operation, self._encode, self._encode_rows)
        route, lm = connection.route(operation, plan.fields.get("pool", "")), plan.fields.get("lm", "")

        def send(payload: bytes, rows: int, deadline_s: float | None, notify: Callable[[object], object]) -> Future:
            return connection.submit(
                payload, route, lm=lm, rows=rows, deadline_s=deadline_s, terms=plan.terms, notify=notify
            )  # fmt: skip

        rows = RowMap(
            plan, connection.max_in_flight, encode=encode, encode_rows=encode_rows, send=send,
            has_room=lambda _: True, ended=lambda: connection.ended,
        )  # fmt: skip
        return self._iterate(rows)

    def _follow(self, reading: Reading) -> Iterator[FleetEvent]:
        while not reading.over:
            try:
                found = reading.take(self._run(reading.ask()))
            except DspoolError as error:
                found = reading.failed(error, ended=self.connection.ended)
            yield from found
            if reading.pause_s:
                time.sleep(reading.pause_s)

    def _iterate(self, rows: RowMap) -> Iterator[Any]:
        window = rows.window
        with closing(rows.values()) as steps:
            for values in steps:
                if values is None:
                    self.connection.wait_until(window.ready, window.waiters(), rows.until)
                else:
                    yield from values
