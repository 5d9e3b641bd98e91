"""The coordinator around the fleet, without sockets: what is read when, who is known, how deaths are settled.

Its order is the reactor's: the tick, what has arrived, then the deaths whose last words were heard. The deaths are kept
by the coordinator's own `Funerals`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from bridge.protocol import messages as wire
from bridge.protocol.errors import BridgeError
from orchestrator.coordinator.funerals import Funerals
from pools.core.events import (
    ClientConnected,
    ClientGone,
    Dump,
    ExitReason,
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
from pools.core.fleet import Fleet
from pools.launch.launcher import Reaped
from tests.sim.ledger import OPERATIONS, Broken, Desk

if TYPE_CHECKING:
    from tests.sim.world import World

_TICK = Tick()


class Shell:
    """Handles one event at a time, has each step audited, and does what the fleet asks for."""

    def __init__(self, world: World, fleet: Fleet) -> None:
        self._world = world
        self._clock = world.clock
        self._audit = world.auditor
        self.fleet = fleet
        self._funerals = Funerals()
        self.next_death: float | None = None
        self.still_until = 0.0
        self._missed: list[tuple[Callable[..., object], tuple[Any, ...]]] = []
        self._lost: set[bytes] = set()
        self.steps = 0

    def start(self) -> None:
        """Launch the fleet."""
        self.fleet.start(self._clock.now)
        self._perform()

    # --- one step -----------------------------------------------------------------------------------

    def step(self, event: Any, peer: bytes = b"") -> None:
        """Have the fleet handle one event; audit it; perform what comes of it."""
        self.steps += 1
        now = self._clock.now
        world = self._world
        world.note(event, peer)
        self._audit.before(event, peer, now)
        try:
            self.fleet.handle(event, now, peer)
        except Broken:
            raise
        except BridgeError as error:
            # An operator's wish that makes no sense is refused; the coordinator tells them so.
            if type(event) not in OPERATIONS:
                raise Broken("raised BridgeError", f"{error} at {event}") from error
            world.seen[f"{type(event).__name__} refused"] += 1
            self._audit.sessions.refused(error)
        except Exception as error:
            raise Broken(f"raised {type(error).__name__}", f"{error} at {event}") from error
        self._perform()
        self._audit.after(event, peer, now)

    def _perform(self) -> None:
        fleet, audit, world = self.fleet, self._audit, self._world
        now = self._clock.now
        for effect in fleet.take_effects():
            self._do(effect, now)
        if fleet.control:
            for peer, request in fleet.control:
                audit.control(request)
                world.clients[peer].down.send(wire.Reply(request_id=request.request_id))
            fleet.control.clear()
        keeper = world.keeper
        if keeper is not None and keeper.news:
            for peer, reply in keeper.news:
                world.note_send(b"nobody yet", reply)
                audit.to_client(peer, reply, now)
                keeper.hold(reply, world.ledger.cases.get(reply.request_id))
            keeper.news.clear()
        # Outcomes first: what follows from a settlement is then judged as what it is.
        if fleet.sends_to_clients:
            for peer, message in fleet.sends_to_clients:
                world.note_send(peer, message)
                if keeper is None or type(message) is not wire.Reply:
                    audit.to_client(peer, message, now)
                elif not keeper.release(message, audit.step.event):
                    keeper.check_unheld(message, audit.step.heard)
                    audit.to_client(peer, message, now)
                world.clients[peer].down.send(message)
            fleet.sends_to_clients.clear()
        if fleet.sends_to_workers:
            for peer, message in fleet.sends_to_workers:
                world.note_send(peer, message)
                audit.to_worker(peer, message, now)
                world.processes[world.ledger.by_peer[peer].worker_id].down.send(message)
            fleet.sends_to_workers.clear()
        if keeper is not None:
            keeper.look()

    def _do(self, effect: Any, now: float) -> None:
        kind = type(effect)
        if kind is Log:
            self._world.seen[f"log {effect.event}"] += 1
            if effect.event == "worker_replacing" and "memory" in str(effect.fields["why"]):
                self._world.seen["recycled for memory"] += 1
            return
        self._world.note_send(b"launcher", effect)
        if kind is Launch:
            self._audit.launch(effect, now)
            self._world.launcher.launch(effect)
        elif kind is Kill:
            self._audit.kill(effect.worker_id, effect.why, now)
            self._world.launcher.kill(effect.worker_id)
        elif kind is Dump:
            self._audit.dump(effect.worker_id, now)

    # --- when it looks ------------------------------------------------------------------------------

    def stand_still(self, seconds: float) -> None:
        """Stop the coordinator's process for a while; what comes meanwhile waits."""
        until = self._clock.now + seconds
        if until > self.still_until:
            self.still_until = until
            self._clock.at(until, self._catch_up)

    def _catch_up(self) -> None:
        if self._clock.now < self.still_until:
            return
        self.tick()
        missed, self._missed = self._missed, []
        for what, args in missed:
            what(*args)
        self.settle_deaths()

    def has_unread(self, desk: Desk, epoch: int) -> bool:
        """Whether a worker's answer to an attempt lies unread."""
        return any(
            what == self._hear_worker and args[0] is desk and type(args[1]) is wire.Reply and args[1].epoch == epoch
            for what, args in self._missed
        )

    def tick(self) -> None:
        """Tell the fleet that time passed, if it asked for that."""
        due = self.fleet.next_timer()
        if due is not None and due <= self._clock.now:
            self.step(_TICK)

    def look(self, what: Callable[..., object], *args: Any) -> None:
        """Handle something that arrived: now, or once the coordinator goes on."""
        if self._clock.now < self.still_until or self._missed:
            self._missed.append((what, args))
        else:
            what(*args)

    # --- clients ------------------------------------------------------------------------------------

    def heard_client(self, peer: bytes, message: Any) -> None:
        self.look(self._hear_client, peer, message)

    def _hear_client(self, peer: bytes, message: Any) -> None:
        kind = type(message)
        if kind is wire.Hello:
            client = self._world.clients[peer]
            self.step(ClientConnected(client.number, client.principal, client.worker_id), peer)
            if peer in self._lost:
                self._clock.after(0.0, self.lost_client, peer)
        elif kind is wire.Bye:
            self._gone(peer)
        else:
            self.step(message, peer)

    def lost_client(self, peer: bytes) -> None:
        """A client's process is dead, its pipe is gone, or it is muted."""
        self.look(self._gone, peer)

    def _gone(self, peer: bytes) -> None:
        self._lost.add(peer)  # one that nobody knows yet is found dead as soon as its Hello is heard
        self.step(ClientGone(), peer)

    # --- workers ------------------------------------------------------------------------------------

    def heard_worker(self, desk: Desk, message: wire.Message) -> None:
        self.look(self._hear_worker, desk, message)

    def _hear_worker(self, desk: Desk, message: wire.Message) -> None:
        # Somebody who is no worker, or no longer one, is not listened to; a token works once and is buried with it.
        if type(message) is wire.Hello:
            if not desk.exited:
                self.step(message, desk.peer)
        elif self.fleet.knows_worker(desk.peer):
            self.step(message, desk.peer)
        else:
            self._world.seen["words of a stranger"] += 1

    def garbled(self, desk: Desk) -> None:
        """A frame came that cannot be read."""
        if self.fleet.knows_worker(desk.peer):
            self.step(ProtocolBroken("0xc1"), desk.peer)

    def launched(self, worker_id: str, pid: int) -> None:
        self.step(WorkerLaunched(worker_id, pid))

    def launch_failed(self, worker_id: str, error: str) -> None:
        self.step(WorkerExited(worker_id, LaunchFailed(error)))

    def died(self, worker_id: str) -> None:
        self.step(WorkerDied(worker_id))
        self._funerals.died(worker_id, self._clock.now)
        self.next_death = self._funerals.next_due()

    def reaped(self, worker_id: str, reason: ExitReason) -> None:
        self._funerals.reaped(Reaped(worker_id, reason, 1 << 20), self._clock.now)
        self.next_death = self._funerals.next_due()

    def settle_deaths(self) -> None:
        """Settle the deaths whose last words have been heard."""
        deaths = self._funerals.due(self._clock.now)
        self.next_death = self._funerals.next_due()
        for death in deaths:
            self.step(WorkerExited(death.worker_id, death.reason, death.peak_rss_bytes, ("last line",)))
