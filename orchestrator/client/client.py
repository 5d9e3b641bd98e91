"""`Client`: methods return when the answer is there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Self, TypeVar

from orchestrator.client.api import Api
from orchestrator.client.calls import Callee
from orchestrator.client.core import Connection
from orchestrator.client.future import CancelOutcome, Future
from orchestrator.client.jobs import EventLog, Job, Steps
from orchestrator.client.progress import Progress
from orchestrator.client.remote import Waiting
from orchestrator.client.request import Call, encode_args
from orchestrator.client.rows import MapPlan, RowMap
from orchestrator.errors import DspoolError

T = TypeVar("T")


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

    def _run(self, call: Call[T]) -> T:
        connection = self.connection
        future = connection.submit(self._encode(call.args), call.fields(), deadline_s=call.deadline_s, lead=True)
        try:
            connection.wait(future)
        except BaseException:
            # Interrupted (Ctrl-C): nobody will ask for the answer.
            future.cancel()
            raise
        return call.value(future)

    def _submit(self, call: Call[Any]) -> Future:
        return self.connection.submit(self._encode(call.args), call.fields(), deadline_s=call.deadline_s)

    def _start(self, call: Call[T]) -> Job[T]:
        log = EventLog()
        payload = self._encode(call.args)
        future = self.connection.submit(payload, call.fields(), deadline_s=call.deadline_s, on_event=log.add)
        return Job(future, log, call, self.connection)

    def _callee(self, plan: Callable[[dict[str, Any]], Call[T]]) -> Callee[T]:
        return Callee(lambda inputs: self._run(plan(inputs)))

    def _run_steps(self, steps: Steps) -> Any:
        value: Any = None
        while True:
            try:
                call = steps.send(value)
            except StopIteration as stop:
                return stop.value
            value = self._run(call)

    def _map(self, plan: MapPlan) -> Iterator[Any]:
        connection = self.connection

        def send(payload: bytes, rows: int, notify: Callable[[object], object]) -> Future:
            return connection.submit(payload, plan.fields, rows=rows, deadline_s=plan.deadline_s, notify=notify)

        rows = RowMap(plan, connection.max_in_flight, encode=self._encode, send=send, has_room=lambda _: True)
        return self._iterate(rows, plan)

    def _iterate(self, rows: RowMap, plan: MapPlan) -> Iterator[Any]:
        window = rows.window
        with Progress(plan.fields["operation"], plan.rows, shown=plan.progress) as progress:
            try:
                for outcomes in rows.steps():
                    if outcomes is None:
                        self.connection.wait_until(window.ready, window.waiters())
                        continue
                    for outcome in outcomes:
                        if plan.raises and isinstance(outcome, DspoolError):
                            raise outcome
                        yield outcome
                    progress.advance(len(outcomes))
            finally:
                rows.cancel()
