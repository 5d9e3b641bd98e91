"""Everything the fleet knows, in one place. The modules beside change it; nothing else does."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from bridge.protocol.errors import BridgeError
from pools.config import FleetConfig
from pools.core.credits import RunTimes
from pools.core.deadlines import Deadlines
from pools.core.entries import Account, ClientEntry, Peer, PoolEntry, RequestEntry, Sends, WorkerEntry
from pools.core.events import Effect, Log
from pools.core.keys import Keys
from pools.core.modes import NORMAL, Modes
from pools.core.poison import Poison
from pools.core.programs import Catalog
from pools.core.sampling import Sample
from pools.core.session_saves import Saves
from pools.core.session_table import SessionTable

if TYPE_CHECKING:
    from pools.core.session import Session

# What a timer does when it fires: a function of (tables, now) bound to its subject.
Timer = Callable[["Tables", float], None]
# Where a timer is looked at so late, the coordinator stood still (SIGSTOP, a suspended machine, a long turn): what it
# would judge by may lie there unread.
LATE_S: Final = 0.05
# By then what lay there is read: the transport's own thread stood still too, and must fetch it first.
READ_S: Final = 0.25
# Failing requests that are events of their own: so many at once, then so many a second. More would drive out of the log
# what was before them.
FAILURES_TOLD: Final = (20, 1.0)
# After so long nobody was silent and nobody waited: nobody was listening.
_STALL_S: Final = 0.5


class Route(NamedTuple):
    """Where requests with a certain (operation, pool, lm) go; what was asked once is not asked again.

    runs: what workers are asked for: the operation, or the version of a program that it means now.
    """

    pool: PoolEntry
    times: RunTimes
    runs: str


class Tables:
    """The fleet's state.

    open_page(worker_id) gives the live words of a new worker's started-slots page.
    random() gives [0, 1): jitter. run: tells this run from others (see `SessionTable`).
    Sends to clients and to workers are lists of (peer, message) in order; the shell encodes and empties them.
    """

    def __init__(
        self,
        config: FleetConfig,
        lms: frozenset[str],
        random: Callable[[], float],
        open_page: Callable[[str], Sequence[int]],
        run: int,
    ) -> None:
        self.config = config
        self.lms = lms
        self.open_page = open_page
        self.random = random
        self.pools: dict[str, PoolEntry] = {pool.name: PoolEntry(pool, random) for pool in config.pools}
        self.user_pools = {name: pool for name, pool in self.pools.items() if not pool.config.internal}
        self.clients: dict[Peer, ClientEntry] = {}
        self.accounts: dict[str, Account] = {}  # by principal, of those that are connected
        self.requests: dict[int, RequestEntry] = {}
        self.children: dict[int, dict[int, RequestEntry]] = {}  # unsettled nested requests by their parent's id
        self.orphans: list[int] = []  # parents whose children are to end: see `cancellation.end_orphans`
        self.tool_calls: dict[int, set[int]] = {}  # numbers of those that are out, by epoch
        self.workers: dict[str, WorkerEntry] = {}
        self.workers_by_peer: dict[Peer, WorkerEntry] = {}
        self.programs = Catalog()
        self.routes: dict[tuple[str, str, str], Route] = {}  # forgotten when programs change
        self.deadlines: Deadlines[int] = Deadlines()
        self.timers: list[tuple[float, int, Timer]] = []
        self.to_clients: Sends = []
        self.to_workers: Sends = []
        self.effects: list[Effect] = []
        self.control: list[tuple[Peer, Any]] = []
        self.epochs = itertools.count(1)
        self._timer_order = itertools.count()
        self._read_by = 0.0  # no timer runs before: the coordinator reads what lay there after a standstill
        self.awake_since = 0.0  # the end of the latest long standstill
        self.draining = False  # the end has begun: nothing new is accepted
        self.ends_at = math.inf  # when what is left by then is cancelled
        self.memory_used: float | None = None
        self.memory_paused = False  # nothing new is accepted until there is memory again
        self.cpu_used: float | None = None
        self.modes = Modes(config.degradation)
        self.poison = Poison(config.poison_deaths)
        self.keys = Keys()
        self.failures = Sample(*FAILURES_TOLD)
        self.sessions = SessionTable(run)
        self.saves = Saves() if config.sessions.durable else None  # None: sessions end with the coordinator
        self.stirred: list[Session] = []  # whose turn may pass on, and workers whose lines are to move: see
        self.leavers: list[WorkerEntry] = []  # `sessions.settle_down`
        self.attached = 0  # requests that had another's outcome, for they had its idempotency key
        self.program_problems: dict[str, str] = {}  # of the configuration, not deployed: why
        self.sessions_problem = ""  # why what changed of them is not kept, "" = it is
        self.store_problem = ""  # what the services process has said of the store, "" = it is well
        self.wary = False  # admission asks everything: see `reconsider`
        self.stopping = False  # workers are told to stop, none is started
        self.fenced = 0
        # What waits until all is done that is done together, by pool: see `together`.
        self.held: dict[str, Callable[[], None]] | None = None
        # Who shares the queues: the clients that asked for something in this spell of a second, or in the one before.
        self.spell = 1
        self.sharers = 0
        self._asking = 0

    def after(self, at: float, timer: Timer) -> None:
        """Call `timer` at the first Tick not before `at`."""
        heapq.heappush(self.timers, (at, next(self._timer_order), timer))

    def next_timer(self) -> float | None:
        """Return when the next timer may run, or None."""
        if not self.timers:
            return None
        at = self.timers[0][0]
        return at if at > self._read_by else self._read_by

    def is_reading(self, now: float) -> bool:
        """Return whether timers wait until what lay there after a standstill is read."""
        return now < self._read_by

    def run_timers(self, now: float) -> None:
        """Do what is due. After a standstill it waits a moment: first the workers' answers are read."""
        due = self.next_timer()
        if due is None or now < due:
            return
        if now - due > LATE_S:
            self._read_by = now + READ_S
            if now - due > _STALL_S:
                self.awake_since = now
            return
        while self.timers and self.timers[0][0] <= now:
            heapq.heappop(self.timers)[2](self, now)

    def asks(self, client: ClientEntry) -> None:
        """Count a client in that asks for the first time in this spell."""
        client.spell = self.spell
        self._asking += 1
        self.sharers = max(self.sharers, self._asking)

    def next_spell(self) -> None:
        """Begin the next spell of counting."""
        self.spell += 1
        self.sharers, self._asking = self._asking, 0

    @contextmanager
    def together(self) -> Iterator[None]:
        """Let several things happen as one: nothing is dispatched before the last of them.

        Or else what is about to end, or to come back, would be passed over, or begun only to end too.
        """
        if self.held is not None:
            yield
            return
        held: dict[str, Callable[[], None]] = {}
        self.held = held
        try:
            yield
        finally:
            self.held = None
        for go_on in held.values():
            go_on()

    def home_of(self, operation: str) -> str:
        """Return the name of the pool where an operation is at home: a program's own, or as configured."""
        program = self.programs.served.get(operation)
        return program.pool if program is not None else self.config.home_of(operation)

    def reconsider(self) -> None:
        """Decide anew whether admission must ask everything: something may be refused that is ordinary otherwise."""
        self.wary = self.draining or self.memory_paused or self.modes.mode != NORMAL

    def log(self, event: str, level: str = "info", **fields: object) -> None:
        """Tell the operator."""
        self.effects.append(Log(event, fields, level))


def unavailable(message: str, **details: object) -> BridgeError:
    """Return an UNAVAILABLE error, worth retrying."""
    return BridgeError("UNAVAILABLE", message, retryable=True, details=details)
