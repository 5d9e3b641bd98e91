"""The health monitor: looks at the fleet each second, remembers since when something is wrong, tells it once."""

from __future__ import annotations

from collections import deque
from typing import Any, Final, NamedTuple

from pools.core import breakers
from pools.core.entries import PoolEntry
from pools.core.events import CpuRead
from pools.core.issues import CRITICAL, RULES, WARNING, Finding
from pools.core.modes import CRITICAL as CRITICAL_MODE
from pools.core.modes import MEASURES, NORMAL, Readings
from pools.core.stats import quantile_ms
from pools.core.tables import Tables

LOOK_EVERY_S: Final = 1.0
# What was not found for so long is over: what comes and goes is one issue.
OVER_AFTER_S: Final = 5.0
_RATE_S: Final = 60.0
# The fleet's timers are late when a turn of the coordinator takes long, or it gets no processor: said when so many of
# the latest looks were.
_LATE_S: Final = 0.05
_LOOKS: Final = 30
_LATE_LOOKS: Final = 3
# A peer is muted for ever; for so long that is news.
_MUTED_S: Final = 600.0


class Issue(NamedTuple):
    """What was found, first and last."""

    finding: Finding
    since: float
    last: float
    raised: bool


class Health:
    """What is wrong with one fleet, and since when."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], Issue] = {}
        self._late: deque[bool] = deque(maxlen=_LOOKS)
        self._settled: deque[tuple[float, int, int]] = deque()  # (time, failed, settled) of the last minute's looks
        self._muted: deque[tuple[float, str]] = deque(maxlen=100)

    def start(self, tables: Tables, now: float) -> None:
        """Look once each second from now on."""
        self._later(tables, now)

    def _later(self, tables: Tables, now: float) -> None:
        due = now + LOOK_EVERY_S

        def look(tables: Tables, now: float) -> None:
            self._late.append(now - due > _LATE_S)
            self.look(tables, now)
            self._later(tables, now)

        tables.after(due, look)

    def muted(self, why: str, now: float) -> None:
        """Remember that a peer is not listened to any more."""
        self._muted.append((now, why))

    # --- looking ----------------------------------------------------------------------------------

    def look(self, tables: Tables, now: float) -> None:
        """Set the mode; find what is wrong now, tell what is new and what is over."""
        self._count(tables, now)
        if tables.modes.look(_readings(tables, now), now):
            mode = tables.modes.mode
            tables.reconsider()
            level = "info" if mode == NORMAL else "warning"
            put_off = sorted(MEASURES[mode].put_off)
            tables.log("mode_changed", level, mode=mode, why=tables.modes.why, put_off=put_off)
        for rule in RULES:
            for finding in rule(tables, now):
                self._note(tables, finding, now)
        for finding in self._own():
            self._note(tables, finding, now)
        while self._muted and self._muted[0][0] <= now - _MUTED_S:
            self._muted.popleft()
        self._forget(tables, now)

    def _note(self, tables: Tables, finding: Finding, now: float) -> None:
        key = (finding.name, finding.subject)
        before = self._found.get(key)
        since = now if before is None else before.since
        raised = before is not None and before.raised
        if not raised and now - since >= finding.after_s:
            raised = True
            level = "error" if finding.level == CRITICAL else "warning"
            tables.log(
                "issue_raised", level, name=finding.name, subject=finding.subject, why=finding.text,
                action=finding.action,
            )  # fmt: skip
        self._found[key] = Issue(finding, since, now, raised)

    def _forget(self, tables: Tables, now: float) -> None:
        for key, issue in list(self._found.items()):
            if now - issue.last >= (OVER_AFTER_S if issue.raised else LOOK_EVERY_S):
                del self._found[key]
                if issue.raised:
                    lasted_s = round(issue.last - issue.since, 1)
                    tables.log("issue_over", name=issue.finding.name, subject=issue.finding.subject, lasted_s=lasted_s)

    def _own(self) -> list[Finding]:
        """Return what no table tells."""
        found = []
        if sum(self._late) >= _LATE_LOOKS:
            late, looks = sum(self._late), len(self._late)
            text = f"{late} of its last {looks} timers were late by more than {_LATE_S * 1000:g} ms"
            action = "answers are late by as much. It has more to do than one core can, or other processes take it"
            found.append(Finding("coordinator_slow", "", WARNING, text, action))
        if self._muted:
            text = f"{len(self._muted)} in the last {_MUTED_S / 60:g} minutes; the latest: {self._muted[-1][1]}"
            action = "what they send is dropped, what they had under way is cancelled. They may connect again"
            found.append(Finding("peers_muted", "", WARNING, text, action))
        return found

    def _count(self, tables: Tables, now: float) -> None:
        pools = tables.user_pools.values()
        failed = sum(pool.failed for pool in pools)
        self._settled.append((now, failed, failed + sum(pool.completed for pool in pools)))
        while self._settled[0][0] < now - _RATE_S:
            self._settled.popleft()

    # --- telling ----------------------------------------------------------------------------------

    def report(self, tables: Tables, now: float) -> dict[str, Any]:
        """Return `status` (ok | degraded | critical), `mode`, `issues`, `error_rate` and `p99_ms`.

        error_rate: failed of the settled rows of the last minute, None if there were none. p99_ms: over all pools.
        """
        raised = [issue for issue in self._found.values() if issue.raised]
        raised.sort(key=lambda issue: (issue.finding.level != CRITICAL, issue.since))
        return {
            "status": _status(tables.modes.mode, raised),
            "mode": tables.modes.mode,
            "issues": [{**_named(issue.finding), "since_s": now - issue.since} for issue in raised],
            "error_rate": self._error_rate(tables),
            "p99_ms": quantile_ms([pool.latency for pool in tables.user_pools.values()], 0.99),
        }

    def _error_rate(self, tables: Tables) -> float | None:
        _, failed, settled = self._settled[0] if self._settled else (0.0, 0, 0)
        pools = tables.user_pools.values()
        now_failed = sum(pool.failed for pool in pools)
        now_settled = now_failed + sum(pool.completed for pool in pools)
        return (now_failed - failed) / (now_settled - settled) if now_settled > settled else None


def _status(mode: str, raised: list[Issue]) -> str:
    if mode == CRITICAL_MODE or any(issue.finding.level == CRITICAL for issue in raised):
        return "critical"
    return "degraded" if raised or mode != NORMAL else "ok"


def _named(finding: Finding) -> dict[str, Any]:
    return {
        "name": finding.name,
        "subject": finding.subject,
        "level": finding.level,
        "text": finding.text,
        "action": finding.action,
    }


def _readings(tables: Tables, now: float) -> Readings:
    pools = tables.user_pools.values()
    return Readings(
        cpu=tables.cpu_used,
        memory=tables.memory_used,
        queue=fullest(tables),
        waits=any(pool.queue for pool in pools),
        breaker=any(_is_broken(pool, now) for pool in pools),
    )


def _is_broken(pool: PoolEntry, now: float) -> bool:
    own = pool.breakers.get(breakers.POOL)
    return own is not None and own.state(now) == breakers.OPEN


def fullest(tables: Tables) -> float:
    """Return how full the fullest queue is, a part of 1."""
    limited = [pool for pool in tables.user_pools.values() if pool.config.max_queue]
    return max((pool.waiting_rows / pool.config.max_queue for pool in limited), default=0.0)


def on_cpu_read(tables: Tables, event: CpuRead, now: float, peer: bytes) -> None:
    """So much of the processors was in use."""
    tables.cpu_used = event.used
