"""Clients that do not care: each a process that sends as it was told, whatever comes back, and notes when it does.

The library's own client holds requests back where a pool is full; what a coordinator does with callers who do not can
only be measured by such. Commands are JSON lines on stdin, each answered by one on stdout.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import zmq

from bridge.protocol.codec import decode, encode_frames
from bridge.protocol.errors import OVERLOADED, decode_error
from bridge.protocol.messages import (
    OK,
    PRIORITY_NORMAL,
    Hello,
    Message,
    Reply,
    Request,
    Taken,
    Welcome,
    request_id_base,
)
from bridge.protocol.values import encode_value
from bridge.transport import Dealer, Sent

_BOOT: Final = "from orchestrator.bench.swarm import main; main()"
_TICK_S: Final = 0.001
_MOST_AT_ONCE: Final = 256
_TAKEN_BYTES: Final = 1 << 20
_WELCOME_S: Final = 10.0
# What is unanswered so long after its deadline is not waited for.
_LATE_S: Final = 2.0
SUCCESS: Final = "OK"
# Overloaded, of what had been accepted and waited.
SHED: Final = "SHED"


@dataclass(frozen=True, kw_only=True)
class Order:
    """What to send. rate: requests each second; None = `window` of them are kept unanswered.

    distinct: each request has a number in its arguments, so that no two are alike.
    """

    operation: str
    args: dict[str, Any]
    seconds: float
    rate: float | None = None
    window: int = 0
    deadline_s: float = 1.0
    pool: str = ""
    priority: int = PRIORITY_NORMAL
    flags: int = 0
    distinct: bool = False


@dataclass
class Outcomes:
    """What became of an order. times_ms: from the send to the answer, by its code (OK, SHED, or the error's)."""

    sent: int = 0
    unanswered: int = 0
    times_ms: dict[str, list[float]] = field(default_factory=dict)

    def count(self, code: str) -> int:
        """Return how many were answered so."""
        return len(self.times_ms.get(code, ()))

    def add(self, other: Outcomes) -> None:
        """Count another one's in."""
        self.sent += other.sent
        self.unanswered += other.unanswered
        for code, times in other.times_ms.items():
            self.times_ms.setdefault(code, []).extend(times)


class Swarmer:
    """One such client, in a process of its own. A context manager: leaving it ends the process."""

    def __init__(self, endpoint: str, principal: str = "default") -> None:
        root = Path(__file__).resolve().parents[2]
        path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
        self.principal = principal
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _BOOT, endpoint, principal],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
            start_new_session=True,
        )

    def __enter__(self) -> Swarmer:
        """Return it, already started."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._process.kill()
        self._process.communicate()

    def begin(self, order: Order) -> None:
        """Let it begin; `outcomes` waits for the end."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asdict(order)) + "\n")
        self._process.stdin.flush()

    def outcomes(self) -> Outcomes:
        """Wait for the end of what was begun. Raises RuntimeError if the process ended instead."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a client of the swarm ended with {self._process.wait()}")
        return Outcomes(**json.loads(line))

    def run(self, order: Order) -> Outcomes:
        """Carry an order out."""
        self.begin(order)
        return self.outcomes()


# --- inside the process -------------------------------------------------------------------------------


class _Sender:
    def __init__(self, endpoint: str, principal: str) -> None:
        self._dealer = Dealer(zmq.Context.instance(), endpoint)
        self._backlog: list[list[bytes]] = []
        self._sent_at: dict[int, float] = {}
        self._times: dict[str, list[float]] = {}
        self._taken = 0
        self._next_id = 0
        self._put([Hello(pid=os.getpid(), principal=principal)])
        until = time.monotonic() + _WELCOME_S
        while not self._next_id and time.monotonic() < until:
            self._flush()
            self._dealer.socket.poll(10)
            self._read()
        if not self._next_id:
            raise TimeoutError(f"no Welcome within {_WELCOME_S:g} s")

    def carry_out(self, order: Order) -> Outcomes:
        self._times, self._sent_at = defaultdict(list), {}
        payload = encode_value(order.args)
        sent = 0
        began = now = time.monotonic()
        end = began + order.seconds
        while now < end:
            wanted = order.window - len(self._sent_at) if order.rate is None else int((now - began) * order.rate) - sent
            room = 0 if self._backlog else min(wanted, _MOST_AT_ONCE)
            if room > 0:
                self._put([self._request(order, payload, now) for _ in range(room)])
                sent += room
            self._turn()
            now = time.monotonic()
        until = end + order.deadline_s + _LATE_S
        while self._sent_at and time.monotonic() < until:
            self._turn()
        return Outcomes(sent, len(self._sent_at), dict(self._times))

    def _request(self, order: Order, payload: bytes, now: float) -> Request:
        self._next_id += 1
        if order.distinct:
            payload = encode_value({**order.args, "number": self._next_id})
        self._sent_at[self._next_id] = now
        return Request(
            request_id=self._next_id, operation=order.operation, pool=order.pool, priority=order.priority,
            deadline_ms=order.deadline_s * 1000.0, flags=order.flags, payload=payload,
        )  # fmt: skip

    def _turn(self) -> None:
        self._flush()
        self._dealer.socket.poll(int(_TICK_S * 1000))
        self._read()

    def _put(self, messages: list[Message]) -> None:
        self._backlog += encode_frames(messages)
        self._flush()

    def _flush(self) -> None:
        while self._backlog and self._dealer.send(self._backlog[0]) is Sent.YES:
            del self._backlog[0]

    def _read(self) -> None:
        while (frames := self._dealer.receive()) is not None:
            now = time.monotonic()
            self._taken += sum(map(len, frames))
            for message in decode(frames).messages:
                if type(message) is Reply:
                    self._settle(message, now)
                elif type(message) is Welcome:
                    self._next_id = request_id_base(message.client_no)
        if self._taken >= _TAKEN_BYTES:
            taken, self._taken = self._taken, 0
            self._put([Taken(bytes=taken)])

    def _settle(self, reply: Reply, now: float) -> None:
        sent_at = self._sent_at.pop(reply.request_id, None)
        if sent_at is not None:
            code = SUCCESS if reply.status == OK else decode_error(reply.payload or b"").code
            if code == OVERLOADED and reply.total_ms:
                code = SHED
            self._times[code].append(round((now - sent_at) * 1000.0, 3))


def main() -> None:
    """Carry out orders: `argv` is the endpoint and the principal."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's Ctrl-C is for the run, which then ends this
    sender = _Sender(*sys.argv[1:3])
    with suppress(BrokenPipeError):
        for line in sys.stdin:
            print(json.dumps(asdict(sender.carry_out(Order(**json.loads(line))))), flush=True)
