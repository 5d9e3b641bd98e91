"""Idempotency keys that are remembered: what runs, and the outcomes of what has ended."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import TYPE_CHECKING, Final, NamedTuple

from bridge.protocol.messages import Reply, Request

if TYPE_CHECKING:
    from pools.core.idempotency import Keyed

KEPT_S: Final = 600.0
MAX_KEPT: Final = 10_000
MAX_KEPT_BYTES: Final = 64 * 1024 * 1024


class Name(NamedTuple):
    """What an idempotency key is unique within."""

    principal: str
    operation: str
    key: str


class Outcome(NamedTuple):
    """How the work of a key ended. digest: of what was asked for."""

    digest: bytes
    reply: Reply
    ended_at: float


def digest_of(message: Request, pool: str) -> bytes:
    """Return what all requests with one key must have in common, apart from its name."""
    hashed = hashlib.blake2b(f"{len(pool)}:{pool}{message.lm}:{message.rows}:".encode(), digest_size=16)
    hashed.update(message.payload or b"")
    return hashed.digest()


class Keys:
    """Work by the key that it was asked for with.

    running: as many as there are requests, and attempts. Outcomes are bounded in number, age and bytes, the oldest are
    forgotten first.
    """

    def __init__(self) -> None:
        self.running: dict[Name, Keyed] = {}
        self.outcomes: OrderedDict[Name, Outcome] = OrderedDict()  # the latest last
        self.timed = False  # a timer will forget what is old
        self._bytes = 0

    def keep(self, name: Name, outcome: Outcome) -> None:
        """Remember an outcome; one that is larger than all that may be kept is not."""
        if _size(outcome) > MAX_KEPT_BYTES:
            return
        self.outcomes[name] = outcome
        self._bytes += _size(outcome)
        while len(self.outcomes) > MAX_KEPT or self._bytes > MAX_KEPT_BYTES:
            self._forget_oldest()

    def outcome(self, name: Name, now: float) -> Outcome | None:
        """Return how the work of a key ended, None if it has not or that is forgotten."""
        self.expire(now)
        return self.outcomes.get(name)

    def expire(self, now: float) -> None:
        """Forget what ended long ago."""
        while self.outcomes and next(iter(self.outcomes.values())).ended_at <= now - KEPT_S:
            self._forget_oldest()

    def expires_at(self) -> float | None:
        """Return when the next outcome is forgotten, or None."""
        return next(iter(self.outcomes.values())).ended_at + KEPT_S if self.outcomes else None

    def _forget_oldest(self) -> None:
        _, outcome = self.outcomes.popitem(last=False)
        self._bytes -= _size(outcome)


def _size(outcome: Outcome) -> int:
    return len(outcome.reply.payload or b"")
