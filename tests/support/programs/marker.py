"""A program that leaves evidence: each time that it runs, its number becomes a line of a file."""

from __future__ import annotations

import os
import time

import dspy  # type: ignore[import-untyped]


class Marker(dspy.Module):  # type: ignore[misc]
    """Writes before it sleeps: a call that was killed in its sleep has left its line."""

    def forward(self, path: str, number: int, seconds: float) -> dspy.Prediction:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            os.write(fd, f"{number}\n".encode())
        finally:
            os.close(fd)
        print(f"marked {number}", flush=True)
        time.sleep(seconds)
        return dspy.Prediction(number=number)
