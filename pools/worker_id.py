"""Worker ids: `general-2.3` is the third incarnation in place `general-2`, the second place of the pool `general`."""

from __future__ import annotations


def place_of(worker_id: str) -> str:
    """Return the place, `general-2` of `general-2.3`: what stays when a worker is replaced."""
    return worker_id.rpartition(".")[0]


def pool_of(worker_id: str) -> str:
    """Return the pool's name, `general` of `general-2.3`."""
    return worker_id.rpartition("-")[0]


def incarnation_of(worker_id: str) -> int:
    """Return how many workers its place has had with this one, 3 of `general-2.3`. Raises ValueError for no id."""
    return int(worker_id.rpartition(".")[2])
