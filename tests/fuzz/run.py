"""One run: so many hostile messages at the decoders and at a live coordinator, and what came of it."""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import psutil
import zmq

from tests.fuzz.corpus import frame_seeds, value_seeds
from tests.fuzz.live import Siege, besiege, last_words
from tests.fuzz.mutation import Mutator
from tests.fuzz.targets import TARGETS
from tests.support.coordinator import ROOT, CoordinatorProcess

# Of all messages; the rest goes to the coordinator.
SHARES: Final = {"frames": 0.4, "headers": 0.2, "values": 0.2}
MOST_GROWN_MB: Final = 50.0
_SLICE: Final = 5_000
_WARM: Final = 20_000
_KEPT_FAILURES: Final = 5

Say = Callable[[str], None]


@dataclass(slots=True)
class Finding:
    """What one target did with its messages. failures: the input and the traceback of the first few."""

    target: str
    messages: int = 0
    seconds: float = 0.0
    grown_mb: float = 0.0
    failed: int = 0
    failures: list[tuple[bytes, str]] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return not self.failed and self.grown_mb <= MOST_GROWN_MB

    def line(self) -> str:
        """Return it as a line of the report."""
        rate = self.messages / self.seconds if self.seconds else 0.0
        verdict = "ok" if self.passed else "FAILED"
        return (
            f"{self.target:<9}{self.messages:>12,} messages {self.seconds:>8.1f} s {rate:>9,.0f}/s"
            f"   RSS +{self.grown_mb:5.1f} MB   {self.failed} failed   {verdict}"
        )


def fuzz(messages: int, seed: int, *, minutes: float | None = None, guided: bool = False, say: Say = print) -> bool:
    """Run every target and say what was found; return whether nothing failed.

    minutes: end earlier, each target after its share of the time. guided: coverage guides the mutation of what the
    decoders get (atheris); the coordinator's is guided by nothing.
    """
    findings = []
    for name, share in SHARES.items():
        limit_s = None if minutes is None else minutes * 60.0 * share
        attack = _guided if guided else _mutated
        findings.append(attack(name, max(1, int(messages * share)), seed, limit_s))
        say(findings[-1].line())
    rest = 1.0 - sum(SHARES.values())
    findings.append(_live(int(messages * rest), seed, None if minutes is None else minutes * 60.0 * rest))
    say(findings[-1].line())
    for finding in findings:
        for data, text in finding.failures:
            say(f"\n{finding.target}: {data[:400]!r}\n{text}")
    return all(finding.passed for finding in findings)


def seeds_of(target: str) -> list[bytes]:
    """Return what the mutation for a target starts from."""
    return value_seeds() if target == "values" else frame_seeds()


def _mutated(target: str, messages: int, seed: int, limit_s: float | None) -> Finding:
    """Give a target of this process so many byte strings."""
    found = Finding(target)
    attack, mutator = TARGETS[target], Mutator(seeds_of(target), f"{target}:{seed}")
    began = time.monotonic()
    most = 0
    while found.messages < messages and (limit_s is None or time.monotonic() - began < limit_s):
        for _ in range(min(_SLICE, messages - found.messages)):
            data = mutator.next()
            try:
                attack(data)
            except Exception:  # noqa: BLE001 - whatever it is, it is what was looked for
                found.failed += 1
                if len(found.failures) < _KEPT_FAILURES:
                    found.failures.append((data, traceback.format_exc(limit=-4)))
            found.messages += 1
        if found.messages <= min(_WARM, messages):
            most = _peak_bytes()
    found.seconds = time.monotonic() - began
    found.grown_mb = (_peak_bytes() - most) / 1e6
    return found


def _guided(target: str, messages: int, seed: int, limit_s: float | None) -> Finding:
    """Have atheris do it, in a process of its own: it ends the one that it runs in."""
    found = Finding(target, messages)
    with tempfile.TemporaryDirectory(prefix="fuzz") as folder:
        for number, data in enumerate(seeds_of(target)):
            Path(folder, f"seed{number}").write_bytes(data)
        began = time.monotonic()
        limits = [f"-runs={messages}", *([] if limit_s is None else [f"-max_total_time={int(limit_s) + 1}"])]
        done = subprocess.run(
            [sys.executable, "-m", "tests.fuzz.guided", target, f"-seed={seed}", *limits, "-rss_limit_mb=1024",
             f"-artifact_prefix={folder}/failed-", folder],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", check=False,
        )  # fmt: skip
        found.seconds = time.monotonic() - began
        found.messages = _ran(done.stdout, messages)
        for file in sorted(Path(folder).glob("failed-*")):
            found.failures.append((file.read_bytes(), done.stdout[-3_000:]))
        found.failed = len(found.failures)
        if done.returncode and not found.failed:
            found.failed = 1
            found.failures.append((b"", f"atheris ended with {done.returncode}\n{done.stdout[-3_000:]}"))
    return found


def _ran(output: str, messages: int) -> int:
    """Return how many inputs libFuzzer says it has tried."""
    done = [line.split()[1] for line in output.splitlines() if line.startswith("Done ")]
    return int(done[-1]) if done and done[-1].isdigit() else messages


def _live(messages: int, seed: int, limit_s: float | None) -> Finding:
    """Give so many to the frontend of a coordinator."""
    found = Finding("live")
    siege = Siege()
    with tempfile.TemporaryDirectory(prefix="fz") as folder, CoordinatorProcess(Path(folder)) as coordinator:
        assert coordinator.next_report() == {"event": "ready"}
        until = float("inf") if limit_s is None else time.monotonic() + limit_s
        with last_words(coordinator) as words:
            try:
                besiege(coordinator, seed, messages, siege, until)
            except (AssertionError, OSError, psutil.Error, zmq.ZMQError) as exc:
                found.failed = 1
                text = f"after {siege.messages:,} messages: {type(exc).__name__}: {exc}\n{''.join(words)}"
                found.failures.append((b"", text))
    found.messages, found.seconds, found.grown_mb = siege.messages, siege.seconds, siege.grown_mb
    return found


def _peak_bytes() -> int:
    """Return the largest RSS that this process ever had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
