"""One coordinator after the other: whoever dies has a successor on the same folders, and leaves nothing else."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from orchestrator.chaos.load import ENDPOINT_FILE
from orchestrator.owner import Orchestrator
from orchestrator.processes import Process, descendants, of_run, process, survivors

if TYPE_CHECKING:
    from orchestrator.client.client import Client

# All that a dead coordinator started is gone so much later.
GONE_S: Final = 2.0
_READY_S: Final = 30.0
_POLL_S: Final = 0.02
_ZYGOTE: Final = re.compile(r"of-run-[0-9a-f]{32}$")


class Realm:
    """Keeps a coordinator running in a folder, and knows its processes. A context manager: leaving it ends all."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        """settings: as of `Orchestrator(**settings)`; `run_dir` and `data_dir` are the folder's."""
        self._folder = folder
        self._settings = {**settings, "run_dir": folder / "r", "data_dir": folder / "d"}
        self.reigns = 0
        self.left: list[str] = []
        self._crown()

    def _crown(self) -> None:
        self._orchestrator = Orchestrator(**self._settings).start()
        self._family: dict[int, Process] = {}
        self.reigns += 1
        endpoint = self._folder / ENDPOINT_FILE
        part = endpoint.with_suffix(".part")
        part.write_text(self._orchestrator.endpoint)
        part.replace(endpoint)

    def __enter__(self) -> Realm:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    @property
    def pid(self) -> int:
        """The coordinator's."""
        return self._orchestrator.pid

    @property
    def endpoint(self) -> str:
        """Where it listens."""
        return self._orchestrator.endpoint

    @property
    def log(self) -> str:
        """What the coordinator has written about itself; empty once its file is gone."""
        file = self._orchestrator.log_file
        return file.read_text(errors="replace") if file.exists() else ""

    @property
    def alive(self) -> bool:
        """Whether the coordinator runs."""
        return process(self.pid) is not None

    def client(self) -> Client:
        """Return a new client of the coordinator that runs now."""
        return self._orchestrator.client()

    def kill(self) -> None:
        """SIGKILL the coordinator."""
        if (victim := process(self.pid)) is not None:
            victim.signal(signal.SIGKILL)

    def end(self) -> None:
        """Stop the coordinator. Raises DspoolError if a process is left."""
        self._orchestrator.stop()

    def note(self) -> None:
        """Remember who is below the coordinator, so that their absence can be proved when it has died."""
        self._family = {each.pid: each for each in descendants(self.pid)}

    def restore(self) -> bool:
        """Where the coordinator is dead, start another; return whether it was.

        What is left of the dead one GONE_S later goes to `left`.
        """
        if self.alive:
            return False
        dead = self._orchestrator
        run_dir = dead.run_dir
        family = {**self._family, **{each.pid: each for each in of_run(run_dir.name)}}
        self.left += [f"outlived its coordinator: {each}" for each in survivors(family.values(), GONE_S)]
        self._crown()
        if run_dir.exists():
            self.left.append(f"the folder of a dead run: {run_dir}")
        dead.stop()
        return True

    def await_full(self, client: Client) -> None:
        """Wait until every pool has all its workers, and nothing is under way. Raises TimeoutError."""
        until = time.monotonic() + _READY_S
        while time.monotonic() < until:
            stats = client.stats()
            requests = stats["requests"]
            full = all(pool["ready"] == pool["size"] for pool in stats["pools"].values())
            if full and requests["queued"] + requests["in_flight"] == 0 and len(self.workers()) == _size(stats):
                return
            time.sleep(_POLL_S)
        raise TimeoutError(f"the pools were not full and idle within {_READY_S:g} s: {stats}")

    # --- its processes ------------------------------------------------------------------------------

    def workers(self) -> list[Process]:
        """Return the workers, the oldest first."""
        return sorted(of_run(self._orchestrator.run_dir.name), key=lambda each: (each.started_ticks, each.pid))

    def zygotes(self) -> list[Process]:
        """Return the zygotes, the oldest first."""
        found = [each for each in descendants(self.pid) if _ZYGOTE.search(each.command)]
        return sorted(found, key=lambda each: (each.started_ticks, each.pid))

    def nannies(self) -> list[Process]:
        """Return the nanny: one, or none while there is a new one to come."""
        return [each for each in descendants(self.pid) if "nanny.py" in each.command]

    def stopped(self) -> list[Process]:
        """Return those that a signal has stopped."""
        own = process(self.pid)
        return [each for each in [*([own] if own else []), *descendants(self.pid)] if is_stopped(each.pid)]


def is_stopped(pid: int) -> bool:
    """Return whether a process is stopped by a signal."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0] == "T"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _size(stats: Mapping[str, Any]) -> int:
    return sum(pool["size"] for pool in stats["pools"].values())


def signal_by_rank(victims: list[Process], rank: int, number: int) -> Process | None:
    """Signal one of them; return which, None where there is none."""
    if not victims:
        return None
    victim = victims[rank % len(victims)]
    victim.signal(number)
    return victim
