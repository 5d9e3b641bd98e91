"""The fleet: every decision of the coordinator, without I/O.

`handle(event, now, peer)` is the whole brain. Events are wire messages with the peer that sent them, and what the
launcher saw; what is to be done is then in `sends_to_clients`, `sends_to_workers`, `effects` and `control`.
Time is an argument: monotonic seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from bridge.protocol import messages as wire
from pools.config import FleetConfig
from pools.core import admission, cancellation, dispatch, isolation, lifecycle, listing, memory, pauses, service, tools
from pools.core.entries import Peer, Sends
from pools.core.events import (
    ClientConnected,
    ClientGone,
    CpuRead,
    Drain,
    DrainWorker,
    DropLetter,
    Effect,
    MemoryRead,
    PardonLetter,
    ProgramDeployed,
    ProgramRemoved,
    ProtocolBroken,
    Resize,
    Restart,
    ReturnLetter,
    Tick,
    WorkerDied,
    WorkerExited,
    WorkerLaunched,
)
from pools.core.health import Health, on_cpu_read
from pools.core.poison import row
from pools.core.tables import Tables

Handler = Callable[[Tables, Any, float, bytes], None]


def _on_tick(tables: Tables, event: Tick, now: float, peer: bytes) -> None:
    cancellation.expire(tables, now)  # first: what is out of time asks for nothing any more
    tables.run_timers(now)
    lifecycle.stop_if_idle(tables, now)


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
    ProgramDeployed: lifecycle.on_program,
    ProgramRemoved: lifecycle.on_program_removed,
    Resize: service.on_resize,
    DropLetter: isolation.on_drop,
    PardonLetter: isolation.on_pardon,
    ReturnLetter: isolation.on_return,
    DrainWorker: service.on_drain_worker,
    Restart: service.on_restart,
    MemoryRead: memory.on_memory_read,
    CpuRead: on_cpu_read,
    Drain: lifecycle.on_drain,
    Tick: _on_tick,
}
_HANDLERS: Final[dict[type, Handler]] = {**FROM_CLIENTS, **FROM_WORKERS, **_HAPPENINGS}


class Fleet:
    """The pools of one coordinator, their requests and workers.

    lms: the configured language models' names. random() gives [0, 1). open_page(worker_id) makes the started-slots
    page of a new worker and returns its live words (see `pools.core.tables`).
    """

    def __init__(
        self,
        config: FleetConfig,
        *,
        lms: frozenset[str],
        random: Callable[[], float],
        open_page: Callable[[str], Sequence[int]],
    ) -> None:
        self._tables = Tables(config, lms, random, open_page)
        self._health = Health()

    def start(self, now: float) -> None:
        """Launch every worker."""
        lifecycle.start(self._tables, now)
        self._health.start(self._tables, now)

    def handle(self, event: Any, now: float, peer: Peer = b"") -> None:
        """Take one event. Raises KeyError for a type that is no event, BridgeError for what an operator may not ask."""
        tables = self._tables
        _HANDLERS[type(event)](tables, event, now, peer)
        if tables.orphans:
            cancellation.end_orphans(tables, now)

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
        if deadline is None or timer is None:
            return timer if deadline is None else deadline
        return min(deadline, timer)

    @property
    def open_requests(self) -> int:
        """How many requests are accepted and not settled (a request of many rows counts once)."""
        return len(self._tables.requests)

    @property
    def ready(self) -> bool:
        """Whether every place that is in service has a worker that takes requests."""
        return all(len(pool.ready) >= len(pool.wanted) for pool in self._tables.pools.values())

    @property
    def boot_error(self) -> Any:
        """The boot failure of a pool that has never been ready, or None."""
        for pool in self._tables.pools.values():
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
        """Return the pools' names."""
        return list(self._tables.pools)

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

    def workers(self, now: float) -> list[dict[str, Any]]:
        """Return one row per worker, dead ones of the last hour included."""
        return listing.workers(self._tables, now)
