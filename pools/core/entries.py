"""The fleet's records: clients, requests, workers, pools. Plain data; the decisions are in the modules beside."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from bridge.protocol.errors import BridgeError
from bridge.protocol.messages import Request
from pools.config import PoolConfig
from pools.core.breaker import Breaker
from pools.core.credits import Credits, RunTimes
from pools.core.events import ExitReason
from pools.core.queueing import PoolQueue
from pools.core.restart import RestartPolicy
from pools.core.retries import RetryBudget
from pools.core.states import LAUNCHING, QUEUED, READY
from pools.core.stats import Histogram, Pace, RecentPeak

if TYPE_CHECKING:
    from pools.core.idempotency import Keyed
    from pools.core.isolation import Seclusion
    from pools.core.session import Session

# Words of a started-slots page; epochs are marked at `epoch % SLOT_WORDS`.
SLOT_WORDS: Final = 512
DEAD_WORKERS_KEPT: Final = 100
DEAD_WORKER_KEPT_S: Final = 3600.0

# One attempt that runs: epoch, run_ms, rows_done, lm_calls, quiet_ms.
Progress = tuple[int, float, int, int, float]

# A worker with so many paused attempts for each of its slots, or so many in all, begins nothing but nested requests,
# which end them: each may be a thread, and what they wait for may be this very pool.
_PAUSED_PER_SLOT: Final = 4
_PAUSED_MAX: Final = 128

# How far a cancellation was asked for.
NOT_ASKED: Final = 0
ASKED: Final = 1
FORCED: Final = 2


class Account(msgspec.Struct, gc=False):
    """What the clients of one principal have together: how many are connected, rows accepted and unsettled."""

    clients: int = 0
    in_flight: int = 0


class ClientEntry(msgspec.Struct, gc=False):
    """A client that said Hello. last_id: its highest request id so far; in_flight: rows accepted and unsettled.

    spell: the last spell of time in which it asked for something (see Tables). peak: the most rows that it had in
    flight since it was last told to have less. account: its principal's. worker_id: of the worker whose programs it
    serves, "" = none's. internal: that worker is of an internal pool.
    """

    peer: bytes
    client_no: int
    principal: str
    last_id: int
    in_flight: int = 0
    spell: int = 0
    peak: int = 0
    account: Account = msgspec.field(default_factory=Account)
    worker_id: str = ""
    internal: bool = False


class RequestEntry(msgspec.Struct, gc=False):
    """An accepted request, from admission to settlement (and beyond, while a worker still holds its attempt).

    deadline: absolute seconds, None without one. `epoch` names its current attempt, 0 before the first. message.depth:
    how deep it is nested, 0 for what no program asked for (see `nesting`). runs: what workers are asked for: where the
    operation is a program, its version as this was accepted.
    """

    request_id: int
    client: ClientEntry
    message: Request
    pool: PoolEntry
    rows: int
    times: RunTimes
    accepted_at: float
    deadline: float | None
    runs: str
    bucket: int = 0
    state: str = QUEUED
    worker: WorkerEntry | None = None
    epoch: int = 0
    attempts: int = 0
    dispatched_at: float = 0.0
    deaths: int = 0  # workers that died holding it unstarted
    recalled: bool = False  # a Recall is on its way
    cancel: int = NOT_ASKED
    cancel_answered: bool = False
    resends: int = 0  # attempts beyond those before, each after one that was lost while it ran
    keyed: Keyed | None = None  # its work is shared by all requests with its idempotency key
    watched: bool = False  # a breaker opened since it was accepted, or it is a probe: its outcome is looked at closely
    fallback_used: bool = False
    overran: bool = False  # it was out of time, and that was counted as a failure
    tied: bool = False  # it has, or had, a parent, children, a pause or a tool's call: more than itself ends with it
    moved: bool = False  # to another lane than that in which it waited first
    paused: bool = False  # its attempt lends its slot out: the worker holds it, but nothing for it
    session: Session | None = None  # whose call it is
    waits_for: WorkerEntry | None = None  # it is in the line of this worker


class WorkerEntry:
    """One life of one place of a pool.

    slots_page: the live words of its started-slots page. held: rows it was sent and has not answered, without those
    whose attempts are paused (paused: how many are).
    rss_at_birth: at the last heartbeat before it was given anything, 0 if there was none. progress: of its attempts, as
    the latest heartbeat has it; that came at progress_at.
    tolerance: what its pool's limits for recycling are multiplied with, so that workers of one age do not end as one.
    """

    __slots__ = (
        "attempts", "boot_error", "boot_ms", "booted", "died", "held", "incarnation", "kill_asked", "kill_why",
        "last_epoch", "last_heard", "launched_at", "line", "lined",
        "paused", "peer", "pid", "place", "pool", "progress", "progress_at",
        "requests", "reserved", "rss_at_birth", "rss_bytes", "silent", "slots_page", "state", "stop_wanted", "stop_why",
        "told_to_stop", "tolerance", "worker_id",
    )  # fmt: skip

    def __init__(self, pool: PoolEntry, place: int, incarnation: int, slots_page: Sequence[int], now: float) -> None:
        self.worker_id = f"{pool.name}-{place}.{incarnation}"
        self.pool = pool
        self.place = place
        self.incarnation = incarnation
        self.slots_page = slots_page
        self.state = LAUNCHING
        self.launched_at = now
        self.last_heard = now
        self.peer = b""
        self.pid = 0
        self.booted = False
        self.boot_ms = 0.0
        self.boot_error: bytes | None = None
        self.attempts: dict[int, RequestEntry] = {}
        self.held = 0
        self.paused = 0
        self.last_epoch = 0
        self.requests = 0
        self.rss_bytes = 0
        self.rss_at_birth = 0
        self.progress: list[Progress] = []
        self.progress_at = now
        self.kill_why = ""
        self.silent = False  # it is killed because it was not heard
        self.reserved = False  # for requests that run alone
        self.kill_asked = False  # by who cancelled a request by force
        self.died = False  # its process has ended; what it sent may still come
        self.stop_wanted = False  # intent, recorded before the worker is told
        self.stop_why = ""
        self.told_to_stop = False
        self.tolerance = 1.0
        self.line: PoolQueue | None = None  # who waits for this very worker, and how many rows (see `lines`)
        self.lined = 0

    def stand_in_line(self, entry: RequestEntry) -> None:
        """Have a request wait for this worker (see `lines`)."""
        if self.line is None:
            self.line = PoolQueue()
        entry.waits_for = self
        self.line.push(entry)
        self.lined += entry.rows
        self.pool.following += entry.rows
        self.pool.lined[self.worker_id] = self

    def leave_line(self, entry: RequestEntry) -> None:
        """Take a request out of the line; it is there."""
        assert self.line is not None
        entry.waits_for = None
        self.line.discard(entry)
        self.lined -= entry.rows
        self.pool.following -= entry.rows
        if not self.line.open_lanes:
            self.line = None
            del self.pool.lined[self.worker_id]

    def started(self, epoch: int) -> bool:
        """Return False only if the page proves that the attempt has not started."""
        page = self.slots_page
        return not page or page[epoch % SLOT_WORDS] >= epoch


class DeadWorker(msgspec.Struct, frozen=True):
    """What is remembered of a worker that is gone."""

    worker_id: str
    pid: int
    place: int
    incarnation: int
    exited_at: float
    lived_s: float
    requests: int
    boot_ms: float
    reason: ExitReason
    cause: str
    peak_rss_bytes: int
    log_tail: tuple[str, ...]
    stacks: tuple[str, ...]


class Wish(NamedTuple):
    """A worker is to be replaced: why, and how long what it runs may take; None = as long as it takes."""

    why: str
    grace_s: float | None = None


class Succession(NamedTuple):
    """A worker and the spare that is to take its place, from the spare's launch to the old one's end."""

    old: WorkerEntry
    spare: WorkerEntry
    wish: Wish


class PoolEntry:
    """One pool: its queue, its places, its counters. All row counts.

    size: places that are wanted, 1 to `size`, at least `least` and at most `most` of them; those above are kept for
    their incarnations. demand: the most rows of late, kept where the size may change; shrink_at: it does not shrink
    before. lives: its living workers, by id, those that leave included. succession: the one replacement that is under
    way. wishes: those to come, by the old worker's id; none is begun before replace_at. A pool with a boot_error is
    degraded: it answers with that error and is probed by one launch at a time (`probe`: the latest one's id), none
    before probe_at. asked: an internal one was, and is launched since then. hurry_ms: a request with less time than
    that may be too late already; shed_at: when something was last shed, 0 = not of late.
    """

    __slots__ = (
        "accepted", "asked", "boot_error", "breakers", "cancelled", "completed", "config", "credits", "dead",
        "dealt_to", "demand", "failed", "following", "hand_left", "hurry_ms", "in_flight", "large_at_birth",
        "latency", "least", "lent", "lined", "lives", "memory_recycle_at", "most", "most_paused", "name", "outcomes",
        "over", "pace", "places", "probe", "probe_at", "queue", "queued", "ready", "rejected", "replace_at", "resent",
        "restarts", "retries", "seclusion", "shed", "shed_at", "shedding", "shrink_at", "size", "slots", "succession",
        "was_ready", "wishes",
    )  # fmt: skip

    def __init__(self, config: PoolConfig, random: Callable[[], float]) -> None:
        self.config = config
        self.name = config.name
        self.slots = config.slots
        self.asked = not config.internal
        self.most_paused = min(_PAUSED_PER_SLOT * config.slots, _PAUSED_MAX)
        self.queue = PoolQueue()
        self.seclusion: Seclusion | None = None  # while requests are under suspicion or in quarantine
        self.retries = RetryBudget(config.slots * config.size)
        self.resent = 0
        self.following = 0  # of those that are queued: they wait for others with their key, their session, one worker
        self.lined: dict[str, WorkerEntry] = {}  # workers that somebody waits for, by id (see `lines`)
        self.queued = 0
        self.in_flight = 0
        self.ready: list[WorkerEntry] = []
        self.size = self.least = config.size
        self.most = config.size if config.max_size is None else config.max_size
        self.demand = RecentPeak()
        self.shrink_at = 0.0
        self.places: dict[int, Place] = {n: Place(n) for n in range(1, config.size + 1)}
        self.lives: dict[str, WorkerEntry] = {}
        self.restarts = RestartPolicy(config.restart, random)
        self.succession: Succession | None = None
        self.wishes: dict[str, Wish] = {}
        self.replace_at = 0.0
        self.credits = Credits()
        self.breakers: dict[str, Breaker] = {}  # "": its own, and those of operations; none before the first failure
        self.outcomes = 0  # requests that ended well or badly: what its own breaker counts
        self.latency = Histogram()
        self.pace = Pace()
        self.hurry_ms = 0.0
        self.shed_at = 0.0
        self.shedding = False  # right now: see `dispatch.pump`
        self.dealt_to: WorkerEntry | None = None  # who is being dealt a hand, and how much of it is left
        self.hand_left = 0
        self.over = 0  # ready workers that hold more than their slots
        self.lent = 0  # rows of paused attempts: they are with a worker and take none of its slots
        self.dead: deque[DeadWorker] = deque(maxlen=DEAD_WORKERS_KEPT)
        self.boot_error: BridgeError | None = None
        self.probe = ""
        self.probe_at = 0.0
        self.was_ready = False
        self.large_at_birth = False  # the operator was told
        self.memory_recycle_at = 0.0  # no worker is replaced for its memory before
        self.accepted = 0
        self.completed = 0
        self.failed = 0
        self.cancelled = 0
        self.rejected = 0
        self.shed = 0

    @property
    def title(self) -> str:
        """What users are told that it is: they know an internal one as a process, not as a pool of theirs."""
        return f"the {self.name} process" if self.config.internal else f"pool {self.name}"

    @property
    def waiting_rows(self) -> int:
        """How many rows wait for any worker. Who follows another's work, or waits for one worker, takes no room."""
        return self.queued - self.following

    @property
    def workers(self) -> list[WorkerEntry]:
        """The living workers, by place."""
        return sorted(self.lives.values(), key=lambda worker: (worker.place, worker.incarnation))

    @property
    def wanted(self) -> list[Place]:
        """The places that are to have a worker."""
        return [place for place in self.places.values() if place.number <= self.size and not place.out]


class Place:
    """One of a pool's places: a worker after the other, each its next incarnation.

    worker: the one in service, or on its way there; never two. Besides it there may be a spare, which takes its place
    when it is ready, and some that leave. out: why it is to stay empty, if it is. not_before: when it may be filled.
    """

    __slots__ = ("incarnation", "not_before", "number", "out", "worker")

    def __init__(self, number: int) -> None:
        self.number = number
        self.incarnation = 0
        self.worker: WorkerEntry | None = None
        self.out = ""
        self.not_before = 0.0


def followers_first(entries: Iterable[RequestEntry]) -> list[RequestEntry]:
    """Return requests that are to end together, those that wait for another's outcome first.

    Or else one of them would begin in the place of that other, only to end too.
    """
    return sorted(entries, key=lambda entry: entry.keyed is None or entry is entry.keyed.runner)


def worker_state(worker: WorkerEntry) -> str:
    """Return the state as listed: a ready worker with an attempt is busy."""
    return "busy" if worker.state == READY and worker.attempts else worker.state


Peer = bytes
Sends = list[tuple[Peer, Any]]
