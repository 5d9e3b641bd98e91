"""The neural pool: embeddings and local models.

A worker per GPU (one where there is none), each with one slot: a model takes the whole device, and two batches side by
side are slower than one after the other. What many callers ask is one batch (64 texts, or 5 ms), so a worker holds two
batches beyond what it runs. Loading a model keeps the interpreter busy, so silence is judged after 60 s.
A model's weights pass through a worker's memory: 8 GB.
"""

from __future__ import annotations

from typing import Final

from pools.config import BatchConfig, Machine, PoolConfig, PoolKind


def _size(machine: Machine) -> int:
    return max(1, machine.gpus)


NEURAL: Final = PoolKind(
    defaults=PoolConfig(
        name="neural",
        size=1,
        slots=1,
        default_deadline_s=120.0,
        heartbeat_limit_s=60.0,
        memory_limit_mb=8192,
        prefetch=BatchConfig().prefetch,
        batch=BatchConfig(),
    ),
    size_on=_size,
    operations=frozenset({"embed"}),
    per_gpu=True,
)
