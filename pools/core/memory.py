"""Admission pauses while memory is short: what is accepted goes on, what is new is refused at once."""

from __future__ import annotations

from typing import Final

from bridge.protocol.errors import OVERLOADED, BridgeError
from pools.core.events import MemoryRead
from pools.core.tables import Tables

PAUSE_AT: Final = 0.90
RESUME_BELOW: Final = 0.85
# Memory is read about once a second: sooner nothing can have changed.
_RETRY_AFTER_S: Final = 1.0


def on_memory_read(tables: Tables, event: MemoryRead, now: float, peer: bytes) -> None:
    """So much of the memory is in use."""
    tables.memory_used = used = event.used
    paused = used >= (RESUME_BELOW if tables.memory_paused else PAUSE_AT)
    if paused != tables.memory_paused:
        tables.memory_paused = paused
        tables.reconsider()
        name, level = ("admission_paused", "warning") if paused else ("admission_resumed", "info")
        tables.log(name, level, memory_used=round(used, 3))


def short_of_memory(tables: Tables) -> BridgeError:
    """Return what a request is told while admission is paused."""
    used = tables.memory_used or 0.0
    return BridgeError(
        OVERLOADED,
        f"memory is {used * 100:.0f} % used; nothing new is accepted until less than {RESUME_BELOW * 100:.0f} % is; "
        f"try again in {_RETRY_AFTER_S:g} s",
        retryable=True,
        details={"retry_after_s": _RETRY_AFTER_S, "memory_used": used},
    )
