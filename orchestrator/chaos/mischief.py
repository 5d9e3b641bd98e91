"""Who does what the plan says."""

from __future__ import annotations

import heapq
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Final

import zmq

from bridge.transport import Dealer
from orchestrator.chaos.crowd import Crowd
from orchestrator.chaos.plan import Mischief
from orchestrator.chaos.realm import Realm, signal_by_rank
from orchestrator.client.client import Client
from orchestrator.errors import DspoolError
from orchestrator.processes import Process

# Operations that do harm: their callers must be told in time like all others.
_DEADLINE_S: Final = 1.0
_LEAK_MB, _FLOOD_MB = 48, 4
# Of what a malformed peer sends.
_FRAMES, _PARTS, _PART_BYTES = 4, 4, 2000


class Agent:
    """Does mischief, and ends what it began: a process that it stopped goes on after the time that was planned.

    done: how often each kind was done; what finds no victim is not counted.
    """

    def __init__(self, realm: Realm, crowd: Crowd, seed: int) -> None:
        self._realm = realm
        self._crowd = crowd
        self._rng = random.Random(f"agent {seed}")
        self._client: Client | None = None
        self._stopped: list[tuple[float, int, Process]] = []
        self.done: Counter[str] = Counter()
        self._deeds: Mapping[str, Callable[[Mischief], bool]] = {
            "kill_worker": lambda deed: self._signal(realm.workers(), deed, signal.SIGKILL),
            "segv_worker": lambda deed: self._signal(realm.workers(), deed, signal.SIGSEGV),
            "stop_worker": lambda deed: self._signal(realm.workers(), deed, signal.SIGSTOP),
            "kill_zygote": lambda deed: self._signal(realm.zygotes(), deed, signal.SIGKILL),
            "kill_nanny": lambda deed: self._signal(realm.nannies(), deed, signal.SIGKILL),
            "kill_coordinator": self._kill_coordinator,
            "hang": lambda deed: self._ask("fault.hang", {"seconds": deed.seconds}),
            "hold_gil": lambda deed: self._ask("fault.hold_gil", {"seconds": deed.seconds}),
            "leak": lambda deed: self._ask("fault.leak", {"mb": _LEAK_MB}),
            "flood": lambda deed: self._ask("fault.stdout_flood", {"mb": _FLOOD_MB}),
            "kill_client": self._kill_client,
            "stop_client": self._stop_client,
            "malformed": self._send_noise,
        }

    def do(self, deed: Mischief) -> None:
        """Do one thing."""
        self.done[deed.kind] += self._deeds[deed.kind](deed)

    def tend(self) -> None:
        """Let those go on whose time has come."""
        now = time.monotonic()
        while self._stopped and self._stopped[0][0] <= now:
            heapq.heappop(self._stopped)[2].signal(signal.SIGCONT)

    def end(self) -> None:
        """Let all go on, and ask for nothing more."""
        while self._stopped:
            heapq.heappop(self._stopped)[2].signal(signal.SIGCONT)
        self.forget_client()

    def look(self) -> None:
        """Ask the coordinator how it is. What it says is no matter here."""
        self._ask("dspool.stats", {})

    def forget_client(self) -> None:
        """Close the connection to a coordinator; the next deed that needs one makes another."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def _signal(self, victims: list[Process], deed: Mischief, number: int) -> bool:
        victim = signal_by_rank(victims, deed.rank, number)
        if victim is not None and number == signal.SIGSTOP:
            heapq.heappush(self._stopped, (time.monotonic() + deed.seconds, victim.pid, victim))
        return victim is not None

    def _kill_coordinator(self, deed: Mischief) -> bool:
        self._realm.note()
        self._realm.kill()
        return True

    def _kill_client(self, deed: Mischief) -> bool:
        self._crowd.kill(deed.rank)
        return True

    def _stop_client(self, deed: Mischief) -> bool:
        self._crowd.stop(deed.rank, deed.seconds)
        return True

    def _ask(self, operation: str, args: Mapping[str, Any]) -> bool:
        """Have a worker harm itself. What becomes of the call is no matter here."""
        try:
            if self._client is None or self._client.connection.ended:
                self.forget_client()
                self._client = self._realm.client()
            self._client.submit(operation, dict(args), deadline_s=_DEADLINE_S)
        except DspoolError:
            return False  # no coordinator at this moment
        return True

    def _send_noise(self, deed: Mischief) -> bool:
        """Be a peer that speaks another language, and leave without a word."""
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        dealer = Dealer(context, self._realm.endpoint, linger_ms=100)
        try:
            dealer.socket.poll(50, zmq.POLLOUT)
            for _ in range(self._rng.randint(1, _FRAMES)):
                parts = self._rng.randint(1, _PARTS)
                dealer.send([self._rng.randbytes(self._rng.randrange(_PART_BYTES)) for _ in range(parts)])
        finally:
            dealer.close()
            context.term()
        return True
