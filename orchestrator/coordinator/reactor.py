"""The reactor: the only thread of its process. Poll, decode, let the fleet decide, perform."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import structlog

from bridge.protocol.codec import Decoded, decode
from bridge.protocol.messages import Hello, Message, Reply, Request, Welcome
from bridge.transport import Router
from orchestrator.config import Settings
from orchestrator.coordinator.births import Births
from orchestrator.coordinator.control import SELF, Control
from orchestrator.coordinator.funerals import Funerals
from orchestrator.coordinator.outbox import Outbox
from orchestrator.coordinator.peers import Peers, open_pidfd
from pools.core.events import (
    ClientConnected,
    ClientGone,
    Drain,
    Kill,
    Launch,
    LaunchFailed,
    Log,
    ProtocolBroken,
    Tick,
    WorkerDied,
    WorkerExited,
    WorkerLaunched,
)
from pools.core.fleet import FROM_CLIENTS, FROM_WORKERS, Fleet
from pools.launch import launcher as launching

# Frame lists read from one socket before the other one has its turn.
FRAMES_PER_TURN: Final = 64
_DRAIN_PASSES: Final = 16
_CALM_REQUESTS: Final = 2
# Of one operation, a client keeps no more under way than a fair share of the smallest queue.
_QUEUE_SHARES: Final = 4
_WINDOW_ROWS_MIN: Final = 64
_LAST_WORDS_S: Final = 0.25
_TICK: Final = Tick()
# What a signal handler's wake-up leaves in the pipe.
_PIPE_BYTES: Final = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Which coordinator this is: what Welcome says."""

    run_id: str
    version: str
    pid: int
    started_ticks: int


class Reactor:
    """One coordinator at work.

    drain_s: the budget of a first SIGTERM. on_ready(error): called once, when every pool is ready (None) or a pool
    could not boot (the error).
    """

    def __init__(
        self,
        settings: Settings,
        identity: Identity,
        *,
        frontend: Router,
        backend: Router,
        launcher: launching.Launcher,
        births: Births,
        fleet: Fleet,
        drain_s: float,
        on_ready: Callable[[Any], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._identity = identity
        self._clock = clock
        self._frontend, self._backend = frontend, backend
        self._to_clients, self._to_workers = Outbox(frontend), Outbox(backend)
        self._client_peers = Peers(identity.run_id, identity.version)
        self._worker_peers = Peers(identity.run_id, identity.version)
        self._launcher = launcher
        self._births = births
        self._fleet = fleet
        self._funerals = Funerals()
        self._drain_s = drain_s
        self._on_ready: Callable[[Any], None] | None = on_ready
        self._log = structlog.get_logger("dspool.coordinator")
        self._next_client_no = 1
        self._client_pidfds: dict[bytes, int] = {}
        smallest_queue = min(pool.max_queue for pool in settings.fleet.pools)
        self._window_rows = max(_WINDOW_ROWS_MIN, smallest_queue // _QUEUE_SHARES)
        self._frames = FRAMES_PER_TURN  # that one read takes from one socket, this turn
        self._left = False  # no farewells: somebody insists, or nobody is left to hear them
        self._control = Control(
            fleet, launcher, settings, wire=self._wire_stats, version=identity.version, drain_s=drain_s,
            started_at=clock(),
        )  # fmt: skip
        # One epoll for everything: zmq_poll asks each socket several times per turn, at three system calls each.
        self._epoll = select.epoll()
        self._on_fd: dict[int, Callable[[float], object]] = {}
        self.watch(backend.fileno(), self._read_backend)
        self.watch(frontend.fileno(), self._read_frontend)
        self.watch(launcher.fileno(), self._read_launcher)

    # --- the outside ------------------------------------------------------------------------------

    def watch(self, fd: int, handler: Callable[[float], object]) -> None:
        """Call `handler(now)` whenever `fd` is readable."""
        self._on_fd[fd] = handler
        self._epoll.register(fd, select.EPOLLIN)

    def unwatch(self, fd: int) -> None:
        """Stop watching a descriptor; it stays open."""
        del self._on_fd[fd]
        self._epoll.unregister(fd)

    def watch_signals(self, fd: int) -> None:
        """Watch the self-pipe that signals are written to: the first drains, a second one leaves at once."""

        def on_signal(now: float) -> None:
            for _ in os.read(fd, _PIPE_BYTES):
                self._terminate(now)

        self.watch(fd, on_signal)

    def watch_owner(self, fd: int, what: str) -> None:
        """Leave at once when `fd` becomes readable: the owner is gone."""

        def on_gone(now: float) -> None:
            self._log.warning("owner_gone", noticed_by=what)
            self._left = True

        self.watch(fd, on_gone)

    def _terminate(self, now: float) -> None:
        if self._draining_since is not None:
            self._log.warning("leaving_at_once")
            self._left = True
            return
        self._draining_since = now
        self._fleet.handle(Drain(self._drain_s), now)

    _draining_since: float | None = None

    # --- the loop ---------------------------------------------------------------------------------

    def run(self) -> None:
        """Run until drained, told to leave, or left by the owner."""
        now = self._clock()
        self._fleet.start(now)
        self._perform(now)
        while not self._left and not self._fleet.stopped:
            self._turn()
        self._say_last_words()

    def _turn(self) -> None:
        # Alone in the house, a call is not held up: its first frame is handled and what follows from it leaves before
        # anything else is looked at. In company everything is read first: fewer, fuller frames leave.
        backend, frontend = self._backend.stirred(), self._frontend.stirred()
        calm = not backend and not frontend and self._fleet.open_requests <= _CALM_REQUESTS
        self._frames = 1 if calm else FRAMES_PER_TURN
        events = self._epoll.poll(0 if backend or frontend else self._timeout_s())
        now = self._clock()
        if backend:
            self._read_backend(now)
        if frontend:
            self._read_frontend(now)
        for fd, _ in events:
            handler = self._on_fd.get(fd)
            if handler is not None:
                handler(now)
        self._perform(now)
        self._settle_deaths(now)
        timer = self._fleet.next_timer()
        if timer is not None and timer <= now:
            self._fleet.handle(_TICK, now)
        self._retry_sends(now)
        self._perform(now)

    def _timeout_s(self) -> float | None:
        """Return how long nothing is due; None = for ever. epoll rounds up to its milliseconds."""
        times = [
            at
            for at in (
                self._fleet.next_timer(),
                self._funerals.next_due(),
                self._to_clients.retry_at(),
                self._to_workers.retry_at(),
            )
            if at is not None
        ]
        return max(0.0, min(times) - self._clock()) if times else None

    # --- in ---------------------------------------------------------------------------------------

    def _read_backend(self, now: float) -> bool:
        """Handle what workers sent; return whether the socket is empty."""
        handle = self._fleet.handle
        for _ in range(self._frames):
            frames = self._backend.receive()
            if frames is None:
                return True
            peer = frames[0]
            if self._worker_peers.is_muted(peer):
                continue
            self._to_workers.heard(peer, now)
            decoded = decode(frames[1:], self._settings.limits.message_bytes)
            known = self._fleet.knows_worker(peer)
            for message in decoded.messages:
                kind = type(message)
                if kind is Hello:
                    known = self._meet_worker(peer, message, now)
                elif known and kind in FROM_WORKERS:
                    handle(message, now, peer)
                else:
                    self._answer_workers(peer, self._worker_peers.misbehaved(peer, f"{kind.__name__} from a stranger"))
            self._worker_peers.unknown += decoded.unknown
            if decoded.problem is not None:
                self._misread_worker(peer, decoded, now, known=known)
        return False

    def _misread_worker(self, peer: bytes, decoded: Decoded, now: float, *, known: bool) -> None:
        answers = self._worker_peers.misread(peer, decoded)
        if known:
            self._fleet.handle(ProtocolBroken(decoded.problem or ""), now, peer)
        else:
            self._answer_workers(peer, answers)

    def _answer_workers(self, peer: bytes, answers: list[Message]) -> None:
        self._fleet.sends_to_workers.extend((peer, answer) for answer in answers)

    def _meet_worker(self, peer: bytes, hello: Hello, now: float) -> bool:
        refusal = self._worker_peers.refusal(hello, "worker")
        if refusal is None and not self._births.admits(hello):
            self._answer_workers(peer, self._worker_peers.misbehaved(peer, "a Hello without a valid token"))
            return False
        if refusal is not None:
            self._fleet.sends_to_workers.append((peer, refusal))
            return False
        self._fleet.sends_to_workers.append((peer, self._welcome(0)))
        self._fleet.handle(hello, now, peer)
        return self._fleet.knows_worker(peer)

    def _read_frontend(self, now: float) -> None:
        handle = self._fleet.handle
        for _ in range(self._frames):
            frames = self._frontend.receive()
            if frames is None:
                return
            peer = frames[0]
            if self._client_peers.is_muted(peer):
                continue
            self._to_clients.heard(peer, now)
            decoded = decode(frames[1:], self._settings.limits.message_bytes)
            for message in decoded.messages:
                kind = type(message)
                if kind is Request:
                    handle(message, now, peer)
                elif kind is Hello:
                    self._meet_client(peer, message, now)
                elif kind in FROM_CLIENTS:
                    handle(message, now, peer)
                else:
                    self._misbehaved_client(peer, f"{kind.__name__} from a client", now)
            self._client_peers.unknown += decoded.unknown
            if decoded.problem is not None:
                self._answer_misread(peer, self._client_peers.misread(peer, decoded), now)

    def _misbehaved_client(self, peer: bytes, why: str, now: float) -> None:
        self._answer_misread(peer, self._client_peers.misbehaved(peer, why), now)

    def _answer_misread(self, peer: bytes, answers: list[Message], now: float) -> None:
        self._fleet.sends_to_clients.extend((peer, answer) for answer in answers)
        if self._client_peers.is_muted(peer):
            self._log.warning("peer_muted", malformed=self._client_peers.malformed)
            self._client_gone(peer, now)

    def _meet_client(self, peer: bytes, hello: Hello, now: float) -> None:
        refusal = self._client_peers.refusal(hello, "client")
        if refusal is not None:
            self._fleet.sends_to_clients.append((peer, refusal))
            return
        if peer in self._client_pidfds:
            self._misbehaved_client(peer, "a second Hello", now)
            return
        client_no = self._next_client_no
        self._next_client_no += 1
        self._fleet.handle(ClientConnected(client_no, hello.principal or "default"), now, peer)
        self._fleet.sends_to_clients.append((peer, self._welcome(client_no)))
        # A client that dies says no Bye; its process does.
        pidfd = open_pidfd(hello.pid)
        self._client_pidfds[peer] = -1 if pidfd is None else pidfd
        if pidfd is not None:
            self.watch(pidfd, lambda then: self._client_gone(peer, then))

    def _client_gone(self, peer: bytes, now: float) -> None:
        pidfd = self._client_pidfds.pop(peer, None)
        if pidfd is not None and pidfd >= 0:
            self.unwatch(pidfd)
            os.close(pidfd)
        self._to_clients.forget(peer)
        self._fleet.handle(ClientGone(), now, peer)

    def _welcome(self, client_no: int) -> Welcome:
        identity, limits = self._identity, self._settings.limits
        return Welcome(
            package_version=identity.version,
            run_id=identity.run_id,
            pid=identity.pid,
            started_ticks=identity.started_ticks,
            client_no=client_no,
            message_bytes=limits.message_bytes,
            nesting=limits.nesting,
            max_in_flight=self._settings.fleet.client_rows,
            window_rows=self._window_rows,
        )

    # --- processes --------------------------------------------------------------------------------

    def _read_launcher(self, now: float) -> None:
        for event in self._launcher.poll():
            match event:
                case launching.Launched(worker_id, pid):
                    self._fleet.handle(WorkerLaunched(worker_id, pid), now)
                case launching.LaunchFailed(worker_id, error):
                    self._fleet.handle(WorkerExited(worker_id, LaunchFailed(error)), now)
                    self._births.bury(worker_id)
                case launching.Died(worker_id):
                    self._fleet.handle(WorkerDied(worker_id), now)
                    self._drain_backend(now)
                    self._funerals.died(worker_id, now)
                case launching.Reaped():
                    self._funerals.reaped(event, now)
                case launching.NannyLost():
                    self._log.error("nanny_lost")

    def _drain_backend(self, now: float) -> None:
        self._frames = FRAMES_PER_TURN
        for _ in range(_DRAIN_PASSES):
            if self._read_backend(now):
                return

    def _settle_deaths(self, now: float) -> None:
        deaths = self._funerals.due(now)
        if not deaths:
            return
        self._drain_backend(now)
        for death in deaths:
            tail = tuple(self._launcher.log_tail(death.worker_id))
            exited = WorkerExited(death.worker_id, death.reason, death.peak_rss_bytes, tail)
            self._fleet.handle(exited, now)
            self._births.bury(death.worker_id)

    # --- out --------------------------------------------------------------------------------------

    def _perform(self, now: float) -> None:
        """Do what the fleet asked for, until it asks for nothing more."""
        fleet = self._fleet
        while True:
            for effect in fleet.take_effects():
                self._do(effect)
            if fleet.control:
                self._answer_control(now)
            if fleet.sends_to_workers:
                # A worker that is gone is noticed by its pidfd; EHOSTUNREACH proves nothing.
                self._to_workers.send(fleet.sends_to_workers, now)
                fleet.sends_to_workers.clear()
            if not fleet.sends_to_clients:
                break
            self._flush_clients(now)
        if self._on_ready is not None:
            self._report_ready()

    def _flush_clients(self, now: float) -> None:
        sends = self._fleet.sends_to_clients
        if self._control.loading:
            own = [message for peer, message in sends if peer == SELF]
            sends[:] = [send for send in sends if send[0] != SELF]
            for message in own:
                answer = self._control.loaded(message, now) if type(message) is Reply else None
                if answer is not None:
                    sends.append(answer)
        batch = list(sends)
        sends.clear()
        for peer in self._to_clients.send(batch, now):
            self._client_gone(peer, now)

    def _answer_control(self, now: float) -> None:
        requests = list(self._fleet.control)
        self._fleet.control.clear()
        for peer, request in requests:
            answer = self._control.answer(peer, request, now)
            if answer is not None:
                self._fleet.sends_to_clients.append((peer, answer))

    def _do(self, effect: Launch | Kill | Log) -> None:
        match effect:
            case Launch():
                self._launcher.launch(self._births.launch_spec(effect))
            case Kill(worker_id, why):
                self._log.warning("worker_killed", worker=worker_id, why=why)
                self._launcher.kill(worker_id)
            case Log(event, fields, level):
                getattr(self._log, level)(event, **fields)

    def _retry_sends(self, now: float) -> None:
        self._to_workers.retry(now)
        gone, slow = self._to_clients.retry(now)
        for peer in slow:
            self._log.warning("slow_peer_muted", dropped=self._to_clients.dropped)
            self._client_peers.mute(peer)
        for peer in gone | slow:
            self._client_gone(peer, now)

    def _report_ready(self) -> None:
        assert self._on_ready is not None
        error = self._fleet.boot_error
        if error is not None or self._fleet.ready:
            report, self._on_ready = self._on_ready, None
            report(error)

    def _wire_stats(self) -> dict[str, int]:
        return {
            "malformed": self._client_peers.malformed + self._worker_peers.malformed,
            "unknown": self._client_peers.unknown + self._worker_peers.unknown,
            "muted_peers": self._client_peers.muted + self._worker_peers.muted,
            "dropped": self._to_clients.dropped + self._to_workers.dropped,
            "clients": len(self._client_pidfds),
        }

    def _say_last_words(self) -> None:
        """Give the last answers a moment to leave; then close what is ours."""
        until = self._clock() + _LAST_WORDS_S
        while not self._left and not self._to_clients.empty and self._clock() < until:
            self._epoll.poll(0.005)
            self._to_clients.retry(self._clock())
        for pidfd in self._client_pidfds.values():
            if pidfd >= 0:
                os.close(pidfd)
        self._epoll.close()
