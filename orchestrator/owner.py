"""`Orchestrator`: a coordinator of one's own, from start to a proven end."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import weakref
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from orchestrator.boot import START_TIMEOUT_S, Bound, Starting, configured
from orchestrator.client.aio import AsyncClient
from orchestrator.client.client import Client
from orchestrator.client.core import Connection
from orchestrator.errors import ConfigError, DspoolError, Unavailable
from orchestrator.processes import OWNER_FILE, claim, descendants, is_orphaned, of_run, survivors

DRAIN_S: Final = 5.0
# From SIGTERM to SIGKILL: the drain, and time to cancel and reap what is left.
STOP_TIMEOUT_S: Final = 10.0
# What a killed coordinator leaves ends by itself.
_GONE_TIMEOUT_S: Final = 5.0
_PREFIX: Final = "dspool-"
# Longer paths leave no room for a run id and a socket's name in the kernel's 107 bytes.
_MAX_TEMP_PATH_BYTES: Final = 30


class Orchestrator:
    """A private coordinator with its worker pools, for as long as the `with` block lasts.

    config: a configuration file, None to look for one. overrides: as in the file, `pools={"general": {"size": 4}}`.
    It has a run directory and a data directory of its own unless they are given. If this process dies, so does it.

    Entering waits until every pool is ready and raises what went wrong otherwise; leaving lets accepted work finish for
    5 s, cancels the rest, and raises DspoolError if a process is left.
    """

    def __init__(self, config: str | os.PathLike[str] | None = None, **overrides: Any) -> None:
        if config is not None and not isinstance(config, str | os.PathLike):
            raise ConfigError(f"config must be the path of a file, got {type(config).__name__}", path="config")
        self._config = config
        self._overrides = overrides
        self._lock = threading.Lock()
        self._starting: Starting | None = None
        self._bound: Bound | None = None
        self._home: Path | None = None
        self._clients: weakref.WeakSet[Connection] = weakref.WeakSet()
        self._owner_pid = 0  # who started it: a fork's copy stops nothing

    # --- start --------------------------------------------------------------------------------

    def start(self) -> Self:
        """Start; what `with` does. Raises ConfigError, Unavailable, or the error of the pool that did not come up."""
        with self._lock:
            if self._starting is not None:
                raise DspoolError("this Orchestrator has been started already")
            self._owner_pid = os.getpid()
            self._home = _make_home()
            atexit.register(self.stop)
            try:
                self._start(time.monotonic() + START_TIMEOUT_S)
            except BaseException:
                self._end(drain=False)
                raise
        return self

    def _start(self, until: float) -> None:
        assert self._home is not None
        overrides = {"run_dir": self._home / "run", **self._overrides}
        if "data_dir" not in overrides and configured("data_dir", self._config) is None:
            overrides["data_dir"] = self._home / "data"
        order = {
            "config": None if self._config is None else os.path.abspath(os.fspath(self._config)),
            "overrides": overrides,
            "private": True,
            "drain_s": DRAIN_S,
            "owner_pid": os.getpid(),
        }
        self._starting = Starting(order, self._home / "coordinator.log", detached=False)
        self._bound = self._starting.bound(until)
        self._starting.ready(until)
        self._starting.close()

    # --- use ----------------------------------------------------------------------------------

    @property
    def endpoint(self) -> str:
        """Where the coordinator listens; `connect(endpoint)` works from any process of this user."""
        return self._running().endpoint

    @property
    def pid(self) -> int:
        """The coordinator's process id."""
        return self._running().pid

    @property
    def run_dir(self) -> Path:
        """The directory of this run: sockets, coordinator.json."""
        return Path(self._running().directory)

    @property
    def log_file(self) -> Path:
        """What the coordinator writes about itself; gone after the end."""
        self._running()
        assert self._home is not None
        return self._home / "coordinator.log"

    def client(self, *, principal: str = "default") -> Client:
        """Return a new client."""
        bound = self._running()
        client = Client(bound.endpoint, principal=principal, run_id=bound.run_id)
        self._clients.add(client.connection)
        return client

    def async_client(self, *, principal: str = "default") -> AsyncClient:
        """Return a new client for asyncio."""
        bound = self._running()
        client = AsyncClient(bound.endpoint, principal=principal, run_id=bound.run_id)
        self._clients.add(client.connection)
        return client

    def _running(self) -> Bound:
        if self._bound is None:
            raise Unavailable("this Orchestrator does not run: use it in a `with` block, or call start()")
        return self._bound

    # --- the end ------------------------------------------------------------------------------

    def stop(self) -> None:
        """Stop; what leaving `with` does. May be called again. Raises DspoolError if a process is left."""
        if os.getpid() != self._owner_pid:
            return  # a fork of the owner does not own it
        with self._lock:
            self._end(drain=True)

    def _end(self, *, drain: bool) -> None:
        starting, bound, home = self._starting, self._bound, self._home
        self._starting = self._bound = self._home = None
        atexit.unregister(self.stop)
        try:
            if starting is not None:
                _stop(starting, bound, drain=drain)
            for connection in list(self._clients):
                connection.close()
        finally:
            # A coordinator that was killed has left its run directory, which need not be in the home.
            for path in [home, *([] if bound is None else [bound.directory])]:
                if path is not None:
                    shutil.rmtree(path, ignore_errors=True)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()


def _stop(starting: Starting, bound: Bound | None, *, drain: bool) -> None:
    """End a coordinator and prove it."""
    process = starting.process
    family = descendants(process.pid)
    starting.close()
    if drain:
        process.send_signal(signal.SIGTERM)
    else:
        starting.let_go()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    finally:
        starting.let_go()
    left = survivors(family, _GONE_TIMEOUT_S)
    # A worker that came up meanwhile is no member of the family; its command line tells the run.
    if left := left or ([] if bound is None else survivors(of_run(bound.run_id), _GONE_TIMEOUT_S)):
        names = "".join(f"\n  {each}" for each in left)
        raise DspoolError(f"processes of the run are left {_GONE_TIMEOUT_S:g} s after its coordinator ended:{names}")


# --- the temporary directory ------------------------------------------------------------------


def _make_home() -> Path:
    """Make this run's temporary directory; remove those whose owner was killed."""
    base = tempfile.gettempdir()
    if len(os.fsencode(base)) > _MAX_TEMP_PATH_BYTES:
        base = "/tmp"
    for file in Path(base).glob(f"{_PREFIX}*/{OWNER_FILE}"):
        if is_orphaned(file.parent):
            shutil.rmtree(file.parent, ignore_errors=True)
    home = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=base))
    claim(home)
    return home
