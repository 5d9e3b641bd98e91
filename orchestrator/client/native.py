"""Operations that need no worker: they run in the client's process, without a round trip.

With a `pool` they go to a worker, as others do, and answer the same. What differs: a native call takes values that
could not travel, and neither a deadline nor a language model has an effect on it.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Generator
from typing import TYPE_CHECKING, Any, Final

from bridge.protocol.errors import BridgeError, decode_error, encode_error
from bridge.protocol.values import Meta
from orchestrator.client.future import Future
from orchestrator.client.progress import Progress
from orchestrator.client.rows import MapPlan
from orchestrator.client.signature_text import takes_signature, with_text
from orchestrator.errors import DspoolError, RemoteError, SignatureError, from_bridge

if TYPE_CHECKING:
    from orchestrator.client.core import Connection

# How their names begin: other operations are told apart from them by this alone, without loading them.
FIRST: Final = ("template", "validate", "metrics.", "validators.")


def is_native(operation: str) -> bool:
    """Return whether an operation can run here."""
    return operation.startswith(FIRST) and operation in _names()


@functools.cache
def _names() -> frozenset[str]:
    from signatures.native.operations import names

    return frozenset(names())


class NativeFuture(Future):
    """The outcome of an operation that was run here: settled from the start."""

    def __init__(self, connection: Connection, request_id: int, outcome: Any, run_ms: float) -> None:
        super().__init__(connection, 1, None)
        self.request_id = request_id
        self._run_ms = run_ms
        self._loaded = True
        if isinstance(outcome, DspoolError):
            self.settle(None, outcome)
        else:
            self._result = outcome
            self.settle(None)

    @property
    def meta(self) -> Meta:
        """How it was executed: `executed_on` is "native", no worker and no pool is named."""
        return Meta(
            request_id=self.request_id, worker="", pool="", attempt=1, queue_ms=0.0, run_ms=self._run_ms,
            total_ms=self._run_ms, lm_calls=0, tokens=0, cost_usd=None, cached=False, executed_on="native",
        )  # fmt: skip


def run(connection: Connection, operation: str, args: Any) -> NativeFuture:
    """Run an operation and return its settled future. Raises what sending would: the client is closed."""
    request_id = connection.take_id()
    began = time.perf_counter()
    outcome = _outcome(operation, args)
    return NativeFuture(connection, request_id, outcome, (time.perf_counter() - began) * 1000.0)


def run_rows(connection: Connection, plan: MapPlan) -> Generator[Any, None, None]:
    """Run an operation on each row as its value is asked for. Raises what `run` does."""
    operation = plan.fields["operation"]
    ready = with_text if takes_signature(operation) else None
    with Progress(operation, plan.rows, shown=plan.progress) as progress:
        for row in plan.rows:
            connection.take_id()
            try:
                outcome = _outcome(operation, row if ready is None else ready(row))
            except SignatureError as exc:
                outcome = exc
            if plan.raises and isinstance(outcome, DspoolError):
                raise outcome
            yield outcome
            progress.advance(1)


def _type_name(exc: Exception) -> str:
    cls = type(exc)
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"


def _said(exc: Exception) -> str:
    try:
        return str(exc)
    except Exception as problem:  # noqa: BLE001 - as that of values, the code of errors can raise anything
        return f"<its __str__ raised {type(problem).__name__}>"


def _outcome(operation: str, args: Any) -> Any:
    """Return an operation's value, or the error that it ended with."""
    from bridge import native

    try:
        return native.run(operation, args)
    except BridgeError as exc:
        # As it would have travelled: details as plain data, long texts cut.
        return from_bridge(decode_error(encode_error(exc)))
    except Exception as exc:  # noqa: BLE001 - the code of a given value, such as its __str__, can raise anything
        error = RemoteError(_said(exc), type=_type_name(exc))
        error.__cause__ = exc
        return error
