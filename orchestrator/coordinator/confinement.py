"""What the kernel holds workers to: a control group each, where this coordinator may make some."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Self

import structlog

from orchestrator.rundir import process_ticks
from pools.config import PoolConfig
from pools.launch import cgroup
from pools.launch.cgroup import Failure, Survey, WorkerGroups, pids_max
from pools.worker_id import pool_of

# The kernel's limit is the last resort: twice what a worker is replaced at, and three times what it was born with.
_TIMES_LIMIT: Final = 2
_TIMES_BIRTH: Final = 3.0
_MIB: Final = 1 << 20


class Confinement:
    """The workers' groups, or why there are none: then everything here does nothing."""

    def __init__(self, groups: WorkerGroups | None, survey: Survey, pools: Sequence[PoolConfig]) -> None:
        self._groups = groups
        self._survey = survey
        self._pools = {pool.name: pool for pool in pools}
        self._booting: dict[bytes, str] = {}
        self._unconfined: dict[str, str] = {}
        self._log = structlog.get_logger("dspool.coordinator")

    @classmethod
    def open(
        cls, pid: int, *, starter_pid: int, pools: Sequence[PoolConfig], controllers: Sequence[str] = cgroup.CONTROLLERS
    ) -> Self:
        """Make what can be made for the coordinator `pid`; its starter may be moved along. Never fails."""
        log = structlog.get_logger("dspool.coordinator")
        ours = {pid, starter_pid}
        survey = cgroup.survey(ours, controllers=controllers, process=Path("/proc") / str(pid))
        if survey.group is not None:
            swept = cgroup.sweep(cgroup.left_behind(survey.group.folder, process_ticks))
            if swept:
                log.info("cgroups_swept", folders=[str(folder) for folder in swept])
        if survey.group is None or survey.why:
            log.info("cgroups_unused", why=survey.why)
            return cls(None, survey, pools)
        try:
            name = cgroup.folder_name(pid, process_ticks(pid) or 0)
            groups = WorkerGroups(survey.group, name, ours, controllers=controllers)
        except OSError as exc:
            survey = Survey(survey.group, f"the kernel refuses ({exc})", cgroup.DELEGATE)
            log.warning("cgroups_unused", why=survey.why)
            return cls(None, survey, pools)
        log.info("cgroups_used", folder=str(groups.folder))
        return cls(groups, survey, pools)

    def document(self) -> dict[str, Any]:
        """Return what `stats` says: folder and pids_max are None where there are no groups, why and advice else.

        pids_max: by pool, processes and threads of a worker. unconfined: living workers that lack a limit, and what the
        kernel said; it is kept up to date.
        """
        groups, survey = self._groups, self._survey
        return {
            "folder": None if groups is None else str(groups.folder),
            "pids_max": None if groups is None else self._pids_max(),
            "unconfined": self._unconfined,
            "why": survey.why or None,
            "advice": survey.advice or None,
        }

    def _pids_max(self) -> dict[str, int]:
        return {name: pids_max(pool.slots) for name, pool in self._pools.items() if not pool.internal}

    # --- a worker's life --------------------------------------------------------------------------

    def launched(self, worker_id: str, pid: int) -> None:
        """A worker's process exists."""
        if self._groups is not None:
            self._groups.admit(worker_id, pid, pids=pids_max(self._pools[pool_of(worker_id)].slots))

    def met(self, peer: bytes, worker_id: str) -> None:
        """A worker is at this address."""
        if self._groups is not None:
            self._booting[peer] = worker_id

    def ready(self, peer: bytes) -> None:
        """A worker takes requests from now on: its limit of memory holds from here, for nobody's code has run yet."""
        worker_id = self._booting.pop(peer, None)
        if self._groups is None or worker_id is None:
            return
        limit_mb = self._pools[pool_of(worker_id)].memory_limit_mb
        if limit_mb:
            self._groups.limit_memory(worker_id, _TIMES_LIMIT * limit_mb * _MIB, at_least=_TIMES_BIRTH)

    def was_short_of_memory(self, worker_id: str) -> bool | None:
        """Return whether the kernel killed in this worker's group for memory; None: it was in none of its own."""
        return None if self._groups is None else self._groups.was_short_of_memory(worker_id)

    def buried(self, worker_id: str) -> None:
        """A worker is dead: whatever it started dies with it."""
        if self._groups is not None:
            self._groups.remove(worker_id)
            self._unconfined.pop(worker_id, None)
            self._booting = {peer: other for peer, other in self._booting.items() if other != worker_id}

    def tidy(self) -> None:
        """Remove what could not be removed at once; tell what the kernel refused. Called once a second."""
        if self._groups is not None:
            self._groups.tidy()
            for failure in self._groups.failures():
                self._tell(failure)

    def _tell(self, failure: Failure) -> None:
        self._unconfined[failure.worker_id] = failure.error
        self._log.warning("worker_unconfined", worker=failure.worker_id, error=failure.error)

    def close(self) -> None:
        """Leave everything as it was."""
        if self._groups is not None:
            self._groups.close()
            self._groups = None
