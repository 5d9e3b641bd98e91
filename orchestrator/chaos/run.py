"""One run of chaos: calm, mischief under load, calm again, and the judgement."""

from __future__ import annotations

import os
import secrets
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from orchestrator.chaos.census import MARK, Census
from orchestrator.chaos.crowd import Crowd
from orchestrator.chaos.history import OK, read, read_effects, violations, worst_late_s
from orchestrator.chaos.load import EFFECTS_FILE, HISTORY_SUFFIX
from orchestrator.chaos.mischief import Agent
from orchestrator.chaos.plan import KINDS, plan
from orchestrator.chaos.realm import Realm

_TICK_S: Final = 0.02
_COUNT_EVERY_S: Final = 0.25
# Between the end of the load and the second census: what is being torn down may take so long.
_CALM_S: Final = 8.0
_SHOWN: Final = 20
# Of a line of a history that tells of a request.
_SENT: Final = b'["sent"'

# Restarts at once whatever the number of deaths; a worker that does not beat is killed before a test's patience ends.
_POOL: Final = {
    "size": 3, "slots": 4, "heartbeat_interval_s": 0.25, "heartbeat_limit_s": 3.0, "grace_s": 1.0,
    "memory_limit_mb": 400, "restart": {"max_restarts": 10_000, "backoff_s": [0.05, 0.5]},
}  # fmt: skip
# full: everything that protects a pool is on. bare: it hides nothing of what happens to requests.
PROFILES: Final[dict[str, dict[str, Any]]] = {
    "full": {"pools": {"general": _POOL, "optimizer": {"size": 0}, "neural": {"size": 0}}},
    "bare": {
        "pools": {"general": {**_POOL, "breaker": None}, "optimizer": {"size": 0}, "neural": {"size": 0}},
        "limits": {"poison_deaths": 0},
    },
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What is to be run: until so many requests were sent or so many seconds have passed, whichever is first."""

    seed: int = 0
    requests: float = float("inf")
    seconds: float = float("inf")
    every_s: float = 2.0
    clients: int = 4
    kinds: tuple[str, ...] = KINDS
    profile: str = "bare"


@dataclass(slots=True)
class Report:
    """What came of it. late_s: of the latest outcome, after its deadline. leaks, less: between the two calm moments."""

    seed: int
    seconds: float = 0.0
    requests: int = 0
    reigns: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)
    effects: int = 0
    ran_again: int = 0
    late_s: float = 0.0
    mischief: dict[str, int] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)
    leaks: list[str] = field(default_factory=list)
    less: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether every promise was kept."""
        return not (self.violations or self.leaks or self.failed)

    def as_json(self) -> dict[str, Any]:
        """Return it JSON-ready."""
        return {**asdict(self), "good": self.good}

    def text(self) -> str:
        """Return it for people."""
        rate = self.requests / max(self.seconds, 1e-9)
        lines = [
            f"seed {self.seed}: {self.requests:,} requests in {self.seconds:.1f} s ({rate:,.0f}/s), "
            f"{self.reigns} coordinators, latest outcome {self.late_s:.3f} s after its deadline",
            "mischief: " + _counts(self.mischief),
            "outcomes: " + _counts(self.outcomes),
            f"effects: {self.effects:,} requests had one, {self.ran_again:,} of them more than one",
        ]
        for name in ("violations", "leaks", "failed"):
            found = getattr(self, name)
            lines.append(f"{name}: {len(found)}")
            lines += [f"  {each}" for each in found[:_SHOWN]]
        return "\n".join([*lines, "every promise was kept" if self.good else "BROKEN"])


@contextmanager
def playground() -> Iterator[Path]:
    """Make a folder in which a run may write, where its temporary files go, too; mark what is started meanwhile."""
    kept = {name: os.environ.get(name) for name in (MARK, "TMPDIR")}
    kept_tempdir = tempfile.tempdir
    with tempfile.TemporaryDirectory(prefix="c") as folder:
        (Path(folder) / "t").mkdir()
        os.environ[MARK] = secrets.token_hex(8)
        os.environ["TMPDIR"] = tempfile.tempdir = f"{folder}/t"
        try:
            yield Path(folder)
        finally:
            tempfile.tempdir = kept_tempdir
            for name, value in kept.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


def run(order: Order, tell: Callable[[str], None] = lambda _: None) -> Report:
    """Run it. tell: takes a line about how it goes, now and then."""
    report = Report(order.seed)
    settings = {**PROFILES[order.profile], "faults": True, "log_level": "warning"}
    with playground() as folder, Realm(folder, settings) as realm:
        before = calm(realm, folder)
        began = time.monotonic()
        with Crowd(folder, order.clients, order.seed) as crowd:
            agent = Agent(realm, crowd, order.seed)
            _play(order, realm, crowd, agent, tell)
            agent.end()
            crowd.end()
            report.seconds = time.monotonic() - began
        realm.restore()
        compare(report, realm, folder, before)
        report.reigns = realm.reigns
        report.mischief = dict(agent.done)
        report.failed = [*crowd.failed, *realm.left]
        judge(report, folder, crowd)
    return report


def _play(order: Order, realm: Realm, crowd: Crowd, agent: Agent, tell: Callable[[str], None]) -> None:
    """Do the plan's deeds as they are due, until enough was asked for."""
    deeds = plan(order.seed, order.every_s, order.kinds)
    began = time.monotonic()
    sent, count_at, tell_at = Sent(crowd.folder), began, began + 10.0
    due = next(deeds)
    while (now := time.monotonic()) - began < order.seconds and sent.count < order.requests:
        if now - began >= due.at_s:
            agent.do(due)
            due = next(deeds)
        agent.tend()
        crowd.tend()
        if realm.restore():
            agent.forget_client()
        if now >= count_at:
            count_at = now + _COUNT_EVERY_S
            sent.look()
        if now >= tell_at:
            tell(f"{now - began:.0f} s: {sent.count:,} requests, {sum(agent.done.values())} deeds")
            tell_at = now + 10.0
        time.sleep(_TICK_S)


class Sent:
    """How many requests the histories of a folder tell of; each is read as it grows."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: Counter[Path] = Counter()
        self.count = 0

    def look(self) -> int:
        """Return how many there are by now."""
        for file in self._folder.glob(f"*{HISTORY_SUFFIX}"):
            with file.open("rb") as lines:
                lines.seek(self._read[file])
                new = lines.read().rpartition(b"\n")[0]
            self._read[file] += len(new)
            self.count += new.count(_SENT)
        return self.count


def calm(realm: Realm, folder: Path) -> Census:
    """Wait until nothing is under way; return what is held."""
    with realm.client() as client:
        realm.await_full(client)
    return Census.take(realm.pid, folder / "t")


def compare(report: Report, realm: Realm, folder: Path, before: Census) -> None:
    """Note what is held that was not `before`, and still is after a while."""
    until = time.monotonic() + _CALM_S
    while True:
        after = calm(realm, folder)
        report.leaks, report.less = after.more_than(before), after.less_than(before)
        if not report.leaks or time.monotonic() > until:
            return
        time.sleep(_TICK_S)


def judge(report: Report, folder: Path, crowd: Crowd) -> None:
    """Note what the clients saw, and what of it must not be."""
    calls, found = read(crowd.histories())
    effects = read_effects(folder / EFFECTS_FILE)
    found += violations(calls, effects, vanished=crowd.vanished, pauses=crowd.pauses)
    codes = Counter(outcome.code for call in calls.values() for outcome in call.outcomes)
    report.requests = len(calls)
    report.outcomes = dict(codes.most_common())
    report.effects = len(effects)
    report.ran_again = sum(times > 1 for times in effects.values())
    report.late_s = worst_late_s(call for call in calls.values() if call.client not in paused(crowd))
    report.violations = list(map(str, found))
    if codes[OK] == 0:
        report.violations.append("nothing was ever answered: nothing was tried")


def paused(crowd: Crowd) -> frozenset[str]:
    """Return the names of the clients that were stopped for a while: their clocks say nothing about others."""
    return frozenset(pause.client for pause in crowd.pauses)


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items()) or "none"
