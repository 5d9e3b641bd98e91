"""The attempt that runs, as the client in its program sees it (see `bridge.nesting`)."""

from __future__ import annotations

from bridge import nesting
from bridge.nesting import Parent
from bridge.worker.batching import BatchCall
from bridge.worker.call import current_call


def current_parent() -> Parent | None:
    """Return the attempt that the calling thread or task works for, None on a thread that has none.

    Raises BridgeError(INVALID_REQUEST) in a batch, which works for many.
    """
    call = current_call.get()
    if call is None:
        return None
    if isinstance(call, BatchCall):
        call.refuse()
    return Parent(
        request_id=call.request_id, endpoint=nesting.endpoint(), principal=call.principal, deadline=call.deadline,
        paused=call.paused, apaused=call.apaused, on_stop=call.on_stop, check=call.check,
        runs=call.runs,
    )  # fmt: skip
