"""The nanny: the parent of every worker process. It starts them, it buries them, and it lets nobody escape.

Run as a script, `python -I -S nanny.py CONTROL_FD LIFELINE_FD`: one thread, the standard library alone, no user code.
It is a child subreaper, so whatever a worker leaves behind, daemons in sessions of their own too, becomes its child.

The control socket is SOCK_SEQPACKET. Each message is a JSON object, with file descriptors beside it:

    {"launch": worker_id}         + [order, spec, slots, stdout, stderr]   to the nanny: start this worker
    {"launched": worker_id, "pid"}               + [pidfd]                 from it: the process exists
    {"failed": worker_id, "error"}                                         no process could be started
    {"reaped": worker_id, "exit_code", "peak_rss_bytes"}                   it is gone; a negative code is a signal

`order` is a memfd with `{"argv", "env"}` as JSON: a message on the socket has a size limit, an environment has none.
The child finds its descriptors at fixed numbers: `SPEC_FD`, `SLOTS_FD`, `LIFELINE_FD`.

EOF on the socket means that the coordinator is gone: every child is killed and reaped until none is left.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import select
import signal
import socket
import sys
from typing import Any

SPEC_FD, SLOTS_FD, LIFELINE_FD = 3, 4, 5

_LOWEST_OWN_FD = 16  # above every number that a child's descriptor gets, so that placing one cannot overwrite another
_MESSAGE_BYTES = 65_536
_ERROR_CHARS = 1_000
_PATROL_MS = 500  # a daemon's adoption sends no signal: look for strays at least this often
_BURIAL_MS = 20
_PR_SET_CHILD_SUBREAPER, _PR_GET_CHILD_SUBREAPER = 36, 37


# --- processes, also for the coordinator's side ---------------------------------------------------


def set_subreaper(on: bool) -> bool:
    """Make this process adopt its orphaned descendants, or not. Returns what it was; raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    before = ctypes.c_int(0)
    if libc.prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(before), 0, 0, 0) or libc.prctl(
        _PR_SET_CHILD_SUBREAPER, int(on), 0, 0, 0
    ):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")
    return bool(before.value)


def children() -> list[int]:
    """Return the pids of this process' children, zombies included."""
    pids: list[int] = []
    try:
        for tid in os.listdir("/proc/self/task"):
            with open(f"/proc/self/task/{tid}/children", encoding="ascii") as listing:
                pids += map(int, listing.read().split())
    except OSError:  # a kernel without that file, or a thread that has just ended
        return _children_by_parent()
    return pids


def _children_by_parent() -> list[int]:
    own, pids = os.getpid(), []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as stat:
            # The command stands in brackets and may hold anything: the fields begin after the last one.
            if int(stat.read().rpartition(b")")[2].split()[1]) == own:
                pids.append(int(name))
    return pids


def kill(pid: int) -> None:
    """SIGKILL a child of this process; it may be a zombie already."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


# --- the nanny itself -----------------------------------------------------------------------------


class Nanny:
    """Serves one control socket until its EOF."""

    def __init__(self, control: socket.socket, lifeline_fd: int) -> None:
        """lifeline_fd: what every worker gets; both descriptors are this object's for good."""
        self._control = control
        self._lifeline_fd = lifeline_fd
        self._workers: dict[int, str] = {}
        self._woken_fd = _wake_on_child_exit()
        self._poll = select.poll()
        self._poll.register(control, select.POLLIN)
        self._poll.register(self._woken_fd, select.POLLIN)

    def run(self) -> None:
        """Serve; return when the coordinator is gone and no child is left."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            while self._turn():
                pass
        while self._bury_all():
            self._await_children(_BURIAL_MS)

    def _turn(self) -> bool:
        ready = dict(self._poll.poll(_PATROL_MS if self._workers else None))
        self._await_children(0)
        if self._control.fileno() in ready and not self._obey():
            return False
        self._reap()
        self._kill_strays()
        return True

    def _obey(self) -> bool:
        data, fds, _, _ = socket.recv_fds(self._control, _MESSAGE_BYTES, 5, socket.MSG_CMSG_CLOEXEC)
        if not data:
            return False
        worker_id = json.loads(data)["launch"]
        high = [_lift(fd) for fd in fds]
        try:
            pid = self._spawn(*high)
            pidfd = os.pidfd_open(pid)  # nothing has been reaped since: it is that very process, zombie or not
        except (OSError, ValueError, TypeError) as error:
            # A process whose pidfd could not be opened is not registered: it is killed as a stray in this turn.
            self._say({"failed": worker_id, "error": f"{type(error).__name__}: {error}"[:_ERROR_CHARS]})
        else:
            self._workers[pid] = worker_id
            self._say({"launched": worker_id, "pid": pid}, [pidfd])
            os.close(pidfd)
        for fd in high:
            os.close(fd)
        return True

    def _spawn(self, order_fd: int, spec_fd: int, slots_fd: int, stdout_fd: int, stderr_fd: int) -> int:
        with open(order_fd, "rb", closefd=False) as file:
            order = json.load(file)
        placed = {stdout_fd: 1, stderr_fd: 2, spec_fd: SPEC_FD, slots_fd: SLOTS_FD, self._lifeline_fd: LIFELINE_FD}
        return os.posix_spawnp(
            order["argv"][0],
            order["argv"],
            order["env"],
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                *((os.POSIX_SPAWN_DUP2, fd, number) for fd, number in placed.items()),
            ],
            setpgroup=0,
            setsigmask=[],
            # Ignored signals stay ignored over an exec: the worker must not inherit the nanny's deafness.
            setsigdef=signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP},
        )

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while dead := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                pid = dead.si_pid
                worker_id = self._workers.pop(pid, None)
                if worker_id is None:
                    os.waitpid(pid, 0)
                    continue
                # The zombie still holds its group's number: nobody else can have got it.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)
                _, status, usage = os.wait4(pid, 0)
                self._kill_strays()
                code = os.waitstatus_to_exitcode(status)
                self._say({"reaped": worker_id, "exit_code": code, "peak_rss_bytes": usage.ru_maxrss * 1024})

    def _kill_strays(self) -> None:
        for pid in children():
            if pid not in self._workers:
                kill(pid)

    def _bury_all(self) -> bool:
        """Kill every child, reap what is dead; return whether any is left."""
        for pid in children():
            kill(pid)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return False
        return True

    def _await_children(self, timeout_ms: int) -> None:
        """Take the wake-ups that child exits sent, waiting for one if there is none."""
        if select.select([self._woken_fd], [], [], timeout_ms / 1000)[0]:
            os.read(self._woken_fd, 4096)

    def _say(self, message: dict[str, Any], fds: list[int] | None = None) -> None:
        socket.send_fds(self._control, [json.dumps(message).encode()], fds or [])


def _wake_on_child_exit() -> int:
    """Return a descriptor that is readable after a child ended."""
    woken_fd, wake_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(wake_fd, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    return woken_fd


def _lift(fd: int) -> int:
    """Move a descriptor out of the range that children's descriptors are placed in, and close it on exec."""
    lifted = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _LOWEST_OWN_FD)
    os.close(fd)
    return lifted


def main() -> None:
    """Run a nanny on the descriptors named in argv."""
    # Ctrl-C and a terminal's hang-up are the coordinator's business: this process lives and dies by the socket.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    set_subreaper(True)
    control_fd, lifeline_fd = (_lift(int(word)) for word in sys.argv[1:3])
    Nanny(socket.socket(fileno=control_fd), lifeline_fd).run()


if __name__ == "__main__":
    main()
