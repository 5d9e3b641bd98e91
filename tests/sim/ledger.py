"""What has happened, as somebody sees it who knows the truth: written down beside the fleet, never read from it."""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

from bridge.protocol import messages as wire
from pools.config import FleetConfig, PoolConfig
from pools.core.entries import SLOT_WORDS
from pools.core.events import DrainWorker, ExpireSession, OpenSession, Resize, Restart

# States of a case.
NEW: Final = "new"  # arrived; the fleet has not said anything yet
QUEUED: Final = "queued"
WAITING: Final = "waiting"  # for its resend
FOLLOWING: Final = "following"  # another with its key, or those before it in its session
OUT: Final = "out"
SETTLED: Final = "settled"
# The class of nested requests, above the high one.
NESTED: Final = -1
# A pool, a class, a principal: what waits in one lane is served in order.
Lane = tuple[str, int, str]

# What operators ask for: refused by an error where it makes no sense.
OPERATIONS: Final = frozenset((Resize, DrainWorker, Restart, OpenSession, ExpireSession))


# What has waited longer than so long as it is dispatched has waited.
_LONG_S: Final = 0.1


class Broken(Exception):
    """An invariant does not hold. `invariant` is its constant name."""

    def __init__(self, invariant: str, detail: str) -> None:
        super().__init__(f"{invariant}: {detail}")
        self.invariant = invariant
        self.detail = detail


class Case:
    """One request.

    came_at: when the fleet heard of it. sent_at, lost_at: when it was dispatched, and lost, last.
    fingerprint: equal in requests for the same work. elsewhere: it runs in the place of what was asked for.
    rank: its place in its lane, lowest first. astray: it was under suspicion, so that it has no place in a lane.
    runs: how often user code ran. resends: how often it may run again because it was lost. deaths: workers that died
    holding it unstarted. told: the last epoch whose worker was asked to give it back or to stop.
    name, digest: of its key, and of what that must stand for. work: what it shares with others of its key. due: the
    outcome that it is to have of them. expired: it was out of time while it was out. blamed: that counted as a failure.
    parent: the request that it is nested in, 0 for none. depth: how deep. priority: its class, which is NESTED then.
    asks: what workers are asked for: the operation, or of a program the version that was live as it came.
    session, talk: the session that it is a call in. base: what it begins from there, as it was dispatched.
    """

    __slots__ = (
        "answered_cancel", "asks", "astray", "base", "blamed", "came_at", "cancel", "client_asked", "deadline",
        "deadline_ms", "deaths", "depth", "desk", "digest", "due", "elsewhere", "epoch", "expired", "fingerprint",
        "flags", "key", "lost_at", "name", "operation", "parent", "peer", "pool", "principal", "priority", "rank",
        "request_id", "resends", "rows", "runs", "sent_at", "session", "state", "talk", "told", "work",
    )  # fmt: skip

    def __init__(
        self, message: wire.Request, peer: bytes, principal: str, pool: str, asks: str, number: int, now: float
    ) -> None:
        self.came_at = now
        self.asks = asks
        self.request_id = message.request_id
        self.operation = message.operation
        self.rows = message.rows
        self.flags = message.flags
        self.peer = peer
        self.principal = principal
        self.priority = message.priority
        self.key = message.idempotency_key
        self.fingerprint = ((message.operation, asks), message.payload, message.lm)
        self.name = (principal, message.operation, message.idempotency_key)
        self.digest = (pool, message.lm, message.rows, message.payload)
        self.work: Any = None
        self.session = ""
        self.talk: Any = None
        self.base: tuple[int, bytes] | None = None
        self.due: tuple[int, bytes | None, bool] | None = None
        self.astray = self.expired = self.blamed = False
        self.pool = pool
        self.deadline_ms = message.deadline_ms
        self.deadline: float | None = None
        self.elsewhere = False
        self.rank = (0, number)
        self.state = NEW
        self.desk: Desk | None = None
        self.epoch = 0
        self.runs = 0
        self.resends = 0
        self.sent_at = 0.0
        self.lost_at = 0.0
        self.deaths = 0
        self.cancel = 0
        self.client_asked = False
        self.answered_cancel = False
        self.told = 0
        self.parent = self.depth = 0

    def go_elsewhere(self, pool: str, operation: str, asks: str) -> None:
        """Run as another operation, or in another pool, than was asked for."""
        self.pool, self.operation, self.elsewhere, self.asks = pool, operation, True, asks
        self.fingerprint = ((operation, asks), *self.fingerprint[1:])

    @property
    def lane(self) -> Lane:
        """Its pool, class and principal: requests of one lane are served in order."""
        return self.pool, self.priority, self.principal

    @property
    def took_over(self) -> bool:
        """Whether it may be in the place of another with its key: first in its lane, however young it is."""
        return bool(self.key) and self.rank[0] < 0

    @property
    def shares_its_run(self) -> bool:
        """Whether others wait for the outcome of its attempt."""
        return self.work is not None and self.work.runner is self and bool(self.work.followers)

    @property
    def repeatable(self) -> bool:
        """Whether it may run again after it was lost."""
        return bool(self.flags & wire.FLAG_IDEMPOTENT) or bool(self.key)

    def __repr__(self) -> str:
        return f"request {label(self.request_id)} ({self.operation}, {self.state})"


class Desk:
    """One worker's life as the coordinator could know it, and its started-slots page.

    attempts: what it was sent and has not answered, as far as its answers have come through. held: their rows, without
    those that are paused. alone: the epoch of the latest that runs, or ran, alone here.
    """

    __slots__ = (
        "aliases", "alone", "attempts", "broken", "dead", "exited", "held", "killed", "killed_at", "last_heard",
        "launched_at", "page", "paused", "peer", "pool", "programs", "ready", "stopping", "worker_id",
    )  # fmt: skip

    def __init__(self, worker_id: str, now: float) -> None:
        self.worker_id = worker_id
        self.pool = worker_id.rpartition("-")[0]
        self.peer = b"worker " + worker_id.encode()
        self.page = [0] * SLOT_WORDS
        self.attempts: dict[int, Case] = {}
        self.alone = 0
        self.held = 0
        self.paused: set[int] = set()
        self.programs: set[str] = set()
        self.aliases: dict[str, int] = {}
        self.ready = False
        self.dead = False
        self.exited = False
        self.stopping = False
        self.broken = False
        self.killed = False
        self.killed_at = 0.0
        self.launched_at = now
        self.last_heard = now

    @property
    def place(self) -> str:
        return self.worker_id.rpartition(".")[0]

    @property
    def takes_work(self) -> bool:
        """Whether it is ready, lives, and is not about to end."""
        return self.ready and not (self.dead or self.stopping or self.killed)

    def marked(self, epoch: int) -> bool:
        return self.page[epoch % SLOT_WORDS] >= epoch

    def take(self, epoch: int) -> Case | None:
        """Take an attempt off the desk."""
        case = self.attempts.pop(epoch, None)
        if case is not None and epoch in self.paused:
            self.paused.discard(epoch)
        elif case is not None:
            self.held -= case.rows
        return case

    def toggle(self, epoch: int, case: Case) -> None:
        """An attempt lends its slot out, or has it back."""
        self.paused ^= {epoch}
        self.held += -case.rows if epoch in self.paused else case.rows


class Ledger:
    """Every case and every desk of one history. `seen` counts what happened, by name."""

    def __init__(self, config: FleetConfig, seen: Counter[str]) -> None:
        self.config = config
        self.pools: dict[str, PoolConfig] = {pool.name: pool for pool in config.pools}
        self.seen = seen
        self.cases: dict[int, Case] = {}
        self.open: dict[int, Case] = {}
        self.queues: dict[str, dict[int, Case]] = {name: {} for name in self.pools}
        self.queued_rows = dict.fromkeys(self.pools, 0)
        self.lanes: Counter[Lane] = Counter()  # cases in queues, by pool and lane
        self.waiting = dict.fromkeys(self.pools, 0)  # cases that wait for their resend, or did and are queued for it
        self.now = 0.0  # of the event that was heard last
        self.following = dict.fromkeys(self.pools, 0)  # rows that wait for another's outcome: they take no room
        self.lined = dict.fromkeys(self.pools, 0)  # rows that waited for one certain worker after the last step
        self.fresh_at: dict[Lane, float] = {}  # when a lane was empty last, or gave what had not waited
        # The largest message by pool and class, since the pool's queue was empty.
        self.turns: dict[str, dict[int, int]] = {name: {} for name in self.pools}
        self.emptied: list[Lane] = []  # lanes that had no case for a moment
        self.desks: dict[str, Desk] = {}
        self.calls: dict[int, set[int]] = {}  # of tools, by epoch, that are out: by number
        self.resumed: set[str] = set()  # workers, by id, where what was paused went on
        self.by_peer: dict[bytes, Desk] = {}
        self.clients: dict[bytes, int] = {}  # connected: client_no
        self.principals: dict[bytes, str] = {}
        self.served: dict[bytes, str] = {}  # the worker whose programs a client serves, by id, "" = none's
        self.last_id: dict[bytes, int] = {}
        self.client_rows: Counter[bytes] = Counter()
        self.principal_rows: Counter[str] = Counter()
        self.accepted_rows = dict.fromkeys(self.pools, 0)
        self.resent = dict.fromkeys(self.pools, 0)
        self.programs: dict[str, tuple[str, str]] = {}  # by what can be called: its pool, what workers are asked for
        self.versions: dict[str, int] = {}  # of the program: by alias
        self.bounds = {pool.name: (pool.size, pool.max_size or pool.size) for pool in config.pools}
        self.memory_paused = False
        self.memory_used = self.cpu_used = 0.0
        # Workers may be told to leave.
        self.operated = any(pool.max_requests or pool.memory_limit_mb or pool.max_size for pool in config.pools)
        self.drained_one = False
        self.drain_due: float | None = None
        self._numbers = 0

    def open_desk(self, worker_id: str, now: float) -> Desk:
        desk = self.desks[worker_id] = Desk(worker_id, now)
        self.by_peer[desk.peer] = desk
        return desk

    def next_number(self) -> int:
        self._numbers += 1
        return self._numbers

    def home(self, message: wire.Request) -> str:
        """Return the pool that a request belongs to."""
        return message.pool or self.home_of(message.operation)

    def home_of(self, operation: str) -> str:
        """Return the pool where an operation is at home."""
        return self.programs[operation][0] if operation in self.programs else self.config.home_of(operation)

    def asks(self, operation: str) -> str:
        """Return what workers are asked for where a caller asks for an operation."""
        return self.programs[operation][1] if operation in self.programs else operation

    def is_unknown(self, operation: str) -> bool:
        """Whether an operation names a version of a program to which no alias leads."""
        return "@" in operation and operation not in self.programs

    def set_program(self, name: str, pools: dict[int, str], aliases: dict[str, int]) -> None:
        """A program has these versions, each in its pool, and these aliases; without any it is gone."""
        self.versions = aliases
        self.programs.clear()
        for alias, version in aliases.items():
            served = pools[version], f"{name}@{version}"
            self.programs[f"{name}@{alias}"] = self.programs[served[1]] = served
            if alias == "live":
                self.programs[name] = served

    def new_case(self, message: wire.Request, peer: bytes, now: float) -> Case:
        pool, asks = self.home(message), self.asks(message.operation)
        case = Case(message, peer, self.principals[peer], pool, asks, self.next_number(), now)
        self.set_deadline(case)
        return case

    def set_deadline(self, case: Case) -> None:
        """Give a case its deadline: its own, or that of the pool where it runs."""
        pool, deadline_ms = self.pools.get(case.pool), case.deadline_ms
        if deadline_ms is not None:
            case.deadline = case.came_at + deadline_ms / 1000.0
        elif pool is not None and pool.default_deadline_s is not None:
            case.deadline = case.came_at + pool.default_deadline_s
        else:
            case.deadline = None

    def taken_rows(self, pool: str) -> int:
        """Return the rows that take room in a pool's queue."""
        return self.queued_rows[pool] - self.following[pool] - self.lined[pool]

    # --- the moves of a case ------------------------------------------------------------------------

    def accept(self, case: Case) -> None:
        self.cases[case.request_id] = self.open[case.request_id] = case
        self.client_rows[case.peer] += case.rows
        self.principal_rows[case.principal] += case.rows
        self.accepted_rows[case.pool] += case.rows
        self.enqueue(case)

    def enqueue(self, case: Case, rank: tuple[int, int] | None = None) -> None:
        """Put a case into its queue; one that comes back goes before all that wait."""
        case.state = QUEUED
        case.desk = None
        if rank is not None:
            case.rank = rank
        self.queues[case.pool][case.request_id] = case
        self.lanes[case.lane] += 1
        self._widen_turns(case)
        self.queued_rows[case.pool] += case.rows

    def _widen_turns(self, case: Case) -> None:
        turns = self.turns[case.pool]
        turns[case.priority] = max(case.rows, turns.get(case.priority, 1))

    def _narrow_turns(self, pool: str) -> None:
        if not self.queues[pool] and not self.waiting[pool]:
            self.turns[pool].clear()

    def _dequeue(self, case: Case) -> None:
        del self.queues[case.pool][case.request_id]
        self.lanes[case.lane] -= 1
        if not self.lanes[case.lane]:
            self.emptied.append(case.lane)
            self.fresh_at[case.lane] = self.now
            self._narrow_turns(case.pool)
        self.queued_rows[case.pool] -= case.rows

    def follow(self, case: Case) -> None:
        """Take a case out of its queue: it waits for another's outcome."""
        self._dequeue(case)
        self.queued_rows[case.pool] += case.rows
        self.following[case.pool] += case.rows
        case.state = FOLLOWING

    def take_up(self, case: Case, rank: tuple[int, int]) -> None:
        """Put a case that followed another into its queue again."""
        self.queued_rows[case.pool] -= case.rows
        self.following[case.pool] -= case.rows
        self.enqueue(case, rank)

    def hurry(self, case: Case, priority: int) -> None:
        """A case that waits is of a higher class from now on, the last there."""
        case.depth = int(priority == NESTED)
        if case.state == QUEUED:
            self._dequeue(case)
            case.priority = priority
            self.enqueue(case, (0, self.next_number()))
        case.priority = priority

    def succeed(self, case: Case, resends: int) -> None:
        """A case that followed another waits for the resend of what was lost."""
        self.following[case.pool] -= case.rows
        self.queued_rows[case.pool] -= case.rows
        case.resends = resends
        self.wait(case, self.now)

    def wait(self, case: Case, now: float) -> None:
        """A case that was lost is to be sent again, a while later: it waits beside its queue."""
        case.state = WAITING
        self.waiting[case.pool] += 1
        self._widen_turns(case)  # it is in the queue again some time before it is sent
        case.lost_at = now
        case.resends += 1
        self.resent[case.pool] += case.rows
        self.queued_rows[case.pool] += case.rows

    def send_out(self, case: Case, desk: Desk, epoch: int, now: float) -> None:
        if case.state == QUEUED:
            self._dequeue(case)
            if now - case.came_at <= _LONG_S and not (case.took_over or case.astray):
                self.fresh_at[case.lane] = now
        else:
            self.queued_rows[case.pool] -= case.rows
            self.waiting[case.pool] -= 1
            self._narrow_turns(case.pool)
        case.state = OUT
        case.sent_at = now
        case.desk = desk
        case.epoch = epoch
        desk.attempts[epoch] = case
        desk.held += case.rows

    def settle(self, case: Case) -> None:
        """A settled case stays on its worker's desk until the worker answers or dies."""
        if case.state == QUEUED:
            self._dequeue(case)
        elif case.state in (WAITING, FOLLOWING):
            self.queued_rows[case.pool] -= case.rows
            if case.state == WAITING:
                self.waiting[case.pool] -= 1
                self._narrow_turns(case.pool)
            else:
                self.following[case.pool] -= case.rows
        case.state = SETTLED
        del self.open[case.request_id]
        self.client_rows[case.peer] -= case.rows
        self.principal_rows[case.principal] -= case.rows

    def ran(self, desk: Desk, request: wire.Request) -> None:
        """User code of an attempt starts at a worker: at most once, but for a resend of what was lost."""
        case = self.cases[request.request_id]
        word = request.epoch % SLOT_WORDS
        if desk.page[word] < request.epoch:
            desk.page[word] = request.epoch
        if case.runs > case.resends:
            raise Broken("at most once", f"{case} ran once more, at {desk.worker_id}, after {case.resends} resends")
        case.runs += 1
        if case.work is not None:
            case.work.ran(case, desk, request.epoch)


def label(request_id: int) -> str:
    """Return a request id as people read it: client.number."""
    return f"{request_id >> wire.CLIENT_SHIFT}.{request_id & ((1 << wire.CLIENT_SHIFT) - 1)}"
