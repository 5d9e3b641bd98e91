"""Between a program and its caller while it runs: calls of the caller's own tools, and the credit of a stream.

Both go by the attempt: what is said of one that has ended is dropped. Where a caller is gone and its program goes on,
for others with its idempotency key, nobody answers and nobody reads: the program is told so at once.
"""

from __future__ import annotations

from typing import Final

from msgspec.structs import replace

from bridge.protocol.errors import CANCELLED, BridgeError, encode_error
from bridge.protocol.messages import ERROR, UNREAD_EVENTS, Credit, ToolCall, ToolReply
from pools.core.entries import RequestEntry, WorkerEntry
from pools.core.states import SETTLED
from pools.core.tables import Tables

_NOBODY: Final = encode_error(BridgeError(CANCELLED, "the caller that has the tool is gone"))


def on_tool_call(tables: Tables, message: ToolCall, now: float, peer: bytes) -> None:
    """A program calls a tool of its caller's. A call by an attempt that is not outstanding, or unwanted, is fenced."""
    worker = tables.workers_by_peer.get(peer)
    entry = worker.attempts.get(message.epoch) if worker is not None else None
    if worker is None or entry is None or entry.request_id != message.request_id:
        tables.fenced += 1
        return
    if entry.state == SETTLED:
        if entry.keyed is not None and entry.keyed.followers:
            _refuse(tables, worker, entry, message.number)
        else:
            tables.fenced += 1  # it was told to stop
        return
    client = entry.client
    if not client.client_no:
        _refuse(tables, worker, entry, message.number)  # the coordinator asked for it, and has no tools
        return
    if client.peer not in tables.clients:
        tables.fenced += 1  # it has left, and all that it had was cancelled
        return
    entry.tied = True
    tables.tool_calls.setdefault(message.epoch, set()).add(message.number)
    tables.to_clients.append((client.peer, message))


def on_tool_reply(tables: Tables, message: ToolReply, now: float, peer: bytes) -> None:
    """A client answers a call of its tool: passed on to the attempt that asked, if that is still out."""
    found = _attempt(tables, message.request_id, message.epoch, peer)
    if found is not None:
        entry, worker = found
        out = tables.tool_calls.get(entry.epoch, set())
        out.discard(message.number)
        if not out:
            tables.tool_calls.pop(entry.epoch, None)
        tables.to_workers.append((worker.peer, message))


def on_credit(tables: Tables, message: Credit, now: float, peer: bytes) -> None:
    """A client has taken events. epoch: 0 = of whatever attempt is out."""
    found = _attempt(tables, message.request_id, message.epoch, peer)
    if found is not None and message.events > 0:
        entry, worker = found
        tables.to_workers.append((worker.peer, replace(message, epoch=entry.epoch)))


def go_on_alone(tables: Tables, entry: RequestEntry) -> None:
    """A request is settled whose attempt goes on for others: nobody is there for its tools and its events."""
    worker = entry.worker
    if worker is None:
        return
    for number in sorted(tables.tool_calls.pop(entry.epoch, ())):
        _refuse(tables, worker, entry, number)
    if entry.message.event_window:
        credit = Credit(request_id=entry.request_id, epoch=entry.epoch, events=UNREAD_EVENTS)
        tables.to_workers.append((worker.peer, credit))


def _attempt(tables: Tables, request_id: int, epoch: int, peer: bytes) -> tuple[RequestEntry, WorkerEntry] | None:
    """Return a client's own request and who has the attempt in question; None if there is no such."""
    entry = tables.requests.get(request_id)
    if entry is None or entry.client.peer != peer or peer not in tables.clients or entry.worker is None:
        return None
    return (entry, entry.worker) if epoch == entry.epoch or epoch == 0 else None


def _refuse(tables: Tables, worker: WorkerEntry, entry: RequestEntry, number: int) -> None:
    epoch = entry.epoch
    reply = ToolReply(request_id=entry.request_id, status=ERROR, epoch=epoch, number=number, payload=_NOBODY)
    tables.to_workers.append((worker.peer, reply))
