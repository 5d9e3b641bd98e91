"""The backend: what workers send, how they come to life, and what is done about their deaths."""

from __future__ import annotations

import signal
from typing import Final

from bridge.protocol.codec import Decoded, decode
from bridge.protocol.messages import Hello, Message, Ready, Reply
from bridge.transport import Router
from bridge.worker.stacks import DUMP_SIGNAL
from orchestrator.config import Settings
from orchestrator.coordinator.births import Births
from orchestrator.coordinator.clients import Identity, welcome
from orchestrator.coordinator.confinement import Confinement
from orchestrator.coordinator.event_log import EventLog
from orchestrator.coordinator.funerals import Funerals, Settled
from orchestrator.coordinator.oom import OomKills, find_counter
from orchestrator.coordinator.outbox import Outbox
from orchestrator.coordinator.peers import Peers
from pools.core.events import (
    ExitReason,
    Launch,
    LaunchFailed,
    ProtocolBroken,
    Signalled,
    WorkerDied,
    WorkerExited,
    WorkerLaunched,
)
from pools.core.fleet import FROM_WORKERS, Fleet
from pools.launch import launcher as launching

_DRAIN_FRAMES: Final = 1024
_KILLED: Final = Signalled(int(signal.SIGKILL))


class Workers:
    """Everybody at the backend, and their processes."""

    def __init__(
        self, router: Router, fleet: Fleet, settings: Settings, identity: Identity, launcher: launching.Launcher,
        births: Births, confinement: Confinement, events: EventLog,
    ) -> None:  # fmt: skip
        self._router = router
        self._fleet = fleet
        self._settings = settings
        self._identity = identity
        self._launcher = launcher
        self._births = births
        self._confinement = confinement
        self._funerals = Funerals()
        self._oom_kills = OomKills(find_counter())
        self.peers = Peers(identity.run_id, identity.version)
        self.outbox = Outbox(router)
        self._events = events

    def read(self, now: float, max_frames: int) -> None:
        """Handle what workers sent."""
        handle = self._fleet.handle
        limits = self._settings.limits
        for _ in range(max_frames):
            frames = self._router.receive()
            if frames is None:
                return
            peer = frames[0]
            if self.peers.is_muted(peer):
                continue
            self.outbox.heard(peer, now)
            decoded = decode(frames[1:], limits.message_bytes)
            known = self._fleet.knows_worker(peer)
            for message in decoded.messages:
                kind = type(message)
                if kind is Reply and known:
                    handle(message, now, peer)
                elif kind is Hello:
                    known = self._meet(peer, message, now)
                elif known and kind in FROM_WORKERS:
                    handle(message, now, peer)
                    if kind is Ready:
                        self._confinement.ready(peer)
                else:
                    self._answer(peer, self.peers.misbehaved(peer, f"{kind.__name__} from a stranger"))
            self.peers.unknown += decoded.unknown
            if decoded.problem is not None:
                self._misread(peer, decoded, now, known=known)

    def _misread(self, peer: bytes, decoded: Decoded, now: float, *, known: bool) -> None:
        answers = self.peers.misread(peer, decoded)
        if known:
            self._fleet.handle(ProtocolBroken(decoded.problem or ""), now, peer)
        else:
            self._answer(peer, answers)

    def _answer(self, peer: bytes, answers: list[Message]) -> None:
        self._fleet.sends_to_workers.extend((peer, answer) for answer in answers)

    def _meet(self, peer: bytes, hello: Hello, now: float) -> bool:
        """Take a worker's Hello; return whether it is one of ours."""
        refusal = self.peers.refusal(hello, "worker")
        if refusal is not None:
            self._answer(peer, [refusal])
            return False
        if not self._births.admits(hello):
            self._answer(peer, self.peers.misbehaved(peer, "a Hello without a valid token"))
            return False
        if hello.package_version not in ("", self._identity.version):
            # It speaks this protocol; what it does may still be what another version does.
            self._events.tell(
                "worker_version_differs", "warning", worker=hello.worker_id, worker_version=hello.package_version,
                version=self._identity.version,
            )  # fmt: skip
        self._answer(peer, [welcome(self._identity, self._settings, 0)])
        self._fleet.handle(hello, now, peer)
        self._confinement.met(peer, hello.worker_id)
        return self._fleet.knows_worker(peer)

    # --- processes --------------------------------------------------------------------------------

    def launch(self, launch: Launch, now: float) -> None:
        """Start a worker's process."""
        try:
            spec = self._births.launch_spec(launch)
        except OSError as exc:
            self._launch_failed(launch.worker_id, f"{type(exc).__name__}: {exc}", now)
            return
        self._oom_kills.launched(launch.worker_id)
        self._launcher.launch(spec)

    def dump(self, worker_id: str) -> None:
        """Have a worker's threads' stacks written, if it still can."""
        self._launcher.kill(worker_id, DUMP_SIGNAL)

    def kill(self, worker_id: str, why: str) -> None:
        """Kill a worker's process."""
        self._events.tell("worker_killed", "warning", worker=worker_id, why=why)
        self._oom_kills.killed_here(worker_id)
        self._launcher.kill(worker_id)

    def read_launcher(self, now: float) -> None:
        """Handle what the launcher saw."""
        for event in self._launcher.poll():
            match event:
                case launching.Launched(worker_id, pid):
                    self._fleet.handle(WorkerLaunched(worker_id, pid), now)
                    self._confinement.launched(worker_id, pid)
                case launching.LaunchFailed(worker_id, error):
                    self._launch_failed(worker_id, error, now)
                case launching.Died(worker_id):
                    self._fleet.handle(WorkerDied(worker_id), now)
                    self.read(now, _DRAIN_FRAMES)
                    self._funerals.died(worker_id, now)
                case launching.Reaped():
                    self._funerals.reaped(event, now)
                case launching.NannyLost():
                    self._events.tell("nanny_lost", "error")
                    self._oom_kills.all_killed_here()  # by the launcher, which replaces its nanny

    def _launch_failed(self, worker_id: str, error: str, now: float) -> None:
        self._fleet.handle(WorkerExited(worker_id, LaunchFailed(error)), now)
        self._bury(worker_id)

    def next_death(self) -> float | None:
        """Return when `settle_deaths` has something to do, or None."""
        return self._funerals.next_due()

    def settle_deaths(self, now: float) -> None:
        """Settle the deaths whose last words have been heard."""
        deaths = self._funerals.due(now)
        if not deaths:
            return
        self.read(now, _DRAIN_FRAMES)
        for death in deaths:
            worker_id = death.worker_id
            exited = WorkerExited(
                worker_id,
                self._reason(death),
                death.peak_rss_bytes,
                log_tail=tuple(self._launcher.log_tail(worker_id)),
                stacks=self._births.stacks(worker_id),
            )
            self._fleet.handle(exited, now)
            self._bury(worker_id)

    def _reason(self, death: Settled) -> ExitReason:
        """Return how a worker ended; of a SIGKILL that nobody here sent, whether it was for memory."""
        if death.reason != _KILLED:
            return death.reason
        exactly = self._confinement.was_short_of_memory(death.worker_id)
        explained = self._oom_kills.explains(death.worker_id, exactly)
        return Signalled(_KILLED.number, out_of_memory=explained)

    def tidy(self) -> None:
        """Do what is not urgent. Called about once a second."""
        self._confinement.tidy()

    def _bury(self, worker_id: str) -> None:
        self._births.bury(worker_id)
        self._confinement.buried(worker_id)
        self._oom_kills.buried(worker_id)
