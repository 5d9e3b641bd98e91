"""Requests with an idempotency key: equal ones share one run and its outcome.

The first one runs. Those that come while it does follow it, even if its own caller has given up: each has its own id,
deadline and cancellation, and gets the outcome when there is one. Those that come later are answered from memory. A key
stands for one principal, operation and payload; the same key with another payload is refused.
"""

from __future__ import annotations

from typing import Final

from msgspec.structs import replace

from bridge.protocol.errors import (
    CANCELLED,
    DEADLINE_EXCEEDED,
    INVALID_REQUEST,
    OVERLOADED,
    POISON_REQUEST,
    BridgeError,
    decode_error,
    error_code,
)
from bridge.protocol.messages import ERROR, OK, PRIORITY_HIGH, Cancel, Reply, Request
from pools.core import breakers, nesting, tools
from pools.core.cancellation import stop_attempt
from pools.core.deadlines import WIDTH_S
from pools.core.dispatch import enqueue, pump
from pools.core.entries import ASKED, NOT_ASKED, ClientEntry, PoolEntry, RequestEntry
from pools.core.keys import Name, Outcome, digest_of
from pools.core.leaving import recall
from pools.core.places import unserved
from pools.core.queueing import class_of
from pools.core.settlement import settle, settle_error
from pools.core.states import ON_RESUME, QUEUED, REQUEST_MOVES, SETTLED
from pools.core.tables import Tables

# How one request ends, not the work that it shares.
_OWN: Final = frozenset({CANCELLED, DEADLINE_EXCEEDED})
# A larger error is of a user's program, and is not read by the one thread that serves everybody.
_READ_BYTES: Final = 64 * 1024


class Keyed:
    """Work that is shared by the requests with one key.

    runner: the request whose attempt it is. It may be settled (cancelled, out of time) while its attempt is out: the
    work is under way until that ends. followers: those that wait for the outcome, by request id, the oldest first.
    """

    __slots__ = ("digest", "followers", "name", "runner")

    def __init__(self, name: Name, digest: bytes, runner: RequestEntry) -> None:
        self.name = name
        self.digest = digest
        self.runner = runner
        self.followers: dict[int, RequestEntry] = {}

    def outlives(self, entry: RequestEntry) -> bool:
        """Return whether the work goes on for others when this request is cancelled."""
        return entry is not self.runner or bool(self.followers)

    def goes_on(self, entry: RequestEntry) -> bool:
        """Return whether this request, which is settled, was cancelled while its attempt goes on for others."""
        return entry is self.runner and bool(self.followers) and entry.cancel != NOT_ASKED and _is_out(entry)

    def settled(self, tables: Tables, entry: RequestEntry, reply: Reply, now: float) -> None:
        """One of the requests is settled: with the outcome of the work, or with an end of its own."""
        if entry is not self.runner:
            self._leave(entry)
            if self.runner.state == SETTLED and not self.followers:
                self._abandon(tables, entry, now)
        elif not (_is_own(reply) or _is_stale(entry, reply)):
            self._end(tables, reply, now)
        elif not _is_out(entry):
            self.ceded(tables, now)
        elif self.goes_on(entry):
            tools.go_on_alone(tables, entry)

    def answered(self, tables: Tables, reply: Reply, now: float) -> None:
        """The attempt of a runner that is settled has ended."""
        if _is_own(reply):
            self.ceded(tables, now)
            return
        runner, worker = self.runner, self.runner.worker
        name = worker.worker_id if worker is not None else ""
        completed = replace(
            reply, worker=name, pool=runner.pool.name, attempt=runner.attempts, fallback_used=runner.fallback_used
        )
        self._end(tables, completed, now)

    def ceded(self, tables: Tables, now: float) -> None:
        """Nothing came of the runner, and nothing is under way: the oldest follower that has time left runs."""
        if not self.followers:
            self._forget(tables)
            return
        late = now - WIDTH_S  # whose deadline was before is about to be told
        entry = next((one for one in self.followers.values() if one.deadline is None or one.deadline > late), None)
        if entry is None:
            return
        self.inherit(entry)
        refusal = unserved(entry.pool) or breakers.refusal(entry.pool, entry.message.operation, now)
        if refusal is not None:
            settle_error(tables, entry, refusal, now)
            return
        breakers.admitted(tables, entry, now)
        entry.state = REQUEST_MOVES[entry.state][ON_RESUME]
        enqueue(tables, entry, now, first=True)  # it has waited as long as those in the queue
        pump(tables, entry.pool, now)

    def inherit(self, follower: RequestEntry) -> None:
        """Make a follower the runner."""
        self._leave(follower)
        self.runner = follower

    def _end(self, tables: Tables, reply: Reply, now: float) -> None:
        """Give all followers the outcome, and remember it if it is final."""
        self._forget(tables)
        if _is_final(reply):
            tables.keys.keep(self.name, Outcome(self.digest, reply, now))
            _arm(tables)
        for entry in list(self.followers.values()):
            self._leave(entry)
            entry.keyed = None
            settle(tables, entry, replace(reply, request_id=entry.request_id), now)

    def _forget(self, tables: Tables) -> None:
        """The work has ended. Entries are unknown to the garbage collector: a circle of them would stay for ever."""
        del tables.keys.running[self.name]
        self.runner.keyed = None

    def _leave(self, entry: RequestEntry) -> None:
        del self.followers[entry.request_id]
        entry.pool.following -= entry.rows

    def _abandon(self, tables: Tables, last: RequestEntry, now: float) -> None:
        """Nobody wants the outcome any more: stop what is out. last: the request that was the last one to."""
        runner, worker = self.runner, self.runner.worker
        nesting.orphan(tables, runner)
        if worker is None or not _is_out(runner):
            self._forget(tables)
        elif not worker.started(runner.epoch):
            recall(tables, worker, runner)
        elif last.cancel == ASKED:  # which leaves it time
            tables.to_workers.append((worker.peer, Cancel(request_id=runner.request_id, epoch=runner.epoch)))
        else:
            stop_attempt(tables, worker, runner.epoch, now)


def find(
    tables: Tables, client: ClientEntry, pool: PoolEntry, message: Request, now: float
) -> Keyed | Outcome | BridgeError | None:
    """Return the work that a request with a key shares, or its outcome; None if it is the first.

    An error: its key stands for something else.
    """
    name = _name(client, message)
    known = tables.keys.running.get(name) or tables.keys.outcome(name, now)
    if known is None or known.digest == digest_of(message, pool.name):
        if isinstance(known, Keyed) and message.depth and nesting.waits_for_itself(tables, known.runner, message):
            text = f"idempotency_key: the run of {message.idempotency_key!r} waits for what this call is nested in"
            return BridgeError(INVALID_REQUEST, text, details={"path": "idempotency_key"})
        return known
    return BridgeError(
        INVALID_REQUEST,
        f"idempotency_key: {message.idempotency_key!r} was used for {message.operation} with other "
        "arguments, or another pool, lm or number of rows",
        details={"path": "idempotency_key", "conflict": True},
    )


def begin(tables: Tables, entry: RequestEntry, pool: PoolEntry, message: Request) -> None:
    """An accepted request is the first with its key. pool, message: as it was asked, wherever it runs."""
    name = _name(entry.client, message)
    entry.keyed = tables.keys.running[name] = Keyed(name, digest_of(message, pool.name), entry)


def join(tables: Tables, entry: RequestEntry, known: Keyed | Outcome, now: float) -> None:
    """Have an accepted request, which waits, share what is known of its key."""
    tables.attached += entry.rows
    if isinstance(known, Keyed):
        entry.keyed = known
        known.followers[entry.request_id] = entry
        entry.pool.following += entry.rows
        if known.runner.state == SETTLED and not _is_out(known.runner):
            known.ceded(tables, now)
        else:
            _hurry(tables, known.runner, entry.message, now)
    else:
        settle(tables, entry, replace(known.reply, request_id=entry.request_id), now)


def _hurry(tables: Tables, runner: RequestEntry, follower: Request, now: float) -> None:
    """Have a runner that waits be of the highest class among those that wait for it."""
    if runner.worker is not None or class_of(follower) >= class_of(runner.message):
        return
    priority = follower.priority
    queue = runner.pool.queue
    waits = runner.state == QUEUED
    if waits:
        queue.discard(runner)
    # In that class, and no deeper for it: what the run asks for is nested in it, not in who waits for it.
    runner.message = replace(runner.message, priority=priority, depth=min(follower.depth, 1))
    if waits:
        runner.moved = True
        queue.push(runner)
        if priority == PRIORITY_HIGH:
            pump(tables, runner.pool, now)


def _name(client: ClientEntry, message: Request) -> Name:
    return Name(client.principal, message.operation, message.idempotency_key)


def _is_out(entry: RequestEntry) -> bool:
    """Return whether an attempt of it is at a worker, begun or not."""
    return entry.worker is not None and entry.worker.attempts.get(entry.epoch) is entry


def _is_own(reply: Reply) -> bool:
    return reply.status == ERROR and error_code(reply.payload or b"") in _OWN


def _is_stale(entry: RequestEntry, reply: Reply) -> bool:
    """Return whether it was shed for its age, which is its own. Who is pushed out makes room: all with its key do."""
    return entry.pool.shedding and reply.status == ERROR and error_code(reply.payload or b"") == OVERLOADED


def _is_final(reply: Reply) -> bool:
    """Return whether asking again would end the same: it is done, or failed for good."""
    if reply.status == OK:
        return True
    payload = reply.payload or b""
    if len(payload) > _READ_BYTES:
        return True
    error = decode_error(payload)
    return not error.retryable and error.code not in _OWN and error.code != POISON_REQUEST


def _arm(tables: Tables) -> None:
    at = tables.keys.expires_at()
    if at is not None and not tables.keys.timed:
        tables.keys.timed = True
        tables.after(at, _expire)


def _expire(tables: Tables, now: float) -> None:
    tables.keys.timed = False
    tables.keys.expire(now)
    _arm(tables)
