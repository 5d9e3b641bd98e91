"""The processes of clients: started, killed, stopped, and replaced where they end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from orchestrator.chaos.history import Pause
from orchestrator.chaos.load import HISTORY_SUFFIX
from orchestrator.chaos.realm import is_stopped

# A client that is asked to end waits for its answers first.
_END_S: Final = 15.0


@dataclass(slots=True)
class _Member:
    name: str
    process: subprocess.Popen[bytes]
    stopped_at_s: float = 0.0  # 0 = it runs
    continue_at_s: float = 0.0


@dataclass
class Crowd:
    """So many clients at work in a folder. A context manager: leaving it kills who is left.

    vanished: names of those that were killed. pauses: when which were stopped. failed: what ended unasked, and how.
    environ: added to theirs.
    """

    folder: Path
    size: int
    seed: int
    environ: dict[str, str] = field(default_factory=dict)
    vanished: set[str] = field(default_factory=set)
    pauses: list[Pause] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._born = 0
        self._members = [self._start() for _ in range(self.size)]

    def __enter__(self) -> Crowd:
        return self

    def __exit__(self, *_: object) -> None:
        for member in self._members:
            member.process.kill()
            member.process.communicate()

    def _start(self) -> _Member:
        self._born += 1
        name = f"c{self._born}"
        command = [sys.executable, "-m", "orchestrator.chaos.load", str(self.folder), name, str(self.seed)]
        with open(self.folder / f"{name}.log", "wb") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=log, stderr=log, env={**os.environ, **self.environ}
            )
        return _Member(name, process)

    def kill(self, rank: int) -> None:
        """Kill one; another comes in its place."""
        place = rank % len(self._members)
        self._bury(self._members[place])
        self._members[place] = self._start()

    def _bury(self, member: _Member) -> None:
        self._continue(member)
        self.vanished.add(member.name)
        member.process.kill()
        member.process.communicate()

    def stop(self, rank: int, seconds: float) -> None:
        """Stop one for some seconds, if it is not stopped already."""
        member = self._members[rank % len(self._members)]
        if not member.stopped_at_s:
            member.stopped_at_s = time.monotonic()
            member.continue_at_s = member.stopped_at_s + seconds
            member.process.send_signal(signal.SIGSTOP)

    def _continue(self, member: _Member) -> None:
        if member.stopped_at_s:
            member.process.send_signal(signal.SIGCONT)
            self.pauses.append(Pause(member.name, member.stopped_at_s, time.monotonic()))
            member.stopped_at_s = 0.0

    def tend(self) -> None:
        """Let those go on whose time has come; replace who has ended: nobody asked them to."""
        now = time.monotonic()
        for place, member in enumerate(self._members):
            if member.stopped_at_s and now >= member.continue_at_s:
                self._continue(member)
            if (code := member.process.poll()) is not None:
                self.failed.append(f"client {member.name} ended with {code}: {self._log(member)[-2000:]}")
                self._bury(member)
                self._members[place] = self._start()

    def free(self, hung: set[int]) -> None:
        """End who will never go on by itself: stopped by nobody here, or hung (by process id)."""
        for place, member in enumerate(self._members):
            pid = member.process.pid
            if pid in hung or (is_stopped(pid) and not member.stopped_at_s):
                self._bury(member)
                self._members[place] = self._start()

    def end(self) -> None:
        """Ask all to end, and wait for it; who does not in time is a failure, and is killed."""
        for member in self._members:
            self._continue(member)
            assert member.process.stdin is not None
            member.process.stdin.close()
        until = time.monotonic() + _END_S
        for member in self._members:
            try:
                code = member.process.wait(max(until - time.monotonic(), 0.0))
            except subprocess.TimeoutExpired:
                member.process.send_signal(signal.SIGABRT)
                member.process.wait()
                self.failed.append(f"client {member.name} did not end within {_END_S:g} s: {self._log(member)[-6000:]}")
                continue
            if code:
                self.vanished.add(member.name)
                self.failed.append(f"client {member.name} ended with {code}: {self._log(member)[-2000:]}")

    def histories(self) -> list[Path]:
        """Return the files of all clients there were."""
        return sorted(self.folder.glob(f"*{HISTORY_SUFFIX}"))

    def _log(self, member: _Member) -> str:
        return (self.folder / f"{member.name}.log").read_text(errors="replace")
