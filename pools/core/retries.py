"""Whether a request whose attempt was lost as it ran is sent again, when, and how many of them a pool can afford.

The pause before a resend is drawn evenly from nothing to a doubling limit ("full jitter", Brooker, AWS Architecture
Blog, 2015), so that what was lost together does not come back together. A pool's resends are paid from a bucket that
its accepted requests fill, so that where everything fails the load grows by a fifth and no more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from bridge.protocol.messages import FLAG_IDEMPOTENT

if TYPE_CHECKING:
    from pools.core.entries import RequestEntry

MAX_RESENDS: Final = 2
PER_ACCEPTED: Final = 0.2
# What the bucket holds at first, and at least at most.
INITIAL: Final = 10.0
_BASE_S: Final = 0.1
_CAP_S: Final = 5.0


class RetryBudget:
    """The resends that one pool can afford, in rows: a token bucket.

    It is filled when it is asked, by what was accepted since: what is accepted costs nothing here. The last resend may
    overdraw it (a message of many rows is resent as one), and the debt is paid before the next. So there are never more
    than INITIAL + PER_ACCEPTED * accepted rows resent, and one message.
    slots: what the pool runs at a time; so much may be lost at once.
    """

    __slots__ = ("_capacity", "_seen", "tokens")

    def __init__(self, slots: int) -> None:
        self.tokens = INITIAL
        self._capacity = max(INITIAL, float(slots))
        self._seen = 0

    def spend(self, rows: int, accepted: int) -> bool:
        """Pay for a resend, if there is anything left. accepted: the rows that the pool accepted so far, in all."""
        self.tokens = min(self._capacity, self.tokens + PER_ACCEPTED * (accepted - self._seen))
        self._seen = accepted
        if self.tokens < 1.0:
            return False
        self.tokens -= rows
        return True


def pause_s(resends: int, random: Callable[[], float]) -> float:
    """Return how long a request waits that was resent so often. random() gives [0, 1)."""
    return random() * min(_CAP_S, _BASE_S * 2.0**resends)


def is_repeatable(entry: RequestEntry) -> bool:
    """Return whether its caller has said that it may run again."""
    message = entry.message
    return bool(message.flags & FLAG_IDEMPOTENT or message.idempotency_key)


def plan(entry: RequestEntry, random: Callable[[], float], now: float) -> float | str:
    """Return after how many seconds a lost attempt of a repeatable request is followed by another, or why by none.

    A resend that is planned is paid for.
    """
    if entry.resends >= MAX_RESENDS:
        return f"resent {MAX_RESENDS} times"
    delay_s = pause_s(entry.resends, random)
    if entry.deadline is not None and now + delay_s >= entry.deadline:
        return "no time left"
    pool = entry.pool
    if not pool.retries.spend(entry.rows, pool.accepted):
        return "budget spent"
    return delay_s
