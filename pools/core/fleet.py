"""The fleet: every decision of the coordinator, without I/O.

`handle(event, now, peer)` is the whole brain. Events are wire messages with the peer that sent them, and what the
launcher saw; what is to be done is then in `sends_to_clients`, `sends_to_workers`, `effects` and `control`.
Time is an argument: monotonic seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, Final

from bridge.protocol import messages as wire
from pools.config import FleetConfig
from pools.core import (
    admission,
    cancellation,
    dispatch,
    internal,
    isolation,
    lifecycle,
    listing,
    memory,
    pauses,
    programs,
    service,
    session_restoring,
    session_saves,
    sessions,
    tools,
)
from pools.core.entries import Peer, Sends
from pools.core.events import (
    ClientConnected,
    ClientGone,
    CpuRead,
    Drain,
    DrainWorker,
    DropLetter,
    Effect,
    ExpireSession,
    MemoryRead,
    OpenSession,
    PardonLetter,
    ProgramSet,
    ProgramsSynced,
    ProtocolBroken,
    Resize,
    Restart,
    ReturnLetter,
    SaveBatch,
    SessionRestored,
    SessionsSaved,
    SessionsSynced,
    SessionsUnsaved,
    SessionUnrestored,
    Tick,
    WorkerDied,
    WorkerExited,
    WorkerLaunched,
)
from pools.core.health import Health, on_cpu_read
from pools.core.poison import row
from pools.core.session import Session
from pools.core.tables import Tables

Handler = Callable[[Tables, Any, float, bytes], None]


def _on_tick(tables: Tables, event: Tick, now: float, peer: bytes) -> None:
    cancellation.expire(tables, now)  # first: what is out of time asks for nothing any more
    session_saves.expire(tables, now)
    tables.run_timers(now)
    lifecycle.stop_if_idle(tables, now)


def _on_saved(tables: Tables, event: SessionsSaved, now: float, peer: bytes) -> None:
    session_saves.on_saved(tables, event, now, peer)
    lifecycle.stop_if_idle(tables, now)  # it may be what the end waited for


# Who may say what: a message type that is not here is not for the coordinator from this side.
FROM_CLIENTS: Final[dict[type, Handler]] = {
    wire.Request: admission.on_request,
    wire.Cancel: cancellation.on_cancel,
    wire.ToolReply: tools.on_tool_reply,
    wire.Credit: tools.on_credit,
    wire.Bye: cancellation.on_bye,
}
FROM_WORKERS: Final[dict[type, Handler]] = {
    wire.Reply: dispatch.on_reply,
    wire.Heartbeat: lifecycle.on_heartbeat,
    wire.Hello: lifecycle.on_hello,
    wire.Ready: lifecycle.on_ready,
    wire.BootFailed: lifecycle.on_boot_failed,
    wire.Recalled: dispatch.on_recalled,
    wire.Started: dispatch.on_started,
    wire.Event: dispatch.on_event,
    wire.ToolCall: tools.on_tool_call,
    wire.Pause: pauses.on_pause,
    wire.Resume: pauses.on_resume,
}
_HAPPENINGS: Final[dict[type, Handler]] = {
    WorkerLaunched: lifecycle.on_launched,
    WorkerDied: lifecycle.on_died,
    WorkerExited: lifecycle.on_exited,
    ProtocolBroken: lifecycle.on_protocol_broken,
    ClientConnected: admission.on_connected,
    ClientGone: cancellation.on_bye,
    ProgramSet: programs.on_set,
    ProgramsSynced: programs.on_synced,
    Resize: service.on_resize,
    DropLetter: isolation.on_drop,
    PardonLetter: isolation.on_pardon,
    ReturnLetter: isolation.on_return,
    DrainWorker: service.on_drain_worker,
    Restart: service.on_restart,
    MemoryRead: memory.on_memory_read,
    CpuRead: on_cpu_read,
    OpenSession: sessions.on_open,
    ExpireSession: sessions.on_expire,
    SessionRestored: session_restoring.on_restored,
    SessionUnrestored: session_restoring.on_unrestored,
    SessionsSynced: session_restoring.on_synced,
    SessionsSaved: _on_saved,
    SessionsUnsaved: session_saves.on_unsaved,
    Drain: lifecycle.on_drain,
    Tick: _on_tick,
}
_HANDLERS: Final[dict[type, Handler]] = {**FROM_CLIENTS, **FROM_WORKERS, **_HAPPENINGS}


class Fleet:
    """The pools of one coordinator, their requests and workers.

    lms: the configured language models' names. random() gives [0, 1). open_page(worker_id) makes the started-slots
    page of a new worker and returns its live words (see `pools.core.tables`). run: tells this run of
    the coordinator from others of its data: sessions of two runs are not mistaken for each other.
    """

    def __init__(
        self,
        config: FleetConfig,
        *,
        lms: frozenset[str],
        random: Callable[[], float],
        open_page: Callable[[str], Sequence[int]],
        run: int = 0,
    ) -> None:
        self._tables = Tables(config, lms, random, open_page, run)
        self._health = Health()

    def start(self, now: float, needed: Collection[str] = ()) -> None:
        """Launch every worker. needed: internal pools that are launched too, instead of when they are first needed."""
        for name in needed:
            self._tables.pools[name].asked = True
            self._tables.programs.awaited = True
        lifecycle.start(self._tables, now)
        self._health.start(self._tables, now)

    def handle(self, event: Any, now: float, peer: Peer = b"") -> None:
        """Take one event. Raises KeyError for a type that is no event, BridgeError for what an operator may not ask."""
        tables = self._tables
        _HANDLERS[type(event)](tables, event, now, peer)
        while tables.orphans or tables.stirred or tables.leavers:
            if tables.orphans:
                cancellation.end_orphans(tables, now)
            sessions.settle_down(tables, now)

    @property
    def sends_to_clients(self) -> Sends:
        """(peer, message) in order; the shell sends and clears them."""
        return self._tables.to_clients

    @property
    def sends_to_workers(self) -> Sends:
        """(peer, message) in order; the shell sends and clears them."""
        return self._tables.to_workers

    @property
    def control(self) -> Sends:
        """(peer, request) for the coordinator's own operations; the shell answers and clears them."""
        return self._tables.control

    def take_effects(self) -> list[Effect]:
        """Return, and forget, what is to be done beside sending."""
        effects = self._tables.effects
        if effects:
            self._tables.effects = []
        return effects

    def next_timer(self) -> float | None:
        """Return when `Tick` is next due, or None."""
        tables = self._tables
        deadline = tables.deadlines.next_due()
        timer = tables.next_timer()
        if tables.saves is not None and (due := tables.saves.next_due()) is not None:
            deadline = due if deadline is None else min(deadline, due)
        if deadline is None or timer is None:
            return timer if deadline is None else deadline
        return min(deadline, timer)

    @property
    def open_requests(self) -> int:
        """How many requests are accepted and not settled (a request of many rows counts once)."""
        return len(self._tables.requests)

    @property
    def ready(self) -> bool:
        """Whether every place that is in service has a worker that takes requests. No internal pool is waited for long.

        One that cannot boot keeps nobody from calling the others.
        """
        pools = self._tables.pools.values()
        return all(
            internal.is_settled(pool) if pool.config.internal else len(pool.ready) >= len(pool.wanted) for pool in pools
        )

    @property
    def boot_error(self) -> Any:
        """The boot failure of a pool that has never been ready, or None."""
        for pool in self._tables.user_pools.values():
            if pool.boot_error is not None and not pool.was_ready:
                return pool.boot_error
        return None

    @property
    def stopped(self) -> bool:
        """Whether the fleet was drained and no worker is left."""
        return self._tables.stopping and not self._tables.workers

    def knows_worker(self, peer: Peer) -> bool:
        """Whether this backend peer is a worker that said Hello and still lives."""
        return peer in self._tables.workers_by_peer

    def pool_names(self) -> list[str]:
        """Return the names of the pools that users may name."""
        return list(self._tables.user_pools)

    def internal_pool(self, name: str, now: float) -> dict[str, Any]:
        """Return an internal pool as `stats` lists it (see `internal.row`). Raises KeyError."""
        return internal.row(self._tables.pools[name], now)

    def internal_boot_error(self, name: str) -> bool:
        """Return whether an internal pool is down because it cannot boot. Raises KeyError."""
        return self._tables.pools[name].boot_error is not None

    def internal_state(self, name: str) -> str:
        """Return an internal pool's state: off, booting, ready or down. Raises KeyError."""
        return internal.state(self._tables.pools[name])

    def internal_workers(self) -> list[str]:
        """Return the ids of the workers of internal pools, of those that died of late too."""
        pools = [pool for pool in self._tables.pools.values() if pool.config.internal]
        living = [worker.worker_id for pool in pools for worker in pool.workers]
        return living + [dead.worker_id for pool in pools for dead in pool.dead]

    def is_trusted(self, peer: Peer) -> bool:
        """Whether a client belongs to a living worker of an internal pool."""
        return internal.is_trusted(self._tables, peer)

    @property
    def run(self) -> int:
        """The number of this run, which may grow meanwhile: what was numbered before keeps its number."""
        return self._tables.sessions.run

    @run.setter
    def run(self, number: int) -> None:
        self._tables.sessions.run = number

    @property
    def program_problems(self) -> dict[str, str]:
        """Programs of the configuration that could not be deployed, and why: whoever is told keeps it."""
        return self._tables.program_problems

    @property
    def store_problem(self) -> str:
        """What is wrong with the store, as the services process has said last; "" = nothing."""
        return self._tables.store_problem

    @store_problem.setter
    def store_problem(self, problem: str) -> None:
        self._tables.store_problem = self._tables.programs.problem = problem

    def replacing(self, target: str) -> list[str]:
        """Return the workers of a pool, or the one worker, that are being replaced or will be, in that order."""
        return listing.replacing(self._tables, target)

    def peer_muted(self, why: str, now: float) -> None:
        """Take note that the shell does not listen to a peer any more. why: what it did, in words."""
        self._health.muted(why, now)

    def health(self, now: float) -> dict[str, Any]:
        """Return what is wrong (see `Health.report`)."""
        return self._health.report(self._tables, now)

    def stats(self, now: float) -> dict[str, Any]:
        """Return the counters of `client.stats()` that the fleet owns."""
        return listing.stats(self._tables, now)

    def pools(self, now: float) -> list[dict[str, Any]]:
        """Return one row per pool."""
        return listing.pools(self._tables, now)

    def dead_letters(self, now: float) -> list[dict[str, Any]]:
        """Return one row per request in quarantine, the oldest first."""
        return self._tables.poison.rows(now)

    def dead_letter(self, letter_id: str, now: float) -> tuple[dict[str, Any], wire.Request]:
        """Return the row of a dead letter, and the request. Raises BridgeError NOT_FOUND."""
        letter = self._tables.poison.find(letter_id)
        return row(letter, now), letter.message

    def principal_of(self, peer: Peer) -> str:
        """Return the principal of a client. Raises KeyError if there is no such client."""
        return self._tables.clients[peer].principal

    def sessions(self, principal: str, now: float, limit: int) -> list[dict[str, Any]]:
        """Return a row of each of a principal's first `limit` sessions, the oldest first."""
        return sessions.rows(self._tables, principal, now, limit)

    def session_count(self, principal: str) -> int:
        """Return how many sessions a principal has, or had a moment ago."""
        return self._tables.sessions.of_principal.get(principal, 0)

    def session(self, principal: str, session_id: str, generation: int, now: float) -> Session:
        """Return a session, to be read. Raises BridgeError NOT_FOUND, SESSION_LOST (see `sessions.get`)."""
        return sessions.get(self._tables, principal, session_id, generation, now)

    @property
    def draining(self) -> bool:
        """Whether nothing new is taken any more."""
        return self._tables.draining

    @property
    def sessions_problem(self) -> str:
        """Why sessions could not be kept of late; "" = they are."""
        return self._tables.sessions_problem

    @sessions_problem.setter
    def sessions_problem(self, problem: str) -> None:
        self._tables.sessions_problem = problem

    @property
    def unsaved_sessions(self) -> bool:
        """Whether sessions are to be kept: the shell takes them, has them kept, and says how that went."""
        saves = self._tables.saves
        return saves is not None and saves.unsaved

    @property
    def unkept_sessions(self) -> int:
        """How many sessions are to be kept, or on their way to be."""
        saves = self._tables.saves
        return 0 if saves is None else saves.backlog

    def await_unsaved(self) -> None:
        """Have the end wait for what could not be kept: it is about to be tried again."""
        if self._tables.saves is not None and self._tables.draining:
            self._tables.saves.holding = True

    def take_unsaved(self, now: float) -> SaveBatch | None:
        """Return the next sessions that are to be kept, None if there are none."""
        saves = self._tables.saves
        return saves.take(now) if saves is not None else None

    def workers(self, now: float) -> list[dict[str, Any]]:
        """Return one row per worker, dead ones of the last hour included."""
        return listing.workers(self._tables, now)
