"""Mutated frames at the frontend of a running coordinator, from real DEALERs, beside a client that must be served."""

from __future__ import annotations

import os
import struct
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import psutil
import zmq

from bridge.protocol.codec import decode, encode_frames
from bridge.protocol.messages import (
    FLAG_EVENTS,
    Bye,
    Cancel,
    Credit,
    Hello,
    Invalid,
    Message,
    Pause,
    Reply,
    Request,
    Resume,
    Taken,
    ToolCall,
    ToolReply,
    Welcome,
    request_id_base,
)
from bridge.protocol.values import encode_value
from tests.fuzz.corpus import SEPARATOR, VALUES, frame_seeds, frames_of
from tests.fuzz.mutation import Mutator
from tests.support.coordinator import CoordinatorProcess, WireClient

_PEERS: Final = 8
# A peer is muted after ten bad frames and read no more: another takes its place.
_FRAMES_EACH: Final = 16
_CHECK_EVERY: Final = 2_000
# What a coordinator has touched after so many messages, it has for good: it is no growth.
_WARM_MESSAGES: Final = 20_000
# Stands for a request id that the sender may use next, as it is encoded.
_ID: Final = 0xABCDEF98_76543210
_ID_BYTES: Final = struct.pack("!Q", _ID)
_ANSWER_S: Final = 20.0
_GREETING: Final = encode_frames([Hello(pid=os.getpid())])[0]


@dataclass(slots=True)
class Siege:
    """What so many frame lists did to a coordinator. rss: bytes, once it was warm, and the most afterwards."""

    messages: int = 0
    seconds: float = 0.0
    rss_before: int = 0
    rss_most: int = 0
    malformed: int = 0
    connections: int = 0

    @property
    def grown_mb(self) -> float:
        """By how many MB (10⁶ bytes) it was larger at most than once it was warm."""
        return (self.rss_most - self.rss_before) / 1e6


def besiege(
    coordinator: CoordinatorProcess, seed: int, messages: int, found: Siege, until: float = float("inf")
) -> None:
    """Send so many mutated frame lists to a coordinator and write down in `found` what became of it.

    until: the time on the monotonic clock at which to end earlier. Raises AssertionError where the coordinator ends,
    or does not serve a client that behaves, or a worker is lost.
    """
    process = psutil.Process(coordinator.process.pid)
    began = time.monotonic()
    with WireClient(coordinator.endpoint) as good, zmq.Context() as context:
        next_check = min(_WARM_MESSAGES, messages // 4)
        for sent in _send(context, coordinator.endpoint, Mutator(_seeds(), f"live:{seed}"), found):
            ended = sent >= messages or time.monotonic() >= until
            if sent >= next_check or ended:
                next_check = sent + _CHECK_EVERY
                _assert_serves(coordinator, good)
                rss = process.memory_info().rss
                found.rss_before = found.rss_before or rss
                found.rss_most = max(found.rss_most, rss)
            if ended:
                break
        found.malformed = good.call("dspool.stats")["wire"]["malformed"]
    found.seconds = time.monotonic() - began


@contextmanager
def last_words(coordinator: CoordinatorProcess) -> Iterator[Sequence[str]]:
    """Read the coordinator's log, lest it wait for a reader; give the last lines. Ends it at the end of the block."""
    words: deque[str] = deque(maxlen=40)
    assert coordinator.process.stderr is not None
    reader = threading.Thread(target=words.extend, args=[coordinator.process.stderr], name="coordinator's log")
    reader.start()
    try:
        yield words
    finally:
        coordinator.process.kill()
        reader.join()


def _assert_serves(coordinator: CoordinatorProcess, good: WireClient) -> None:
    assert coordinator.process.poll() is None, f"the coordinator ended with {coordinator.process.returncode}"
    assert good.call("ping")["worker"] == "general-1.1", "a worker was lost"


def _send(context: zmq.Context[zmq.Socket[bytes]], endpoint: str, mutator: Mutator, found: Siege) -> Iterator[int]:
    """Send without end; yield how many messages have left so far, at the end of each generation of peers."""
    while True:
        peers = [_connected(context, endpoint) for _ in range(_PEERS)]
        try:
            bases = [_welcomed(peer) for peer in peers]
            for number in range(1, _FRAMES_EACH + 1):
                for peer, base in zip(peers, bases, strict=True):
                    data = mutator.next().replace(_ID_BYTES, struct.pack("!Q", base + number))
                    peer.send_multipart(frames_of(data))
        finally:
            for peer in peers:
                peer.close()
        found.connections += _PEERS
        found.messages += _PEERS * _FRAMES_EACH
        yield found.messages


def _connected(context: zmq.Context[zmq.Socket[bytes]], endpoint: str) -> zmq.Socket[bytes]:
    peer = context.socket(zmq.DEALER)
    peer.setsockopt(zmq.LINGER, int(_ANSWER_S * 1000))  # what was sent leaves, whoever has closed
    peer.setsockopt(zmq.SNDTIMEO, int(_ANSWER_S * 1000))
    peer.setsockopt(zmq.RCVTIMEO, int(_ANSWER_S * 1000))
    peer.setsockopt(zmq.RECONNECT_IVL, -1)
    peer.connect(endpoint)
    peer.send_multipart(_GREETING)
    return peer


def _welcomed(peer: zmq.Socket[bytes]) -> int:
    """Return the id below the first one that this peer may use."""
    while True:
        # What comes besides asks whether this peer is still there.
        for message in decode(peer.recv_multipart()).messages:
            if type(message) is Welcome:
                return request_id_base(message.client_no)


def _claims() -> list[list[Message]]:
    """Return what a client might claim of programs that it does not run: parents, tools, credit, shared memory."""
    payload = encode_value({"a": 1})
    lists: list[list[Message]] = []
    for number in (0, 1, -1, _ID, (1 << 63) - 1):
        nested = Request(request_id=_ID, operation="echo", parent_request_id=number, depth=9, payload=payload)
        stream = Request(request_id=_ID, operation="sleep", flags=FLAG_EVENTS, event_window=number, payload=payload)
        said = ToolReply(request_id=_ID, epoch=number, number=number, payload=payload)
        lists += [[nested], [stream, Credit(request_id=_ID, events=number), said, Cancel(request_id=_ID)]]
    for name in ("1", "..", "../../etc/passwd", "/etc/passwd", "a\0b", "ö" * 300, "."):
        for shared_bytes in (1, 0, -1, 1 << 20, 1 << 62):
            lists.append(
                [Request(request_id=_ID, operation="echo", segment=name, shared_bytes=shared_bytes, payload=payload)]
            )
    return lists


def _seeds() -> list[bytes]:
    """Return sound frames that a client could send, and some that only others may."""
    lists: list[list[Message]] = []
    for value in VALUES:
        for operation in ("echo", "dspool.logs", "sleep", "nothing"):
            asked = Request(request_id=_ID, operation=operation, payload=encode_value(value))
            lists += [[asked], [asked, Cancel(request_id=_ID), Taken(bytes=100)]]
    lists += _claims()
    lists += [
        [kind()] for kind in (Welcome, Invalid, Reply, Hello, Bye, Cancel, Credit, ToolReply, ToolCall, Pause, Resume)
    ]
    joined = [SEPARATOR.join(frames) for messages in lists for frames in encode_frames(messages)]
    return [*joined, *frame_seeds()]
