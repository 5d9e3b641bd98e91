"""The line to one coordinator: its socket, the handshake, and the descriptors that tell its end."""

from __future__ import annotations

import errno
import os
import select
import socket
import stat
import time
from dataclasses import dataclass
from typing import Any, Final

import zmq

from bridge.protocol import codec
from bridge.protocol.errors import decode_error
from bridge.protocol.messages import PROTOCOL_VERSION, Hello, Refused, Welcome
from bridge.transport import Dealer
from orchestrator.client.request import check_name
from orchestrator.errors import Unavailable, VersionMismatch, from_bridge
from orchestrator.rundir import process_ticks
from orchestrator.version import package_version

# How long closing waits for the last message (Bye) to leave.
LINGER_MS: Final = 250
ADVICE: Final = "run `dspool up`, or `dspool status` to see what runs"


@dataclass(slots=True)
class Link:
    """An open line. pidfd: readable once the coordinator is dead. end_fd: told when the connection is over."""

    context: zmq.Context[Any]
    dealer: Dealer
    pidfd: int
    end_fd: int
    welcome: Welcome

    def died_within(self, timeout_s: float) -> bool:
        """Return whether the coordinator is dead, waiting for it."""
        poller = select.poll()
        poller.register(self.pidfd, select.POLLIN)
        return bool(poller.poll(timeout_s * 1000.0))

    def close(self) -> None:
        """Close everything; takes at most LINGER_MS."""
        self.dealer.close()
        self.context.term()
        os.close(self.pidfd)


def open_link(
    endpoint: str, *, principal: str, run_id: str, timeout_s: float, worker_id: str = "", token: str = ""
) -> Link:
    """Connect and be welcomed. worker_id, token: of the worker whose programs ask here, if they are one's.

    Raises Unavailable if nobody answers in `timeout_s`, and what the coordinator says if it refuses.
    """
    if principal:
        check_name("principal", principal)
    hello = Hello(
        package_version=package_version(), run_id=run_id, pid=os.getpid(), role="client", principal=principal,
        token=token.encode(), worker_id=worker_id,
    )  # fmt: skip
    _probe(endpoint)
    context: zmq.Context[Any] = zmq.Context()
    try:
        dealer = Dealer(context, endpoint, linger_ms=LINGER_MS, watched=True)
    except zmq.ZMQError as exc:
        context.term()
        raise Unavailable(f"cannot connect to {endpoint} ({exc.strerror}): {ADVICE}") from exc
    try:
        welcome = _handshake(dealer, endpoint, hello, time.monotonic() + timeout_s)
        return Link(context, dealer, _watch(welcome, endpoint), dealer.end_fileno(), welcome)
    except BaseException:
        dealer.socket.setsockopt(zmq.LINGER, 0)
        dealer.close()
        context.term()
        raise


def _probe(endpoint: str) -> None:
    """Raise Unavailable at once where it is certain that nobody listens: ZeroMQ itself would only be silent."""
    scheme, _, path = endpoint.partition("://")
    if scheme != "ipc" or not path:
        raise Unavailable(f"{endpoint!r} is no endpoint of a coordinator (expected ipc:///path/of/a/socket): {ADVICE}")
    try:
        is_socket = stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError as exc:
        raise Unavailable(f"no coordinator at {endpoint} ({exc.strerror}): {ADVICE}") from None
    if not is_socket:
        raise Unavailable(f"no coordinator at {endpoint} (not a socket): {ADVICE}")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        if (code := probe.connect_ex(path)) in (errno.ECONNREFUSED, errno.EACCES):
            raise Unavailable(f"no coordinator answers at {endpoint} ({os.strerror(code)}): {ADVICE}")


def _handshake(dealer: Dealer, endpoint: str, hello: Hello, until: float) -> Welcome:
    frames = codec.encode_frames([hello])[0]
    poller = select.poll()
    poller.register(dealer.fileno(), select.POLLIN)
    poller.register(dealer.end_fileno(), select.POLLIN)
    dealer.send(frames)  # it leaves once the connection is there
    while (remaining_s := until - time.monotonic()) > 0:
        ended = dealer.ended()  # asked first: what was said before the end is heard
        if (got := dealer.receive()) is not None:
            return _welcomed(got, endpoint)
        if ended:
            raise Unavailable(f"the coordinator at {endpoint} ended the connection: it is on its way out; {ADVICE}")
        if not dealer.pending():
            poller.poll(remaining_s * 1000)
    raise Unavailable(f"the coordinator at {endpoint} did not answer in time: it hangs or is overloaded; {ADVICE}")


def _welcomed(frames: list[bytes], endpoint: str) -> Welcome:
    decoded = codec.decode(frames)
    for message in decoded.messages:
        if isinstance(message, Welcome):
            return message
        if isinstance(message, Refused):
            raise from_bridge(decode_error(message.payload or b""))
    if decoded.wrong_version:
        raise VersionMismatch(
            f"the coordinator at {endpoint} speaks another protocol ({decoded.problem}; this is version "
            f"{PROTOCOL_VERSION}): stop it with its own `dspool down`, then start it again"
        )
    raise Unavailable(f"what answers at {endpoint} is no coordinator ({decoded.problem or 'no welcome'})")


def _watch(welcome: Welcome, endpoint: str) -> int:
    """Return a descriptor of the coordinator's process, checked to be it and not a later process of that number."""
    try:
        pidfd = os.pidfd_open(welcome.pid)
    except OSError as exc:
        raise Unavailable(f"the coordinator at {endpoint} (pid {welcome.pid}) is gone: {exc.strerror}") from exc
    if process_ticks(welcome.pid) != welcome.started_ticks:
        os.close(pidfd)
        raise Unavailable(f"the coordinator at {endpoint} (pid {welcome.pid}) is gone: {ADVICE}")
    return pidfd
