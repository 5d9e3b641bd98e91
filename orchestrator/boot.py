"""Starting a coordinator's process and hearing how its start goes."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bridge.protocol.errors import BridgeError
from orchestrator.errors import ConfigError, Unavailable, from_bridge
from orchestrator.rundir import default_data_dir, default_run_dir
from pools.launch.command import FIND_PACKAGES, PACKAGES_ROOT

# Importing dspy in every worker of a slow, busy machine.
START_TIMEOUT_S: Final = 120.0
_LOG_TAIL_BYTES: Final = 4000

_BOOT: Final = (
    FIND_PACKAGES
    + """
from orchestrator.coordinator.__main__ import main
sys.exit(main())
"""
)
# What the starter of a detached coordinator says on its lifeline before it closes it.
COMMIT: Final = b"!"
# A detached coordinator is nobody's child: it leaves no zombie in the process that started it.
_DETACH: Final = """
import os
if os.fork():
    os._exit(0)
"""


@dataclass(frozen=True, slots=True)
class Bound:
    """Where a starting coordinator can be reached. directory: of its run."""

    endpoint: str
    pid: int
    run_id: str
    directory: str


class Starting:
    """A coordinator that starts. lifeline_fd: the end whose closing tells it that its owner is gone, -1 once closed.

    A detached one is owned like any other until `commit`: a start that is broken off leaves nothing behind.
    """

    def __init__(self, order: Mapping[str, Any], log: Path | None, *, detached: bool) -> None:
        """Start a process for `order` (see coordinator.__main__.StartOrder).

        log: the file that its output goes to; None = where this process' own goes.
        """
        self._log = log
        self._lines = b""
        self.lifeline_fd = -1
        self._ready_fd, ready_end = os.pipe2(os.O_CLOEXEC)
        spec_fd = os.memfd_create("dspool-order", os.MFD_CLOEXEC)
        lifeline_end, self.lifeline_fd = os.pipe2(os.O_CLOEXEC)
        passed = [spec_fd, ready_end, lifeline_end]
        arguments = ["--spec-fd", str(spec_fd), "--ready-fd", str(ready_end), "--lifeline-fd", str(lifeline_end)]
        try:
            os.write(spec_fd, _encoded(order))
            self.process = self._spawn((_DETACH if detached else "") + _BOOT, arguments, passed)
            if detached:
                self.process.wait()
        except BaseException:
            self.close()
            self.let_go()
            raise
        finally:
            for fd in passed:
                os.close(fd)

    def _spawn(self, code: str, arguments: list[str], passed: list[int]) -> subprocess.Popen[bytes]:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        output = None if self._log is None else os.open(self._log, flags, 0o600)
        try:
            return subprocess.Popen(
                [sys.executable, "-P", "-c", code, str(PACKAGES_ROOT), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=passed,
                start_new_session=True,  # Ctrl-C in the owner's terminal is the owner's business
            )
        finally:
            if output is not None:
                os.close(output)

    def bound(self, until: float) -> Bound:
        """Wait until it listens. Raises its error, or Unavailable if it dies or takes too long."""
        event = self._event(until)
        return Bound(event["endpoint"], event["pid"], event["run_id"], event["run_dir"])

    def ready(self, until: float) -> None:
        """Wait until every pool is ready. Raises as `bound`."""
        self._event(until)

    def tells(self, timeout_s: float) -> bool:
        """Wait `timeout_s` seconds at most; return whether `bound` or `ready` would return or raise at once."""
        if b"\n" in self._lines:
            return True
        poller = select.poll()
        poller.register(self._ready_fd, select.POLLIN)
        return bool(poller.poll(timeout_s * 1000))

    def _event(self, until: float) -> dict[str, Any]:
        poller = select.poll()
        poller.register(self._ready_fd, select.POLLIN)
        while b"\n" not in self._lines:
            remaining_s = until - time.monotonic()
            if remaining_s <= 0 or not poller.poll(remaining_s * 1000):
                raise Unavailable(f"the coordinator did not start in time{self._tail()}")
            data = os.read(self._ready_fd, 65536)
            if not data:
                raise Unavailable(f"the coordinator died while starting{self._tail()}")
            self._lines += data
        line, _, self._lines = self._lines.partition(b"\n")
        event: dict[str, Any] = json.loads(line)
        if event["event"] == "error":
            raise from_bridge(BridgeError(event["code"], event["message"], details=event.get("details") or {}))
        return event

    def _tail(self) -> str:
        if self._log is None:
            return ""
        try:
            tail = self._log.read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace")
        except OSError as exc:
            tail = f"({exc.strerror})"
        return f"; its log {self._log} ends:\n{tail}"

    def close(self) -> None:
        """Listen no more. The lifeline stays."""
        if self._ready_fd >= 0:
            os.close(self._ready_fd)
            self._ready_fd = -1

    def commit(self) -> None:
        """Let the coordinator stay when this process has gone. One that is gone itself is not missed."""
        with contextlib.suppress(BrokenPipeError):
            os.write(self.lifeline_fd, COMMIT)
        self.let_go()

    def let_go(self) -> None:
        """Close the lifeline: the coordinator stops at once if it still runs, unless `commit` came first."""
        if self.lifeline_fd >= 0:
            os.close(self.lifeline_fd)
            self.lifeline_fd = -1


def _encoded(order: Mapping[str, Any]) -> bytes:
    """Return the order as JSON. Raises ConfigError that names the override which is no plain data."""
    try:
        return json.dumps(order, default=_path_text).encode()
    except (TypeError, ValueError, RecursionError) as exc:
        where, problem = _misfit(order["overrides"], "", exc)
        text = f"override: {where}: {problem}; a configuration holds mappings, lists, texts, numbers and booleans"
        raise ConfigError(
            f"a problem in the configuration:\n  {text}", path=where,
            problems=[{"where": "override", "path": where, "message": problem}],
        ) from None  # fmt: skip


def _path_text(value: Any) -> str:
    if isinstance(value, os.PathLike):
        return os.fsdecode(value)
    raise TypeError(f"is of type {type(value).__name__}")


def _misfit(value: Any, path: str, exc: Exception) -> tuple[str, str]:
    """Return the path to the innermost part that JSON has no form for, and why."""
    steps = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for step, part in steps:
        try:
            json.dumps(part, default=_path_text)
        except RecursionError:
            return f"{path}.{step}".lstrip("."), "is nested too deep"
        except (TypeError, ValueError) as problem:
            return _misfit(part, f"{path}.{step}".lstrip("."), problem)
    return path, str(exc)


def configured(key: str, config: str | os.PathLike[str] | None = None) -> Path | None:
    """Return `data_dir` or `run_dir` if the environment or the configuration file names one, else None.

    Raises ConfigError if the file is wrong: what it meant to say about the directory is unknown.
    """
    if value := os.environ.get(f"DSPOOL_{key.upper()}"):
        return Path(value).expanduser().absolute()
    file = Path(config or os.environ.get("DSPOOL_CONFIG") or "dspool.yaml").expanduser()
    if not file.is_file():
        return None
    from orchestrator.config import load

    settings = load(file)
    directory: Path = getattr(settings, key)
    default = default_data_dir if key == "data_dir" else default_run_dir
    return None if directory == default(os.environ) else directory
