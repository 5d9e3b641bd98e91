"""Nested requests: what a program asks for while it runs belongs to it, and ends with it.

A nested request names its parent, and comes from the worker that runs the parent, or from its caller while the parent
waits for a tool of that. It has the parent's principal, no more time than the parent has left, and goes before what no
program asked for: a full pool works on what is under way before it begins more (see `queueing`, and `dispatch.choose`
for how much it begins meanwhile). What becomes of children whose parent has ended is `cancellation.end_orphans`.
"""

from __future__ import annotations

from typing import Final

from msgspec.structs import replace

from bridge.protocol.errors import CANCELLED, INVALID_REQUEST, BridgeError
from bridge.protocol.messages import PRIORITY_HIGH, Request
from pools.core.entries import NOT_ASKED, ClientEntry, PoolEntry, RequestEntry, WorkerEntry
from pools.core.states import RUNNING, SETTLED
from pools.core.tables import Tables

MAX_DEPTH: Final = 8
# So many nested rows, or as many as its queue takes if that is more, may wait in a pool beyond its queue.
_RESERVE_ROWS: Final = 1024


def parent_of(tables: Tables, client: ClientEntry, message: Request, now: float) -> RequestEntry | BridgeError:
    """Return the request that a nested one belongs to, or why it is refused.

    INVALID_REQUEST: the parent does not run in the client's worker, or as its principal. CANCELLED: it has ended, or
    is about to.
    """
    parent = _find(tables, client, message.parent_request_id)
    if parent is None:
        return _ended("has ended")
    worker = parent.worker
    if worker is None or not (_runs_in(client, worker) or _has_called(tables, parent, client)):
        return _invalid(f"request {parent.request_id} does not run in this process, nor has it called a tool there")
    if not _runs(parent, worker):
        return _invalid(f"request {parent.request_id} does not run")
    if parent.client.principal != client.principal:
        return _invalid(f"request {parent.request_id} runs for {parent.client.principal!r}, not {client.principal!r}")
    if parent.state == SETTLED:
        if not _goes_on(parent):
            return _ended("has ended")
    elif parent.cancel != NOT_ASKED:
        return _ended("was cancelled")
    elif parent.deadline is not None and parent.deadline <= now:
        return _ended("is out of time")
    return parent


def nested(parent: RequestEntry, message: Request, now: float) -> Request:
    """Return a nested request as it is admitted: one deeper than its parent, of the highest class, with no more time.

    A deadline that is none (NaN, negative) stays so.
    """
    deadline_ms = message.deadline_ms
    if parent.deadline is not None and parent.state != SETTLED:
        left_ms = (parent.deadline - now) * 1000.0
        deadline_ms = left_ms if deadline_ms is None else min(deadline_ms, left_ms)
    return replace(message, depth=parent.message.depth + 1, priority=PRIORITY_HIGH, deadline_ms=deadline_ms)


def adopt(tables: Tables, parent: RequestEntry, child: RequestEntry) -> None:
    """Enter an accepted request as a child."""
    parent.tied = child.tied = True
    tables.children.setdefault(parent.request_id, {})[child.request_id] = child


def settled(tables: Tables, entry: RequestEntry) -> None:
    """A tied request is settled: it is nobody's child any more, and its own are orphans if its attempt is not needed.

    Where the attempt goes on for others with the idempotency key, they still work for it.
    """
    siblings = tables.children.get(entry.message.parent_request_id)
    if siblings is not None and siblings.pop(entry.request_id, None) is not None and not siblings:
        del tables.children[entry.message.parent_request_id]
    if not _goes_on(entry):
        orphan(tables, entry)


def orphan(tables: Tables, entry: RequestEntry) -> None:
    """Have the children of a request end, after what is under way now."""
    if entry.request_id in tables.children:
        tables.orphans.append(entry.request_id)


def attempt_ended(tables: Tables, worker: WorkerEntry, entry: RequestEntry) -> int:
    """Take note that a tied request has no attempt any more; return the rows of its worker's slots that it held."""
    orphan(tables, entry)
    tables.tool_calls.pop(entry.epoch, None)
    if not entry.paused:
        return entry.rows
    entry.paused = False
    worker.paused -= 1
    worker.pool.lent -= entry.rows
    return 0


def reserve(pool: PoolEntry, message: Request) -> int:
    """Return how many rows may wait in a pool beyond its queue for a request: some for a nested one, else 0.

    Its parent is accepted already: to refuse it for what waits would be to fail what has run half of its way.
    """
    return max(_RESERVE_ROWS, pool.config.max_queue) if message.depth else 0


def waits_for_itself(tables: Tables, runner: RequestEntry, message: Request) -> bool:
    """Return whether a nested request that waited for `runner` would wait for what it is nested in, directly or not."""
    ancestors: set[int] = set()
    parent_id = message.parent_request_id
    while parent_id:
        ancestors.add(parent_id)
        parent = tables.requests.get(parent_id)
        parent_id = parent.message.parent_request_id if parent is not None else 0
    seen: set[int] = set()
    found = [runner]
    while found:
        entry = found.pop()
        if entry.request_id in ancestors:
            return True
        if entry.request_id not in seen:
            seen.add(entry.request_id)
            children = tables.children.get(entry.request_id, {}).values()
            found.extend(child.keyed.runner if child.keyed is not None else child for child in children)
            if entry.session is not None and entry.session.holder is not None:
                found.append(entry.session.holder)  # itself, or who has the turn that it waits for
    return False


def _find(tables: Tables, client: ClientEntry, request_id: int) -> RequestEntry | None:
    """Return the request, also one whose attempt alone goes on."""
    entry = tables.requests.get(request_id)
    if entry is not None:
        return entry
    worker = tables.workers.get(client.worker_id)
    attempts = worker.attempts.values() if worker is not None else ()
    return next((entry for entry in attempts if entry.request_id == request_id), None)


def _runs_in(client: ClientEntry, worker: WorkerEntry) -> bool:
    return worker.worker_id == client.worker_id and bool(client.worker_id)


def _has_called(tables: Tables, entry: RequestEntry, client: ClientEntry) -> bool:
    """Return whether a request waits for a tool of this client, whose it is."""
    return entry.client is client and bool(tables.tool_calls.get(entry.epoch))


def _runs(entry: RequestEntry, worker: WorkerEntry) -> bool:
    return worker.attempts.get(entry.epoch) is entry and (entry.state == RUNNING or worker.started(entry.epoch))


def _goes_on(entry: RequestEntry) -> bool:
    """Return whether a settled request's attempt goes on for others."""
    return entry.keyed is not None and entry.keyed.goes_on(entry)


def _ended(text: str) -> BridgeError:
    return BridgeError(CANCELLED, f"the program that asked for this {text}")


def _invalid(text: str) -> BridgeError:
    text = f"parent_request_id: {text}; nested calls come from the program that they belong to"
    return BridgeError(INVALID_REQUEST, text, details={"path": "parent_request_id"})
