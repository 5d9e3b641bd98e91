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
from pools.core.memory import short_of_memory
from pools.core.places import unserved
from pools.core.tables import Route, Tables, unavailable

# Operations that the coordinator answers itself.
CONTROL_PREFIX: Final = "dspool."
MAX_DEPTH: Final = 8
MAX_ROWS: Final = 1024
_MAX_NAME_CHARS: Final = 200
# Operation names come from callers: the table of routes must not grow with them.
_MAX_ROUTES: Final = 1024
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
    request_id = message.request_id
    if client is None or request_id >> CLIENT_SHIFT != client.client_no or request_id <= client.last_id:
        _reject_id(tables, client, request_id, peer)
        return
    client.last_id = request_id
    route = tables.routes.get((message.operation, message.pool, message.lm))
    if route is not None and _is_ordinary(tables, client, route.pool, message):
        _accept(tables, client, route, message, now)
    elif message.operation.startswith(CONTROL_PREFIX):
        tables.control.append((peer, message))
    else:
        _admit_new(tables, client, message, now)


def _is_ordinary(tables: Tables, client: ClientEntry, pool: PoolEntry, message: Request) -> bool:
    """Whether a request on a known route can be accepted without asking anything else. NaN is not ordinary."""
    deadline_ms = message.deadline_ms
    rows = message.rows
    return (
        (deadline_ms is None or 0.0 < deadline_ms <= _MAX_DEADLINE_MS)
        and 1 <= rows <= MAX_ROWS
        and PRIORITY_HIGH <= message.priority <= PRIORITY_LOW
        and 0 <= message.depth <= MAX_DEPTH
        and client.in_flight + rows <= tables.config.client_rows
        and pool.queued + rows <= pool.config.max_queue
        and bool(pool.ready)
        and not tables.closed
    )


def _admit_new(tables: Tables, client: ClientEntry, message: Request, now: float) -> None:
    """Ask everything; remember the route of what is accepted."""
    pool = tables.pools.get(message.pool or _home(tables, message.operation))
    refusal = _refusal(tables, client, pool, message)
    if refusal is None and pool is not None:
        route = Route(pool, pool.credits.of(message.operation))
        if len(tables.routes) >= _MAX_ROUTES:
            tables.routes.clear()
        tables.routes[message.operation, message.pool, message.lm] = route
        _accept(tables, client, route, message, now)
        return
    if pool is not None:
        pool.rejected += min(max(1, message.rows), MAX_ROWS)  # what a caller claims is not a count yet
    if refusal is not None:
        reply = Reply(request_id=message.request_id, status=ERROR, payload=encode_error(refusal), pool=message.pool)
        tables.to_clients.append((client.peer, reply))


def _reject_id(tables: Tables, client: ClientEntry | None, request_id: int, peer: bytes) -> None:
    """Ids carry their client's number and only grow: nobody names another's, nothing runs twice."""
    if client is None:
        problem = "say Hello first"
    elif request_id >> CLIENT_SHIFT != client.client_no:
        problem = f"request id {request_id} is not one of this client's"
    else:
        problem = f"request id {request_id} was used already"
    error = BridgeError(INVALID_REQUEST, problem, details={"path": "request_id"})
    tables.to_clients.append((peer, Invalid(request_id=request_id, payload=encode_error(error))))


def _accept(tables: Tables, client: ClientEntry, route: Route, message: Request, now: float) -> None:
    pool, times = route
    rows = message.rows
    request_id = message.request_id
    deadline: float | None
    if message.deadline_ms is not None:
        deadline = now + message.deadline_ms / 1000.0
    elif pool.config.default_deadline_s is not None:
        deadline = now + pool.config.default_deadline_s
    else:
        deadline = None
    entry = RequestEntry(request_id, client, message, pool, rows, times, now, deadline)
    tables.requests[request_id] = entry
    if deadline is not None:
        entry.bucket = tables.deadlines.add(request_id, deadline)
    client.in_flight = in_flight = client.in_flight + rows
    if in_flight > client.peak:
        client.peak = in_flight
    if client.spell != tables.spell:
        tables.asks(client)
    pool.accepted += rows
    pool.queued += rows
    worker = None if pool.queue else choose(pool, times)
    if worker is not None:
        dispatch(tables, entry, worker, now)
    else:
        pool.queue[request_id] = entry


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
    if tables.memory_paused:
        return short_of_memory(tables)
    if client.in_flight + message.rows > tables.config.client_rows:
        limit = tables.config.client_rows
        return _overloaded(pool, f"this client already has {client.in_flight} rows in flight (limit {limit})")
    unavailable_now = unserved(pool)
    if unavailable_now is not None:
        return unavailable_now
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
