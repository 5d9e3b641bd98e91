"""The time of day: for what people read and for what outlives a run. Durations are taken from `time.monotonic`."""

from __future__ import annotations

import time


def unix_now() -> float:
    """Return the seconds since 1970 began. They may leap: nothing that is under way goes by them."""
    return time.time()
