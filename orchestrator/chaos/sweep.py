"""Every fault point with every action, one after the other: whatever happens where, the promises hold."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bridge import faultpoints
from bridge.faultpoints import ACTIONS, POINTS, Fault, Fired
from orchestrator.chaos.crowd import Crowd
from orchestrator.chaos.mischief import Agent
from orchestrator.chaos.plan import plan
from orchestrator.chaos.realm import Realm
from orchestrator.chaos.run import PROFILES, Report, Sent, calm, compare, judge, playground
from orchestrator.processes import process

# The load of a sweep writes nothing to the store: its points are for `scripts/crashes`.
SWEPT: Final = tuple(point for point in POINTS if not point.startswith("store."))
_CLIENTS: Final = 2
_TICK_S: Final = 0.02
_FIRES_S: Final = 20.0
# So many requests come first.
_UNDER_LOAD: Final = 200
# The load goes on so long after the fault.
_AFTER_S: Final = 0.5
# Not the first time, where everything is fresh; many a time where it happens with every frame.
_NTH: Final = 3
_NTH_FRAME: Final = 30
_FRAMES: Final = (
    "client.",
    "coordinator.after_admission",
    "coordinator.before_send",
    "worker.before_r",
    "worker.after",
)
# These points are passed where workers end and begin.
_BIRTHS: Final = ("zygote.", "nanny.", "worker.before_hello", "worker.before_ready")
# When somebody looks after a process that stands still. A worker at work is the coordinator's to see to: by heartbeat,
# or by a deadline; what is not, an operator's: a stopped process is told to go on, one that hangs is killed.
_OPERATOR_S: Final = 1.0
_COORDINATOR_S: Final = 12.0
_AT_WORK: Final = ("worker.before_run", "worker.after_run", "worker.before_reply_sent", "worker.in_heartbeat")


@dataclass(frozen=True, slots=True)
class Cell:
    """One fault and what came of it. fired: where it happened; None is a failure of its own."""

    point: str
    action: str
    fired: Fired | None
    report: Report

    @property
    def good(self) -> bool:
        """Whether the fault happened, and every promise was kept."""
        return self.fired is not None and self.report.good

    def line(self) -> str:
        """Return it for people: one line, more where something is wrong."""
        report = self.report
        head = f"{self.point:<30} {self.action:<6} {report.requests:>6,} requests  {'ok' if self.good else 'BROKEN'}"
        wrong = [
            *report.violations,
            *report.leaks,
            *report.failed,
            *([] if self.fired else ["the fault did not happen"]),
        ]
        return "\n".join([head, *(f"    {each}" for each in wrong[:10])])


def sweep(seed: int = 0, points: Collection[str] = SWEPT, actions: Collection[str] = ACTIONS) -> Iterator[Cell]:
    """Yield what came of each of these points with each of these actions."""
    for point in points:
        for action in actions:
            yield try_one(point, action, seed)


def try_one(point: str, action: str, seed: int = 0) -> Cell:
    """Let a small load meet one fault. Raises ValueError for a point or an action that there is not."""
    report = Report(seed)
    settings = {**PROFILES["bare"], "faults": True, "log_level": "error"}
    with playground() as folder:
        scheduled = folder / "f"
        scheduled.mkdir()
        nth = _NTH_FRAME if point.startswith(_FRAMES) else _NTH
        os.environ[faultpoints.VARIABLE] = faultpoints.schedule(str(scheduled), [Fault(point, nth, action)])
        try:
            with Realm(folder, settings) as realm:
                fired = _meet(point, report, realm, folder, seed)
        finally:
            del os.environ[faultpoints.VARIABLE]
    return Cell(point, action, fired, report)


def _meet(point: str, report: Report, realm: Realm, folder: Path, seed: int) -> Fired | None:
    before = calm(realm, folder)
    began = time.monotonic()
    with Crowd(folder, _CLIENTS, seed) as crowd:
        agent = Agent(realm, crowd, seed)
        fired = _play(point, realm, crowd, agent, folder / "f", seed)
        agent.end()
        crowd.end()
        report.seconds = time.monotonic() - began
    realm.restore()
    compare(report, realm, folder, before)
    report.reigns = realm.reigns
    report.mischief = dict(agent.done)
    report.failed = [*_unasked(point, crowd), *realm.left]
    judge(report, folder, crowd)
    return fired


def _unasked(point: str, crowd: Crowd) -> list[str]:
    """Return which clients ended unasked; one may where the fault was its own."""
    return crowd.failed[point.startswith("client.") :]


def _play(point: str, realm: Realm, crowd: Crowd, agent: Agent, scheduled: Path, seed: int) -> Fired | None:
    """Keep the load up until the fault has happened and nobody stands still any more; return it."""
    deeds = plan(seed, 0.2, ("kill_worker",)) if point.startswith(_BIRTHS) else None
    due = next(deeds) if deeds else None
    began = time.monotonic()
    sent = Sent(crowd.folder)
    while sent.look() < _UNDER_LOAD and time.monotonic() - began < _FIRES_S:
        time.sleep(_TICK_S)
    faultpoints.begin(str(scheduled))
    fired: Fired | None = None
    fired_at = 0.0
    while True:
        now = time.monotonic()
        if fired is None:
            if due is not None and deeds is not None and now - began >= due.at_s:
                agent.do(due)
                due = next(deeds)
            if point == "coordinator.after_control":
                agent.look()
            happened = faultpoints.fired(str(scheduled))
            if happened:
                fired, fired_at = happened[0], now
            elif now - began > _FIRES_S:
                return None
        elif now - fired_at > _AFTER_S and _is_over(fired, now - fired_at, crowd):
            return fired
        realm.note()
        crowd.tend()
        if realm.restore():
            agent.forget_client()
        time.sleep(_TICK_S)


def _is_over(fired: Fired, since_s: float, crowd: Crowd) -> bool:
    """Return whether the process has ended, or goes on; see to it that it does in time."""
    if fired.action not in ("stop", "hang"):
        return True
    victim = process(fired.pid)
    if victim is None:
        return True
    if since_s > (_COORDINATOR_S if fired.point in _AT_WORK else _OPERATOR_S):
        if fired.point.startswith("client."):
            crowd.free({fired.pid})
        else:
            victim.signal(signal.SIGCONT if fired.action == "stop" else signal.SIGKILL)
        return True
    return False
