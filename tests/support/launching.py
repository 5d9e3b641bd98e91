"""Workers that run small scripts below a real launcher, for tests of how they live and die."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pools.launch.command import PACKAGES_ROOT, ChildFds, Command
from pools.launch.launcher import Launched, LauncherEvent, LaunchFailed, LaunchSpec, Reaped, ZygoteSpec
from pools.launch.nanny import children
from pools.launch.spawn import SpawnLauncher
from pools.launch.zygote import ZygoteLauncher
from tests.support.waiting import wait_until

WAIT_S = 10.0

# What the scripts have in common. `note(name)` says a pid to the test; `stay()` lives until the lifeline's EOF.
PRELUDE = """
import os, signal, sys, time, select
folder = sys.argv[1]
def note(name):
    with open(f"{folder}/{name}.part", "w") as file: file.write(str(os.getpid()))
    os.rename(f"{folder}/{name}.part", f"{folder}/{name}")
def stay():
    select.select([5], [], []); os._exit(9)
"""
SLEEPER = "note(me); time.sleep(600)"
# A child in a session of its own that hears nothing of lifelines, and a daemon whose parent is gone.
BREEDER = """
if os.fork() == 0:
    os.setsid(); signal.signal(signal.SIGTERM, signal.SIG_IGN); note(me + '-session'); time.sleep(600)
note(me); time.sleep(600)
"""


NO_PRELOAD = ZygoteSpec("pool")
LAUNCHERS = ("spawn", "zygote")
# A root zygote whose workers run scripts: what a spawned one has as `-c script folder`.
_ZYGOTE = f"""
import sys
sys.path.insert(0, {str(PACKAGES_ROOT)!r})
from bridge.worker.zygote import main
def work(words):
    sys.argv = ["-c", words[-1]]
    exec(words[-2], {{"__name__": "__main__"}})
    return 0
main(prepare=lambda: None, work=work)
"""


def zygote_command(spec: LaunchSpec, fds: ChildFds) -> list[str]:
    """Return the command of a root zygote whose workers run scripts."""
    words = ["--spec-fd", str(fds.spec), "--slots-fd", str(fds.slots), "--lifeline-fd", str(fds.lifeline)]
    return [spec.python, "-S", "-c", _ZYGOTE, *words, "--control-fd", str(fds.control)]


def open_launcher(kind: str, command: Command, **options: Any) -> SpawnLauncher:
    """Return a launcher of one of LAUNCHERS whose workers run `command`: `[python, options…, script, folder]`."""
    if kind == "spawn":
        return SpawnLauncher("test-run", command=command)
    env = dict(os.environ)
    return ZygoteLauncher("test-run", env=env, command=command, forked=command, zygote=zygote_command, **options)


def alive(pid: int) -> bool:
    """Return whether a process runs: a zombie does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


class Stage:
    """A launcher whose workers run small scripts, forked ones where it is a `zygote` launcher."""

    def __init__(self, folder: Path, kind: str, **options: Any) -> None:
        self.folder = folder
        self.scripts: dict[str, str] = {}
        self.events: list[LauncherEvent] = []
        self.launcher = open_launcher(kind, self._command, **options)
        self.slots_fd = os.memfd_create("slots")
        os.ftruncate(self.slots_fd, 4096)

    def _command(self, spec: LaunchSpec, fds: ChildFds) -> list[str]:
        script = f"{PRELUDE}\nme = {spec.worker_id!r}\n{textwrap.dedent(self.scripts[spec.worker_id])}"
        return [spec.python, "-S", "-c", script, str(self.folder)]

    def launch(
        self, worker_id: str, script: str, python: str = sys.executable, zygote: ZygoteSpec = NO_PRELOAD
    ) -> None:
        """Begin to run `PRELUDE`, `me` (the worker's id) and `script` as a worker."""
        self.scripts[worker_id] = script
        spec = LaunchSpec(worker_id, python, b"the spec", self.slots_fd, dict(os.environ), zygote)
        self.launcher.launch(spec)

    def wait_for(self, wanted: Callable[[LauncherEvent], bool], timeout_s: float = WAIT_S) -> LauncherEvent:
        """Poll when the launcher's descriptor says so; return the first event ever that is wanted."""
        deadline = time.monotonic() + timeout_s
        waiter = select.poll()
        waiter.register(self.launcher.fileno(), select.POLLIN)
        while not (found := [event for event in self.events if wanted(event)]):
            left_s = deadline - time.monotonic()
            assert left_s > 0, f"no such event; there were {self.events}; {[*self.scripts]}"
            waiter.poll(left_s * 1000)
            self.events += self.launcher.poll()
        return found[0]

    def wait_until(self, predicate: Callable[[], bool], timeout_s: float, what: str) -> None:
        """Wait for something that the launcher brings about, polling it meanwhile."""

        def turn() -> bool:
            self.events += self.launcher.poll()
            return predicate()

        wait_until(turn, timeout_s, what)

    def reaped(self, worker_id: str) -> Reaped:
        """Wait for a worker's burial."""
        event = self.wait_for(lambda event: isinstance(event, Reaped) and event.worker_id == worker_id)
        assert isinstance(event, Reaped)
        return event

    def launched(self, worker_id: str) -> int:
        """Wait until a worker exists; return its pid."""
        event = self.wait_for(lambda event: isinstance(event, Launched) and event.worker_id == worker_id)
        assert isinstance(event, Launched)
        return event.pid

    def pid(self, name: str) -> int:
        """Wait for a script's `note(name)`, polling the launcher meanwhile; return the pid."""
        self.wait_until((self.folder / name).exists, WAIT_S, f"{name} to come up")
        return noted(self.folder, name)

    def ended(self, worker_id: str) -> None:
        """Wait until nothing more is to come of a worker."""
        self.wait_for(lambda event: isinstance(event, Reaped | LaunchFailed) and event.worker_id == worker_id)

    def of(self, worker_id: str) -> list[str]:
        """Return the names of a worker's events so far."""
        return [type(event).__name__ for event in self.events if getattr(event, "worker_id", None) == worker_id]


def noted(folder: Path, name: str) -> int:
    """Wait for a script's `note(name)`; return the pid."""
    wait_until((folder / name).exists, WAIT_S, f"{name} to come up")
    return int((folder / name).read_text())


def nanny_pid(dead: int = 0) -> int:
    """Return the pid of this process' only nanny. dead: one that was killed, and may not be gone yet."""

    def found() -> list[int]:
        return [pid for pid in children() if pid != dead and b"nanny.py" in Path(f"/proc/{pid}/cmdline").read_bytes()]

    # A process that is just being executed has no command line for a moment.
    return wait_until(found, WAIT_S, "the nanny")[0]


@contextlib.contextmanager
def a_stage(folder: Path, kind: str, **options: Any) -> Iterator[Stage]:
    """Give a stage and close its launcher."""
    stage = Stage(folder, kind, **options)
    with contextlib.closing(stage.launcher):
        yield stage
    os.close(stage.slots_fd)
