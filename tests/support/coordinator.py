"""A real coordinator process, and a client that speaks the wire by hand, so that it can also speak it badly."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import psutil
import zmq

from bridge.protocol import codec
from bridge.protocol.errors import BridgeError, decode_error
from bridge.protocol.messages import OK, Hello, Message, Reply, Request, Welcome, request_id_base
from bridge.protocol.values import decode_value, encode_value
from bridge.transport import Dealer, Sent
from tests.support.waiting import wait_until

ROOT = str(Path(__file__).parents[2])
WAIT_S = 30.0
_BOOT = "import sys; from orchestrator.coordinator.__main__ import main; sys.exit(main())"
M = TypeVar("M", bound=Message)

# One light worker is enough where the wire is the subject.
ONE_WORKER = {"general": {"size": 1}, "optimizer": {"size": 0}, "neural": {"size": 0}}


class CoordinatorProcess:
    """Starts a coordinator by the start order that `Orchestrator` uses; killed with all it started at the end."""

    def __init__(self, folder: Path, *, drain_s: float = 5.0, prefix: Sequence[str] = (), **overrides: Any) -> None:
        """prefix: a command that sets its surroundings up, and then becomes the one that follows it."""
        settings = {"run_dir": str(folder / "r"), "data_dir": str(folder / "d"), "pools": ONE_WORKER, **overrides}
        order = json.dumps({"overrides": settings, "private": True, "drain_s": drain_s})
        spec_fd = os.memfd_create("order")
        os.write(spec_fd, order.encode())
        ready_fd, their_ready_fd = os.pipe()
        their_lifeline_fd, self.lifeline_fd = os.pipe()
        fds = (spec_fd, their_ready_fd, their_lifeline_fd)
        names = ("--spec-fd", "--ready-fd", "--lifeline-fd")
        words = [word for pair in zip(names, map(str, fds), strict=True) for word in pair]
        self.process = subprocess.Popen(
            [*prefix, sys.executable, "-c", _BOOT, *words], pass_fds=fds, cwd=ROOT, stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        for fd in fds:
            os.close(fd)
        self._ready = os.fdopen(ready_fd)
        self.run_dir = folder / "r"
        self.bound = self.next_report()
        self.endpoint: str = self.bound.get("endpoint", "")

    def next_report(self) -> dict[str, Any]:
        """Return the next line of the ready pipe."""
        line = self._ready.readline()
        return json.loads(line) if line else {"event": "eof"}

    def descendants(self) -> list[psutil.Process]:
        """Return every process below this coordinator."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def let_go(self) -> None:
        """Close the owner's end of the lifeline."""
        if self.lifeline_fd >= 0:
            os.close(self.lifeline_fd)
            self.lifeline_fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        left = self.descendants() if self.process.poll() is None else []
        self.process.kill()
        self.process.communicate()
        self.let_go()
        self._ready.close()
        gone(left)


def gone(processes: list[psutil.Process], timeout_s: float = 2.0) -> None:
    """Assert that these processes end within `timeout_s`."""
    wait_until(lambda: not [p for p in processes if _lives(p)], timeout_s, f"the end of {processes}")


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class WireClient:
    """One DEALER. `call` is a well-behaved client; `send` and `send_raw` need not be."""

    def __init__(self, endpoint: str, *, hello: bool = True, **fields: Any) -> None:
        self._context = zmq.Context()
        self.dealer = Dealer(self._context, endpoint)
        self._inbox: deque[Message] = deque()
        if hello:
            self.send(Hello(pid=os.getpid(), **fields))
            self.welcome = self.expect(Welcome)
            self.ids = itertools.count(request_id_base(self.welcome.client_no) + 1)

    def send(self, *messages: Message) -> None:
        """Send messages as one frame list."""
        for frames in codec.encode_frames(messages):
            self.send_raw(*frames)

    def send_raw(self, *frames: bytes) -> None:
        """Send whatever this is."""
        wait_until(lambda: self.dealer.send(frames) is Sent.YES, WAIT_S, "room in the pipe")

    def expect(self, kind: type[M], timeout_s: float = WAIT_S) -> M:
        """Return the next message of this kind; others are kept."""
        deadline = time.monotonic() + timeout_s
        while True:
            for message in self._inbox:
                if type(message) is kind:
                    self._inbox.remove(message)
                    return message
            if time.monotonic() >= deadline:
                raise AssertionError(f"no {kind.__name__} in {timeout_s} s; there is {list(self._inbox)}")
            self._read(50)

    def has(self, kind: type[Message]) -> bool:
        """Return whether a message of this kind has come."""
        self._read(0)
        return any(type(message) is kind for message in self._inbox)

    def _read(self, wait_ms: int) -> None:
        if self.dealer.socket.poll(wait_ms):
            decoded = codec.decode(self.dealer.socket.recv_multipart())
            assert decoded.problem is None, decoded.problem
            self._inbox.extend(decoded.messages)

    def request(self, operation: str, args: Any = None, **fields: Any) -> int:
        """Send a request; return its id."""
        request_id = next(self.ids)
        self.send(Request(request_id=request_id, operation=operation, payload=encode_value(args), **fields))
        return request_id

    def call(self, operation: str, args: Any = None, **fields: Any) -> Any:
        """Return an operation's value, or its BridgeError. Replies of other requests are kept."""
        request_id = self.request(operation, args, **fields)
        others: list[Message] = []
        while (reply := self.expect(Reply)).request_id != request_id:
            others.append(reply)
        self._inbox.extendleft(reversed(others))
        return value_of(reply)

    def close(self) -> None:
        self.dealer.socket.close(linger=0)
        self._context.term()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def value_of(reply: Reply) -> Any:
    """Return a reply's value, or its BridgeError."""
    payload = reply.payload or b""
    return decode_value(payload) if reply.status == OK else decode_error(payload)


def code_of(outcome: Any) -> str:
    """Return the code of an error that came back as a value."""
    assert isinstance(outcome, BridgeError), outcome
    return outcome.code
