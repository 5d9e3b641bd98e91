"""A program that tells what its process takes the time to be."""

from __future__ import annotations

import time

import dspy  # type: ignore[import-untyped]


class Clock(dspy.Module):  # type: ignore[misc]
    """Returns the wall clock, in seconds since 1970."""

    def forward(self) -> dspy.Prediction:
        return dspy.Prediction(wall_s=time.time())
