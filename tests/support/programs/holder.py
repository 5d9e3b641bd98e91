"""A program that is given something large and keeps it for a while."""

from __future__ import annotations

import time

import dspy  # type: ignore[import-untyped]


class Holder(dspy.Module):  # type: ignore[misc]
    """Says how much it was given, after `seconds`; each run leaves a line in the file at `path`."""

    def forward(self, blob: bytes, seconds: float, path: str) -> dspy.Prediction:
        with open(path, "a", encoding="ascii") as file:
            file.write(f"{len(blob)}\n")
        time.sleep(seconds)
        return dspy.Prediction(bytes=len(blob))
