"""Functions and classes that take the items of many callers at once."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from bridge.batched import batched


@batched(max_items=16, max_wait_ms=20)
def lengths(texts: list[str]) -> list[tuple[int, int]]:
    """The length of each text, and how many were in its batch."""
    return [(len(text), len(texts)) for text in texts]


@batched(max_items=16)
def halves(numbers: list[float]) -> Any:
    return np.array(numbers, np.float32)[:, None] / np.array([2, 4], np.float32)


@batched()
class Model:
    made = 0

    def __init__(self, scale: int = 1) -> None:
        Model.made += 1
        self.scale = scale

    def __call__(self, items: list[int]) -> list[dict[str, Any]]:
        return [
            {"scaled": self.scale * item, "made": Model.made, "gpu": os.environ.get("CUDA_VISIBLE_DEVICES")}
            for item in items
        ]


@batched()
def forgetful(items: list[Any]) -> list[Any]:
    return items[1:]


@batched()
async def later(items: list[Any]) -> list[Any]:
    return items


@batched()
class Silent:
    pass
