"""A link between two peers: messages take their time and stay in order, as ZeroMQ keeps them per peer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from tests.sim.clock import Clock
from tests.sim.noise import Noise

# What a link may take by nature: same process, same machine, a busy machine, a peer that reads slowly.
BASES_S: Final = (0.0, 0.0002, 0.0002, 0.002, 0.03)
_HICCUP: Final = 0.97
_HICCUP_S: Final = 0.2


class Link:
    """One direction of a connection. A link that was cut delivers nothing more, also of what is on its way."""

    __slots__ = ("_arrived", "_base_s", "_clock", "_deliver", "_noise", "cut")

    def __init__(self, clock: Clock, noise: Noise, deliver: Callable[[Any], object]) -> None:
        self._clock = clock
        self._noise = noise
        self._deliver = deliver
        self._base_s = BASES_S[int(noise.next() * len(BASES_S))]
        self._arrived = 0.0
        self.cut = False

    def slow_down(self, base_s: float) -> None:
        """Take so long from now on: its reader is slow."""
        self._base_s = base_s

    def send(self, message: Any) -> None:
        """Put a message on the wire."""
        chance = self._noise.next()
        delay_s = self._base_s * (0.5 + chance)
        if chance > _HICCUP:
            delay_s += _HICCUP_S * self._noise.next()
        arrives = self._clock.now + delay_s
        if arrives < self._arrived:
            arrives = self._arrived
        self._arrived = arrives
        self._clock.at(arrives, self._arrive, message)

    def _arrive(self, message: Any) -> None:
        if not self.cut:
            self._deliver(message)
