"""From a worker's death to its settlement.

A pidfd says that a worker is dead before the last of its replies has come through the socket. So a death is settled
only when the backend was empty twice, 5 ms apart, and the launcher has said how it ended (or had time enough to).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from pools.core.events import ExitReason, Vanished
from pools.launch.launcher import Reaped

SECOND_LOOK_S: Final = 0.005
REPORT_S: Final = 0.1


@dataclass(slots=True)
class _Funeral:
    died_at: float
    report: Reaped | None = None


@dataclass(frozen=True, slots=True)
class Settled:
    """A death that can be settled now."""

    worker_id: str
    reason: ExitReason
    peak_rss_bytes: int


class Funerals:
    """The deaths that are not settled yet."""

    def __init__(self) -> None:
        self._open: dict[str, _Funeral] = {}

    def died(self, worker_id: str, now: float) -> None:
        """A worker's process has ended."""
        self._open.setdefault(worker_id, _Funeral(now))

    def reaped(self, report: Reaped, now: float) -> None:
        """The launcher says how a worker ended."""
        self._open.setdefault(report.worker_id, _Funeral(now)).report = report

    def next_due(self) -> float | None:
        """Return when `due` has something to do, or None."""
        times = [
            funeral.died_at + (REPORT_S if funeral.report is None else SECOND_LOOK_S) for funeral in self._open.values()
        ]
        return min(times, default=None)

    def due(self, now: float) -> list[Settled]:
        """Remove and return the deaths to settle. The caller looks at the backend once more before it does."""
        settled = []
        for worker_id, funeral in list(self._open.items()):
            report = funeral.report
            if now >= funeral.died_at + (REPORT_S if report is None else SECOND_LOOK_S):
                del self._open[worker_id]
                reason = report.reason if report is not None else Vanished()
                settled.append(Settled(worker_id, reason, report.peak_rss_bytes if report is not None else 0))
        return settled
