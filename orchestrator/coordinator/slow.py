"""Clients that do not read: when one is too slow, and the last word that it finds when it reads again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from bridge.protocol import codec
from bridge.protocol.errors import SLOW_CONSUMER, BridgeError, encode_error
from bridge.protocol.messages import Invalid
from bridge.transport import Router, Sent

_MIB: Final = 1024 * 1024
# What may wait for one client, and how many of its largest answers at least.
_MOST_BYTES: Final = 2048 * _MIB
_LARGEST_ANSWERS: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class SlowLimits:
    """When a peer is slow: it reads nothing, or so much less than it asks for that what waits would grow for ever.

    stalled_s: its pipe takes nothing for so long; `big_stalled_s` where more than `big_bytes` wait.
    waited: `(bytes, s)`, where more than so much waits and what is sent next has waited longer than that: the more it
    is, the sooner. Who reads on, and fast, may have asked for much; the last pair stands for all there may be.
    """

    stalled_s: float = 30.0
    big_stalled_s: float = 2.0
    big_bytes: int = 8 * _MIB
    waited: tuple[tuple[int, float], ...] = ((8 * _MIB, 60.0), (512 * _MIB, 5.0), (_MOST_BYTES, 0.0))

    @classmethod
    def of(cls, message_bytes: int) -> SlowLimits:
        """Return those of clients whose answers have at most so many bytes: a few of these may wait in any case."""
        *waited, (most_bytes, most_s) = cls().waited
        return cls(waited=(*waited, (max(most_bytes, _LARGEST_ANSWERS * message_bytes), most_s)))

    def judge(self, waiting_bytes: int, stalled_s: float, waited_s: float) -> str:
        """Return how slow a peer is, in words; the empty string if it is not slow."""
        waiting = f"{waiting_bytes / _MIB:.1f} MiB waited for it"
        if stalled_s > self.stalled_s or (waiting_bytes > self.big_bytes and stalled_s > self.big_stalled_s):
            return f"it read nothing for {stalled_s:.1f} s while {waiting}"
        if any(waiting_bytes > most_bytes and waited_s > most_s for most_bytes, most_s in self.waited):
            return f"it reads less than it asks for: {waiting}, the oldest answer for {waited_s:.1f} s"
        return ""


class Farewells:
    """The last words to muted peers: one small message each, kept until the pipe takes it or the peer is gone.

    peers: who was or is to be told its last word, and may be there still. They are told nothing more.
    """

    def __init__(self, router: Router) -> None:
        self._router = router
        self._unsaid: dict[bytes, list[bytes]] = {}
        self.peers: set[bytes] = set()

    def say(self, peer: bytes, why: str) -> None:
        """Tell a slow peer, behind all that it was sent before, that nothing more will come."""
        text = (
            f"this client is too slow a reader: {why}. Its connection is muted and what it had under way is cancelled "
            "(what ran may have been done). Connect again; read results as they come, or ask for less at a time"
        )
        last = Invalid(muted=True, payload=encode_error(BridgeError(SLOW_CONSUMER, text, retryable=True)))
        self.peers.add(peer)
        self._unsaid[peer] = codec.encode_frames([last])[0]
        self._try(peer)

    def heard(self, peer: bytes) -> None:
        """Try again: a peer that speaks may have read."""
        if peer in self._unsaid:
            self._try(peer)

    def retry(self) -> None:
        """Try all again: what was read of small messages nobody tells."""
        for peer in list(self._unsaid):
            self._try(peer)

    def _try(self, peer: bytes) -> None:
        sent = self._router.send(peer, self._unsaid[peer])
        if sent is Sent.GONE:
            self.forget(peer)
        elif sent is Sent.YES:
            del self._unsaid[peer]

    def forget(self, peer: bytes) -> None:
        """Forget a peer that is gone."""
        self._unsaid.pop(peer, None)
        self.peers.discard(peer)
