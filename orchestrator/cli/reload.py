"""`dspool up --reload`: programs are deployed again when a file changes that they are made of."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from bridge.worker.sources import files
from orchestrator.cli.plain import milliseconds
from orchestrator.errors import Cancelled, DspoolError, InvalidRequest, NotFound, RemoteError

if TYPE_CHECKING:
    from orchestrator.client.client import Client
    from orchestrator.config.settings import ProgramConfig

# How often the files are looked at, and how often it is asked which programs and files there are.
_LOOK_S: Final = 0.25
_ASK_S: Final = 2.0
_JOIN_S: Final = 5.0
_NOTE: Final = "reloaded"

# What tells one content of a file from another without reading it: (time of change, size, inode), None = it is gone.
Mark = tuple[int, int, int] | None
Say = Callable[[str], None]


@dataclass
class _Watched:
    """A program. marks: of its files as of its last deployment; moving: as last seen, if they are others by now."""

    source: Mapping[str, Any]  # target, pool, config; state: the file of a configured one
    marks: dict[str, Mark] = field(default_factory=dict)
    moving: dict[str, Mark] | None = None
    again: bool = False  # a deployment failed, which may succeed without a change


class Reloader:
    """Watches the files of the programs that are deployed, and of those in the configuration; deploys what changed.

    python_path: as configured. say: told of each deployment, and with the traceback why one failed; the version that
    was live stays so. Programs that were deployed from what the files were before are deployed at the first look.
    """

    def __init__(
        self, client: Client, python_path: Sequence[str | Path], configured: Mapping[str, ProgramConfig], say: Say
    ) -> None:
        self._client = client
        self._python_path = list(python_path)
        self._configured = {name: one.for_services() for name, one in configured.items()}
        self._say = say
        self._programs: dict[str, _Watched] = {}
        self._ask_at = 0.0
        self._is_first = True

    def run(self, stop: threading.Event) -> None:
        """Look until told to stop, or until the client is closed or its coordinator ends."""
        problem = ""
        while not stop.is_set() and not self._client.connection.ended:
            try:
                self.look(time.monotonic())
                problem = ""
            except DspoolError as error:
                if not self._client.connection.ended and not isinstance(error, Cancelled) and error.message != problem:
                    problem = error.message
                    self._say(f"reload: {problem}")
            stop.wait(_LOOK_S)

    def look(self, now: float) -> None:
        """Look at the files once; deploy what has changed and is written to the end. Raises DspoolError."""
        if now >= self._ask_at:
            self._ask()
            self._ask_at = now + _ASK_S
        for name, program in list(self._programs.items()):
            marks = {file: _mark(file) for file in program.marks}
            if marks == program.marks and not program.again:
                program.moving = None
            elif marks != program.moving and not program.again:
                program.moving = marks  # it may be written just now
            else:
                program.again, program.moving = False, None
                program.marks = self._marks(program.source)
                self._deploy(name, program)

    def _ask(self) -> None:
        """Find out which programs there are, and of which files they are made."""
        sources: dict[str, Mapping[str, Any]] = dict(self._configured)
        if self._configured or self._client.stats()["services"]["state"] != "off":
            for row in self._client.programs():
                if "live" in row["aliases"] and row["target"] != sources.get(row["name"], {}).get("target"):
                    sources[row["name"]] = {key: row[key] for key in ("target", "pool", "config")}
        for name in self._programs.keys() - sources.keys():
            del self._programs[name]
        for name, source in sources.items():
            known = self._programs.get(name)
            if known is None or known.source != source:
                marks = self._marks(source)
                self._programs[name] = _Watched(source, marks, again=self._is_first and bool(marks))
            elif known.moving is None:
                for file in self._marks(source).keys() - known.marks.keys():
                    known.marks[file] = None  # it is new: a change
        self._is_first = False

    def _marks(self, source: Mapping[str, Any]) -> dict[str, Mark]:
        found = [str(file) for file in files(source["target"], self._python_path)]
        if source.get("state"):
            found.append(source["state"])
        return {file: _mark(file) for file in found}

    def _deploy(self, name: str, program: _Watched) -> None:
        source, began = program.source, time.monotonic()
        try:
            found = self._client.deploy(
                name, source["target"], pool=source["pool"], state=self._state(name, source), config=source["config"],
                note=_NOTE,
            )  # fmt: skip
        except Cancelled:
            raise
        except DspoolError as error:
            if self._client.connection.ended:
                raise
            program.again = error.retryable
            if not error.retryable:
                trace = error.remote_traceback.rstrip() + "\n" if isinstance(error, RemoteError) else ""
                self._say(f"{trace}{name}: not reloaded, what was live stays: {error.message}")
            return
        if found.created:
            took_ms = (time.monotonic() - began) * 1000.0
            self._say(f"{name}: version {found.version} is live ({milliseconds(took_ms)} ms)")

    def _state(self, name: str, source: Mapping[str, Any]) -> Any:
        """Return the state that the new version is to have: of its file, else of the live one. Raises DspoolError."""
        path = source.get("state")
        if path:
            try:
                return json.loads(Path(path).read_bytes())
            except (OSError, ValueError, RecursionError) as exc:
                raise InvalidRequest(f"{path} cannot be read: {exc}", path="state") from exc
        try:
            return self._client.program_version(name)["state"]
        except NotFound:  # a configured one that could not be deployed so far
            return None


def _mark(file: str) -> Mark:
    try:
        status = os.stat(file)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


@contextmanager
def reloading(
    client: Client, python_path: Sequence[str | Path], configured: Mapping[str, ProgramConfig], say: Say
) -> Iterator[None]:
    """Reload programs while the block lasts. The client is closed at its end."""
    stop = threading.Event()
    reloader = Reloader(client, python_path, configured, say)
    thread = threading.Thread(target=reloader.run, args=(stop,), name="reload", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        client.close()
        thread.join(_JOIN_S)
