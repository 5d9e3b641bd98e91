"""A program that leaves its worker's session behind: it starts a process that leads one of its own."""

from __future__ import annotations

import subprocess

import dspy  # type: ignore[import-untyped]


class Spawner(dspy.Module):  # type: ignore[misc]
    """The process is the worker's child and stays so: it lives as long as the worker does."""

    def forward(self, seconds: float) -> dspy.Prediction:
        process = subprocess.Popen(["sleep", str(seconds)], start_new_session=True, stdin=subprocess.DEVNULL)
        return dspy.Prediction(pid=process.pid)
