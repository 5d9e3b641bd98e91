"""The one module that touches ZeroMQ sockets.

`Router` is the coordinator's end, `Dealer` a client's or worker's. Both move frame lists (see
`protocol.codec`) without blocking; what cannot be sent now is the caller's to keep (see `outbox`).
Neither object is thread-safe: ZeroMQ sockets belong to whoever holds their lock.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, auto
from typing import Final

import zmq
from zmq.utils.monitor import parse_monitor_message

# Counts frames, on each side of a pipe: 64 frames of 64 messages are plenty, and 64 large ones are bounded.
HIGH_WATER_MARK: Final = 64
_MORE: Final = int(zmq.NOBLOCK) | int(zmq.SNDMORE)
_WEEKS_MS: Final = 2**31 - 1
# sockaddr_un.sun_path holds 108 bytes with its terminating NUL.
IPC_PATH_BYTES: Final = 107


class Sent(Enum):
    """What became of a send."""

    YES = auto()
    FULL = auto()  # the peer's pipe is at its high-water mark: try again when it is heard, or in 10 ms
    GONE = auto()  # no such peer


def ipc_endpoint(path: str) -> str:
    """Return the endpoint of a socket file. Raises ValueError if the path is too long for the kernel."""
    size = len(path.encode())
    if size > IPC_PATH_BYTES:
        raise ValueError(f"socket path of {size} bytes, {IPC_PATH_BYTES} are possible: {path}; set a shorter run_dir")
    return f"ipc://{path}"


class Router:
    """A bound ROUTER that refuses to lie: unknown peers and full pipes are reported, never dropped silently.

    watched: `connections` counts those that are there (poll `connections_fileno` for a change). Whose they are libzmq
    does not say.
    """

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str, *, max_frame_bytes: int, watched: bool = False
    ) -> None:
        self._watch: zmq.Socket[bytes] | None = None
        self._connections = 0
        self.socket = context.socket(zmq.ROUTER)
        self.socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self.socket.setsockopt(zmq.ROUTER_HANDOVER, 0)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.SNDHWM, HIGH_WATER_MARK)
        self.socket.setsockopt(zmq.RCVHWM, HIGH_WATER_MARK)
        self.socket.setsockopt(zmq.MAXMSGSIZE, max_frame_bytes)
        if watched:
            self._watch = _watching(context, self.socket, zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED)
        self.socket.bind(endpoint)
        self._recv = self.socket.recv_multipart
        self._send_part = self.socket.send
        # Whether something may have come in of which `fileno` gives no sign (any more).
        self._stirred = True

    def fileno(self) -> int:
        """Return the descriptor to poll, readable when something happened; `stirred` is to be asked before sleeping."""
        return int(self.socket.getsockopt(zmq.FD))

    def stirred(self) -> bool:
        """Return whether a message can be received although `fileno` may not show it.

        libzmq takes note of incoming messages, and clears the descriptor, inside any call on the socket. So after a
        send, and unless `receive` has returned None since, sleeping on the descriptor could miss one.
        """
        if self._stirred:
            self._stirred = bool(int(self.socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN)
        return self._stirred

    def receive(self) -> list[bytes] | None:
        """Return the next `[peer, frame, ...]`, or None when nothing has come."""
        try:
            frames = self._recv(zmq.NOBLOCK)
        except zmq.Again:
            self._stirred = False
            return None
        self._stirred = True
        return frames

    def send(self, peer: bytes, frames: Sequence[bytes]) -> Sent:
        """Try to hand `frames` to `peer`, all or nothing."""
        self._stirred = True
        send = self._send_part
        try:
            # A ROUTER refuses, if it does, the address: what follows belongs to a message it has taken on.
            send(peer, _MORE)
            for frame in frames[:-1]:
                send(frame, _MORE)
            send(frames[-1], zmq.NOBLOCK)
        except zmq.Again:
            return Sent.FULL
        except zmq.ZMQError as exc:
            if exc.errno == zmq.EHOSTUNREACH:
                return Sent.GONE
            raise
        return Sent.YES

    def connections_fileno(self) -> int:
        """Return the edge-triggered descriptor that says "ask `connections`"; only of a watched one."""
        assert self._watch is not None
        return int(self._watch.getsockopt(zmq.FD))

    def connections(self) -> int:
        """Return how many connections there are; only of a watched one."""
        assert self._watch is not None
        while int(self._watch.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            event = parse_monitor_message(self._watch.recv_multipart())["event"]
            self._connections += 1 if event == zmq.EVENT_ACCEPTED else -1
        return self._connections

    def close(self, linger_ms: int = 0) -> None:
        """Close; what is unsent then has so long to leave."""
        if self._watch is not None:
            self.socket.monitor(None, 0)
            self._watch.close()
            self._watch = None
        self.socket.close(linger=linger_ms)


class Dealer:
    """A connected DEALER. One coordinator, one run: a path that comes back is another run's, so it never reconnects.

    Plain: nothing is accepted for a coordinator that is not there; with the connection goes what came and was not read.
    watched: `ended` tells that the connection is over (poll `end_fileno` for it), and what came can still be read.
    """

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str, *, max_frame_bytes: int = -1,
        linger_ms: int = 0, watched: bool = False,
    ) -> None:  # fmt: skip
        self._watch: zmq.Socket[bytes] | None = None
        self.socket = context.socket(zmq.DEALER)
        try:
            self.socket.setsockopt(zmq.LINGER, linger_ms)
            self.socket.setsockopt(zmq.SNDHWM, HIGH_WATER_MARK)
            self.socket.setsockopt(zmq.RCVHWM, HIGH_WATER_MARK)
            self.socket.setsockopt(zmq.MAXMSGSIZE, max_frame_bytes)
            # IMMEDIATE, and reconnecting turned off, both make libzmq drop a lost connection's pipe with all that is
            # in it. A wait of weeks keeps it.
            self.socket.setsockopt(zmq.IMMEDIATE, not watched)
            self.socket.setsockopt(zmq.RECONNECT_IVL, _WEEKS_MS if watched else -1)
            if watched:
                self._watch = _watching(context, self.socket, zmq.EVENT_DISCONNECTED)
            self.socket.connect(endpoint)
        except BaseException:
            self.close()
            raise
        self._recv = self.socket.recv_multipart
        self._send = self.socket.send_multipart
        self._send_part = self.socket.send

    def fileno(self) -> int:
        """Return the edge-triggered descriptor: readable means "look at `pending`", not "a message is there"."""
        return int(self.socket.getsockopt(zmq.FD))

    def pending(self) -> bool:
        """Return whether a message can be received now (this also re-arms `fileno`)."""
        return bool(int(self.socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN)

    def receive(self) -> list[bytes] | None:
        """Return the next frame list, or None when nothing has come."""
        try:
            return self._recv(zmq.NOBLOCK)
        except zmq.Again:
            return None

    def send(self, frames: Sequence[bytes]) -> Sent:
        """Try to send `frames`, all or nothing. FULL also while a plain one is not connected."""
        try:
            if len(frames) == 1:
                self._send_part(frames[0], zmq.NOBLOCK)
            else:
                self._send(frames, zmq.NOBLOCK)
        except zmq.Again:
            return Sent.FULL
        return Sent.YES

    def end_fileno(self) -> int:
        """Return the edge-triggered descriptor that says "look at `ended`"; only of a watched one."""
        assert self._watch is not None
        return int(self._watch.getsockopt(zmq.FD))

    def ended(self) -> bool:
        """Return whether the connection is over, for ever; what came before it ended can still be received.

        Only of a watched one; it too belongs to whoever holds the socket's lock. The news may be a moment ahead of the
        last frames.
        """
        assert self._watch is not None
        return bool(int(self._watch.getsockopt(zmq.EVENTS)) & zmq.POLLIN)

    def close(self) -> None:
        """Close; what is unsent is dropped after the linger given at the start."""
        if self._watch is not None:
            if self.ended():
                self.socket.setsockopt(zmq.LINGER, 0)  # nobody is left to read it
            self.socket.monitor(None, 0)
            self._watch.close()
            self._watch = None
        self.socket.close()


def _watching(context: zmq.Context[zmq.Socket[bytes]], watched: zmq.Socket[bytes], events: int) -> zmq.Socket[bytes]:
    """Return a socket that receives what libzmq's own thread tells of another one. Before it is bound or connected."""
    endpoint = f"inproc://watch-{int(watched.getsockopt(zmq.FD))}"
    watched.monitor(endpoint, events)
    watch = context.socket(zmq.PAIR)
    watch.setsockopt(zmq.LINGER, 0)
    watch.connect(endpoint)
    return watch
