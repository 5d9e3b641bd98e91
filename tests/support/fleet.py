"""A fleet without a shell: list pages, clients, workers and a clock that tests move. Every step checks the books."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from bridge.protocol import messages as wire
from bridge.protocol.errors import BridgeError, decode_error, encode_error
from pools.config import FleetConfig, PoolConfig, RestartConfig
from pools.core.deadlines import WIDTH_S
from pools.core.entries import SLOT_WORDS, PoolEntry, WorkerEntry
from pools.core.events import (
    ClientConnected,
    Effect,
    ExitReason,
    Kill,
    Launch,
    Log,
    ProgramSet,
    ServedVersion,
    Signalled,
    Tick,
    WorkerDied,
    WorkerExited,
    WorkerLaunched,
)
from pools.core.fleet import Fleet
from pools.core.states import READY
from pools.core.tables import Tables
from tests.support.books import check_books

M = TypeVar("M")
# A clock that starts at zero would make "never" and "at once" look the same.
START_S = 1000.0
# Clients in workers have numbers from here on.
INSIDERS_FROM = 4001


def pool(
    name: str = "general",
    *,
    size: int = 1,
    max_size: int | None = None,
    slots: int = 2,
    prefetch: int | None = 1,
    default_deadline_s: float | None = None,
    heartbeat_limit_s: float = 15.0,
    max_queue: int = 1000,
    grace_s: float = 5.0,
    restart: RestartConfig | None = None,
    max_requests: int = 0,
    max_age_s: float = 0.0,
    memory_limit_mb: int = 0,
    queue_age_s: float | None = None,
) -> PoolConfig:
    """Return a small pool: one worker that takes two attempts and one more early."""
    return PoolConfig(
        name=name,
        size=size,
        max_size=max_size,
        slots=slots,
        prefetch=prefetch,
        default_deadline_s=default_deadline_s,
        heartbeat_limit_s=heartbeat_limit_s,
        max_queue=max_queue,
        grace_s=grace_s,
        restart=restart or RestartConfig(),
        max_requests=max_requests,
        max_age_s=max_age_s,
        memory_limit_mb=memory_limit_mb,
        queue_age_s=queue_age_s,
    )


def deployed(name: str, version: int = 1, *, pool: str = "general", payload: bytes = b"spec") -> ProgramSet:
    """Return the event of a program with one version, which is live."""
    return ProgramSet(name, (ServedVersion(version, pool, payload),), {"live": version})


def undeployed(name: str) -> ProgramSet:
    """Return the event of a program that is gone."""
    return ProgramSet(name, (), {})


@dataclass
class SimWorker:
    """A worker process as it sees itself. `attempts`: what it was sent and has not answered, by epoch."""

    worker_id: str
    page: list[int]
    attempts: dict[int, wire.Request] = field(default_factory=dict)
    recalls: list[wire.Recall] = field(default_factory=list)
    dead: bool = False

    @property
    def peer(self) -> bytes:
        return b"peer of " + self.worker_id.encode()


class Sim:
    """A Fleet and what is around it. `now` is its clock; `to_clients`, `to_workers` and `effects` only grow."""

    def __init__(
        self,
        *pools: PoolConfig,
        homes: Mapping[str, str] | None = None,
        client_rows: int = 4096,
        lms: frozenset[str] = frozenset({"default"}),
        jitter: float = 1.0,
        ready: bool = True,
        run: int = 1,
        **limits: Any,
    ) -> None:
        """limits: further fields of FleetConfig."""
        self.now = START_S
        self.processes: dict[str, SimWorker] = {}
        self.to_clients: list[tuple[bytes, Any]] = []
        self.to_workers: list[tuple[bytes, Any]] = []
        self.control: list[tuple[bytes, Any]] = []
        self.effects: list[Effect] = []
        self.replies: dict[int, wire.Reply] = {}
        self.executed: set[int] = set()
        self._next_id: dict[bytes, int] = {}
        self.insides: dict[str, bytes] = {}  # clients in workers, by worker
        self.resumed: set[str] = set()  # workers whose attempts went on: what they hold may exceed their credit
        self._last_epoch = 0
        limits = {"client_rows": client_rows, "poison_deaths": 0, **limits}
        config = FleetConfig(pools=pools or (pool(),), homes=homes or {}, **limits)
        self.fleet = Fleet(config, lms=lms, random=lambda: jitter, open_page=self._open_page, run=run)
        self.client = self.connect(1)
        self.fleet.start(self.now)
        self._collect()
        if ready:
            self.boot_all()

    @property
    def tables(self) -> Tables:
        return self.fleet._tables

    def _open_page(self, worker_id: str) -> list[int]:
        worker = SimWorker(worker_id, [0] * SLOT_WORDS)
        self.processes[worker_id] = worker
        return worker.page

    # --- events -------------------------------------------------------------------------------------

    def handle(self, event: Any, peer: bytes = b"") -> None:
        self.fleet.handle(event, self.now, peer)
        self._collect()
        check_books(self)

    def connect(self, client_no: int, principal: str = "default", worker_id: str = "") -> bytes:
        peer = f"client {client_no}".encode()
        self._next_id.setdefault(peer, wire.request_id_base(client_no))
        self.handle(ClientConnected(client_no, principal, worker_id), peer)
        return peer

    def submit(self, operation: str = "echo", *, peer: bytes | None = None, **fields: Any) -> int:
        """Send a request with the client's next id; return the id."""
        peer = self.client if peer is None else peer
        self._next_id[peer] += 1
        request_id = self._next_id[peer]
        self.handle(wire.Request(request_id=request_id, operation=operation, **fields), peer)
        return request_id

    def cancel(self, request_id: int, *, force: bool = False, peer: bytes | None = None) -> None:
        self.handle(wire.Cancel(request_id=request_id, force=force), self.client if peer is None else peer)

    def tick(self, seconds: float = 0.0) -> None:
        """Let time pass, then tick once."""
        self.run_until(self.now + seconds)
        self.handle(Tick())

    def stand_still(self, seconds: float) -> None:
        """Let time pass that nobody notices before it is over, then tick once."""
        self.now += seconds
        self.handle(Tick())

    def run_until(self, at: float) -> None:
        """Tick whenever the fleet wants to, up to a time."""
        while (due := self.fleet.next_timer()) is not None and due <= at:
            self.now = max(self.now, due)
            self.handle(Tick())
        self.now = at

    # --- workers --------------------------------------------------------------------------------------

    def process(self, worker_id: str = "general-1.1") -> SimWorker:
        return self.processes[worker_id]

    def entry(self, worker_id: str = "general-1.1") -> WorkerEntry:
        return self.tables.workers[worker_id]

    def pool(self, name: str = "general") -> PoolEntry:
        return self.tables.pools[name]

    def queued(self, name: str = "general") -> list[int]:
        """Return the ids of what waits in a pool's queue; in order, where one principal has asked in one class."""
        return [entry.request_id for entry in self.pool(name).queue]

    def hello(self, worker_id: str = "general-1.1") -> None:
        self.handle(WorkerLaunched(worker_id, pid=4001 + list(self.processes).index(worker_id)))
        self.handle(wire.Hello(role="worker", worker_id=worker_id, pid=1), self.process(worker_id).peer)

    def boot(self, worker_id: str = "general-1.1") -> None:
        self.hello(worker_id)
        self.say(worker_id, wire.Ready(slots=self.entry(worker_id).pool.slots))

    def boot_all(self) -> None:
        for worker_id in list(self.tables.workers):
            self.boot(worker_id)

    def say(self, worker_id: str, message: Any) -> None:
        self.handle(message, self.process(worker_id).peer)

    def pause(self, request_id: int) -> None:
        """Have a request's attempt begin, if it has not, and lend its slot out."""
        self.start(request_id)
        worker, attempt = self.attempt(request_id)
        self.say(worker.worker_id, wire.Pause(request_id=request_id, epoch=attempt.epoch))

    def resume(self, request_id: int) -> None:
        worker, attempt = self.attempt(request_id)
        self.resumed.add(worker.worker_id)
        self.say(worker.worker_id, wire.Resume(request_id=request_id, epoch=attempt.epoch))

    def inside(self, worker_id: str) -> bytes:
        """Return the client in a worker's process, connected on first use, for the default principal."""
        if worker_id not in self.insides:
            client_no = INSIDERS_FROM + len(self.insides)
            self.insides[worker_id] = self.connect(client_no, worker_id=worker_id)
        return self.insides[worker_id]

    def nest(self, parent_id: int, operation: str = "echo", **fields: Any) -> int:
        """Have the program of a request ask for another one, from its own process; return the id."""
        worker, _ = self.attempt(parent_id)
        self.start(parent_id)
        return self.submit(operation, peer=self.inside(worker.worker_id), parent_request_id=parent_id, **fields)

    def start(self, request_id: int) -> None:
        """Mark a request's attempt in its worker's page, as the worker does before user code runs."""
        worker, attempt = self.attempt(request_id)
        slot = attempt.epoch % SLOT_WORDS
        worker.page[slot] = max(worker.page[slot], attempt.epoch)
        self.executed.add(request_id)

    def attempt(self, request_id: int) -> tuple[SimWorker, wire.Request]:
        """Return the outstanding attempt of a request, and its worker."""
        for worker in self.processes.values():
            for attempt in worker.attempts.values():
                if attempt.request_id == request_id and not worker.dead:
                    return worker, attempt
        raise AssertionError(f"request {request_id & 0xFFFF} is with no worker")

    def reply(self, request_id: int, **fields: Any) -> None:
        """Have the worker answer a request's attempt."""
        worker, attempt = self.attempt(request_id)
        self.start(request_id)
        del worker.attempts[attempt.epoch]
        self.say(worker.worker_id, wire.Reply(request_id=request_id, epoch=attempt.epoch, **fields))

    def reply_error(self, request_id: int, code: str) -> None:
        self.reply(request_id, status=wire.ERROR, payload=encode_error(BridgeError(code, "no")))

    def answer_recall(self, request_id: int, *, started: bool) -> None:
        """Have the worker answer the Recall of a request's attempt."""
        worker, attempt = self.attempt(request_id)
        [recall] = [recall for recall in worker.recalls if recall.epoch == attempt.epoch]
        worker.recalls.remove(recall)
        if started:
            self.start(request_id)
            answer: wire.Message = wire.Started(request_id=request_id, epoch=attempt.epoch)
        else:
            del worker.attempts[attempt.epoch]
            answer = wire.Recalled(request_id=request_id, epoch=attempt.epoch)
        self.say(worker.worker_id, answer)

    def died(self, worker_id: str = "general-1.1") -> None:
        """Its pidfd is readable; what it sent may still come."""
        self.process(worker_id).dead = True
        self.handle(WorkerDied(worker_id))

    def exited(self, worker_id: str = "general-1.1", reason: ExitReason | None = None, **fields: Any) -> None:
        """Bury a worker."""
        worker = self.process(worker_id)
        worker.dead = True
        self.handle(WorkerExited(worker_id, reason or Signalled(9), **fields))
        worker.attempts.clear()
        worker.recalls.clear()

    def die(self, worker_id: str = "general-1.1", reason: ExitReason | None = None, **fields: Any) -> None:
        self.died(worker_id)
        self.exited(worker_id, reason, **fields)

    # --- what came of it --------------------------------------------------------------------------------

    def error(self, request_id: int) -> BridgeError:
        reply = self.replies[request_id]
        assert reply.status == wire.ERROR
        return decode_error(reply.payload or b"")

    def sent_to(self, peer: bytes, kind: type[M]) -> list[M]:
        return [message for to, message in self.to_clients + self.to_workers if to == peer and type(message) is kind]

    def cancel_replies(self, request_id: int) -> list[tuple[str, str]]:
        return [
            (message.stage, message.how)
            for _, message in self.to_clients
            if type(message) is wire.CancelReply and message.request_id == request_id
        ]

    def effects_of(self, kind: type[M]) -> list[M]:
        return [effect for effect in self.effects if isinstance(effect, kind)]

    def kills(self) -> list[tuple[str, str]]:
        return [(kill.worker_id, kill.why) for kill in self.effects_of(Kill)]

    def launches(self) -> list[str]:
        return [launch.worker_id for launch in self.effects_of(Launch)]

    def logs(self, event: str) -> list[Log]:
        return [log for log in self.effects_of(Log) if log.event == event]

    # --- the shell's part -----------------------------------------------------------------------------

    def _collect(self) -> None:
        for sends, kept in (
            (self.fleet.sends_to_clients, self.to_clients),
            (self.fleet.sends_to_workers, self.to_workers),
            (self.fleet.control, self.control),
        ):
            fresh = list(sends)
            sends.clear()
            kept.extend(fresh)
            for peer, message in fresh:
                self._take(peer, message)
        self.effects.extend(self.fleet.take_effects())

    def _take(self, peer: bytes, message: Any) -> None:
        match message:
            case wire.Reply():
                assert message.request_id not in self.replies, "a second Reply"
                self.replies[message.request_id] = message
            case wire.Request() if message.epoch:
                self._take_attempt(peer, message)
            case wire.Recall():
                worker = self._worker_at(peer)
                assert all(recall.epoch != message.epoch for recall in worker.recalls), "recalled twice"
                if message.epoch in worker.attempts and not worker.dead:
                    worker.recalls.append(message)

    def _take_attempt(self, peer: bytes, attempt: wire.Request) -> None:
        worker = self._worker_at(peer)
        assert not worker.dead, "dispatched to a dead worker"
        assert self.tables.workers[worker.worker_id].state == READY
        repeatable = bool(attempt.flags & wire.FLAG_IDEMPOTENT or attempt.idempotency_key)
        assert repeatable or attempt.request_id not in self.executed, "dispatched again after it started"
        assert attempt.epoch > self._last_epoch, "epochs only grow"
        assert attempt.deadline_ms is None or attempt.deadline_ms >= -WIDTH_S * 1000.0
        self._last_epoch = attempt.epoch
        worker.attempts[attempt.epoch] = attempt

    def bury_killed(self) -> None:
        """Have those die that are to be killed."""
        for worker_id in {kill.worker_id for kill in self.effects_of(Kill)} & self.tables.workers.keys():
            self.die(worker_id)

    def _worker_at(self, peer: bytes) -> SimWorker:
        return next(worker for worker in self.processes.values() if worker.peer == peer)
