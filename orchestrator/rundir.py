"""Where a run lives on disk: private directories, who coordinates, and the locks that keep coordinators apart.

    run_dir/                    0700, one per user
        current.json            the coordinator that `connect` finds
        starter.lock            held while somebody starts one
        <run id>/               0700, one per run: sockets, coordinator.json, and whose it is from the first moment

    /dev/shm/dspool-<uid>/<run id>/<client>/     0700: payloads in shared memory (see bridge.shared_memory)

A directory that is not this user's alone is refused: whoever can write there could answer in the coordinator's place.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from bridge.transport import IPC_PATH_BYTES
from orchestrator.errors import ConfigError, Unavailable

# The memory file system of POSIX shared memory.
SHARED_BASE: Final = "/dev/shm"
_RUN_ID: Final = re.compile(r"[0-9a-f]{32}")
_INFO_FILE: Final = "coordinator.json"
_CURRENT_FILE: Final = "current.json"
# What a socket's path adds to run_dir: two slashes, the run id, a name of up to 16 bytes.
SOCKET_PATH_BYTES: Final = 2 + 32 + 16
# The store in a data directory (`orchestrator.services.store`).
STORE_FILE: Final = "store.sqlite3"
# Pid and start time of the process that made a run directory, until coordinator.json says more.
_OWNER_FILE: Final = "owner"


@dataclass(frozen=True, slots=True)
class CoordinatorInfo:
    """Who coordinates a run. pid and started_ticks together name one process for ever (see `process_ticks`)."""

    run_id: str
    endpoint: str
    pid: int
    started_ticks: int
    version: str
    data_dir: str
    private: bool

    @property
    def alive(self) -> bool:
        """Whether that process still runs."""
        return process_ticks(self.pid) == self.started_ticks


# --- directories ------------------------------------------------------------------------------------


def default_run_dir(environ: Mapping[str, str]) -> Path:
    """Return the user's run directory: DSPOOL_RUN_DIR, else below the login session's own, else below /tmp."""
    if chosen := environ.get("DSPOOL_RUN_DIR"):
        return Path(chosen).expanduser().absolute()
    session = environ.get("XDG_RUNTIME_DIR", "")
    # After `su` or in a container the variable can name another user's directory, or none at all.
    if os.path.isabs(session) and os.path.isdir(session) and os.stat(session).st_uid == os.getuid():
        return Path(session) / "dspool"
    return Path("/tmp") / f"dspool-{os.getuid()}"


def default_data_dir(environ: Mapping[str, str]) -> Path:
    """Return the user's data directory."""
    base = environ.get("XDG_DATA_HOME", "")
    home = environ.get("HOME") or os.path.expanduser("~")
    return (Path(base) if os.path.isabs(base) else Path(home) / ".local" / "share") / "dspool"


def ensure_private(path: str | os.PathLike[str]) -> Path:
    """Return `path` as a directory that only this user can enter; create it (0700) if there is none.

    Raises Unavailable, saying what to do, if it cannot be created or is not private.
    """
    directory = Path(path)
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        directory.mkdir(mode=0o700, exist_ok=True)
    except FileExistsError as exc:
        raise Unavailable(f"{exc.filename} is not a directory: remove it, or name another one") from None
    except OSError as exc:
        raise Unavailable(f"cannot create {directory} ({exc.strerror}): name another directory") from exc
    _check_private(directory)
    return directory


def _check_private(directory: Path) -> None:
    """Raise Unavailable unless it is a real directory of this user, mode 0700. Raises FileNotFoundError."""
    status = directory.lstat()
    if stat.S_ISLNK(status.st_mode):
        raise Unavailable(f"{directory} is a symbolic link: name the directory that it points to")
    if not stat.S_ISDIR(status.st_mode):
        raise Unavailable(f"{directory} is not a directory: remove it, or name another one")
    if status.st_uid != os.getuid():
        raise Unavailable(
            f"{directory} belongs to user id {status.st_uid}, not to you ({os.getuid()}): name another directory"
        )
    if mode := stat.S_IMODE(status.st_mode) & 0o077:
        raise Unavailable(f"{directory} is open to other users (mode bits {mode:03o}): run `chmod 700 {directory}`")


# --- runs -------------------------------------------------------------------------------------------


def new_run(run_dir: str | os.PathLike[str]) -> tuple[str, Path]:
    """Make the directory of a new run; return its id (128 random bits, hex) and its path.

    Raises ConfigError if socket paths in it would be too long for the kernel, Unavailable if run_dir is not private.
    """
    root = ensure_private(run_dir)
    longest = IPC_PATH_BYTES - SOCKET_PATH_BYTES
    if (size := len(os.fsencode(root))) > longest:
        raise ConfigError(f"run_dir is {size} bytes long, sockets need {longest} or less: {root}", path="run_dir")
    run_id = secrets.token_hex(16)
    return run_id, _make(root, run_id)


def new_shared(run_id: str, base: str | os.PathLike[str] = SHARED_BASE) -> tuple[Path, Path] | None:
    """Make the folder in memory of a run, after removing what dead runs left; return its root and its path.

    None where there is no memory file system, or this user's place in it is not private: nothing is shared then.
    """
    if not os.path.ismount(base):
        return None
    try:
        root = ensure_private(Path(base) / f"dspool-{os.getuid()}")
        sweep(root)
        return root, _make(root, run_id)
    except (OSError, Unavailable):
        return None


def _make(root: Path, run_id: str) -> Path:
    directory, hidden = root / run_id, root / f".{run_id}"
    hidden.mkdir(mode=0o700)
    (hidden / _OWNER_FILE).write_text(f"{os.getpid()} {process_ticks(os.getpid())}", encoding="utf-8")
    # Whoever sees the directory can tell whether its process lives: a clock cannot.
    hidden.rename(directory)
    return directory


def publish(run_dir: str | os.PathLike[str], info: CoordinatorInfo) -> None:
    """Write the run's coordinator.json and, unless the run is private, make it the one that `discover` finds."""
    root = Path(run_dir)
    _write(root / info.run_id / _INFO_FILE, info)
    if not info.private:
        _write(root / _CURRENT_FILE, info)


def discover(run_dir: str | os.PathLike[str]) -> CoordinatorInfo | None:
    """Return the coordinator to talk to, or None if none lives.

    Raises Unavailable if run_dir is not private: what stands there could be another user's.
    """
    root = Path(run_dir)
    try:
        _check_private(root)
    except FileNotFoundError:
        return None
    info = _read(root / _CURRENT_FILE)
    return info if info is not None and info.alive else None


def read_info(run_dir: str | os.PathLike[str], run_id: str) -> CoordinatorInfo | None:
    """Return what a run's coordinator wrote about itself, None if nothing readable is there."""
    return _read(Path(run_dir) / run_id / _INFO_FILE)


def end_run(run_dir: str | os.PathLike[str], run_id: str) -> None:
    """Remove a run's directory, and current.json if it names this run."""
    root = Path(run_dir)
    current = _read(root / _CURRENT_FILE)
    if current is not None and current.run_id == run_id:
        (root / _CURRENT_FILE).unlink(missing_ok=True)
    _remove(root / run_id)


def sweep(run_dir: str | os.PathLike[str]) -> list[str]:
    """Remove what dead coordinators left in run_dir; return their run ids."""
    root = Path(run_dir)
    runs = [entry for entry in root.iterdir() if _RUN_ID.fullmatch(entry.name)] if root.is_dir() else []
    return [entry.name for entry in runs if _is_stale(entry) and _remove(entry)]


def process_ticks(pid: int) -> int | None:
    """Return when a process started, in clock ticks since boot; None if no such process runs (a zombie does not)."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The command, in brackets, may hold anything; state is the first field after it, start time the 20th.
            after_command = file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if after_command[0] in (b"Z", b"X") else int(after_command[19])


def _is_stale(directory: Path) -> bool:
    info = _read(directory / _INFO_FILE)
    if info is not None:
        return not info.alive
    try:
        pid, ticks = (directory / _OWNER_FILE).read_text(encoding="utf-8").split()
        return str(process_ticks(int(pid))) != ticks
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return True


def _remove(directory: Path) -> bool:
    # Another sweep may be at the same directory: what counts is that it is gone.
    shutil.rmtree(directory, ignore_errors=True)
    return not directory.exists()


def _write(path: Path, info: CoordinatorInfo) -> None:
    """Write whole or not at all: readers never see half a file."""
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(asdict(info), file)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _read(path: Path) -> CoordinatorInfo | None:
    try:
        data = json.loads(path.read_bytes())
        info = CoordinatorInfo(**{field.name: data[field.name] for field in fields(CoordinatorInfo)})
    except (FileNotFoundError, NotADirectoryError, ValueError, TypeError, KeyError):
        return None
    numbers = isinstance(info.pid, int) and isinstance(info.started_ticks, int)
    return info if numbers and all(isinstance(text, str) for text in (info.run_id, info.endpoint)) else None


# --- locks ------------------------------------------------------------------------------------------


class _FileLock:
    """An flock. The kernel drops it when its holder dies; the file stays, since removing it would race."""

    def __init__(self, path: Path) -> None:
        self.path = path
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            self._fd = os.open(path, flags, 0o600)
        except OSError as exc:
            raise Unavailable(f"cannot open the lock {path} ({exc.strerror})") from exc

    def try_acquire(self) -> bool:
        """Take the lock if it is free, and leave this process's id in the file."""
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, str(os.getpid()).encode(), 0)
        return True

    def holder(self) -> str:
        """Return the process id of the holder, as text."""
        return os.pread(self._fd, 32, 0).decode("ascii", "replace") or "unknown"

    def release(self) -> None:
        """Give the lock back. May be called again."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()


class DataLock(_FileLock):
    """Held by the one coordinator that uses a data directory, from its construction to `release`."""

    def __init__(self, data_dir: str | os.PathLike[str]) -> None:
        directory = ensure_private(data_dir)
        super().__init__(directory / "lock")
        if not self.try_acquire():
            holder = self.holder()
            self.release()
            raise Unavailable(
                f"data_dir {directory} is in use by the coordinator with pid {holder}: "
                "stop it (`dspool down`), or give this one a data_dir of its own"
            )


class StarterLock(_FileLock):
    """Held by the one process that starts a coordinator for a run directory; others wait up to `timeout_s`."""

    def __init__(self, run_dir: str | os.PathLike[str], *, timeout_s: float = 30.0) -> None:
        super().__init__(ensure_private(run_dir) / "starter.lock")
        deadline = time.monotonic() + timeout_s
        while not self.try_acquire():
            if time.monotonic() >= deadline:
                holder = self.holder()
                self.release()
                raise Unavailable(
                    f"process {holder} has been starting a coordinator for more than {timeout_s:g} s: "
                    f"see {self.path.parent}/coordinator.log, or run `dspool up`"
                )
            time.sleep(0.02)
