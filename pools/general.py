"""The general pool: DSPy inference and whatever has no other home.

A worker per core, since DSPy's own work (prompts, parsing) is bound to a core; eight slots each, since most of a call
is spent waiting for a language model. A worker that is silent for 15 s is stuck: heartbeats come from a thread of
their own and were at most 0.6 s late beside busy programs. A worker is born with about 120 MB; one that has four times
as much has kept what it should not.
"""

from __future__ import annotations

from typing import Final

from pools.config import Machine, PoolConfig, PoolKind


def _size(machine: Machine) -> int:
    return machine.cores


GENERAL: Final = PoolKind(
    defaults=PoolConfig(
        name="general", size=1, slots=8, default_deadline_s=120.0, heartbeat_limit_s=15.0, memory_limit_mb=512
    ),
    size_on=_size,
)
