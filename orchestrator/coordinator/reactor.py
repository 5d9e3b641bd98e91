"""The reactor: the only thread of its process. Poll, decode, let the fleet decide, perform."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

from bridge import faultpoints
from bridge.transport import Router
from orchestrator.config import Settings
from orchestrator.coordinator.asking import SELF
from orchestrator.coordinator.births import Births
from orchestrator.coordinator.clients import Clients, Identity
from orchestrator.coordinator.confinement import Confinement
from orchestrator.coordinator.control import Control
from orchestrator.coordinator.event_log import EventLog
from orchestrator.coordinator.event_polls import EventPolls
from orchestrator.coordinator.event_saving import EventSaving
from orchestrator.coordinator.internal import is_needed
from orchestrator.coordinator.load import CpuGauge
from orchestrator.coordinator.memory import MemoryGauge
from orchestrator.coordinator.saving import SavingSessions
from orchestrator.coordinator.watching import Watching
from orchestrator.coordinator.workers import Workers
from pools.core.events import CpuRead, Drain, Dump, Effect, Kill, Launch, Log, MemoryRead, Tick
from pools.core.fleet import Fleet
from pools.launch.launcher import Launcher
from pools.services import NAME as SERVICES

# Frame lists read from one socket before the other one has its turn.
FRAMES_PER_TURN: Final = 64
_CALM_REQUESTS: Final = 2
_LAST_WORDS_S: Final = 0.25
# A little less than a second: the fleet's timers come each half second, never early.
_MEMORY_EVERY_S: Final = 0.9
_TICK: Final = Tick()


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
        launcher: Launcher,
        births: Births,
        confinement: Confinement,
        fleet: Fleet,
        events: EventLog,
        drain_s: float,
        on_ready: Callable[[Any], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._frontend, self._backend = frontend, backend
        self._fleet = fleet
        self._drain_s = drain_s
        self._needed = [SERVICES] if is_needed(settings) else []
        self._terminated = False  # the first signal has come
        self._left = False  # no farewells: somebody insists, or nobody is left to hear them
        self._on_ready: Callable[[Any], None] | None = on_ready
        self._frames = FRAMES_PER_TURN  # that one read takes from one socket, this turn
        self._events = events
        self._polls = EventPolls(events, lambda: fleet.internal_state(SERVICES) != "off")
        self._memory = MemoryGauge()
        self._cpu = CpuGauge()
        self._memory_due = 0.0
        self.watching = Watching()
        self._clients = Clients(frontend, fleet, settings, identity, self.watching, births, events)
        self._clients.on_gone = self._polls.forget
        self._workers = Workers(backend, fleet, settings, identity, launcher, births, confinement, events)
        self._control = Control(
            fleet, launcher, settings, wire=self._wire_stats, cgroups=confinement.document(), version=identity.version,
            drain_s=drain_s, started_at=clock(), events=events, polls=self._polls,
        )  # fmt: skip
        self._saving = EventSaving(events, self._control.asking, fleet)
        self._control.stats["events"] = self._saving.state
        self._keeping = SavingSessions(fleet, self._control.asking, events)
        self._launcher = launcher

    # --- the outside ------------------------------------------------------------------------------

    def terminate(self, now: float) -> None:
        """Drain; asked a second time, leave at once."""
        if self._terminated:
            self._events.tell("leaving_at_once", "warning")
            self._left = True
            return
        self._terminated = True
        self._fleet.handle(Drain(self._drain_s), now)

    def owner_gone(self, noticed_by: str) -> None:
        """Leave at once: nobody is left to work for."""
        self._events.tell("owner_gone", "warning", noticed_by=noticed_by)
        self._left = True

    # --- the loop ---------------------------------------------------------------------------------

    def run(self) -> None:
        """Run until drained, told to leave, or left by the owner."""
        self.watching.add(self._backend.fileno(), lambda now: self._workers.read(now, self._frames))
        self.watching.add(self._frontend.fileno(), lambda now: self._clients.read(now, self._frames))
        self.watching.add(self._launcher.fileno(), self._workers.read_launcher)
        now = self._clock()
        self._fleet.start(now, self._needed)
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
        handlers = self.watching.wait(0 if backend or frontend else self._timeout_s())
        now = self._clock()
        self._keep_time(now)
        if backend:
            self._workers.read(now, self._frames)
        if frontend:
            self._clients.read(now, self._frames)
        for handler in handlers:
            handler(now)
        self._perform(now)
        self._workers.settle_deaths(now)
        self._workers.outbox.retry(now)
        self._clients.retry(now)
        if self._fleet.unsaved_sessions:
            self._keeping.go_on(now)
        self._perform(now)

    def _keep_time(self, now: float) -> None:
        """Let the fleet do what is due.

        Before anything is read: after a standstill (SIGSTOP, a suspended machine) what is out of time must end before
        an answer or a new worker lets it be dispatched. Memory is looked at where the fleet wakes up anyway.
        """
        timer = self._fleet.next_timer()
        if timer is not None and timer <= now:
            self._fleet.handle(_TICK, now)
            self._saving.tend(now)
            self._fleet.sends_to_clients.extend(self._polls.expire(now))
            if now >= self._memory_due:
                self._memory_due = now + _MEMORY_EVERY_S
                used = self._memory.used()
                if used is not None:
                    self._fleet.handle(MemoryRead(used), now)
                busy = self._cpu.used(now)
                if busy is not None:
                    self._fleet.handle(CpuRead(busy), now)
                self._workers.tidy()
                self._clients.tidy()

    def _timeout_s(self) -> float | None:
        """Return how long nothing is due; None = for ever. epoll rounds up to its milliseconds."""
        times = [
            at
            for at in (
                self._fleet.next_timer(),
                self._workers.next_death(),
                self._clients.outbox.retry_at(),
                self._workers.outbox.retry_at(),
            )
            if at is not None
        ]
        return max(0.0, min(times) - self._clock()) if times else None

    # --- out --------------------------------------------------------------------------------------

    def _perform(self, now: float) -> None:
        """Do what the fleet asked for, until it asks for nothing more."""
        fleet = self._fleet
        while True:
            for effect in fleet.take_effects():
                self._do(effect, now)
            if fleet.control:
                self._answer_control(now)
            if self._polls.have_news and not fleet.stopped:  # the last words are to come, and are told with it
                fleet.sends_to_clients.extend(self._polls.answer_all())
            if fleet.sends_to_workers:
                faultpoints.hit("coordinator.before_send")
                # A worker that is gone is noticed by its pidfd; EHOSTUNREACH proves nothing.
                self._workers.outbox.send(fleet.sends_to_workers, now)
                fleet.sends_to_workers.clear()
            if not fleet.sends_to_clients:
                break
            self._send_to_clients(now)
        if self._on_ready is not None:
            self._report_ready()

    def _send_to_clients(self, now: float) -> None:
        sends = self._fleet.sends_to_clients
        batch = list(sends)
        sends.clear()
        if self._control.asking.waiting:
            for message in [message for peer, message in batch if peer == SELF]:
                self._control.asking.hear(message, now)
            batch = [send for send in batch if send[0] != SELF]
        self._clients.send(batch, now)

    def _answer_control(self, now: float) -> None:
        requests = list(self._fleet.control)
        self._fleet.control.clear()
        for peer, request in requests:
            answer = self._control.answer(peer, request, now)
            if answer is not None:
                self._fleet.sends_to_clients.append((peer, answer))
        faultpoints.hit("coordinator.after_control")

    def _do(self, effect: Effect, now: float) -> None:
        match effect:
            case Launch():
                self._workers.launch(effect, now)
            case Dump(worker_id):
                self._workers.dump(worker_id)
            case Kill(worker_id, why):
                self._workers.kill(worker_id, why)
            case Log(event, fields, level, quiet):
                self._events.tell(event, level, quiet=quiet, **fields)

    def _report_ready(self) -> None:
        assert self._on_ready is not None
        error = self._fleet.boot_error
        if error is not None or self._fleet.ready:
            report, self._on_ready = self._on_ready, None
            report(error)

    def _wire_stats(self) -> dict[str, int]:
        sides = (self._clients, self._workers)
        return {
            "malformed": sum(side.peers.malformed for side in sides),
            "unknown": sum(side.peers.unknown for side in sides),
            "muted_peers": sum(side.peers.muted for side in sides),
            "dropped": sum(side.outbox.dropped for side in sides),
            "clients": len(self._clients),
        }

    def _say_last_words(self) -> None:
        """Give the last answers a moment to leave; then close what is ours."""
        self._keeping.end()
        self._events.end()
        self._clients.send(self._polls.answer_all(), self._clock())
        until = self._clock() + _LAST_WORDS_S
        while not self._left and not self._clients.outbox.empty and self._clock() < until:
            self.watching.wait(0.005)
            self._clients.outbox.retry(self._clock())
        self._clients.close()
        self._memory.close()
        self._cpu.close()
        self.watching.close()
        self._events.hand_over()
