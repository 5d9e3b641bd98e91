"""The launcher that starts a fresh interpreter for every worker, by way of a nanny."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from pools.core.events import Exited, ExitReason, Signalled
from pools.launch.command import PACKAGES_ROOT, ChildFds, Command, worker_command
from pools.launch.launcher import Died, Launched, LauncherEvent, LaunchFailed, LaunchSpec, NannyLost, Reaped
from pools.launch.nanny import children, set_subreaper
from pools.launch.nanny_link import NannyLink, memory_file
from pools.launch.output import LogLimits, WorkerLog

_CLOSE_S = 5.0
_HANG_UP_S = 2.0  # a nanny that has not ended by then is killed
_READ_BYTES = 65_536
_READS_PER_POLL = 4  # of one stream: nobody's output may hold up everybody else
_READS_AT_DEATH = 32  # more than a pipe holds; a descendant may still be writing
_DEAD_LOGS = 64


@dataclass(slots=True)
class _Worker:
    """One worker from its order to its burial. pid is 0 until it is launched, pidfd -1 whenever it is not alive."""

    worker_id: str
    log: WorkerLog
    outputs: dict[int, int]  # descriptor -> stream
    pid: int = 0
    pidfd: int = -1
    died: bool = False
    orphaned: bool = False  # its nanny is dead: it is this process' child now
    wanted_signals: list[int] = field(default_factory=list)


class SpawnLauncher:
    """Implements `Launcher`. One per process, used by one thread.

    While it is open, this process is a child subreaper. Nothing here reaps children that it did not cause, with one
    bound: when a nanny dies, children of this process that lead or are in a session of their own and were started
    after the last `launch` cannot be told from a worker's descendants, and are killed as such.
    """

    def __init__(
        self,
        run_id: str,
        *,
        root: Path = PACKAGES_ROOT,
        limits: LogLimits | None = None,
        command: Command | None = None,
        folder: str = "",
    ) -> None:
        """Start a nanny. root: where workers find these packages; command: another child. Raises OSError.

        folder: is removed when this process has died without doing so.
        """
        self._folder = folder
        self._command = command or worker_command(run_id, root)
        self._limits = limits or LogLimits()
        self._events: list[LauncherEvent] = []
        self._workers: dict[str, _Worker] = {}
        self._logs: dict[str, WorkerLog] = {}
        self._foreign: set[int] = set()
        self._strays: set[int] = set()
        self._handlers: dict[int, Callable[[], None]] = {}
        self._retired_fds: list[int] = []
        self._nanny: NannyLink | None = None
        self._closed = False
        self._was_subreaper = set_subreaper(True)
        self._epoll = select.epoll()
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._watch(self._wake_fd, partial(os.eventfd_read, self._wake_fd))
        # Nobody writes to the lifeline. Its EOF tells workers that this process is gone.
        self._lifeline_fd, self._lifeline_end_fd = os.pipe2(os.O_CLOEXEC)
        try:
            self._hire_nanny()
        except OSError:
            self._release()
            raise

    # --- the protocol -------------------------------------------------------------------------

    def launch(self, spec: LaunchSpec) -> None:
        """Begin to start a worker; `poll` tells the outcome. Raises ValueError if that worker is alive."""
        if spec.worker_id in self._workers:
            raise ValueError(f"worker {spec.worker_id} is alive")
        self._begin(spec, {"launch": spec.worker_id}, self._command(spec, ChildFds()))

    def _begin(self, spec: LaunchSpec, message: Mapping[str, Any], argv: Sequence[str]) -> None:
        """Give the nanny an order (see `pools.launch.nanny`)."""
        try:
            nanny = self._nanny or self._hire_nanny()
            self._note_foreign_children(nanny)
            self._order(nanny, spec, message, argv)
        except OSError as error:
            self._fail(spec.worker_id, f"{type(error).__name__}: {error}")

    def kill(self, worker_id: str, signal_number: int = signal.SIGKILL) -> None:
        """Signal a worker; one that is being launched gets it once it exists. Unknown or dead ids are ignored."""
        worker = self._workers.get(worker_id)
        if worker is None or worker.died:
            return
        if worker.pidfd < 0:
            worker.wanted_signals.append(signal_number)
            return
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(worker.pidfd, signal_number)

    def fileno(self) -> int:
        """Return a descriptor that is readable when `poll` has something."""
        return self._epoll.fileno()

    def poll(self) -> list[LauncherEvent]:
        """Return what happened since the last call, oldest first, draining the workers' output on the way."""
        if self._closed:
            return []
        for fd, _ in self._epoll.poll(0):
            if handler := self._handlers.get(fd):
                handler()
        self._close_retired()
        events, self._events = self._events, []
        return events

    def log_tail(self, worker_id: str) -> list[str]:
        """Return the last lines a worker wrote, also after its death; [] for an unknown one."""
        log = self._logs.get(worker_id)
        return log.tail() if log else []

    def forget(self, worker_id: str) -> None:
        """Drop the log of a dead worker."""
        if worker_id not in self._workers:
            self._logs.pop(worker_id, None)

    def close(self) -> None:
        """Kill and reap every worker and the nanny. Raises TimeoutError if something survives 5 s."""
        if self._closed:
            return
        deadline_s = time.monotonic() + _CLOSE_S
        if nanny := self._nanny:
            self._unwatch(nanny.fileno())
            nanny.hang_up()
            if not _readable(nanny.pidfd, _HANG_UP_S):
                nanny.kill()
        while (left := self._still_alive()) and (wait_s := deadline_s - time.monotonic()) > 0:
            _readable(self._epoll.fileno(), wait_s)
            self.poll()
        self._release()
        if left:
            raise TimeoutError(f"processes that do not die: {left}")

    # --- launching ----------------------------------------------------------------------------

    def _hire_nanny(self) -> NannyLink:
        nanny = self._nanny = NannyLink(self._lifeline_fd, self._folder)
        self._watch(nanny.fileno(), self._read_nanny)
        self._watch(nanny.pidfd, self._nanny_died)
        return nanny

    def _order(self, nanny: NannyLink, spec: LaunchSpec, message: Mapping[str, Any], argv: Sequence[str]) -> None:
        with contextlib.ExitStack() as given, contextlib.ExitStack() as on_failure:
            spec_fd = memory_file("worker-spec", spec.worker_spec)
            given.callback(os.close, spec_fd)
            outputs, ends = {}, []
            for stream in (1, 2):
                read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
                on_failure.callback(os.close, read_fd)
                given.callback(os.close, write_fd)
                os.set_blocking(read_fd, False)
                outputs[read_fd] = stream
                ends.append(write_fd)
            nanny.order(message, argv, spec.env, [spec_fd, spec.slots_fd, *ends])
            on_failure.pop_all()
        worker = _Worker(spec.worker_id, WorkerLog(self._limits), outputs)
        self._workers[spec.worker_id] = worker
        self._logs[spec.worker_id] = worker.log
        for fd in outputs:
            self._watch(fd, partial(self._read_output, worker, fd, _READS_PER_POLL))

    def _fail(self, worker_id: str, error: str) -> None:
        self._drop(worker_id)
        self._tell(LaunchFailed(worker_id, error))

    def _drop(self, worker_id: str) -> None:
        """Forget a worker that never came to be."""
        worker = self._workers.pop(worker_id, None)
        for fd in list(worker.outputs) if worker else ():
            self._retire(fd)
        self._logs.pop(worker_id, None)

    def _tell(self, *events: LauncherEvent) -> None:
        """Have `poll` called, to return these."""
        self._events += events
        os.eventfd_write(self._wake_fd, 1)

    # --- what the nanny says --------------------------------------------------------------------

    def _read_nanny(self) -> None:
        if self._nanny is None:
            return
        for message, fds in self._nanny.messages():
            self._heed(message, fds)
        if self._nanny.hung_up:
            self._dismiss_nanny()

    def _heed(self, message: Mapping[str, Any], fds: list[int]) -> None:
        match message:
            case {"launched": str(worker_id), "pid": int(pid)}:
                self._launched(worker_id, pid, fds)
            case {"failed": str(worker_id), "error": str(error)}:
                self._fail(worker_id, error)
            case {"reaped": str(worker_id), "exit_code": int(code), "peak_rss_bytes": int(peak)}:
                self._reaped(self._workers[worker_id], _reason(code), peak)

    def _launched(self, worker_id: str, pid: int, fds: list[int]) -> None:
        if not fds:
            # No descriptor was free to receive its pidfd: a worker that cannot be watched must not run. Start afresh.
            self._dismiss_nanny()
            return
        worker = self._workers[worker_id]
        worker.pid, (worker.pidfd,) = pid, fds
        self._watch(worker.pidfd, partial(self._worker_exited, worker))
        self._events.append(Launched(worker_id, pid))
        for number in worker.wanted_signals:
            self.kill(worker_id, number)

    def _dismiss_nanny(self) -> None:
        """End a nanny that is of no use any more; its death is handled as any other."""
        if self._nanny:
            self._unwatch(self._nanny.fileno())
            self._nanny.kill()

    def _reaped(self, worker: _Worker, reason: ExitReason, peak_rss_bytes: int) -> None:
        self._mark_died(worker)
        del self._workers[worker.worker_id]
        self._events.append(Reaped(worker.worker_id, reason, peak_rss_bytes))
        dead = [worker_id for worker_id in self._logs if worker_id not in self._workers]
        for worker_id in dead[:-_DEAD_LOGS]:
            del self._logs[worker_id]

    # --- deaths ---------------------------------------------------------------------------------

    def _worker_exited(self, worker: _Worker) -> None:
        self._mark_died(worker)
        if worker.orphaned:
            self._bury(worker)
            self._kill_strays()

    def _mark_died(self, worker: _Worker) -> None:
        if worker.died:
            return
        worker.died = True
        self._events.append(Died(worker.worker_id))
        self._retire(worker.pidfd)
        worker.pidfd = -1
        # What it wrote is in the pipes. A descendant may hold them open: their EOF may never come.
        for fd in list(worker.outputs):
            self._read_output(worker, fd, _READS_AT_DEATH)
            self._retire(fd)
        worker.outputs.clear()

    def _nanny_died(self) -> None:
        nanny = self._nanny
        if nanny is None:
            return
        self._read_nanny()
        self._unwatch(nanny.fileno())
        self._unwatch(nanny.pidfd)
        self._retired_fds += nanny.bury()
        self._nanny = None
        self._foreign.discard(nanny.pid)
        self._events.append(NannyLost())
        for worker in list(self._workers.values()):
            if not worker.pid:
                self._fail(worker.worker_id, "its nanny died")
            elif worker.died:
                self._bury(worker)
            else:
                worker.orphaned = True
                self.kill(worker.worker_id)
        self._kill_strays()

    def _bury(self, worker: _Worker) -> None:
        """Reap a dead worker whose nanny is dead. If the nanny had reaped it, how it ended is not known."""
        reason: ExitReason = Signalled(int(signal.SIGKILL))
        peak_rss_bytes = 0
        with contextlib.suppress(ChildProcessError):
            pid, status, usage = os.wait4(worker.pid, os.WNOHANG)
            if pid:
                reason, peak_rss_bytes = _reason(os.waitstatus_to_exitcode(status)), usage.ru_maxrss * 1024
        self._reaped(worker, reason, peak_rss_bytes)

    # --- what a dead nanny's workers left ---------------------------------------------------------

    def _note_foreign_children(self, nanny: NannyLink) -> None:
        """Remember the children that are not our doing. While a nanny lives it adopts every orphan below it."""
        if self._strays or any(worker.orphaned for worker in self._workers.values()):
            return
        found = set(children())
        if not _readable(nanny.pidfd, 0):
            self._foreign = found - {nanny.pid}

    def _kill_strays(self) -> None:
        """Kill what was adopted from a dead nanny and its workers; each death may bring more."""
        known = self._foreign | self._strays | {worker.pid for worker in self._workers.values()}
        if self._nanny:
            known.add(self._nanny.pid)
        own_session = os.getsid(0)
        for pid in children():
            # A child that is reaped elsewhere meanwhile is none of ours.
            with contextlib.suppress(ProcessLookupError):
                # Nobody can enter a session: a child in this one was never below the nanny, which leads its own.
                if pid in known or os.getsid(pid) == own_session:
                    continue
                pidfd = os.pidfd_open(pid)
                self._strays.add(pid)
                self._watch(pidfd, partial(self._stray_died, pid, pidfd))
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)

    def _stray_died(self, pid: int, pidfd: int) -> None:
        self._retire(pidfd)
        self._strays.discard(pid)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
        self._kill_strays()

    def _still_alive(self) -> list[int]:
        nanny = [self._nanny.pid] if self._nanny else []
        return [*nanny, *self._strays, *(worker.pid for worker in self._workers.values() if worker.orphaned)]

    # --- descriptors ------------------------------------------------------------------------------

    def _read_output(self, worker: _Worker, fd: int, reads: int) -> None:
        now = time.monotonic()
        for _ in range(reads):
            try:
                data = os.read(fd, _READ_BYTES)
            except BlockingIOError:
                return
            if not data:
                self._retire(fd)
                worker.outputs.pop(fd, None)
                return
            worker.log.feed(worker.outputs[fd], data, now=now)

    def _watch(self, fd: int, handler: Callable[[], Any]) -> None:
        self._handlers[fd] = handler
        self._epoll.register(fd, select.EPOLLIN)

    def _unwatch(self, fd: int) -> None:
        if self._handlers.pop(fd, None):
            self._epoll.unregister(fd)

    def _retire(self, fd: int) -> None:
        """Watch a descriptor no more. It is closed after this turn: its number must not mean something new in it."""
        if fd in self._handlers:
            self._unwatch(fd)
            self._retired_fds.append(fd)

    def _close_retired(self) -> None:
        while self._retired_fds:
            os.close(self._retired_fds.pop())

    def _release(self) -> None:
        self._closed = True
        own = [self._lifeline_fd, self._lifeline_end_fd]
        for fd in [*self._handlers, *self._retired_fds, *own]:
            os.close(fd)
        self._handlers.clear()
        self._retired_fds.clear()
        self._workers.clear()
        self._epoll.close()
        set_subreaper(self._was_subreaper)


def _reason(exit_code: int) -> ExitReason:
    return Exited(exit_code) if exit_code >= 0 else Signalled(-exit_code)


def _readable(fd: int, timeout_s: float) -> bool:
    waiter = select.poll()
    waiter.register(fd, select.POLLIN)
    return bool(waiter.poll(timeout_s * 1000))
