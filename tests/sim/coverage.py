"""What histories are expected to reach: a run in which one of these never happened proves less than it seems to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

PATHS: Final = (
    "accepted", "dispatched", "given back", "Reply", "Recalled", "Started", "Recall sent", "Cancel sent", "Event",
    "event passed on", "Heartbeat", "Ready", "BootFailed", "ProtocolBroken", "ClientGone", "Drain", "Tick", "Launch",
    "Kill", "Dump", "WorkerLaunched", "WorkerDied", "WorkerExited", "ProgramSet",
    "Resize", "DrainWorker", "Restart", "Resize refused", "DrainWorker refused", "Restart refused",
    "log worker_replacing", "log worker_replacement_failed", "log worker_not_restarted",
    "log pool_degraded", "log pool_healed", "log pool_grown", "log pool_shrunk", "recycled for memory",
    "MemoryRead", "log admission_paused", "log admission_resumed", "refused for memory", "progress listed",
    "boots: boot failed", "boots: exits", "boots: launch failed", "boots: hangs", "boots: mute",
    "words of a stranger", "log worker_restart_delayed",
    "outcome OK", "outcome error of the attempt", "outcome DEADLINE_EXCEEDED", "outcome CANCELLED",
    "outcome UNAVAILABLE", "outcome WORKER_LOST executed=no", "outcome WORKER_LOST executed=maybe",
    "CpuRead", "DropLetter", "PardonLetter", "to be resent", "outcome POISON_REQUEST", "outcome OVERLOADED",
    "attached", "replayed", "handed over", "outcome of its key", "refused as another under its key",
    "nested", "nested deep", "nested by a tool", "nested in the work of others", "orphaned",
    "cancelled with its parent",
    "refused CANCELLED", "refused as nobody's child", "refused as too deep", "refused for it would wait for itself",
    "credit passed on", "credit without a caller", "tool without a caller",
    "paused", "resumed", "lost while it was paused", "tool called", "tool answered", "bereaved", "hurried",
    "did not stop", "outcome CIRCUIT_OPEN",
    "suspected", "ran alone", "cleared", "quarantined", "refused POISON_REQUEST",
    "log breaker_opened", "log breaker_half_open", "log breaker_closed", "refused CIRCUIT_OPEN", "fell back",
    "pushed out", "shed", "log shedding_began", "log shedding_ended", "refused for its principal",
    "mode degraded", "mode critical", "log mode_changed", "log issue_raised", "log issue_over",
    "refused as no version", "swapped while it runs", "version forgotten",
    "asked of services", "waits for its first boot", "refused while it is down", "refused as inner",
    "lost with services",
    "OpenSession", "ExpireSession", "SessionRestored", "SessionsSynced", "SessionsSaved", "SessionsUnsaved",
    "OpenSession refused", "ExpireSession refused", "refused SESSION_LOST", "refused WORKER_BUSY",
    "outcome SESSION_LOST", "session begun by a call", "session attached to", "lost session opened anew",
    "waits for its turn", "waits for its worker", "session there", "session sent along", "session moved",
    "session restored", "session changed", "session turn alone", "session changed too late", "session of nothing",
    "session ended", "session ended, busy", "session expired", "answer held back", "answer let go",
    "log sessions_expired", "log sessions_lost", "log sessions_restored",
    "refused OVERLOADED", "refused UNAVAILABLE", "refused NOT_FOUND", "refused INVALID_REQUEST", "refused id",
    "cancelled queued/dequeued", "cancelled running/cooperative", "cancelled running/killed", "cancelled finished/none",
)  # fmt: skip


def missing(seen: Mapping[str, int]) -> list[str]:
    """Return what never happened."""
    return [path for path in PATHS if not seen.get(path)]
