"""What is to be sent, grouped by peer, and what a full pipe refused.

Sends never block. POLLOUT is of no use: on a ROUTER it is true when any peer can take something. So a refused frame
stays at the head of its peer's backlog and is tried again when the peer is heard, or after 10 ms.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any, Final

from bridge.protocol.codec import BATCH_BYTES, BATCH_MESSAGES, encode
from bridge.transport import Router, Sent
from orchestrator.coordinator.slow import SlowLimits

RETRY_S: Final = 0.01
# What a client may be sent beyond what it says it has taken; one frame list more, whatever its size.
WINDOW_BYTES: Final = 16 * 1024 * 1024
# What a frame list that waits costs beside its bytes: many small ones are large, too.
LIST_BYTES: Final = 256
# A coordinator that is so late was stopped: peers that waited for it are not slow.
STOOD_S: Final = 1.0


class Batch:
    """Messages for one peer that leave together."""

    __slots__ = ("bodies", "bytes", "heads")

    def __init__(self) -> None:
        self.heads: list[bytes] = []
        self.bodies: list[bytes] = []
        self.bytes = 0

    def is_full(self, more_bytes: int) -> bool:
        """Whether a message of this size must travel in the next one."""
        return len(self.heads) >= BATCH_MESSAGES or self.bytes + more_bytes > BATCH_BYTES


class Backlog:
    """Frame lists that one peer's pipe refused, oldest first. bytes: what they hold in memory, about."""

    __slots__ = ("_lists", "bytes", "excused_s", "stalled_since")

    def __init__(self, now: float) -> None:
        self._lists: deque[tuple[float, list[bytes]]] = deque()  # since when each waits
        self.bytes = 0
        self.stalled_since = now
        self.excused_s = 0.0  # for so long nobody could have sent it

    def __len__(self) -> int:
        return len(self._lists)

    def push(self, frames: list[bytes], now: float) -> None:
        """Add to the end."""
        self._lists.append((now, frames))
        self.bytes += LIST_BYTES + sum(map(len, frames))

    def head(self) -> list[bytes]:
        """Return what is to be sent next; there must be something."""
        return self._lists[0][1]

    def waited_s(self, now: float) -> float:
        """Return for how long the head has waited for its peer."""
        return now - self._lists[0][0] - self.excused_s

    def took(self, now: float) -> None:
        """The pipe has taken the head."""
        _, frames = self._lists.popleft()
        self.bytes -= LIST_BYTES + sum(map(len, frames))
        self.stalled_since = now


class Outbox:
    """Everything that leaves through one ROUTER.

    window_bytes: the limit of what is sent and not yet taken, per peer; None = the peers do not say (workers read
    whatever comes, and are given little).
    limits: when a peer is too slow; None = never (what a worker is sent must not be lost, its heartbeat decides).
    """

    def __init__(self, router: Router, *, window_bytes: int | None = None, limits: SlowLimits | None = None) -> None:
        self._router = router
        self._window_bytes = window_bytes
        self._limits = limits
        self._untaken: dict[bytes, int] = {}  # bytes sent less bytes taken
        self._backlogs: dict[bytes, Backlog] = {}
        self._retry_at: float | None = None
        self.dropped = 0  # messages for peers that are gone or muted

    def send(self, sends: Iterable[tuple[bytes, Any]], now: float) -> set[bytes]:
        """Send messages, as few frames per peer as the batch limits allow. Return the peers that are gone."""
        batches: dict[bytes, Batch] = {}
        gone: set[bytes] = set()
        for peer, message in sends:
            head, body = encode(message)
            batch = batches.get(peer)
            if batch is None:
                batch = batches[peer] = Batch()
            elif batch.is_full(len(head) if body is None else len(head) + len(body)):
                self._put(peer, batch, now, gone)
                batch = batches[peer] = Batch()
            batch.heads.append(head)
            batch.bytes += len(head)
            if body is not None:
                batch.bodies.append(body)
                batch.bytes += len(body)
        for peer, batch in batches.items():
            self._put(peer, batch, now, gone)
        return gone

    def _put(self, peer: bytes, batch: Batch, now: float, gone: set[bytes]) -> None:
        frames = [b"".join(batch.heads), *batch.bodies]
        backlog = self._backlogs.get(peer)
        if backlog is None:
            sent = self._send(peer, frames)
            if sent is Sent.YES:
                return
            if sent is Sent.GONE:
                self.dropped += len(batch.heads)
                gone.add(peer)
                return
            backlog = self._backlogs[peer] = Backlog(now)
            if self._retry_at is None:
                self._retry_at = now + RETRY_S
        backlog.push(frames, now)

    def _send(self, peer: bytes, frames: list[bytes]) -> Sent:
        window = self._window_bytes
        if window is None:
            return self._router.send(peer, frames)
        untaken = self._untaken.get(peer, 0)
        if untaken > window:
            return Sent.FULL
        sent = self._router.send(peer, frames)
        if sent is Sent.YES:
            self._untaken[peer] = untaken + sum(map(len, frames))
        return sent

    def taken(self, peer: bytes, bytes_since: int, now: float) -> None:
        """A peer has read so many bytes more: what waits for it may go on."""
        if peer in self._untaken:
            self._untaken[peer] = max(0, self._untaken[peer] - bytes_since)
            self.heard(peer, now)

    def heard(self, peer: bytes, now: float) -> None:
        """Try the backlog of a peer that was just heard."""
        if peer in self._backlogs:
            self._drain(peer, now)

    def retry_at(self) -> float | None:
        """Return when `retry` is next due, or None."""
        return self._retry_at

    def retry(self, now: float) -> tuple[set[bytes], dict[bytes, str]]:
        """Try every backlog. Return the peers that are gone, and those that are slow and why; both have lost theirs."""
        if self._retry_at is None or now < self._retry_at:
            return set(), {}
        gone: set[bytes] = set()
        slow: dict[bytes, str] = {}
        stood_s = now - self._retry_at
        for peer, backlog in list(self._backlogs.items()):
            if stood_s > STOOD_S:
                backlog.excused_s += stood_s
            if self._drain(peer, now) is Sent.GONE:
                gone.add(peer)
            elif self._limits is not None and peer in self._backlogs:
                why = self._limits.judge(backlog.bytes, now - backlog.stalled_since, backlog.waited_s(now))
                if why:
                    self.forget(peer)
                    slow[peer] = why
        self._retry_at = now + RETRY_S if self._backlogs else None
        return gone, slow

    def _drain(self, peer: bytes, now: float) -> Sent:
        backlog = self._backlogs[peer]
        while backlog:
            sent = self._send(peer, backlog.head())
            if sent is Sent.FULL:
                return sent
            if sent is Sent.GONE:
                self.forget(peer)
                return sent
            backlog.took(now)
        del self._backlogs[peer]
        return Sent.YES

    def forget(self, peer: bytes) -> None:
        """Drop what waits for a peer."""
        self._untaken.pop(peer, None)
        backlog = self._backlogs.pop(peer, None)
        if backlog is not None:
            self.dropped += len(backlog)

    @property
    def empty(self) -> bool:
        """Whether every pipe has taken everything."""
        return not self._backlogs
