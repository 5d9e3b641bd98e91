"""What is accepted, and into which queue. A refusal is typed and immediate."""

from __future__ import annotations

import math
from typing import Final

from bridge.protocol.errors import INVALID_REQUEST, OVERLOADED, BridgeError, encode_error, not_found
from bridge.protocol.messages import (
    CLIENT_SHIFT,
    ERROR,
    PRIORITY_HIGH,
    PRIORITY_LOW,
    PRIORITY_NORMAL,
    Invalid,
    Reply,
    Request,
)
from pools.core.dispatch import choose, dispatch
from pools.core.entries import ClientEntry, PoolEntry, RequestEntry
from pools.core.events import ClientConnected
from pools.core.states import READY
from pools.core.tables import Tables, unavailable

# Operations that the coordinator answers itself.
CONTROL_PREFIX: Final = "dspool."
MAX_DEPTH: Final = 8
MAX_ROWS: Final = 1024
_MAX_NAME_CHARS: Final = 200
# A deadline beyond this is a mistake, and would overflow somebody's clock.
_MAX_DEADLINE_MS: Final = 366 * 86_400_000.0


def on_connected(tables: Tables, event: ClientConnected, now: float, peer: bytes) -> None:
    """A client said Hello; a second Hello of the same peer changes nothing."""
    if peer not in tables.clients:
        first_id = event.client_no << CLIENT_SHIFT
        tables.clients[peer] = ClientEntry(peer, event.client_no, event.principal, first_id)


def on_request(tables: Tables, message: Request, now: float, peer: bytes) -> None:
    """Admit a request, or refuse it at once."""
    client = tables.clients.get(peer)
    problem = "say Hello first" if client is None else _id_problem(client, message.request_id)
    if client is None or problem:
        error = BridgeError(INVALID_REQUEST, problem, details={"path": "request_id"})
        tables.to_clients.append((peer, Invalid(request_id=message.request_id, payload=encode_error(error))))
        return
    client.last_id = message.request_id
    if message.operation.startswith(CONTROL_PREFIX):
        tables.control.append((peer, message))
        return
    pool = tables.pools.get(message.pool or _home(tables, message.operation))
    refusal = _refusal(tables, client, pool, message)
    if refusal is None and pool is not None:
        _accept(tables, client, pool, message, now)
        return
    if pool is not None:
        pool.rejected += min(max(1, message.rows), MAX_ROWS)  # what a caller claims is not a count yet
    if refusal is not None:
        reply = Reply(request_id=message.request_id, status=ERROR, payload=encode_error(refusal), pool=message.pool)
        tables.to_clients.append((peer, reply))


def _accept(tables: Tables, client: ClientEntry, pool: PoolEntry, message: Request, now: float) -> None:
    rows = message.rows
    if message.deadline_ms is not None:
        deadline: float | None = now + message.deadline_ms / 1000.0
    else:
        default_s = pool.config.default_deadline_s
        deadline = None if default_s is None else now + default_s
    entry = RequestEntry(
        message.request_id, client, message, pool, rows, pool.credits.of(message.operation), now, deadline
    )
    tables.requests[message.request_id] = entry
    if deadline is not None:
        entry.bucket = tables.deadlines.add(message.request_id, deadline)
    client.in_flight += rows
    pool.accepted += rows
    pool.queued += rows
    worker = None if pool.queue else choose(pool, entry.times)
    if worker is not None:
        dispatch(tables, entry, worker, now)
    else:
        pool.queue[message.request_id] = entry


def _id_problem(client: ClientEntry, request_id: int) -> str:
    """Ids carry their client's number and only grow: nobody names another's, nothing runs twice."""
    if request_id >> CLIENT_SHIFT != client.client_no:
        return f"request id {request_id} is not one of this client's"
    if request_id <= client.last_id:
        return f"request id {request_id} was used already"
    return ""


def _home(tables: Tables, operation: str) -> str:
    program = tables.programs.get(operation)
    return program[0] if program is not None else tables.config.home_of(operation)


def _refusal(tables: Tables, client: ClientEntry, pool: PoolEntry | None, message: Request) -> BridgeError | None:
    """Return why a request is not accepted, or None."""
    if pool is None:
        return not_found("pool", message.pool, tables.pools)
    invalid = _invalid(message)
    if invalid is not None:
        return invalid
    if message.lm and message.lm not in tables.lms:
        return not_found("language model", message.lm, tables.lms, advice="Name it under `lms:` in the configuration.")
    if tables.draining:
        return unavailable("the coordinator is shutting down")
    if client.in_flight + message.rows > tables.config.client_rows:
        limit = tables.config.client_rows
        return _overloaded(pool, f"this client already has {client.in_flight} rows in flight (limit {limit})")
    if not pool.places:
        return unavailable(f"pool {pool.name} is off (size 0); set pools.{pool.name}.size to use it")
    if pool.boot_error is not None and not any(worker.state == READY for worker in pool.workers):
        return pool.boot_error
    limit = pool.config.max_queue
    # A message larger than the queue may wait alone. Without a queue only what a worker takes at once is accepted.
    if pool.queued + message.rows > limit and (
        pool.queue or (not limit and choose(pool, pool.credits.of(message.operation)) is None)
    ):
        return _overloaded(pool, f"pool {pool.name} has {pool.queued} requests queued (limit {limit})")
    return None


def _invalid(message: Request) -> BridgeError | None:
    deadline_ms = message.deadline_ms
    if deadline_ms is not None and not (math.isfinite(deadline_ms) and 0 < deadline_ms <= _MAX_DEADLINE_MS):
        return _invalid_request("deadline_s", f"a deadline of {deadline_ms} ms; it must be above 0 and at most a year")
    if not 1 <= message.rows <= MAX_ROWS:
        return _invalid_request("rows", f"{message.rows} rows; 1 to {MAX_ROWS} are possible")
    if message.priority not in (PRIORITY_HIGH, PRIORITY_NORMAL, PRIORITY_LOW):
        return _invalid_request("priority", f"{message.priority} is no priority")
    if not 0 <= message.depth <= MAX_DEPTH:
        return _invalid_request("depth", f"calls nested {message.depth} deep; at most {MAX_DEPTH} are possible")
    if not 0 < len(message.operation) <= _MAX_NAME_CHARS:
        return _invalid_request("operation", f"an operation's name has 1 to {_MAX_NAME_CHARS} characters")
    return None


def _invalid_request(path: str, text: str) -> BridgeError:
    return BridgeError(INVALID_REQUEST, f"{path}: {text}", details={"path": path})


def _overloaded(pool: PoolEntry, text: str) -> BridgeError:
    """Refuse, with the time that the rows ahead will take at the pace of the head of the queue."""
    head = next(iter(pool.queue.values()), None)
    median_ms = head.times.median_ms if head is not None else None
    lanes = max(1, len(pool.ready)) * pool.slots
    retry_after_s = min(60.0, max(0.05, pool.queued * (median_ms or 10.0) / lanes / 1000.0))
    return BridgeError(
        OVERLOADED,
        f"{text}; try again in {retry_after_s:.2f} s",
        retryable=True,
        details={"retry_after_s": retry_after_s},
    )
