"""Calls in sessions: one at a time in each, in the order of their admission; how sessions begin and end.

A request of a session waits in its line until it has the turn, then it goes the way of all: it is queued, and given to
the session's worker, or to another, as its affinity has it (see `lines`). It has the turn until it is settled and no
attempt of it is out, whatever came of it; also while it waits to be sent again.
"""

from __future__ import annotations

from itertools import islice
from typing import Any, Final

from bridge.protocol.errors import INVALID_REQUEST, NOT_FOUND, OVERLOADED, WORKER_BUSY, BridgeError
from bridge.protocol.messages import Request
from bridge.protocol.names import is_text
from pools.core import breakers, lines, nesting
from pools.core.dispatch import enqueue, pump
from pools.core.entries import ClientEntry, PoolEntry, RequestEntry
from pools.core.events import ExpireSession, OpenSession
from pools.core.places import unserved
from pools.core.session import Options, Session, key_of, session_lost
from pools.core.settlement import settle_error
from pools.core.shedding import overloaded
from pools.core.states import ON_RESUME, REQUEST_MOVES, SETTLED
from pools.core.tables import Tables, unavailable

MAX_ID_CHARS: Final = 200
# Requests that may wait for their turn in one session. They take no room in a pool's queue.
MAX_LINE: Final = 128
MIN_TTL_S: Final = 0.05
MAX_TTL_S: Final = 30 * 24 * 3600.0
AFFINITIES: Final = ("hint", "strict_queue", "strict_fail_fast")
ON_LOSS: Final = ("restore", "fail")
_TRY_AGAIN_S: Final = 1.0


# --- admission --------------------------------------------------------------------------------------


def refusal(tables: Tables, client: ClientEntry, pool: PoolEntry, message: Request, now: float) -> BridgeError | None:
    """Return why a request is not accepted into its session, or by the one worker that it names; None if it may be."""
    there = message.in_session
    if there is not None and (there.seq or there.snapshot or there.tail or not message.session):
        return _invalid("in_session", "where a session stands is not for callers to say")
    if message.worker:
        return _wrong_worker(tables, client, pool, message)
    if message.rows > 1:
        return _invalid("session", f"{message.rows} rows in a session; it runs one call at a time")
    if message.idempotency_key:
        return _invalid("idempotency_key", "a call in a session has no idempotency key: it depends on those before it")
    bad = _bad_id(message.session)
    if bad is not None:
        return bad
    not_synced = _not_synced(tables)
    if not_synced is not None:
        return not_synced
    session = find(tables, client.principal, message.session, now)
    wanted = there.generation if there is not None else 0
    if session is None:
        return _gone(tables, client.principal, message.session) if wanted else _no_room(tables, client.principal, now)
    if wanted and session.generation != wanted:
        return _gone(tables, client.principal, message.session)
    return session.lost_error() or _too_much(tables, session, pool, message)


def _wrong_worker(tables: Tables, client: ClientEntry, pool: PoolEntry, message: Request) -> BridgeError | None:
    if client.client_no and not client.internal:
        return _invalid("worker", "which worker runs a request is not for callers to say")
    if message.session:
        return _invalid("worker", "a call in a session runs where the session is")
    worker = tables.workers.get(message.worker)
    if worker is None or worker.pool is not pool or not lines.serves(worker):
        return unavailable(f"there is no worker {message.worker} that serves in pool {pool.name}")
    return None


def _too_much(tables: Tables, session: Session, pool: PoolEntry, message: Request) -> BridgeError | None:
    """Return why a session takes no further call now."""
    busy = session.busy
    if busy and message.depth:
        holder = session.holder or next(iter(session.line.values()))
        if nesting.waits_for_itself(tables, holder, message):
            return _invalid("session", f"session {session.id!r} waits for what this call is nested in")
    if session.options.affinity == "strict_fail_fast":
        home = session.home
        if busy:
            return _worker_busy(session, f"session {session.id!r} runs another call")
        if home is not None and home.pool is pool and home.held >= pool.slots:
            return _worker_busy(session, f"worker {home.worker_id}, where session {session.id!r} is, has no free slot")
    if len(session.line) >= MAX_LINE:
        text = f"{len(session.line)} calls wait in session {session.id!r} (limit {MAX_LINE})"
        return overloaded(pool, text, message.rows)
    limit = tables.config.sessions.total_bytes
    if tables.sessions.bytes > limit and session.size * len(tables.sessions) > limit:
        held = f"all sessions together hold {tables.sessions.bytes} bytes (limit {limit})"
        return _no_more(f"{held}, and {session.id!r} more than its part")
    return None


def in_line(tables: Tables, client: ClientEntry, message: Request) -> bool:
    """Return whether a request would wait for its turn, or for a worker of its own: no queue is asked for room then."""
    if message.worker:
        return True
    session = tables.sessions.by_key.get(key_of(client.principal, message.session)) if message.session else None
    return session is not None and session.busy


def pool_of(tables: Tables, client: ClientEntry, message: Request, now: float) -> str:
    """Return where a request of a session runs unless it names a pool: what is the session's own, where that is."""
    if message.operation.startswith("session."):
        session = tables.sessions.by_key.get(key_of(client.principal, message.session))
        if session is not None and session.expires_at > now:
            session.look_after()  # a worker that is gone is no place
            worker = session.at or session.home
            if worker is not None:
                return worker.pool.name
    return tables.home_of(message.operation)


def enter(tables: Tables, entry: RequestEntry, now: float) -> None:
    """Have an accepted request, which waits, stand in its session's line; begin the session with the first one."""
    message, principal = entry.message, entry.client.principal
    session = tables.sessions.by_key.get(key_of(principal, message.session))
    if session is None:
        session = _begin(tables, principal, message.session, _defaults(tables), now)
    entry.session = session
    session.line[entry.request_id] = entry
    entry.pool.following += entry.rows
    session.stir(tables)


def address(tables: Tables, entry: RequestEntry, now: float) -> None:
    """Queue an accepted request, which waits, for the worker that it names."""
    _place(tables, entry, now)


# --- turns ------------------------------------------------------------------------------------------


def settle_down(tables: Tables, now: float) -> None:
    """Pass on the turns that ended with this event; have what waited for workers that left it wait elsewhere."""
    while tables.stirred or tables.leavers:
        while tables.leavers:
            worker = tables.leavers.pop()
            for entry in list(worker.line) if worker.line is not None else ():
                if entry.waits_for is worker:  # not settled with one before it
                    worker.leave_line(entry)
                    _place(tables, entry, now)
        stirred, tables.stirred = tables.stirred, []
        for session in stirred:
            session.stirred = False
            _pass_on(tables, session, now)


def _pass_on(tables: Tables, session: Session, now: float) -> None:
    """Give the turn to the first in line that can have it."""
    if session.ended:
        for entry in list(session.line.values()):
            settle_error(tables, entry, session_lost(session.id, session.ended), now)
    if not session.free():
        return
    if session.ended:
        session.forget_copy(tables)  # not before: what is about to run there may have been sent without it
        return
    session.used_at = now
    while session.line:
        request_id = next(iter(session.line))
        entry = session.line.pop(request_id)
        entry.pool.following -= entry.rows
        session.holder = entry
        _place(tables, entry, now, again=True)
        if not session.free():
            return
    if not session.kept and not session.busy:
        _end(tables, session, "ended", now)  # all that it was begun for was refused, or taken back, before it ran


def _place(tables: Tables, entry: RequestEntry, now: float, *, again: bool = False) -> None:
    """Have a request that waits be queued, or settle it if it can run no more. again: it had not been yet."""
    pool, session = entry.pool, entry.session
    error = session.lost_error() if session is not None else None
    if error is None:
        error = unserved(pool)
    if error is None and again:
        error = breakers.refusal(pool, entry.message.operation, now)
    if error is not None:
        settle_error(tables, entry, error, now)
        return
    if again:
        breakers.admitted(tables, entry, now)
    entry.state = REQUEST_MOVES[entry.state][ON_RESUME]
    enqueue(tables, entry, now)
    pump(tables, pool, now)


# --- beginnings and ends ------------------------------------------------------------------------------


def find(tables: Tables, principal: str, session_id: str, now: float) -> Session | None:
    """Return a session; one whose time is over is gone, whether that was seen to or not."""
    session = tables.sessions.by_key.get(key_of(principal, session_id))
    if session is not None and session.expires_at <= now:
        _end(tables, session, "expired", now)
        return None
    return session


def get(tables: Tables, principal: str, session_id: str, generation: int, now: float) -> Session:
    """Return a session.

    Raises BridgeError: NOT_FOUND; SESSION_LOST if it is not the one of `generation` (0 = any); UNAVAILABLE for one that
    may yet be restored.
    """
    session = tables.sessions.by_key.get(key_of(principal, session_id))
    if session is None:
        _check_synced(tables)
    expired = session is not None and session.expires_at <= now
    if session is not None and not expired and generation in (0, session.generation):
        return session
    if generation:
        raise session_lost(session_id, "expired") if expired else _gone(tables, principal, session_id)
    raise BridgeError(NOT_FOUND, f"there is no session {session_id[:MAX_ID_CHARS]!r}", details={"suggestions": []})


def on_open(tables: Tables, event: OpenSession, now: float, peer: bytes) -> None:
    """Attach to a session, or begin it. What is given changes one that is there; a lost one is begun anew."""
    error = _bad_id(event.id) or _bad_options(event) or _not_synced(tables)
    if error is not None:
        raise error
    session = find(tables, event.principal, event.id, now)
    if session is not None and session.lost_error() is not None:
        _end(tables, session, session.lost_reason, now)
        session = None
    before = _defaults(tables) if session is None else session.options
    options = Options(
        before.ttl_s if event.ttl_s is None else event.ttl_s,
        event.affinity or before.affinity,
        event.on_loss or before.on_loss,
    )
    if session is None:
        error = _no_room(tables, event.principal, now)
        if error is not None:
            raise error
        session = _begin(tables, event.principal, event.id, options, now)
    session.kept = True
    session.options = options
    session.used_at = now
    tables.sessions.schedule(session)
    if tables.saves is not None:
        tables.saves.changed(session)


def rows(tables: Tables, principal: str, now: float, limit: int) -> list[dict[str, Any]]:
    """Return a principal's first sessions as they are listed, the oldest first.

    Raises BridgeError UNAVAILABLE before all that was kept is restored.
    """
    _check_synced(tables)
    sessions = tables.sessions.by_key.values()
    theirs = (each for each in sessions if each.principal == principal and each.expires_at > now)
    return [each.row(now) for each in islice(theirs, limit)]


def on_expire(tables: Tables, event: ExpireSession, now: float, peer: bytes) -> None:
    """End a session: what waits in it is lost, what runs ends as it does. Raises BridgeError as `get` does."""
    session = get(tables, event.principal, event.id, event.generation, now)
    _end(tables, session, "ended", now)
    if event.answer is not None:
        session.answer(tables, peer, event.answer)


def sweep(tables: Tables, now: float) -> None:
    """End the sessions that have expired; tell how many were lost or went on elsewhere. Runs twice a second."""
    table = tables.sessions
    expired = table.pop_expired(now)
    for session in expired:
        _end(tables, session, "expired", now)
    if expired:
        tables.log("sessions_expired", count=len(expired))
    if table.restored:
        tables.log("sessions_restored", count=table.restored)
        table.restored = 0
    if table.lost:
        tables.log("sessions_lost", "warning", count=table.lost)
        table.lost = 0
    if table.unrestored:
        tables.log("sessions_not_restored", "warning", count=table.unrestored, why=table.why_unrestored)
        table.unrestored = 0


def _begin(tables: Tables, principal: str, session_id: str, options: Options, now: float) -> Session:
    session = Session(tables.sessions, principal, session_id, tables.sessions.next_generation(), options, now)
    tables.sessions.add(session)
    return session


def _end(tables: Tables, session: Session, reason: str, now: float) -> None:
    """End a session. Its line is lost, and its worker is told, when this event is over (see `_pass_on`)."""
    tables.sessions.remove(session, reason)
    session.home = None
    session.forget()
    if tables.saves is not None and session.kept:
        tables.to_clients.extend(tables.saves.ended(session))
    holder = session.holder
    if holder is not None and holder.state != SETTLED and holder.worker is None:
        settle_error(tables, holder, session_lost(session.id, reason), now)
    session.stir(tables)


# --- refusals ---------------------------------------------------------------------------------------------


def _defaults(tables: Tables) -> Options:
    config = tables.config.sessions
    return Options(config.ttl_s, config.affinity, config.on_loss)


def _gone(tables: Tables, principal: str, session_id: str) -> BridgeError:
    ended = tables.sessions.ended.get(key_of(principal, session_id))
    return session_lost(session_id, ended.reason if ended is not None else "unknown")


def _no_room(tables: Tables, principal: str, now: float) -> BridgeError | None:
    """Return why no further session is begun. One principal may have half of all where others have any."""
    config, table = tables.config.sessions, tables.sessions
    if len(table) >= config.max:
        sweep(tables, now)
    if len(table) >= config.max:
        return _no_more(f"there are {len(table)} sessions (limit {config.max})")
    theirs = table.of_principal.get(principal, 0)
    if theirs < len(table) and theirs >= max(1, config.max // 2):
        return _no_more(f"{principal!r} has {theirs} sessions, half of what all may have (limit {config.max})")
    if table.bytes > config.total_bytes:
        return _no_more(f"all sessions together hold {table.bytes} bytes (limit {config.total_bytes})")
    if tables.saves is not None and tables.saves.backlog > 2 * config.max:
        return _no_more(f"what became of {tables.saves.backlog} sessions is still to be kept in the store")
    return None


def _no_more(text: str) -> BridgeError:
    details = {"retry_after_s": _TRY_AGAIN_S}
    return BridgeError(OVERLOADED, f"{text}; end some, or try again later", retryable=True, details=details)


def _check_synced(tables: Tables) -> None:
    error = _not_synced(tables)
    if error is not None:
        raise error


def _not_synced(tables: Tables) -> BridgeError | None:
    saves = tables.saves
    if saves is None or saves.synced:
        return None
    if saves.problem:
        return unavailable(f"sessions are kept in the store, which cannot be read: {saves.problem}")
    return unavailable("sessions are being restored from the store", retry_after_s=_TRY_AGAIN_S)


def _worker_busy(session: Session, text: str) -> BridgeError:
    worker = session.home.worker_id if session.home is not None else ""
    return BridgeError(
        WORKER_BUSY, f"{text} (affinity strict_fail_fast)", retryable=True,
        details={"worker": worker, "session": session.id},
    )  # fmt: skip


def _bad_id(session_id: Any) -> BridgeError | None:
    is_short = isinstance(session_id, str) and 0 < len(session_id) <= MAX_ID_CHARS
    if is_short and "\0" not in session_id and is_text(session_id):
        return None
    return _invalid("session", f"a session's id has 1 to {MAX_ID_CHARS} characters, no NUL and no lone surrogate")


def _bad_options(event: OpenSession) -> BridgeError | None:
    if event.ttl_s is not None and not MIN_TTL_S <= event.ttl_s <= MAX_TTL_S:  # NaN is not either
        return _invalid("ttl_s", f"{event.ttl_s:g} seconds; it must be from {MIN_TTL_S:g} to {MAX_TTL_S:g}")
    if event.affinity not in (None, *AFFINITIES):
        return _invalid("affinity", f"{event.affinity!r} is none of {', '.join(AFFINITIES)}")
    if event.on_loss not in (None, *ON_LOSS):
        return _invalid("on_loss", f"{event.on_loss!r} is none of {', '.join(ON_LOSS)}")
    return None


def _invalid(path: str, text: str) -> BridgeError:
    return BridgeError(INVALID_REQUEST, f"{path}: {text}", details={"path": path})
