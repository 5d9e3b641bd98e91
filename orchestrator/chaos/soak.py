"""Many calls while workers die: what a coordinator still holds afterwards, and how its memory grows.

`python -m orchestrator.chaos.soak --help`. Of every hundred calls, `kill_percent` cost a worker its life.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import functools
import json
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from orchestrator.chaos.census import rss_bytes
from orchestrator.chaos.numbers import count, percent, positive
from orchestrator.chaos.realm import Realm, signal_by_rank
from orchestrator.chaos.run import PROFILES, Report, calm, compare, playground
from orchestrator.errors import DspoolError, WorkerLost

if TYPE_CHECKING:
    from orchestrator.client.client import Client

# What goes on at once.
_WINDOW: Final = 256
_SAMPLE_S: Final = 1.0
_TELL_S: Final = 10.0
# Tables and arenas reach their sizes first: this share of the calls comes before the first census and the first sample.
_WARM_UP: Final = 0.05
# Only a full pool loses a worker: who is killed while it boots is a failed boot, and a pool of such is degraded. The
# calls wait for the kills.
_KILL_EVERY_S: Final = 0.005
_PORTION: Final = 200
_BEHIND: Final = 3
_BEHIND_S: Final = 60.0
_MB: Final = 1 << 20


@dataclass(slots=True)
class Soaked:
    """What came of it. rss_mb: of the coordinator, at the first and the last sample; slope: by least squares."""

    calls: int = 0
    seconds: float = 0.0
    kills: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)
    leaks: list[str] = field(default_factory=list)
    rss_mb: tuple[float, float] = (0.0, 0.0)
    rss_slope_mb_per_hour: float = 0.0
    unexpected: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether nothing is left over, and no call ended as it must not."""
        return not (self.leaks or self.unexpected)

    def text(self) -> str:
        """Return it as a table for people."""
        first, last = self.rss_mb
        rows = [
            ("calls", f"{self.calls:,} in {self.seconds:.1f} s, {self.calls / max(self.seconds, 1e-9):,.0f} a second"),
            ("workers killed", f"{self.kills:,}"),
            ("outcomes", ", ".join(f"{name} {count:,}" for name, count in self.outcomes.items())),
            ("RSS of the coordinator", f"{first:.1f} MB, then {last:.1f} MB"),
            ("its slope", f"{self.rss_slope_mb_per_hour:+.2f} MB an hour"),
            ("left over", f"{len(self.leaks)}"),
            *(("", each) for each in self.leaks),
            *(("unexpected", each) for each in self.unexpected),
        ]
        return "\n".join(f"{name:<24}{text}" for name, text in rows)


def slope(samples: Sequence[tuple[float, float]]) -> float:
    """Return the slope of the line through `(x, y)` samples by least squares; 0.0 where x does not vary."""
    if not samples:
        return 0.0
    mean_x, mean_y = (sum(column) / len(samples) for column in zip(*samples, strict=True))
    spread = sum((x - mean_x) ** 2 for x, _ in samples)
    return sum((x - mean_x) * (y - mean_y) for x, y in samples) / spread if spread else 0.0


class _Asker:
    """Keeps calls under way and counts what becomes of them."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._room = threading.Semaphore(_WINDOW)
        self._lock = threading.Lock()
        self.sent = self.settled = 0
        self.outcomes: Counter[str] = Counter()
        self.wrong: list[str] = []

    def ask(self, calls: int) -> None:
        """Ask so often more, and wait for all answers."""
        for _ in range(calls):
            self._room.acquire()
            number, self.sent = self.sent, self.sent + 1
            # Every other call is given to a thread of the worker's, not answered by its io thread.
            operation, args = ("echo", number) if number % 2 else ("sleep", {"seconds": 0.0})
            self._client.submit(operation, args).add_done_callback(functools.partial(self._settled, number))
        for _ in range(_WINDOW):
            self._room.acquire()
        self._room.release(_WINDOW)

    def _settled(self, number: int, future: concurrent.futures.Future[Any]) -> None:
        error = future.exception(0)
        with self._lock:
            self.settled += 1
            self.outcomes["OK" if error is None else getattr(error, "code", type(error).__name__)] += 1
            if error is not None and not isinstance(error, WorkerLost):
                self.wrong.append(f"call {number}: {error!r}"[:200])
            elif error is None and number % 2 and future.result(0) != number:
                self.wrong.append(f"call {number} was answered with {future.result(0)!r}"[:200])
        self._room.release()


class _Watch:
    """Kills workers as calls are settled, and samples memory; a thread of its own. A context manager."""

    def __init__(self, realm: Realm, client: Client, asker: _Asker, kill_percent: float, seed: int, tell: Any) -> None:
        self._realm, self._asker, self._kill_percent, self._tell = realm, asker, kill_percent, tell
        self._client = client
        self._before = asker.settled
        self._rng = random.Random(f"soak {seed}")
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self.kills = 0
        self.samples: list[tuple[float, float]] = []

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def behind(self) -> bool:
        """Return whether the calls are too far ahead of the kills."""
        settled = self._asker.settled - self._before
        return settled * self._kill_percent / 100.0 > self.kills + _BEHIND

    def _is_full(self) -> bool:
        pools = self._client.stats()["pools"].values()
        return all(pool["ready"] == pool["size"] for pool in pools)

    def _run(self) -> None:
        began = time.monotonic()
        sample_at = tell_at = began
        while not self._ended.wait(_KILL_EVERY_S):
            now = time.monotonic()
            settled = self._asker.settled - self._before
            if settled * self._kill_percent / 100.0 > self.kills and self._is_full():
                victim = signal_by_rank(self._realm.workers(), self._rng.randrange(1 << 16), signal.SIGKILL)
                self.kills += victim is not None
            if now >= sample_at:
                sample_at = now + _SAMPLE_S
                self.samples.append((now - began, rss_bytes(self._realm.pid) / _MB))
            if now >= tell_at:
                tell_at = now + _TELL_S
                self._tell(
                    f"{now - began:.0f} s: {settled:,} calls, {self.kills:,} kills, {self.samples[-1][1]:.1f} MB"
                )


def soak(
    calls: int, *, seconds: float = float("inf"), kill_percent: float = 1.0, seed: int = 0, tell: Any = lambda _: None
) -> Soaked:
    """Ask `calls` times, or for so many seconds, whichever ends first; the warm-up comes before."""
    report = Soaked()
    settings = {**PROFILES["bare"], "faults": True, "log_level": "error"}
    with playground() as folder, Realm(folder, settings) as realm, realm.client() as client:
        _soak(report, realm, client, folder, calls, seconds, kill_percent, seed, tell)
    return report


def _soak(
    report: Soaked, realm: Realm, client: Client, folder: Path, calls: int, seconds: float, kill_percent: float,
    seed: int, tell: Any,
) -> None:  # fmt: skip
    asker = _Asker(client)
    with _Watch(realm, client, asker, kill_percent, seed, lambda _: None) as watch:
        _ask(asker, watch, max(int(calls * _WARM_UP), _WINDOW), seconds)
    before, warm = calm(realm, folder), asker.settled
    asker.outcomes.clear()
    began = time.monotonic()
    with _Watch(realm, client, asker, kill_percent, seed + 1, tell) as watch:
        _ask(asker, watch, calls, seconds)
    report.seconds, report.calls, report.kills = time.monotonic() - began, asker.settled - warm, watch.kills
    compared = Report(seed)
    compare(compared, realm, folder, before)
    report.leaks = [*compared.leaks, *realm.left]
    report.outcomes = dict(asker.outcomes.most_common())
    report.unexpected = asker.wrong[:20]
    if asker.sent != asker.settled:
        report.unexpected.append(f"{asker.sent} calls were made, {asker.settled} were settled")
    if watch.samples:
        report.rss_mb = (round(watch.samples[0][1], 1), round(rss_bytes(realm.pid) / _MB, 1))
        report.rss_slope_mb_per_hour = round(slope([(at_s / 3600.0, mb) for at_s, mb in watch.samples]), 3)


def _ask(asker: _Asker, watch: _Watch, calls: int, seconds: float) -> None:
    """Ask so often, or for so many seconds, never far ahead of the kills. Raises TimeoutError if these end."""
    began = time.monotonic()
    while calls > 0 and time.monotonic() - began < seconds:
        asker.ask(min(calls, _PORTION))
        calls -= _PORTION
        waiting_since = time.monotonic()
        while watch.behind():
            if time.monotonic() - waiting_since > _BEHIND_S:
                raise TimeoutError(f"no full pool within {_BEHIND_S:g} s, so nobody was killed")
            time.sleep(_KILL_EVERY_S)


def main(argv: list[str] | None = None) -> int:
    """Run, print, and return 1 where something is left over or a call ended as it must not."""
    parser = argparse.ArgumentParser(
        prog="scripts/soak", description="Many calls while workers die; what is left over."
    )
    parser.add_argument("--calls", type=count, default=1_000_000, metavar="N", help="how many (1,000,000)")
    parser.add_argument("--minutes", type=positive, default=float("inf"), metavar="M", help="end after so long")
    parser.add_argument("--kill-percent", type=percent, default=1.0, metavar="P", help="kills in a hundred calls (1)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the choice of victims")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    wanted = parser.parse_args(argv)
    try:
        report = soak(
            wanted.calls, seconds=wanted.minutes * 60.0, kill_percent=wanted.kill_percent, seed=wanted.seed,
            tell=lambda line: print(line, file=sys.stderr, flush=True),
        )  # fmt: skip
    except (DspoolError, TimeoutError) as error:
        print(f"FAILED: {error}", file=sys.stderr)
        return 1
    print(json.dumps({**asdict(report), "good": report.good}) if wanted.json else report.text())
    return 0 if report.good else 1


if __name__ == "__main__":
    sys.exit(main())
