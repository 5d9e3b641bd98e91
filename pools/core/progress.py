"""How far running attempts are, as their workers' latest heartbeats have it."""

from __future__ import annotations

from operator import itemgetter
from typing import Any, Final

from pools.core.entries import RequestEntry, WorkerEntry

_LISTED: Final = 32


def running(worker: WorkerEntry, now: float) -> list[dict[str, Any]]:
    """Return what a worker runs, longest first, at most 32.

    running_s and quiet_s are counted up to now: what the latest heartbeat says, and the time since then.
    """
    age_s = now - worker.progress_at
    rows = [
        {
            "request_id": entry.request_id,
            "operation": entry.message.operation,
            "rows": entry.rows,
            "rows_done": rows_done,
            "running_s": run_ms / 1000.0 + age_s,
            "lm_calls": lm_calls,
            "quiet_s": quiet_ms / 1000.0 + age_s,
        }
        for epoch, run_ms, rows_done, lm_calls, quiet_ms in worker.progress
        if (entry := worker.attempts.get(epoch)) is not None
    ]
    rows.sort(key=itemgetter("running_s"), reverse=True)
    return rows[:_LISTED]


def how_far(worker: WorkerEntry, entry: RequestEntry, now: float) -> str:
    """Return how far a request's attempt was when its worker last said so, the empty string if it has not.

    Quiet is counted up to now: nothing has been heard of since.
    """
    for epoch, _, rows_done, lm_calls, quiet_ms in worker.progress:
        if epoch == entry.epoch:
            quiet_s = quiet_ms / 1000.0 + now - worker.progress_at
            return f"{rows_done} of {entry.rows} rows done, {lm_calls} LM calls, quiet for {quiet_s:.1f} s"
    return ""
