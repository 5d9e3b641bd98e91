"""A real worker process and the coordinator's end of its socket, in the hands of a test."""

from __future__ import annotations

import mmap
import os
import struct
import subprocess
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any, Self

import zmq

from bridge.protocol import codec
from bridge.protocol.errors import BridgeError, decode_error
from bridge.protocol.messages import (
    ERROR,
    FLAG_EVENTS,
    OK,
    Cancel,
    Event,
    Heartbeat,
    Hello,
    Message,
    Ready,
    Recall,
    Reply,
    Request,
    Welcome,
)
from bridge.protocol.values import decode_value, encode_value
from bridge.protocol.worker_spec import WorkerSpec, encode_spec
from bridge.transport import Router, Sent, ipc_endpoint

ROOT = str(Path(__file__).parents[2])
WAIT_S = 20.0
_STAND_IN = """
import sys
import tests.support.worker_operations as operations
sys.modules["bridge.worker.operations"] = operations
from bridge.worker.__main__ import main
sys.exit(main())
"""


def value_of(reply: Reply) -> Any:
    """Return the value of a reply, which must have one."""
    assert reply.status == OK, reply
    return decode_value(reply.payload or b"")


def error_of(reply: Reply) -> BridgeError:
    """Return the error of a reply, which must be one."""
    assert reply.status == ERROR, reply
    return decode_error(reply.payload or b"")


def cancel(request: Request) -> Cancel:
    return Cancel(request_id=request.request_id, epoch=request.epoch)


def recall(request: Request) -> Recall:
    return Recall(request_id=request.request_id, epoch=request.epoch)


class WorkerProcess:
    """Starts a worker; `expect` and `reply_to` read what it says. A context manager: nothing is left behind."""

    def __init__(self, folder: Path, *, real: bool = False, **spec: Any) -> None:
        self.spec = WorkerSpec(
            **{
                "endpoint": ipc_endpoint(str(folder / "w")), "run_id": "run", "token": b"token 7f3a",
                "worker_id": "general-0.0", "pool": "general", "incarnation": 0, "slots": 2,
                "heartbeat_interval_s": 0.2, "message_bytes": 50_000, "nesting": 32, "lms": {}, "python_path": [],
                "faults": False, "log_level": "info", "cache_dir": str(folder),
                **spec,
            }
        )  # fmt: skip
        self.peer = b""
        self._inbox: deque[Message] = deque()
        self._next_epoch = 0
        self._context = zmq.Context()
        self.router = Router(self._context, self.spec.endpoint, max_frame_bytes=1 << 26)
        spec_fd, slots_fd = os.memfd_create("spec"), os.memfd_create("slots")
        os.write(spec_fd, encode_spec(self.spec))
        os.ftruncate(slots_fd, 4096)
        self._page = mmap.mmap(slots_fd, 4096)
        lifeline_fd, self.lifeline = os.pipe()
        fds = (spec_fd, slots_fd, lifeline_fd)
        words = f"--spec-fd {spec_fd} --slots-fd {slots_fd} --lifeline-fd {lifeline_fd} general-0.0 run".split()
        self.process = subprocess.Popen(
            [sys.executable, *(["-m", "bridge.worker"] if real else ["-c", _STAND_IN]), *words],
            pass_fds=fds, cwd=ROOT, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        for fd in fds:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()
        self.cut_lifeline()
        self.router.close()
        self._context.term()
        self._page.close()

    @property
    def slots(self) -> list[int]:
        """The words of the started-slots page, now."""
        return list(struct.unpack("512Q", self._page[:]))

    def cut_lifeline(self) -> None:
        """Do to the worker what the coordinator's death does."""
        if self.lifeline >= 0:
            os.close(self.lifeline)
            self.lifeline = -1

    # --- talking to it ----------------------------------------------------------------------------

    def boot(self) -> Self:
        """Take the worker through Hello, Welcome, Ready."""
        self.expect(Hello)
        self.send(Welcome(run_id="run"))
        self.expect(Ready)
        return self

    def send(self, *messages: Message) -> None:
        for frames in codec.encode_frames(messages):
            self.send_frames(frames)

    def send_frames(self, frames: list[bytes]) -> None:
        deadline = time.monotonic() + WAIT_S
        while (sent := self.router.send(self.peer, frames)) is Sent.FULL and time.monotonic() < deadline:
            self.router.socket.poll(10, zmq.POLLOUT)
        assert sent is Sent.YES

    def request(self, operation: str, args: Any = None, **fields: Any) -> Request:
        """Send an attempt and return it; epochs count up from 1."""
        self._next_epoch += 1
        fields = {"request_id": self._next_epoch + 1000, "epoch": self._next_epoch, **fields}
        request = Request(operation=operation, payload=fields.pop("payload", encode_value(args)), **fields)
        self.send(request)
        return request

    def call(self, operation: str, args: Any = None, **fields: Any) -> Any:
        """Send an attempt and return its value."""
        return value_of(self.reply_to(self.request(operation, args, **fields)))

    def reply_to(self, request: Request) -> Reply:
        reply: Reply = self.expect(Reply, epoch=request.epoch)
        return reply

    def event_of(self, request: Request) -> Event:
        event: Event = self.expect(Event, epoch=request.epoch)
        return event

    def hold(self, operation: str = "hold", args: Any = None, **fields: Any) -> Request:
        """Send an attempt that says that it runs; return it when it has said so."""
        request = self.request(operation, args, flags=FLAG_EVENTS, **fields)
        assert self.event_of(request).kind == "holding"
        return request

    def expect(self, kind: type[Any], timeout_s: float = WAIT_S, **fields: Any) -> Any:
        """Return (and remove) the first message of that kind with those fields, waiting for it."""
        deadline = time.monotonic() + timeout_s
        while True:
            for message in self._inbox:
                if type(message) is kind and all(getattr(message, name) == want for name, want in fields.items()):
                    self._inbox.remove(message)
                    return message
            left_s = deadline - time.monotonic()
            if left_s > 0:
                self.receive(left_s)
                continue
            report = f"no {kind.__name__} {fields}; there is {list(self._inbox)[-20:]}; {self.stderr_if_dead()}"
            raise AssertionError(report)

    def receive(self, timeout_s: float) -> None:
        """Take in one frame list, if one comes in time."""
        if self.router.socket.poll(int(timeout_s * 1e3)) and (frames := self.router.receive()):
            self.peer = frames[0]
            decoded = codec.decode(frames[1:])
            assert decoded.problem is None
            self._inbox.extend(message for message in decoded.messages)

    def others(self) -> list[Message]:
        """Return what has come and was not expected, without heartbeats."""
        while self.router.socket.poll(0):
            self.receive(0.1)
        return [message for message in self._inbox if type(message) is not Heartbeat]

    # --- its end ----------------------------------------------------------------------------------

    def exit_code(self) -> int:
        return self.process.wait(WAIT_S)

    def stderr(self) -> str:
        """Return what it wrote; call it when it has ended."""
        self.process.wait(WAIT_S)
        assert self.process.stderr is not None
        return self.process.stderr.read()

    def stderr_if_dead(self) -> str:
        return self.stderr() if self.process.poll() is not None else "(alive)"
