"""A fleet without a shell, whose workers answer at once: what the coordinator's decisions cost by themselves."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any, Final

from bridge.protocol import messages as wire
from bridge.protocol.sessions import pack_change
from bridge.protocol.values import encode_value
from orchestrator.bench.contender import WORKERS
from orchestrator.errors import DspoolError
from pools.config import FleetConfig, PoolConfig, SessionsConfig
from pools.core.entries import SLOT_WORDS
from pools.core.events import (
    ClientConnected,
    Launch,
    OpenSession,
    ProgramSet,
    ProgramsSynced,
    ServedVersion,
    Tick,
    WorkerLaunched,
)
from pools.core.fleet import Fleet

IN_FLIGHT: Final = 100
_SLOTS: Final = 8
_PRINCIPAL: Final = "default"
_CLIENT: Final = b"client"
_CLIENT_NO: Final = 1
# How far its clock moves with each message.
_STEP_S: Final = 5e-6
_PAYLOAD: Final = encode_value({"text": "x" * 120, "n": 1})
_SPEC: Final = encode_value({"target": {"module": "dspy.Predict", "signature": "question -> answer"}})
_CHANGE: Final = pack_change(None, b"t" * 200)


class BareFleet:
    """A Fleet with two ready workers, and with so many sessions, each called once, and deployed programs."""

    def __init__(self, sessions: int = 0, programs: int = 0) -> None:
        pool = PoolConfig(name="general", size=WORKERS, slots=_SLOTS, default_deadline_s=120.0, heartbeat_limit_s=15.0)
        config = FleetConfig(pools=(pool,), sessions=SessionsConfig(max=max(sessions, 1)))
        self._fleet = Fleet(config, lms=frozenset(), random=lambda: 0.5, open_page=lambda _: [0] * SLOT_WORDS)
        self._now = 1.0
        self._last_id = wire.request_id_base(_CLIENT_NO)
        self._sessions = [f"session {number}" for number in range(sessions)]
        self._workers: list[bytes] = []
        self._boot()
        names = [f"program_{number}" for number in range(programs)]
        for name in names:
            self._hear(ProgramSet(name, (ServedVersion(1, "general", _SPEC),), {"live": 1}))
        self._hear(ProgramsSynced(frozenset(names)))
        for session in self._sessions:
            self._hear(OpenSession(_PRINCIPAL, session))
        self._fleet.take_effects()
        self._fleet.sends_to_workers.clear()
        self.calls(sessions)

    def _boot(self) -> None:
        self._fleet.start(self._now)
        launched = [effect.worker_id for effect in self._fleet.take_effects() if isinstance(effect, Launch)]
        for pid, worker_id in enumerate(launched, 1):
            peer = worker_id.encode()
            self._hear(WorkerLaunched(worker_id, pid=pid))
            self._hear(wire.Hello(role="worker", worker_id=worker_id, pid=pid), peer)
            self._hear(wire.Ready(slots=_SLOTS), peer)
            self._workers.append(peer)
        self._hear(ClientConnected(_CLIENT_NO, _PRINCIPAL), _CLIENT)

    def echoes(self, count: int) -> float:
        """Take so many requests from their admission to their settlement, 100 in flight; return µs of CPU of each."""
        return self._run([self._request() for _ in range(count)])

    def calls(self, count: int) -> float:
        """Do the same with requests in the fleet's sessions by turns; each leaves a turn of 200 bytes behind."""
        sessions = self._sessions
        return self._run([self._request(sessions[number % len(sessions)]) for number in range(count)])

    def _request(self, session: str = "") -> wire.Request:
        self._last_id += 1
        return wire.Request(request_id=self._last_id, operation="echo", payload=_PAYLOAD, session=session)

    def _run(self, requests: list[wire.Request]) -> float:
        spent_s, answered = 0.0, 0
        for first in range(0, len(requests), IN_FLIGHT):
            spent_s += self._feed((request, _CLIENT) for request in requests[first : first + IN_FLIGHT])
            while sends := list(self._fleet.sends_to_workers):
                self._fleet.sends_to_workers.clear()
                spent_s += self._feed((_answer(sent), peer) for peer, sent in sends if isinstance(sent, wire.Request))
            answered += sum(
                isinstance(sent, wire.Reply) and sent.status == wire.OK for _, sent in self._fleet.sends_to_clients
            )
            self._fleet.sends_to_clients.clear()
        for peer in self._workers:
            self._hear(wire.Heartbeat(), peer)
        if answered != len(requests):
            raise DspoolError(f"a fleet without a shell answered {answered} of {len(requests)} requests")
        return spent_s * 1e6 / max(answered, 1)

    def _feed(self, messages: Iterable[tuple[Any, bytes]]) -> float:
        """Have the fleet handle messages as a turn of the coordinator does; return the seconds of CPU that took."""
        read = list(messages)
        self._now += _STEP_S * len(read)
        handle, now = self._fleet.handle, self._now
        began = time.thread_time()
        due = self._fleet.next_timer()
        if due is not None and due <= now:
            handle(Tick(), now)
        for message, peer in read:
            handle(message, now, peer)
        self._fleet.take_effects()
        return time.thread_time() - began

    def _hear(self, event: Any, peer: bytes = b"") -> None:
        self._fleet.handle(event, self._now, peer)


def _answer(attempt: wire.Request) -> wire.Reply:
    payload, change = attempt.payload or b"", None
    if attempt.in_session is not None:
        payload = payload[: len(payload) - attempt.in_session.tail] + _CHANGE
        change = wire.SessionChange(seq=attempt.in_session.seq + 1, tail=len(_CHANGE))
    return wire.Reply(request_id=attempt.request_id, epoch=attempt.epoch, payload=payload, run_ms=0.1, session=change)
