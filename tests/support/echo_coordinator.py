"""The far end of a client's connection, without a fleet: a process with a ROUTER that answers for itself.

Run as `python -m tests.support.echo_coordinator ENDPOINT [MAX_IN_FLIGHT]`; it prints a line once it is bound.
Operations: `echo` answers its arguments; `raise` an error of the code and message given; `hold` answers when it is
cancelled or when `release` comes; `ignore` never answers; `events` sends that many events first; `requests` answers how
many rows have come; `frames` how many frame lists; `order` the request ids in order of arrival; `terms` of every
request before it the operation, priority, flags and idempotency key; `stream` sends the events given as
`[kind, fields, sequence, epoch]`, no more than its window has room for unless `deaf`, then the value given as `final`,
an `error`, or nothing: then it is held; `sent` answers how many events of a request, given by its id, were sent;
`cancelled` the ids of requests that were to be cancelled; `asked` of every request before it its operation, its
parent's id, its deadline in milliseconds and its principal.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zmq

from bridge.protocol import codec
from bridge.protocol.errors import CANCELLED, BridgeError, encode_error
from bridge.protocol.messages import (
    ERROR,
    OK,
    ROWS,
    Bye,
    Cancel,
    CancelReply,
    Credit,
    Event,
    Hello,
    Message,
    Refused,
    Reply,
    Request,
    Welcome,
)
from bridge.protocol.values import decode_value, encode_value, split_values
from bridge.transport import Router
from orchestrator.rundir import process_ticks


@dataclass(slots=True)
class Streamed:
    """A stream under way: what is still to be said, and how much of it may be."""

    peer: bytes
    waiting: deque[Message]
    room: float
    sent: int = 0


class EchoCoordinator:
    """One ROUTER, any number of clients."""

    def __init__(self, endpoint: str, max_in_flight: int) -> None:
        self._router = Router(zmq.Context(), endpoint, max_frame_bytes=1 << 27)
        self._max_in_flight = max_in_flight
        self._clients = 0
        self._held: dict[int, bytes] = {}
        self._rows = self._frames = 0
        self._order: list[int] = []
        self._terms: list[tuple[str, int, int, str]] = []
        self._out: dict[bytes, list[Message]] = {}
        self._streams: dict[int, Streamed] = {}
        self._cancelled: list[int] = []
        self._asked: list[tuple[str, int, float | None, str]] = []
        self._principals: dict[bytes, str] = {}

    def run(self) -> None:
        """Answer for ever."""
        while True:
            self._router.socket.poll()
            while (frames := self._router.receive()) is not None:
                self._frames += 1
                for message in codec.decode(frames[1:]).messages:
                    self._answer(frames[0], message)
            for peer, messages in self._out.items():
                for frames in codec.encode_frames(messages):
                    with contextlib.suppress(zmq.ZMQError):  # it has closed meanwhile
                        self._router.socket.send_multipart([peer, *frames])
            self._out.clear()

    def _answer(self, peer: bytes, message: Any) -> None:
        out = self._out.setdefault(peer, [])
        if isinstance(message, Hello):
            self._principals[peer] = message.principal
            out.append(self._welcome(message))
        elif isinstance(message, Request):
            self._rows += message.rows
            self._order.append(message.request_id)
            self._serve(peer, message, out)
            self._terms.append((message.operation, message.priority, message.flags, message.idempotency_key))
            asked = (message.operation, message.parent_request_id, message.deadline_ms, self._principals[peer])
            self._asked.append(asked)
        elif isinstance(message, Cancel):
            self._cancelled.append(message.request_id)
            self._cancel(message, out)
        elif isinstance(message, Credit) and message.request_id in self._streams:
            self._streams[message.request_id].room += message.events
            self._go_on(message.request_id)
        elif isinstance(message, Bye):
            for request_id in [held for held, owner in self._held.items() if owner == peer]:
                del self._held[request_id]

    def _welcome(self, hello: Hello) -> Message:
        if hello.principal == "nobody":
            return Refused(payload=encode_error(BridgeError("INVALID_REQUEST", "nobody is not welcome")))
        self._clients += 1
        pid = os.getpid()
        return Welcome(
            run_id="f" * 32, pid=pid, started_ticks=process_ticks(pid) or 0, client_no=self._clients,
            message_bytes=1 << 26, nesting=128, max_in_flight=self._max_in_flight,
        )  # fmt: skip

    def _serve(self, peer: bytes, request: Request, out: list[Message]) -> None:
        payload = request.payload or b""
        if request.rows > 1:
            outcomes = [self._row(one) for one in split_values(payload, request.rows)]
            out.append(self._reply(request, codec.pack_outcomes(outcomes), ROWS))
        elif request.operation == "echo":
            out.append(self._reply(request, payload))
        elif request.operation == "hold":
            self._held[request.request_id] = peer
        elif request.operation == "release":
            for held, owner in self._held.items():
                self._out.setdefault(owner, []).append(Reply(request_id=held, payload=encode_value("released")))
            self._held.clear()
            out.append(self._reply(request, encode_value(None)))
        elif request.operation != "ignore":
            self._special(peer, request, decode_value(payload), out)

    def _special(self, peer: bytes, request: Request, args: Any, out: list[Message]) -> None:
        if request.operation == "raise":
            out.append(self._reply(request, encode_error(BridgeError(args["code"], args["message"])), ERROR))
            return
        if request.operation == "events":
            out += [
                Event(request_id=request.request_id, kind="progress", sequence=n + 1, payload=encode_value({"done": n}))
                for n in range(args)
            ]
        if request.operation == "stream":
            self._begin(peer, request, args)
            return
        if request.operation == "sent":
            out.append(self._reply(request, encode_value(self._streams[args].sent)))
            return
        values = {
            "asked": self._asked,
            "cancelled": self._cancelled,
            "requests": self._rows,
            "frames": self._frames,
            "order": self._order,
            "terms": self._terms,
        }
        out.append(self._reply(request, encode_value(values.get(request.operation))))

    def _begin(self, peer: bytes, request: Request, args: Any) -> None:
        waiting: deque[Message] = deque(
            Event(
                request_id=request.request_id, kind=kind, sequence=sequence, epoch=epoch, payload=encode_value(fields)
            )
            for kind, fields, sequence, epoch in args["events"]
        )  # fmt: skip
        if "final" in args:
            waiting.append(self._reply(request, encode_value(args["final"])))
        elif "error" in args:
            waiting.append(self._reply(request, encode_error(BridgeError(**args["error"])), ERROR))
        else:
            self._held[request.request_id] = peer
        room = float("inf") if args.get("deaf") else request.event_window
        self._streams[request.request_id] = Streamed(peer, waiting, room)
        self._go_on(request.request_id)

    def _go_on(self, request_id: int) -> None:
        stream = self._streams[request_id]
        out = self._out.setdefault(stream.peer, [])
        while stream.waiting and (stream.room > 0 or isinstance(stream.waiting[0], Reply)):
            out.append(message := stream.waiting.popleft())
            if isinstance(message, Event):
                stream.room -= 1
                stream.sent += 1

    def _row(self, payload: bytes) -> tuple[int, bytes]:
        value = decode_value(payload)
        if value == "bad":
            return ERROR, encode_error(BridgeError("REMOTE_ERROR", "a bad row", details={"type": "ValueError"}))
        return OK, payload

    def _cancel(self, message: Cancel, out: list[Message]) -> None:
        if self._held.pop(message.request_id, None) is None:
            out.append(CancelReply(request_id=message.request_id, stage="finished", how="none"))
            return
        error = encode_error(BridgeError(CANCELLED, "cancelled"))
        out.append(Reply(request_id=message.request_id, status=ERROR, payload=error))
        how = "killed" if message.force else "cooperative"
        out.append(CancelReply(request_id=message.request_id, stage="running", how=how))

    def _reply(self, request: Request, payload: bytes, status: int = OK) -> Reply:
        return Reply(
            request_id=request.request_id, payload=payload, status=status, worker="echo-0.1", pool="echo", attempt=1,
            run_ms=0.001 * request.rows,
        )  # fmt: skip


@contextmanager
def far_end(folder: Path) -> Iterator[str]:
    """Run one in a process of its own; give its endpoint."""
    endpoint = f"ipc://{folder}/echo.sock"
    command = [sys.executable, "-m", "tests.support.echo_coordinator", endpoint]
    with subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "bound\n"
            yield endpoint
        finally:
            process.kill()


if __name__ == "__main__":
    coordinator = EchoCoordinator(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 4096)
    print("bound", flush=True)
    coordinator.run()
