"""Requests that fail, told one by one while they are few; of many some are told, the others are counted.

All read the event log: what the error says is its caller's alone, for it may hold what was asked.
"""

from __future__ import annotations

from bridge.protocol.errors import decode_error
from bridge.protocol.messages import Reply
from pools.core.entries import NOT_ASKED, RequestEntry
from pools.core.events import Log
from pools.core.tables import Tables


def failed(tables: Tables, entry: RequestEntry, reply: Reply, total_ms: float, now: float) -> None:
    """Tell of a request that settles with an error. One that was cancelled, or is the coordinator's own, is none."""
    if entry.cancel != NOT_ASKED or not entry.client.client_no or not tables.failures.take(now):
        return
    payload, change = reply.payload or b"", reply.session
    if change is not None and change.tail and change.tail < len(payload):
        payload = payload[: -change.tail]
    error = decode_error(payload)
    fields: dict[str, object] = {
        "request_id": entry.request_id,
        "operation": entry.message.operation,
        "pool": entry.pool.name,
        "principal": entry.client.principal,
        "code": error.code,
        "type": error.details.get("type"),
        "worker": entry.worker.worker_id if entry.worker is not None else None,
        "attempt": entry.attempts,
        "total_ms": round(total_ms, 1),
    }
    if others := tables.failures.untold():
        fields["others"] = others
    tables.effects.append(Log("request_failed", fields, "warning", quiet=True))
