"""The frontend: what clients send, who they are, and when they are gone."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from bridge import faultpoints
from bridge.protocol.codec import decode, encode_frames
from bridge.protocol.errors import BridgeError, encode_error
from bridge.protocol.messages import Bye, CancelReply, Hello, Message, Refused, Request, Taken, Welcome
from bridge.transport import Router, Sent
from orchestrator.config import Settings
from orchestrator.coordinator.births import Births
from orchestrator.coordinator.event_log import EventLog
from orchestrator.coordinator.outbox import WINDOW_BYTES, Outbox
from orchestrator.coordinator.peers import Peers
from orchestrator.coordinator.slow import Farewells, SlowLimits
from orchestrator.coordinator.watching import Watching, open_pidfd
from pools.core.events import ClientConnected, ClientGone
from pools.core.fleet import FROM_CLIENTS, Fleet

# Of one operation, a client begins with no more under way than half a fair share of the smallest queue: those who came
# before may have filled the other half. The first two begin with a quarter, for more may come at any moment.
_WINDOW_ROWS_MIN: Final = 64
_SHARERS_MIN: Final = 2
# Says nothing: the answer to a cancellation that nobody has asked for. To whom it cannot be sent, is gone.
_PROBE_AGAIN_S: Final = 0.5
_PROBE: Final = CancelReply(request_id=0, stage="finished", how="none")


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Which coordinator this is: what Welcome says."""

    run_id: str
    version: str
    pid: int
    started_ticks: int
    shared_dir: str = ""  # the run's folder in memory, "" if it has none


def welcome(identity: Identity, settings: Settings, client_no: int, clients: int = 0) -> Welcome:
    """Return the answer to an accepted Hello. clients: how many there are, this one included."""
    smallest_queue = min((pool.max_queue for pool in settings.pools), default=0)
    return Welcome(
        package_version=identity.version,
        run_id=identity.run_id,
        pid=identity.pid,
        started_ticks=identity.started_ticks,
        client_no=client_no,
        message_bytes=settings.limits.message_bytes,
        nesting=settings.limits.nesting,
        max_in_flight=settings.fleet.client_rows,
        shared_dir=os.path.join(identity.shared_dir, str(client_no)) if identity.shared_dir else "",
        shared_bytes=settings.limits.shared_bytes if identity.shared_dir else 0,
        window_rows=max(_WINDOW_ROWS_MIN, smallest_queue // (2 * max(clients, _SHARERS_MIN))),
    )


class Clients:
    """Everybody at the frontend."""

    def __init__(
        self, router: Router, fleet: Fleet, settings: Settings, identity: Identity, watching: Watching, births: Births,
        events: EventLog,
    ) -> None:  # fmt: skip
        self._router = router
        self._fleet = fleet
        self._settings = settings
        self._identity = identity
        self._watching = watching
        self._births = births
        self.peers = Peers(identity.run_id, identity.version)
        self.outbox = Outbox(router, window_bytes=WINDOW_BYTES, limits=SlowLimits.of(settings.limits.message_bytes))
        self._farewells = Farewells(router)
        self._muted: set[bytes] = set()  # no clients any more, their connections may be there still
        self._next_no = 1
        self._pidfds: dict[bytes, int] = {}  # -1: its process cannot be watched
        self._events = events
        self.on_gone: Callable[[bytes], None] = lambda peer: None  # told of each client that has left
        self._probe_at: float | None = None
        self._folders: dict[bytes, str] = {}  # in memory, where their payloads are, if they have any there
        watching.add(router.connections_fileno(), self._look_for_the_lost)
        router.connections()  # the descriptor tells of nothing before it was asked once

    def __len__(self) -> int:
        return len(self._pidfds)

    def read(self, now: float, max_frames: int) -> None:
        """Handle what clients sent."""
        handle = self._fleet.handle
        limits = self._settings.limits
        for _ in range(max_frames):
            frames = self._router.receive()
            if frames is None:
                return
            peer = frames[0]
            if self.peers.is_muted(peer):
                self._farewells.heard(peer)
                continue
            self.outbox.heard(peer, now)
            decoded = decode(frames[1:], limits.message_bytes, header_bytes=limits.header_bytes)
            for message in decoded.messages:
                if type(message) is Request:
                    handle(message, now, peer)
                else:
                    self._hear(peer, message, now)
            faultpoints.hit("coordinator.after_admission")
            self.peers.unknown += decoded.unknown
            if decoded.problem is not None:
                self._reproach(peer, self.peers.misread(peer, decoded), now)

    def _hear(self, peer: bytes, message: Message, now: float) -> None:
        if type(message) is Hello:
            self._meet(peer, message, now)
        elif type(message) is Bye:
            self.gone(peer, now)
        elif type(message) is Taken:
            self.outbox.taken(peer, message.bytes, now)
        elif type(message) in FROM_CLIENTS:
            self._fleet.handle(message, now, peer)
        else:
            why = f"{type(message).__name__} from a client"
            self._reproach(peer, self.peers.misbehaved(peer, why), now)

    def _reproach(self, peer: bytes, answers: list[Message], now: float) -> None:
        self._fleet.sends_to_clients.extend((peer, answer) for answer in answers)
        if self.peers.is_muted(peer):
            self._events.tell("peer_muted", "warning", malformed=self.peers.malformed)
            self._fleet.peer_muted("it sent what cannot be read", now)
            if peer in self._pidfds:
                self._muted.add(peer)
            self.gone(peer, now)

    def _meet(self, peer: bytes, hello: Hello, now: float) -> None:
        refusal = self.peers.refusal(hello, "client")
        if refusal is not None:
            self._fleet.sends_to_clients.append((peer, refusal))
            return
        if peer in self._pidfds:
            self._reproach(peer, self.peers.misbehaved(peer, "a second Hello"), now)
            return
        try:
            worker_id = self._births.worker_of(hello)
        except BridgeError as exc:
            refused = Refused(payload=encode_error(exc))
            self._reproach(peer, [refused, *self.peers.misbehaved(peer, "a Hello without a valid token")], now)
            return
        client_no = self._next_no
        self._next_no += 1
        self._fleet.handle(ClientConnected(client_no, hello.principal or "default", worker_id), now, peer)
        answer = welcome(self._identity, self._settings, client_no, len(self._pidfds) + 1)
        self._fleet.sends_to_clients.append((peer, answer))
        if answer.shared_dir:
            self._folders[peer] = answer.shared_dir
        # A client that dies says no Bye; its process does.
        pidfd = open_pidfd(hello.pid)
        self._pidfds[peer] = -1 if pidfd is None else pidfd
        # Between its connection and its Hello it hid that another was lost.
        self._probe_at = self._probe_at or now + _PROBE_AGAIN_S
        if pidfd is not None:
            self._watching.add_pidfd(pidfd, lambda then: self.gone(peer, then))

    def gone(self, peer: bytes, now: float) -> None:
        """Forget a client; nobody waits for its answers."""
        pidfd = self._pidfds.pop(peer, -1)
        if pidfd >= 0:
            self._watching.remove(pidfd)
            os.close(pidfd)
        self.outbox.forget(peer)
        self._fleet.handle(ClientGone(), now, peer)
        self.on_gone(peer)
        folder = self._folders.pop(peer, "")
        if folder and os.path.isdir(folder):  # one that closes has removed it
            shutil.rmtree(folder, ignore_errors=True)

    def _look_for_the_lost(self, now: float) -> None:
        """Find out whose connection ended, although its process lives and it said no Bye."""
        self._probe_at = None
        if self._router.connections() < len(self._pidfds) + len(self._muted):
            self.send([(peer, _PROBE) for peer in self._pidfds], now)
            probe = encode_frames([_PROBE])[0]
            for peer in [peer for peer in self._muted if self._router.send(peer, probe) is Sent.GONE]:
                self._muted.discard(peer)
                self._farewells.forget(peer)
            # libzmq tells of the end a moment before it refuses to send.
            self._probe_at = now + _PROBE_AGAIN_S

    def send(self, sends: list[tuple[bytes, Any]], now: float) -> None:
        """Send messages; who cannot be reached is gone, and who was muted as too slow is told nothing more."""
        if self._farewells.peers:
            heard = [send for send in sends if send[0] not in self._farewells.peers]
            self.outbox.dropped += len(sends) - len(heard)
            sends = heard
        for peer in self.outbox.send(sends, now):
            self.gone(peer, now)

    def retry(self, now: float) -> None:
        """Try again what full pipes refused; mute who takes nothing for too long."""
        gone, slow = self.outbox.retry(now)
        for peer in gone:
            self.gone(peer, now)
        for peer, why in slow.items():
            self._mute_slow(peer, why, now)
        if self._probe_at is not None and now >= self._probe_at:
            self._look_for_the_lost(now)

    def _mute_slow(self, peer: bytes, why: str, now: float) -> None:
        self._events.tell("slow_peer_muted", "warning", dropped=self.outbox.dropped, why=why)
        self._fleet.peer_muted(f"it reads too slowly: {why}", now)
        self.peers.mute(peer)
        known = peer in self._pidfds
        self.gone(peer, now)
        # Of who never said Hello nobody would learn when it is gone: it is told nothing, and nothing is kept of it.
        if known:
            self._muted.add(peer)
            self._farewells.say(peer, why)

    def tidy(self) -> None:
        """Try again what muted clients are to be told. About once a second."""
        self._farewells.retry()

    def close(self) -> None:
        """Close what is watched of them."""
        for pidfd in self._pidfds.values():
            if pidfd >= 0:
                os.close(pidfd)
        self._pidfds.clear()
