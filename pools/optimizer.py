"""The optimizer pool: compile runs, from seconds to hours.

One slot: a run uses threads of its own and changes its program as it goes. No deadline: a run ends when its budget is
spent. Few workers, a quarter of the cores, so that runs leave room for inference. Long C calls hold a run's
interpreter longer than an answer's, so silence is judged after 60 s. Data sets and candidate
programs take memory: 4 GB.
"""

from __future__ import annotations

from typing import Final

from pools.config import Machine, PoolConfig, PoolKind


def _size(machine: Machine) -> int:
    return max(1, machine.cores // 4)


OPTIMIZER: Final = PoolKind(
    defaults=PoolConfig(
        name="optimizer", size=1, slots=1, default_deadline_s=None, heartbeat_limit_s=60.0, memory_limit_mb=4096
    ),
    size_on=_size,
    operations=frozenset({"optimize"}),
)
