"""A program that returns as much as it is asked for, and counts how often it does."""

from __future__ import annotations

import os

import dspy  # type: ignore[import-untyped]


class Repeater(dspy.Module):  # type: ignore[misc]
    """Writes a byte to a file for each run."""

    def forward(self, path: str, size_bytes: int) -> dspy.Prediction:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            os.write(fd, b".")
        finally:
            os.close(fd)
        return dspy.Prediction(data=b"y" * size_bytes)
