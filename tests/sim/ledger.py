"""What has happened, as somebody sees it who knows the truth: written down beside the fleet, never read from it."""

from __future__ import annotations

from collections import Counter
from typing import Final

from bridge.protocol import messages as wire
from pools.config import FleetConfig, PoolConfig
from pools.core.entries import SLOT_WORDS
from pools.core.events import DrainWorker, Resize, Restart

# States of a case.
NEW: Final = "new"  # arrived; the fleet has not said anything yet
QUEUED: Final = "queued"
OUT: Final = "out"
SETTLED: Final = "settled"


# What operators ask for: refused by an error where it makes no sense.
OPERATIONS: Final = frozenset((Resize, DrainWorker, Restart))


class Broken(Exception):
    """An invariant does not hold. `invariant` is its constant name."""

    def __init__(self, invariant: str, detail: str) -> None:
        super().__init__(f"{invariant}: {detail}")
        self.invariant = invariant
        self.detail = detail


class Case:
    """One request.

    came_at: when the fleet heard of it. rank: its place in its pool's queue, lowest first. started: user code ran.
    deaths: workers that died holding it unstarted. told: the last epoch whose worker was asked to give it back or to
    stop.
    """

    __slots__ = (
        "answered_cancel", "came_at", "cancel", "client_asked", "deadline", "deaths", "desk", "epoch", "flags",
        "operation", "peer", "pool", "rank", "request_id", "rows", "started", "state", "told",
    )  # fmt: skip

    def __init__(
        self, message: wire.Request, peer: bytes, pool: str, deadline: float | None, number: int, now: float
    ) -> None:
        self.came_at = now
        self.request_id = message.request_id
        self.operation = message.operation
        self.rows = message.rows
        self.flags = message.flags
        self.peer = peer
        self.pool = pool
        self.deadline = deadline
        self.rank = (0, number)
        self.state = NEW
        self.desk: Desk | None = None
        self.epoch = 0
        self.started = False
        self.deaths = 0
        self.cancel = 0
        self.client_asked = False
        self.answered_cancel = False
        self.told = 0

    def __repr__(self) -> str:
        return f"request {label(self.request_id)} ({self.operation}, {self.state})"


class Desk:
    """One worker's life as the coordinator could know it, and its started-slots page.

    attempts: what it was sent and has not answered, as far as its answers have come through.
    """

    __slots__ = (
        "attempts", "broken", "dead", "exited", "held", "killed", "last_heard", "launched_at", "page", "peer", "pool",
        "programs", "ready", "stopping", "worker_id",
    )  # fmt: skip

    def __init__(self, worker_id: str, now: float) -> None:
        self.worker_id = worker_id
        self.pool = worker_id.rpartition("-")[0]
        self.peer = b"worker " + worker_id.encode()
        self.page = [0] * SLOT_WORDS
        self.attempts: dict[int, Case] = {}
        self.held = 0
        self.programs: set[str] = set()
        self.ready = False
        self.dead = False
        self.exited = False
        self.stopping = False
        self.broken = False
        self.killed = False
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
        if case is not None:
            self.held -= case.rows
        return case


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
        self.desks: dict[str, Desk] = {}
        self.by_peer: dict[bytes, Desk] = {}
        self.clients: dict[bytes, int] = {}  # connected: client_no
        self.last_id: dict[bytes, int] = {}
        self.client_rows: Counter[bytes] = Counter()
        self.programs: dict[str, str] = {}
        self.bounds = {pool.name: (pool.size, pool.max_size or pool.size) for pool in config.pools}
        self.memory_paused = False
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
        return message.pool or self.programs.get(message.operation) or self.config.home_of(message.operation)

    def new_case(self, message: wire.Request, peer: bytes, now: float) -> Case:
        name = self.home(message)
        pool = self.pools.get(name)
        deadline_ms = message.deadline_ms
        if deadline_ms is None and pool is not None and pool.default_deadline_s is not None:
            deadline_ms = pool.default_deadline_s * 1000.0
        deadline = None if deadline_ms is None else now + deadline_ms / 1000.0
        return Case(message, peer, name, deadline, self.next_number(), now)

    # --- the moves of a case ------------------------------------------------------------------------

    def accept(self, case: Case) -> None:
        self.cases[case.request_id] = self.open[case.request_id] = case
        self.client_rows[case.peer] += case.rows
        self.enqueue(case)

    def enqueue(self, case: Case, rank: tuple[int, int] | None = None) -> None:
        """Put a case into its queue; one that comes back goes before all that wait."""
        case.state = QUEUED
        case.desk = None
        if rank is not None:
            case.rank = rank
        self.queues[case.pool][case.request_id] = case
        self.queued_rows[case.pool] += case.rows

    def _dequeue(self, case: Case) -> None:
        del self.queues[case.pool][case.request_id]
        self.queued_rows[case.pool] -= case.rows

    def send_out(self, case: Case, desk: Desk, epoch: int) -> None:
        self._dequeue(case)
        case.state = OUT
        case.desk = desk
        case.epoch = epoch
        desk.attempts[epoch] = case
        desk.held += case.rows

    def settle(self, case: Case) -> None:
        """A settled case stays on its worker's desk until the worker answers or dies."""
        if case.state == QUEUED:
            self._dequeue(case)
        case.state = SETTLED
        del self.open[case.request_id]
        self.client_rows[case.peer] -= case.rows

    def ran(self, desk: Desk, request: wire.Request) -> None:
        """User code of an attempt starts at a worker: the promise is that this happens at most once."""
        case = self.cases[request.request_id]
        word = request.epoch % SLOT_WORDS
        if desk.page[word] < request.epoch:
            desk.page[word] = request.epoch
        if case.started:
            raise Broken("at most once", f"{case} ran a second time, at {desk.worker_id}")
        case.started = True


def label(request_id: int) -> str:
    """Return a request id as people read it: client.number."""
    return f"{request_id >> wire.CLIENT_SHIFT}.{request_id & ((1 << wire.CLIENT_SHIFT) - 1)}"
