"""The neural pool: embeddings and local models.

A worker per GPU (one where there is none), each with one slot: a model takes the whole device, and two batches side by
side are slower than one after the other. Loading a model keeps the interpreter busy, so silence is judged after 60 s.
A model's weights pass through a worker's memory: 8 GB.
"""

from __future__ import annotations

from typing import Final

from pools.config import Machine, PoolConfig, PoolKind


def _size(machine: Machine) -> int:
    return max(1, machine.gpus)


NEURAL: Final = PoolKind(
    defaults=PoolConfig(
        name="neural", size=1, slots=1, default_deadline_s=120.0, heartbeat_limit_s=60.0, memory_limit_mb=8192
    ),
    size_on=_size,
    operations=frozenset({"embed"}),
)
