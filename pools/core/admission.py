"""What is accepted, and into which queue. A refusal is typed and immediate."""

from __future__ import annotations

import math
from typing import Final

from msgspec.structs import replace

from bridge.protocol.errors import INVALID_REQUEST, BridgeError, encode_error, not_found
from bridge.protocol.messages import (
    CLIENT_SHIFT,
    ERROR,
    MAX_KEY_CHARS,
    PRIORITY_HIGH,
    PRIORITY_LOW,
    PRIORITY_NORMAL,
    Invalid,
    Reply,
    Request,
)
from pools.core import breakers, idempotency, internal, isolation, nesting, sessions
from pools.core.dispatch import choose, dispatch, pump
from pools.core.entries import ClientEntry, PoolEntry, RequestEntry
from pools.core.events import ClientConnected
from pools.core.fallback import elsewhere, refused_twice
from pools.core.memory import short_of_memory
from pools.core.places import unserved
from pools.core.shares import join, who_yields
from pools.core.shedding import hopeless, overloaded, shed
from pools.core.states import QUEUED, SETTLED, WAITING
from pools.core.tables import Route, Tables, unavailable

# Operations that the coordinator answers itself.
CONTROL_PREFIX: Final = "dspool."
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
        tables.clients[peer] = client = ClientEntry(peer, event.client_no, event.principal, first_id)
        client.worker_id = event.worker_id
        worker = tables.workers.get(event.worker_id)
        client.internal = worker is not None and worker.pool.config.internal
        join(tables, client)


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
    elif message.parent_request_id:
        _admit_nested(tables, client, message, now)
    else:  # how deep a call is nested is not for callers to say
        _admit_new(tables, client, replace(message, depth=0) if message.depth else message, now)


def _is_ordinary(tables: Tables, client: ClientEntry, pool: PoolEntry, message: Request) -> bool:
    """Whether a request on a known route can be accepted without asking anything else. NaN is not ordinary."""
    deadline_ms = message.deadline_ms
    rows = message.rows
    return (
        (deadline_ms is None or pool.hurry_ms < deadline_ms <= _MAX_DEADLINE_MS)
        and 1 <= rows <= MAX_ROWS
        and PRIORITY_HIGH <= message.priority <= PRIORITY_LOW
        and not (message.parent_request_id or message.depth)
        and client.in_flight + rows <= tables.config.client_rows
        and client.account.in_flight + rows <= tables.config.principal_rows
        and pool.queued + rows <= pool.config.max_queue
        and bool(pool.ready)
        and not tables.wary
        and not message.idempotency_key
        and not (message.session or message.worker)
        and message.in_session is None
    )


def _admit_new(tables: Tables, client: ClientEntry, message: Request, now: float) -> None:
    """Ask everything; remember the route of what is accepted."""
    home = sessions.pool_of(tables, client, message, now) if message.session else tables.home_of(message.operation)
    pool = tables.pools.get(message.pool or home)
    if pool is not None and pool.config.internal:
        _admit_internal(tables, client, pool, message, now)
        return
    refusal = _refusal(tables, client, pool, message)
    if refusal is None and pool is not None and (message.session or message.worker or message.in_session is not None):
        refusal = sessions.refusal(tables, client, pool, message, now)
    if refusal is None and pool is not None and message.idempotency_key:
        known = idempotency.find(tables, client, pool, message, now)
        if isinstance(known, BridgeError):
            refusal = known
        elif known is not None:
            operation = message.operation
            route = Route(pool, pool.credits.of(operation), tables.programs.runs(operation))
            entry = _accept(tables, client, route, message, now, follows=True)
            idempotency.join(tables, entry, known, now)
            return
    if refusal is None and pool is not None:
        chosen = _choose_pool(tables, client, pool, message, now)
        if not isinstance(chosen, BridgeError):
            entry = _admit_to(tables, client, chosen, message, now)
            if message.idempotency_key and entry.state != SETTLED:
                idempotency.begin(tables, entry, pool, message)
            return
        refusal = chosen
    if refusal is not None:
        _refuse(tables, client, pool, message, refusal)


def _admit_internal(tables: Tables, client: ClientEntry, pool: PoolEntry, message: Request, now: float) -> None:
    """Admit what an internal pool is asked. What the coordinator itself asks there is refused for no want of room."""
    refusal = internal.objection(tables, client, pool, message)
    if refusal is None:
        refusal = _refusal(tables, client, pool, message) if client.client_no else _invalid(message)
    refusal = refusal or internal.refusal(pool, now)
    if refusal is None and client.client_no:
        refusal = _full(tables, client, pool, message.operation, message, now)
    if refusal is not None:
        _refuse(tables, client, pool, message, refusal)
        return
    internal.ask(tables, pool, now)
    _admit_to(tables, client, (pool, message.operation), message, now)


def _refuse(
    tables: Tables, client: ClientEntry, pool: PoolEntry | None, message: Request, refusal: BridgeError
) -> None:
    if pool is not None:
        pool.rejected += min(max(1, message.rows), MAX_ROWS)  # what a caller claims is not a count yet
    reply = Reply(request_id=message.request_id, status=ERROR, payload=encode_error(refusal), pool=message.pool)
    tables.to_clients.append((client.peer, reply))


def _admit_nested(tables: Tables, client: ClientEntry, message: Request, now: float) -> None:
    """Admit what a running program asks for, as its child."""
    parent = nesting.parent_of(tables, client, message, now)
    if isinstance(parent, BridgeError):
        _refuse(tables, client, tables.pools.get(message.pool or tables.home_of(message.operation)), message, parent)
        return
    _admit_new(tables, client, nesting.nested(parent, message, now), now)
    child = tables.requests.get(message.request_id)
    if child is not None:  # neither refused nor settled at once
        nesting.adopt(tables, parent, child)


def _choose_pool(
    tables: Tables, client: ClientEntry, pool: PoolEntry, message: Request, now: float
) -> tuple[PoolEntry, str] | BridgeError:
    """Return where a valid request runs: the pool and the operation it asked for, or what stands in for them."""
    operation = message.operation
    refusal = unserved(pool) or breakers.refusal(pool, operation, now)
    if refusal is None:
        return _full(tables, client, pool, operation, message, now) or (pool, operation)
    other = elsewhere(tables, pool, operation)
    if other is None:
        return refusal
    why = tables.programs.refusal(other[1]) or unserved(other[0]) or breakers.refusal(*other, now)
    if why is None and tables.poison.letters:
        poisonous = isolation.refusal(tables, replace(message, operation=other[1]))
        if poisonous is not None:
            return poisonous  # before anybody makes room for it
    why = why or _full(tables, client, *other, message, now)
    return other if why is None else refused_twice(refusal, why)


def _admit_to(
    tables: Tables, client: ClientEntry, chosen: tuple[PoolEntry, str], message: Request, now: float
) -> RequestEntry:
    """Accept a request where it runs. Its route is remembered unless breakers, or dead letters, are to be asked."""
    pool, operation = chosen
    route = Route(pool, pool.credits.of(operation), tables.programs.runs(operation))
    home = sessions.pool_of(tables, client, message, now) if message.session else tables.home_of(message.operation)
    instead = pool.name != (message.pool or home) or operation != message.operation
    if instead:
        message = replace(message, pool=pool.name, operation=operation)
    elif not (
        message.session  # where it is, others need not go
        or pool.config.internal
        or operation in tables.poison.operations
        or breakers.tripped(pool, operation)
    ):
        if len(tables.routes) >= _MAX_ROUTES:
            tables.routes.clear()
        tables.routes[operation, message.pool, message.lm] = route
    if message.session:
        entry = _accept(tables, client, route, message, now, follows=True)
        entry.fallback_used = instead
        sessions.enter(tables, entry, now)
        return entry
    entry = _accept(tables, client, route, message, now, follows=bool(message.worker))
    if message.worker:
        sessions.address(tables, entry, now)
    if entry.state != SETTLED:
        entry.fallback_used = instead
        breakers.admitted(tables, entry, now)
    return entry


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


def _accept(
    tables: Tables, client: ClientEntry, route: Route, message: Request, now: float, *, follows: bool = False
) -> RequestEntry:
    """Enter a request into the books and give it to a worker, or have it wait.

    follows: it waits in any case, for another's outcome, its turn, or to be queued by who asks.
    """
    pool, times, runs = route
    rows = message.rows
    request_id = message.request_id
    limit_s = pool.config.default_deadline_s if message.deadline_ms is None else message.deadline_ms / 1000.0
    deadline = None if limit_s is None else now + limit_s
    entry = RequestEntry(request_id, client, message, pool, rows, times, now, deadline, runs)
    tables.requests[request_id] = entry
    if deadline is not None:
        entry.bucket = tables.deadlines.add(request_id, deadline)
    client.in_flight = in_flight = client.in_flight + rows
    if in_flight > client.peak:
        client.peak = in_flight
    client.account.in_flight += rows
    if client.spell != tables.spell:
        tables.asks(client)
    pool.accepted += rows
    pool.queued += rows
    if follows:
        entry.state = WAITING
        return entry
    if pool.seclusion is not None and pool.seclusion.takes(tables, entry, now):
        pump(tables, pool, now)  # where one worker is left, and it is the queue's turn, that goes on
        return entry
    worker = None if pool.queue.open_lanes or pool.lined else choose(pool, times)
    if worker is not None:
        dispatch(tables, entry, worker, now)
    else:
        pool.queue.push(entry)
        if message.priority == PRIORITY_HIGH or pool.lined:
            pump(tables, pool, now)
    return entry


def _refusal(tables: Tables, client: ClientEntry, pool: PoolEntry | None, message: Request) -> BridgeError | None:
    """Return why a request is accepted nowhere, or None."""
    if pool is None:
        return not_found("pool", message.pool or tables.home_of(message.operation), tables.user_pools)
    invalid = _invalid(message)
    if invalid is not None:
        return invalid
    unknown = tables.programs.refusal(message.operation)
    if unknown is not None:
        return unknown
    if message.lm and message.lm not in tables.lms:
        return not_found("language model", message.lm, tables.lms, advice="Name it under `lms:` in the configuration.")
    if tables.draining and not message.depth:  # a nested one belongs to what is accepted
        return unavailable("the coordinator is shutting down")
    if tables.memory_paused:
        return short_of_memory(tables)
    put_off = tables.modes.puts_off(message)
    if put_off is not None:
        return put_off
    poisonous = isolation.refusal(tables, message)
    if poisonous is not None:
        return poisonous
    limit = tables.config.client_rows
    if client.in_flight + message.rows > limit:
        text = f"this client already has {client.in_flight} rows in flight (limit {limit})"
        return overloaded(pool, text, message.rows)
    limit, theirs = tables.config.principal_rows, client.account.in_flight
    limit += limit if message.depth else 0  # what is under way may fill the one half, and what it asks for the other
    if theirs and theirs + message.rows > limit:  # a message larger than the limit may be under way alone
        text = f"all clients of {client.principal!r} together have {theirs} rows in flight (limit {limit})"
        return overloaded(pool, text, message.rows)
    return None


def _full(
    tables: Tables, client: ClientEntry, pool: PoolEntry, operation: str, message: Request, now: float
) -> BridgeError | None:
    """Return the refusal of a queue that is full, or too long for this request; None if it has, or makes, room."""
    if sessions.in_line(tables, client, message):
        return None
    too_late = hopeless(pool, client.principal, message, now)
    if too_late is not None:
        return too_late
    # In trouble there is less room, and who is due a place still gets one.
    limit = tables.modes.room(pool, message) + nesting.reserve(pool, message)
    # A message larger than the queue may wait alone. Without a queue only what a worker takes at once is accepted.
    queued = pool.waiting_rows
    waiting = bool(pool.queue) or (pool.seclusion is not None and bool(pool.seclusion.waiting))
    if queued + message.rows > limit and (
        waiting or (not pool.config.max_queue and choose(pool, pool.credits.of(operation)) is None)
    ):
        # Row for row: what is accepted is not given up because a mode leaves less room than there was.
        excess = min(queued + message.rows - limit, message.rows)
        yielding = who_yields(pool.queue, limit, client.principal, message.priority, message.rows, excess)
        if not yielding:
            crowded = tables.modes.why_little(pool, message)
            text = crowded or f"{pool.title} has {queued} requests queued (limit {limit})"
            return overloaded(pool, text, message.rows)
        for entry in yielding:
            if entry.state != QUEUED:
                continue  # one before it had others with its key behind it, and what runs for them changed the queue
            shed(tables, entry, f"the queue of {pool.title} is full, and others are due more of it", now)
    return None


def _invalid(message: Request) -> BridgeError | None:
    deadline_ms = message.deadline_ms
    if deadline_ms is not None and not (math.isfinite(deadline_ms) and 0 < deadline_ms <= _MAX_DEADLINE_MS):
        return _invalid_request("deadline_s", f"a deadline of {deadline_ms} ms; it must be above 0 and at most a year")
    if not 1 <= message.rows <= MAX_ROWS:
        return _invalid_request("rows", f"{message.rows} rows; 1 to {MAX_ROWS} are possible")
    if message.priority not in (PRIORITY_HIGH, PRIORITY_NORMAL, PRIORITY_LOW):
        return _invalid_request("priority", f"{message.priority} is no priority")
    if message.depth > nesting.MAX_DEPTH:
        text = f"calls nested {message.depth} deep; at most {nesting.MAX_DEPTH} are possible"
        return _invalid_request("depth", text)
    if message.idempotency_key:
        if message.rows > 1:
            return _invalid_request("idempotency_key", f"{message.rows} rows with one key; a key is for one")
        if len(message.idempotency_key) > MAX_KEY_CHARS:
            return _invalid_request("idempotency_key", f"a key has at most {MAX_KEY_CHARS} characters")
    if not 0 < len(message.operation) <= _MAX_NAME_CHARS:
        return _invalid_request("operation", f"an operation's name has 1 to {_MAX_NAME_CHARS} characters")
    return None


def _invalid_request(path: str, text: str) -> BridgeError:
    return BridgeError(INVALID_REQUEST, f"{path}: {text}", details={"path": path})
