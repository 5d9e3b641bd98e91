"""How much trouble the fleet is in, and what it does without then: normal, degraded, critical.

Four signals are looked at each second: the processors, the memory, the queues, the breakers. One counts when it has
held for a while, and is over when it has been well below its threshold for as long. Degraded: one counts. Critical:
memory is nearly gone, or two count and a queue is nearly full; that lasts until the queues are short again, for with
less let in they are never so full.

What is accepted goes on in every mode, and high priority is never refused by one. What a mode does not touch: pools
grow unless memory is short (a queue is what they grow for, and a pool that waits for language models needs hands while
another's work keeps the processors busy), and workers are recycled (a fork costs milliseconds; what is recycled late is
what leaks).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, NamedTuple

from bridge.protocol.errors import OVERLOADED, BridgeError
from bridge.protocol.messages import PRIORITY_HIGH, PRIORITY_LOW, PRIORITY_NORMAL, Request
from pools.config import DegradationConfig

if TYPE_CHECKING:
    from pools.core.entries import PoolEntry

NORMAL: Final = "normal"
DEGRADED: Final = "degraded"
CRITICAL: Final = "critical"

CPU: Final = "cpu"
MEMORY: Final = "memory"
QUEUE: Final = "queue"
BREAKER: Final = "breaker"

# A signal is over below this part of its threshold.
OVER_BELOW: Final = 0.9
# From here on the mode is critical: the memory in use; with two signals, a queue.
CRITICAL_MEMORY: Final = 0.95
CRITICAL_QUEUE: Final = 0.9
OPTIMIZE: Final = "optimize"


class Measure(NamedTuple):
    """What one mode does: of a pool's queue, the part that each priority may fill; operations that are put off."""

    shares: Mapping[int, float]
    put_off: frozenset[str]


# The whole of it. A share of 0 means: accepted where nothing waits. A flat refusal of a priority would be worse than
# the trouble: batch work of low priority alone on a machine keeps its processors busy and must not lock itself out,
# and with all normal work refused the workers would run dry each time that a queue was full.
MEASURES: Final[dict[str, Measure]] = {
    NORMAL: Measure({PRIORITY_HIGH: 1.0, PRIORITY_NORMAL: 1.0, PRIORITY_LOW: 1.0}, frozenset()),
    DEGRADED: Measure({PRIORITY_HIGH: 1.0, PRIORITY_NORMAL: 1.0, PRIORITY_LOW: 0.5}, frozenset({OPTIMIZE})),
    CRITICAL: Measure({PRIORITY_HIGH: 1.0, PRIORITY_NORMAL: 0.5, PRIORITY_LOW: 0.0}, frozenset({OPTIMIZE})),
}
_NAMES: Final = {PRIORITY_HIGH: "high", PRIORITY_NORMAL: "normal", PRIORITY_LOW: "low"}


class Signal:
    """One kind of trouble: counts when it has held for `hold_s`, is over when it was below for as long.

    value: the latest reading, None where nobody reads it.
    """

    __slots__ = ("_hold_s", "_since", "counts", "threshold", "value")

    def __init__(self, threshold: float, hold_s: float) -> None:
        self.threshold = threshold
        self.value: float | None = None
        self.counts = False
        self._hold_s = hold_s
        self._since: float | None = None  # since when it asks for the opposite of `counts`

    def read(self, value: float | None, now: float, *, matters: bool = True) -> bool:
        """Take a reading, return whether the signal counts. matters: whether it can be trouble at all."""
        self.value = value
        limit = self.threshold * OVER_BELOW if self.counts else self.threshold
        if (value is not None and value >= limit and matters) == self.counts:
            self._since = None
        else:
            self._since = now if self._since is None else self._since
            if now - self._since >= self._hold_s:
                self.counts = not self.counts
                self._since = None
        return self.counts


class Readings(NamedTuple):
    """What is looked at each second, parts of 1; None = not known.

    queue: of the fullest queue. waits: whether any work waits. breaker: whether any pool's breaker is open.
    """

    cpu: float | None
    memory: float | None
    queue: float
    waits: bool
    breaker: bool


class Modes:
    """The mode and the signals it comes from. Without a configuration it is always normal."""

    def __init__(self, config: DegradationConfig | None) -> None:
        self.mode = NORMAL
        self._hold_s = config.hold_s if config is not None else 0.0
        self.signals: dict[str, Signal] = {}
        if config is not None:
            limits = {CPU: config.cpu, MEMORY: config.memory, QUEUE: config.queue, BREAKER: 1.0}
            self.signals = {name: Signal(limit, config.hold_s) for name, limit in limits.items()}
            self._no_memory = Signal(CRITICAL_MEMORY, config.hold_s)
            self._full = Signal(CRITICAL_QUEUE, config.hold_s)

    def look(self, found: Readings, now: float) -> bool:
        """Take readings; return whether the mode changed."""
        if not self.signals:
            return False
        # A busy processor is what one is paid for; it is trouble when work waits for it.
        self.signals[CPU].read(found.cpu, now, matters=found.waits)
        self.signals[MEMORY].read(found.memory, now)
        self.signals[QUEUE].read(found.queue, now)
        self.signals[BREAKER].read(float(found.breaker), now)
        before, self.mode = self.mode, self._mode(found, now)
        return self.mode != before

    def _mode(self, found: Readings, now: float) -> str:
        no_memory, full = self._no_memory.read(found.memory, now), self._full.read(found.queue, now)
        several = len(self.counting) > 1
        stays = self.mode == CRITICAL and self.signals[QUEUE].counts
        if no_memory or (several and (full or stays)):
            return CRITICAL
        return DEGRADED if self.counting else NORMAL

    @property
    def counting(self) -> list[str]:
        """The signals that count."""
        return [name for name, signal in self.signals.items() if signal.counts]

    @property
    def why(self) -> str:
        """The signals that count, in words; the empty string if none does."""
        return " and ".join(_WHYS[name] for name in self.counting)

    def room(self, pool: PoolEntry, message: Request) -> int:
        """Return how many rows may wait in the pool for a request of this class to have room, in this mode."""
        return int(MEASURES[self.mode].shares[message.priority] * pool.config.max_queue)

    def why_little(self, pool: PoolEntry, message: Request) -> str:
        """Return why there is less room than the whole queue in this mode; the empty string if there is not less."""
        room = self.room(pool, message)
        if room >= pool.config.max_queue:
            return ""
        most = f"at most {room:,} rows wait" if room else "nothing may wait"
        return (
            f"dspool is in {self.mode} mode ({self.why}): with {_NAMES[message.priority]} priority {most} in "
            f"{pool.title}, and {pool.waiting_rows:,} do"
        )

    def puts_off(self, message: Request) -> BridgeError | None:
        """Return why an operation is not begun in this mode, None if it may be."""
        if message.operation not in MEASURES[self.mode].put_off or message.priority == PRIORITY_HIGH:
            return None
        return BridgeError(
            OVERLOADED,
            f"dspool is in {self.mode} mode ({self.why}): {message.operation} is put off until it is in normal mode "
            f"again; try again in {self._hold_s:g} s, or use priority high",
            retryable=True,
            details={"retry_after_s": self._hold_s, "mode": self.mode},
        )


_WHYS: Final = {
    CPU: "the processors are busy and work waits",
    MEMORY: "memory is short",
    QUEUE: "a queue is long",
    BREAKER: "a breaker is open",
}
