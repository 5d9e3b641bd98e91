"""What `dspool doctor` looks at. Each check looks, changes nothing, and says what to do."""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import select
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from orchestrator.cli.plain import mebibytes
from orchestrator.errors import ConfigError, DspoolError
from orchestrator.processes import OWNER_FILE, Process, is_orphaned, orphans, survivors
from orchestrator.rundir import SOCKET_PATH_BYTES, end_run, ensure_private, process_ticks, read_info
from pools.launch.cgroup import PIDS_BASE, PIDS_PER_SLOT, find_group, left_behind, survey, sweep

if TYPE_CHECKING:
    from orchestrator.config import Settings

OK: Final = "ok"
NOTE: Final = "note"
FAIL: Final = "fail"

_PYTHON: Final = (3, 11)
_LIBZMQ: Final = (4, 3, 5)
_MIN_MEMORY_BYTES: Final = 1 << 30
_MEMORY_PER_WORKER_BYTES: Final = 200 << 20  # what dspy and its imports take
_MIN_FILES: Final = 1024
_FILES_PER_WORKER: Final = 8
_PR_GET_CHILD_SUBREAPER: Final = 37
_RUN_ID_CHARS: Final = 32
_END_TIMEOUT_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found. status: ok, note (works, with less) or fail. advice: what to do, if anything."""

    check: str
    status: str
    found: str
    advice: str = ""


def machine() -> Iterator[Finding]:
    """Check interpreter, libraries and the kernel's abilities."""
    version = platform.python_version()
    enough = sys.version_info[:2] >= _PYTHON
    yield _finding("Python", enough, f"{version} ({sys.executable})", "dspool needs Python 3.11 or newer")
    system = f"{platform.system()} {platform.release()}"
    yield _finding("system", sys.platform == "linux", system, "dspool runs on Linux")
    for name in ("dspy", "pyzmq", "msgpack", "msgspec", "pydantic"):
        yield _distribution(name)
    yield _libzmq()
    yield _finding("pidfd", hasattr(os, "pidfd_open") and _works(_open_pidfd), "pidfd_open", "needs Linux 5.3 or newer")
    yield _finding(
        "memfd", hasattr(os, "memfd_create") and _works(_make_memfd), "memfd_create", "needs Linux 3.17 or newer"
    )
    yield _finding("subreaper", _works(_ask_subreaper), "PR_SET_CHILD_SUBREAPER", "needs Linux 3.4 or newer")


def cgroups(told: Mapping[str, Any] | None) -> Finding:
    """Say which limits the kernel holds workers to. told: what the running coordinator says; None = look from here."""
    if told is None:
        found = survey({os.getpid()})
        told = {"folder": None, "why": found.why, "advice": found.advice, "unconfined": {}}
        where = "" if found.group is None else str(found.group.folder)
    else:
        where = told["folder"] or ""
    if told["why"]:
        return Finding("cgroups", NOTE, f"workers run without limits of their own: {told['why']}", told["advice"] or "")
    pids = f"at most {PIDS_BASE} processes and threads and {PIDS_PER_SLOT} more for each slot (pids.max)"
    limits = f"{pids}, twice its memory_limit_mb (memory.max)"
    if told["unconfined"]:
        without = "; ".join(f"{name}: {error}" for name, error in sorted(told["unconfined"].items()))
        return Finding("cgroups", NOTE, f"a worker has {limits}, but not {without}", "dspool restart WORKER")
    return Finding("cgroups", OK, f"every worker has {limits} (in {where})")


def capacity(workers: int) -> Iterator[Finding]:
    """Check cores, memory and descriptors against the configured number of workers."""
    import psutil

    cores, memory = len(os.sched_getaffinity(0)), psutil.virtual_memory()
    status = OK if workers <= 2 * cores + 2 else NOTE
    yield Finding(
        "cores",
        status,
        f"{cores} usable, up to {workers} workers configured",
        "" if status == OK else "lower the pools' size",
    )
    needed = max(_MIN_MEMORY_BYTES, workers * _MEMORY_PER_WORKER_BYTES)
    status = OK if memory.available >= needed else NOTE
    advice = "" if status == OK else f"{workers} workers take about {mebibytes(needed)} MiB"
    yield Finding("memory", status, f"{mebibytes(memory.available)} of {mebibytes(memory.total)} MiB available", advice)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MIN_FILES + workers * _FILES_PER_WORKER
    enough = soft == resource.RLIM_INFINITY or soft >= wanted
    yield Finding(
        "open files", OK if enough else NOTE, f"limit {soft} (hard {hard})", "" if enough else f"ulimit -n {wanted}"
    )


def configuration(load: Callable[[], Settings]) -> tuple[Settings | None, Finding]:
    """Check the configuration; return it too if it is valid."""
    try:
        settings = load()
    except ConfigError as error:
        return None, Finding("configuration", FAIL, error.message, "dspool config check")
    return settings, Finding("configuration", OK, str(settings.file or "built in (no file)"))


def directories(settings: Settings) -> Iterator[Finding]:
    """Check run_dir and data_dir."""
    from bridge.transport import IPC_PATH_BYTES

    for name, path in (("run_dir", settings.run_dir), ("data_dir", settings.data_dir)):
        yield _directory(name, path)
    size = len(os.fsencode(settings.run_dir)) + SOCKET_PATH_BYTES
    yield _finding(
        "socket paths", size <= IPC_PATH_BYTES, f"up to {size} of {IPC_PATH_BYTES} bytes", "choose a shorter run_dir"
    )


def _directory(name: str, path: Path) -> Finding:
    try:
        # An existing one only: looking must not create it.
        if path.is_symlink() or path.exists():
            ensure_private(path)
            return Finding(name, OK, f"{path} is private to you")
    except DspoolError as error:
        return Finding(name, FAIL, str(path), error.message)
    parent = next(each for each in path.parents if each.exists())
    writable = os.access(parent, os.W_OK | os.X_OK)
    return _finding(name, writable, f"{path} will be made", f"{parent} is not writable: name another {name}")


# --- what dead runs left ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Leftovers:
    """What belongs to the dead.

    runs: ids in run_dir; homes: folders of an `Orchestrator`; processes: workers without a nanny; groups: folders of
    control groups.
    """

    run_dir: Path
    runs: list[str]
    homes: list[Path]
    processes: list[Process]
    groups: list[Path]

    def __bool__(self) -> bool:
        return bool(self.runs or self.homes or self.processes or self.groups)

    def remove(self) -> None:
        """Remove everything."""
        for each in self.processes:
            each.signal(signal.SIGKILL)
        survivors(self.processes, _END_TIMEOUT_S)
        sweep(self.groups)
        for run_id in self.runs:
            end_run(self.run_dir, run_id)
        for home in self.homes:
            shutil.rmtree(home)


def leftovers(run_dir: Path) -> Leftovers:
    """Look for what dead coordinators and dead owners of an `Orchestrator` left."""
    places = {Path(tempfile.gettempdir()), Path("/tmp")}
    folders = [owner.parent for place in places for owner in place.glob(f"dspool-*/{OWNER_FILE}")]
    homes = sorted(folder for folder in folders if is_orphaned(folder))
    workers = [found for found, _ in orphans()]
    group = find_group("")
    groups = [] if group is None else left_behind(group.top, process_ticks, deep=True)
    return Leftovers(run_dir, list(_dead_runs(run_dir)), homes, workers, groups)


def left(found: Leftovers) -> Finding:
    """Say what was left."""
    if not found:
        return Finding("leftovers", OK, "none")
    folders = [*(found.run_dir / run_id for run_id in found.runs), *found.homes, *found.groups]
    lines = [*map(str, folders), *(f"process {each}" for each in found.processes)]
    return Finding("leftovers", NOTE, "\n".join(lines), "dspool doctor --fix removes them")


def _dead_runs(run_dir: Path) -> Iterator[str]:
    try:
        names = os.listdir(run_dir)
    except OSError:
        return
    for name in names:
        # A directory that says nothing about its coordinator may be of one that is just starting.
        info = read_info(run_dir, name) if len(name) == _RUN_ID_CHARS else None
        if info is not None and not info.alive:
            yield name


# --- single facts -----------------------------------------------------------------------------


def _finding(check: str, holds: bool, found: str, advice: str) -> Finding:
    return Finding(check, OK if holds else FAIL, found, "" if holds else advice)


def _distribution(name: str) -> Finding:
    try:
        return Finding(name, OK, metadata.version(name))
    except metadata.PackageNotFoundError:
        return Finding(name, FAIL, "not installed", f"pip install {name}")


def _libzmq() -> Finding:
    import zmq

    enough = zmq.zmq_version_info() >= _LIBZMQ
    return _finding("libzmq", enough, zmq.zmq_version(), "dspool needs libzmq 4.3.5: pip install --upgrade pyzmq")


def _works(attempt: Callable[[], None]) -> bool:
    try:
        attempt()
    except OSError:
        return False
    return True


def _open_pidfd() -> None:
    pidfd = os.pidfd_open(os.getpid())
    try:
        select.select([pidfd], [], [], 0)
    finally:
        os.close(pidfd)


def _make_memfd() -> None:
    os.close(os.memfd_create("doctor", os.MFD_CLOEXEC))


def _ask_subreaper() -> None:
    libc, answer = ctypes.CDLL(None, use_errno=True), ctypes.c_int()
    if libc.prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(answer), 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")
