"""Programs that leave evidence: each time that one runs, its number becomes a line of a file."""

from __future__ import annotations

import os
import time

import dspy  # type: ignore[import-untyped]

from bridge.worker.call import current_call


class Marker(dspy.Module):  # type: ignore[misc]
    """Writes before it sleeps: a call that was killed in its sleep has left its line. Deaf to cancellation."""

    def forward(self, path: str, number: int, seconds: float) -> dspy.Prediction:
        _mark(path, number)
        time.sleep(seconds)
        return dspy.Prediction(number=number)


class Listener(dspy.Module):  # type: ignore[misc]
    """Waits, and stops when it is asked to."""

    def forward(self, path: str, number: int, seconds: float) -> dspy.Prediction:
        _mark(path, number)
        call = current_call.get()
        assert call is not None
        call.cancelled.wait(seconds)
        call.check()
        return dspy.Prediction(number=number)


class Gate(dspy.Module):  # type: ignore[misc]
    """Marks its begin, waits until a file exists, marks its end with the negative number. Deaf to cancellation."""

    def forward(self, path: str, number: int, opened: str) -> dspy.Prediction:
        _mark(path, number)
        while not os.path.exists(opened):
            time.sleep(0.005)
        _mark(path, -number)
        return dspy.Prediction(number=number)


def _mark(path: str, number: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(fd, f"{number}\n".encode())
    finally:
        os.close(fd)
    print(f"marked {number}", flush=True)
