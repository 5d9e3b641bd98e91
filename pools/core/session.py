"""One session: what a caller left with the fleet between its calls, and who has the turn in it.

The latest snapshot (state and turns, bytes that are not read here) is always here. A worker has the live copy, besides,
from the first call that it answers until the session runs elsewhere or ends.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

from msgspec.structs import replace

from bridge.protocol.errors import INTERNAL, SESSION_LOST, BridgeError, encode_error
from bridge.protocol.messages import ERROR, InSession, Reply, Request, SessionEnd
from bridge.protocol.sessions import cut_tail, pack_snapshot, unpack_change
from pools.core.calls import Calls
from pools.core.states import READY, SETTLED

if TYPE_CHECKING:
    from pools.core.entries import RequestEntry, WorkerEntry
    from pools.core.session_table import SessionTable
    from pools.core.tables import Tables


class Options(NamedTuple):
    """What a session is opened with (see `pools.config.SessionsConfig`)."""

    ttl_s: float
    affinity: str
    on_loss: str


class Session:
    """A session of one principal; `generation` tells it from others of that id, before and after it.

    seq: changes so far. turns: (number, bytes), the oldest first; numbers only grow. used_at: the end of the last
    activity. home: the worker that its calls go to; at: the one that surely has the live copy. holder: the request
    that has the turn, from when it may run until it is settled and no attempt of it is out. line: those behind it, by
    id, the oldest first. lost: why it cannot go on, "" = it can; ended: why it is gone. restored: how often it went on
    at another worker because its own had ended. kept: it was opened, or has run: it stays until it expires. stored: the
    store may have something of that name.
    """

    __slots__ = (
        "at", "bucket", "calls", "counted", "ended", "generation", "holder", "home", "id", "kept", "key", "line",
        "lost", "lost_reason", "moved", "options", "principal", "restored", "seq", "state", "state_saved", "stirred",
        "stored", "table", "turn_bytes", "turn_saved", "turns", "used_at",
    )  # fmt: skip

    def __init__(
        self, table: SessionTable, principal: str, session_id: str, generation: int, options: Options, now: float
    ) -> None:
        self.table = table
        self.principal = principal
        self.id = session_id
        self.key = key_of(principal, session_id)
        self.generation = generation
        self.options = options
        self.used_at = now
        self.bucket = 0
        self.seq = 0
        self.state = b""
        self.turns: deque[tuple[int, bytes]] = deque()
        self.turn_bytes = 0
        self.calls = Calls()
        self.counted = 0  # epoch of the last attempt whose end was counted
        self.home: WorkerEntry | None = None
        self.at: WorkerEntry | None = None
        self.holder: RequestEntry | None = None
        self.line: dict[int, RequestEntry] = {}
        self.lost = ""
        self.lost_reason = "worker_lost"
        self.ended = ""
        self.restored = 0
        self.moved = False  # its worker has ended since it ran last
        self.kept = False
        self.stirred = False  # it is in `Tables.stirred`
        self.stored = False
        self.state_saved = False  # the store has this state, as far as it was told
        self.turn_saved = 0  # number of the last turn that it was told

    @property
    def size(self) -> int:
        """Bytes of state and turns."""
        return len(self.state) + self.turn_bytes

    @property
    def strict(self) -> bool:
        """Whether its calls run nowhere but at its worker, as long as that serves."""
        return self.options.affinity != "hint"

    @property
    def busy(self) -> bool:
        """Whether a call runs in it, or waits."""
        return self.holder is not None or bool(self.line)

    @property
    def expires_at(self) -> float:
        """When it has expired if nobody uses it until then; never while it is busy."""
        return math.inf if self.busy else self.used_at + self.options.ttl_s

    # --- who has the turn -------------------------------------------------------------------------

    def stir(self, tables: Tables) -> None:
        """Have it looked at when this event is over: the turn may pass on (see `sessions.settle_down`)."""
        if not self.stirred:
            self.stirred = True
            tables.stirred.append(self)

    def free(self) -> bool:
        """Return whether nobody has the turn, taking it from a request that is settled and runs nowhere any more."""
        holder = self.holder
        if holder is not None and holder.state == SETTLED and not _is_out(holder):
            self.holder = holder = None
        return holder is None

    def settled(self, tables: Tables, entry: RequestEntry, reply: Reply, now: float) -> None:
        """One of its requests is settled: answer its client, when what it has changed is kept."""
        if self.line.pop(entry.request_id, None) is not None:
            entry.pool.following -= entry.rows
        elif _ran(entry) and entry.epoch != self.counted:
            self.counted = entry.epoch
            self.calls.add((now - entry.dispatched_at) * 1000.0, good=False)  # its worker could not say
        self.stir(tables)
        if reply.session is None:
            tables.to_clients.append((entry.client.peer, reply))
        else:
            self.answer(tables, entry.client.peer, replace(reply, session=None), entry.deadline)

    def answer(self, tables: Tables, peer: bytes, reply: Reply, deadline: float | None = None) -> None:
        """Answer a client that has changed it: when that is kept, at its deadline, or now where nothing is kept."""
        if tables.saves is None or not tables.saves.holds(self, peer, reply, deadline):
            tables.to_clients.append((peer, reply))

    # --- where it lives ---------------------------------------------------------------------------

    def look_after(self) -> None:
        """See whether its workers still serve: what has left, or is about to, has nothing of it any more."""
        at, home = self.at, self.home
        if at is not None and not _serves(at):
            self.at = None
            self.moved = True
            if self.options.on_loss == "fail" and not self.lost:
                self.table.lost += 1
                self.lost = f"worker {at.worker_id}, where it lived, has ended or is about to"
        if home is not None and not _serves(home):
            self.home = None

    def lost_error(self) -> BridgeError | None:
        """Return why nothing runs in it any more, None if something may."""
        self.look_after()
        if self.ended:
            return session_lost(self.id, self.ended)
        return session_lost(self.id, self.lost_reason, self.lost) if self.lost else None

    def attempt(self, tables: Tables, worker: WorkerEntry, attempt: Request) -> Request:
        """Return an attempt as its worker is sent it: with the whole session, unless that is there."""
        if self.home is None or not self.strict or not _serves(self.home):
            self.home = worker
        if self.at is worker:
            there = InSession(self.generation, self.seq)
            return replace(attempt, session=self.key, in_session=there)
        self.forget_copy(tables)
        if self.moved:
            self.moved = False
            self.restored += 1
            self.table.restored += 1
        tail = pack_snapshot(self.state, [turn for _, turn in self.turns])
        there = InSession(self.generation, self.seq, snapshot=True, tail=len(tail))
        payload = (attempt.payload or b"") + tail
        return replace(attempt, session=self.key, in_session=there, payload=payload)

    def forget_copy(self, tables: Tables) -> None:
        """Have the worker that has the live copy forget it."""
        at = self.at
        if at is not None:
            self.at = None
            if at.peer in tables.workers_by_peer:
                tables.to_workers.append((at.peer, SessionEnd(session=self.key, generation=self.generation)))

    # --- what calls change ------------------------------------------------------------------------

    def answered(self, tables: Tables, entry: RequestEntry, reply: Reply, worker: WorkerEntry) -> Reply:
        """Take what an attempt changed; return its reply as the caller is to have it, `session` only if it did."""
        change = reply.session
        late = entry.epoch == self.counted
        self.counted = entry.epoch
        if change is None:  # the worker does not have it, or not as it should be
            self.at = worker
            self.forget_copy(tables)
            return reply
        try:
            payload, tail = cut_tail(reply.payload or b"", change.tail)
            state, turn = unpack_change(tail) if tail else (None, None)
        except ValueError as exc:
            error = BridgeError(INTERNAL, f"worker {worker.worker_id} said something unreadable of a session: {exc}")
            return replace(reply, session=None, status=ERROR, payload=encode_error(error))
        failed = reply.status == ERROR
        changed = not self.ended and change.seq > self.seq
        if changed:
            self._change(tables, change.seq, None if failed else state, turn)
        self.at = worker
        if turn is not None and not late:
            self.calls.add(reply.run_ms, good=not failed)
        return replace(reply, session=change if changed else None, payload=payload)

    def _change(self, tables: Tables, seq: int, state: bytes | None, turn: bytes | None) -> None:
        self.seq = seq
        self.kept = True
        config, before = tables.config.sessions, self.size
        if state is not None:
            self.state = state
            self.state_saved = False
        if turn is not None:
            self.turns.append((self.table.next_turn(), turn))
            self.turn_bytes += len(turn)
        while self.turns and (len(self.turns) > config.history or self.size > config.max_bytes):
            self.turn_bytes -= len(self.turns.popleft()[1])
        self.table.bytes += self.size - before
        if tables.saves is not None:
            tables.saves.changed(self)

    def forget(self) -> None:
        """Drop what it held: it has ended."""
        self.state = b""
        self.turns.clear()
        self.turn_bytes = 0

    # --- as it is told ----------------------------------------------------------------------------

    def row(self, now: float) -> dict[str, Any]:
        """Return it as it is listed."""
        if not self.busy:
            self.look_after()
        worker = self.at or self.home
        return {
            "id": self.id,
            "generation": self.generation,
            "worker": worker.worker_id if worker is not None else None,
            "pool": worker.pool.name if worker is not None else None,
            "calls": self.calls.count,
            "waiting": len(self.line),
            "busy": self.busy,
            "idle_s": 0.0 if self.busy else max(0.0, now - self.used_at),
            "ttl_s": self.options.ttl_s,
            "affinity": self.options.affinity,
            "on_loss": self.options.on_loss,
            "state_bytes": len(self.state),
            "turns": len(self.turns),
            "restored": self.restored,
            "lost": self.lost or None,
        }


def key_of(principal: str, session_id: str) -> str:
    """Return a session's name among those of all principals. An id has no NUL, so that no two share one."""
    return f"{principal}\0{session_id}"


_WHY: dict[str, str] = {
    "expired": "nobody used it for its time to live",
    "ended": "it was ended",
    "unknown": "it ended, or the coordinator was started anew",
}


def session_lost(session_id: str, reason: str, why: str = "") -> BridgeError:
    """Return a SESSION_LOST error."""
    text = f"session {session_id[:200]!r} is lost: {why or _WHY.get(reason, reason)}; open it again to begin a new one"
    return BridgeError(SESSION_LOST, text, details={"reason": reason, "session": session_id[:200]})


def _serves(worker: WorkerEntry) -> bool:
    return worker.state == READY and not worker.died


def _ran(entry: RequestEntry) -> bool:
    """Return whether a request that settles may have run as a call: what sets or deletes values is none."""
    if not entry.attempts or entry.message.operation.startswith("session."):
        return False
    return entry.worker is None or entry.worker.started(entry.epoch)


def _is_out(entry: RequestEntry) -> bool:
    """Return whether an attempt of it is at a worker, begun or not."""
    return entry.worker is not None and entry.worker.attempts.get(entry.epoch) is entry
