"""What histories are expected to reach: a run in which one of these never happened proves less than it seems to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

PATHS: Final = (
    "accepted", "dispatched", "given back", "Reply", "Recalled", "Started", "Recall sent", "Cancel sent", "Event",
    "event passed on", "Heartbeat", "Ready", "BootFailed", "ProtocolBroken", "ClientGone", "Drain", "Tick", "Launch",
    "Kill", "Dump", "WorkerLaunched", "WorkerDied", "WorkerExited", "ProgramDeployed", "ProgramRemoved",
    "Resize", "DrainWorker", "Restart", "Resize refused", "DrainWorker refused", "Restart refused",
    "log worker_replacing", "log worker_replacement_failed", "log worker_not_restarted",
    "log pool_degraded", "log pool_healed", "log pool_grown", "log pool_shrunk", "recycled for memory",
    "MemoryRead", "log admission_paused", "log admission_resumed", "refused for memory", "progress listed",
    "boots: boot failed", "boots: exits", "boots: launch failed", "boots: hangs", "boots: mute",
    "words of a stranger", "log worker_restart_delayed",
    "outcome OK", "outcome error of the attempt", "outcome DEADLINE_EXCEEDED", "outcome CANCELLED",
    "outcome UNAVAILABLE", "outcome WORKER_LOST executed=no", "outcome WORKER_LOST executed=maybe",
    "refused OVERLOADED", "refused UNAVAILABLE", "refused NOT_FOUND", "refused INVALID_REQUEST", "refused id",
    "cancelled queued/dequeued", "cancelled running/cooperative", "cancelled running/killed", "cancelled finished/none",
)  # fmt: skip


def missing(seen: Mapping[str, int]) -> list[str]:
    """Return what never happened."""
    return [path for path in PATHS if not seen.get(path)]
