"""The nanny: the parent of every worker process. It starts them, it buries them, and it lets nobody escape.

Run as a script, `python -I -S nanny.py CONTROL_FD LIFELINE_FD [FOLDER]`: one thread, the standard library alone, no
user code. FOLDER is removed once the coordinator is dead.
It is a child subreaper, so whatever a worker leaves behind, daemons in sessions of their own too, becomes its child.

The control socket is SOCK_SEQPACKET. Each message is a JSON object, with file descriptors beside it:

    {"launch": worker_id}         + [order, spec, slots, stdout, stderr]   to the nanny: start this worker
    {"launched": worker_id, "pid"}               + [pidfd]                 from it: the process exists
    {"failed": worker_id, "error"}                                         no process could be started
    {"reaped": worker_id, "exit_code", "peak_rss_bytes"}                   it is gone; a negative code is a signal

`order` is a memfd with `{"argv", "env"}` as JSON: a message on the socket has a size limit, an environment has none.
The child finds its descriptors at fixed numbers: `SPEC_FD`, `SLOTS_FD`, `LIFELINE_FD`.

A zygote is launched like a worker, and has a control socket of its own, at `CONTROL_FD`. It forks others, whose parent
is the nanny, too: they are forked twice, and the one in between ends.

    {"launch": id, "zygote": limit_s}           it is a zygote, and to be ready within so many seconds
    {"launch": id, "by": zygote_id}             that zygote forks it
    {"ready": id}  {"broken": id, "error"}      what a zygote says of itself; a broken one ends
    {"reaped": id, …, "unborn": [id], "why"}    of a zygote: whom it has not forked any more, why it was killed
    {"astray": id}                              the zygote that was to fork it had been reaped before

    {"fork": id, "zygote": bool} + [order, spec, slots, stdout, stderr, control of a zygote]    to a zygote
    {"forked": id, "pid"} + [pidfd]  {"failed": id, "error"}  {"ready"}  {"broken": error}      from it

EOF on the socket means that the coordinator is gone: every child is killed and reaped until none is left.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import select
import shutil
import signal
import socket
import sys
import time
from typing import Any

SPEC_FD, SLOTS_FD, LIFELINE_FD, CONTROL_FD = 3, 4, 5, 6

FAULT_POINTS = "DSPOOL_FAULT_POINTS"  # there in a run with faults alone: see bridge/faultpoints.py

_LOWEST_OWN_FD = 16  # above every number that a child's descriptor gets, so that placing one cannot overwrite another
_MESSAGE_BYTES = 65_536
_ERROR_CHARS = 1_000
_PATROL_MS = 500  # a daemon's adoption sends no signal: look for strays at least this often
_FORK_LIMIT_S = 10.0  # what a zygote may take to fork; milliseconds are usual
_BURIAL_MS = 20
_DYING_S = 1.0
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


# --- faults on purpose ------------------------------------------------------------------------------


_fault_points: Any = None


def _hit(point: str) -> None:
    """Pass a fault point."""
    if _fault_points is not None:
        _fault_points.hit(point)


def _arm() -> None:
    """Let this process fail by the schedule in its environment, if there is one."""
    global _fault_points
    if os.environ.get(FAULT_POINTS):
        from importlib import util  # what is loaded is no package's here: it has nothing but a path

        path = os.path.join(os.path.dirname(__file__), "..", "..", "bridge", "faultpoints.py")
        spec = util.spec_from_file_location("faultpoints", path)
        assert spec is not None
        assert spec.loader is not None
        _fault_points = util.module_from_spec(spec)
        spec.loader.exec_module(_fault_points)
        _fault_points.arm_by(os.environ)


# --- the nanny itself -----------------------------------------------------------------------------


class Zygote:
    """What the nanny knows of a zygote. ended: its report, kept until all that it said has been heard."""

    def __init__(self, zygote_id: str, control: socket.socket, limit_s: float) -> None:
        self.zygote_id = zygote_id
        self.unborn: set[str] = set()
        self.ended: dict[str, Any] | None = None
        self.hung_up = False
        self.why = ""
        self._control = control
        control.setblocking(False)
        self._busy = True  # until it says that it is ready
        self._due_s = time.monotonic() + limit_s

    def fileno(self) -> int:
        """Return the descriptor to poll."""
        return self._control.fileno()

    def ask(self, message: dict[str, Any], fds: list[int]) -> None:
        """Have it fork. Raises BlockingIOError: it has too much to do."""
        if not self.unborn and not self._busy:
            self._due_s = time.monotonic() + _FORK_LIMIT_S
        if not self.hung_up:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it is dying: its end is told soon
                socket.send_fds(self._control, [json.dumps(message).encode()], fds)
        self.unborn.add(message["fork"])

    def hear(self) -> tuple[dict[str, Any], list[int]] | None:
        """Return the next thing that it said, None if there is none (now, or ever: `hung_up`)."""
        try:
            data, fds, _, _ = socket.recv_fds(self._control, _MESSAGE_BYTES, 1, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return None
        except ConnectionResetError:
            data, fds = b"", []
        self.hung_up = not data
        if self.hung_up:
            return None
        message = json.loads(data)
        self._busy = self._busy and "ready" not in message
        self._due_s = time.monotonic() + _FORK_LIMIT_S
        return message, fds

    def is_late(self) -> bool:
        """Return whether it has not answered in time."""
        return (self._busy or bool(self.unborn)) and time.monotonic() > self._due_s

    def close(self) -> None:
        """Forget the socket."""
        self._control.close()


class Nanny:
    """Serves one control socket until its EOF."""

    def __init__(self, control: socket.socket, lifeline_fd: int) -> None:
        """lifeline_fd: what every worker gets; both descriptors are this object's for good."""
        self._control = control
        self._lifeline_fd = lifeline_fd
        self._workers: dict[int, str] = {}  # zygotes are among them
        self._zygotes: dict[str, Zygote] = {}
        self._controls: dict[str, tuple[socket.socket, float]] = {}  # of zygotes that are still to be forked
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
        self._hear_zygotes()
        self._reap()
        self._kill_strays()
        self._hurry_zygotes()
        return True

    def _obey(self) -> bool:
        data, fds, _, _ = socket.recv_fds(self._control, _MESSAGE_BYTES, 5, socket.MSG_CMSG_CLOEXEC)
        if not data:
            return False
        message = json.loads(data)
        high = [_lift(fd) for fd in fds]
        with contextlib.ExitStack() as theirs:
            for fd in high:
                theirs.callback(os.close, fd)
            self._launch(message, high, theirs)
        return True

    def _launch(self, message: dict[str, Any], fds: list[int], theirs: contextlib.ExitStack) -> None:
        _hit("nanny.before_launch")
        worker_id, by = message["launch"], message.get("by")
        try:
            if limit_s := message.get("zygote"):
                ours, control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                self._controls[worker_id] = ours, limit_s
                fds = [*fds, _lift(control.detach())]
                theirs.callback(os.close, fds[-1])
            if by is None:
                pid = self._spawn(*fds)
                # Nothing has been reaped since: it is that very process, zombie or not.
                self._launched(worker_id, pid, os.pidfd_open(pid))
            elif by in self._zygotes:
                self._zygotes[by].ask({"fork": worker_id, "zygote": bool(limit_s)}, fds)
            else:
                self._forget_control(worker_id)
                self._say({"astray": worker_id})
        except (OSError, ValueError, TypeError) as error:
            # A process whose pidfd could not be opened is not registered: it is killed as a stray in this turn.
            self._failed(worker_id, f"{type(error).__name__}: {error}")

    def _launched(self, worker_id: str, pid: int, pidfd: int) -> None:
        self._workers[pid] = worker_id
        if worker_id in self._controls:
            zygote = self._zygotes[worker_id] = Zygote(worker_id, *self._controls.pop(worker_id))
            self._poll.register(zygote, select.POLLIN)
        self._say({"launched": worker_id, "pid": pid}, [pidfd])
        os.close(pidfd)

    def _failed(self, worker_id: str, error: str) -> None:
        self._forget_control(worker_id)
        self._say({"failed": worker_id, "error": error[:_ERROR_CHARS]})

    def _forget_control(self, worker_id: str) -> None:
        if worker_id in self._controls:
            self._controls.pop(worker_id)[0].close()

    def _spawn(
        self, order_fd: int, spec_fd: int, slots_fd: int, stdout_fd: int, stderr_fd: int, *control_fd: int
    ) -> int:
        with open(order_fd, "rb", closefd=False) as file:
            order = json.load(file)
        placed = {stdout_fd: 1, stderr_fd: 2, spec_fd: SPEC_FD, slots_fd: SLOTS_FD, self._lifeline_fd: LIFELINE_FD}
        placed |= dict.fromkeys(control_fd, CONTROL_FD)
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

    # --- zygotes --------------------------------------------------------------------------------

    def _hear_zygotes(self) -> None:
        for zygote in list(self._zygotes.values()):
            while not zygote.hung_up and (heard := zygote.hear()):
                self._heed(zygote, *heard)
            if zygote.hung_up:
                self._zygote_hung_up(zygote)

    def _heed(self, zygote: Zygote, message: dict[str, Any], fds: list[int]) -> None:
        match message:
            case {"forked": str(worker_id), "pid": int(pid)} if fds:
                zygote.unborn.discard(worker_id)
                self._launched(worker_id, pid, fds[0])
            case {"forked": str(worker_id)}:
                # Its pidfd found no free descriptor here. Unregistered, it is killed as a stray.
                zygote.unborn.discard(worker_id)
                self._failed(worker_id, "the nanny has no free descriptor")
            case {"failed": str(worker_id), "error": str(error)} if worker_id in zygote.unborn:
                zygote.unborn.discard(worker_id)
                self._failed(worker_id, error)
            case {"ready": _}:
                self._say({"ready": zygote.zygote_id})
            case {"broken": str(error)}:
                self._say({"broken": zygote.zygote_id, "error": error})

    def _zygote_hung_up(self, zygote: Zygote) -> None:
        """Handle the EOF: nobody is left who could still fork, or be about to say that it has."""
        if zygote.fileno() >= 0:
            self._poll.unregister(zygote)
            zygote.close()
            for pid, worker_id in self._workers.items():
                if worker_id == zygote.zygote_id:
                    kill(pid)  # without a socket it is of no use
        if zygote.ended is not None:
            del self._zygotes[zygote.zygote_id]
            for worker_id in zygote.unborn:
                self._forget_control(worker_id)
            self._say({**zygote.ended, "unborn": sorted(zygote.unborn), "why": zygote.why})

    def _hurry_zygotes(self) -> None:
        """End zygotes that do not answer: at first so that they can say where they hang (also if they are stopped)."""
        late = {zygote.zygote_id: zygote for zygote in self._zygotes.values() if zygote.is_late()}
        for pid, worker_id in self._workers.items() if late else ():
            if (zygote := late.get(worker_id)) is None:
                continue
            if zygote.why:
                kill(pid)
                continue
            zygote.why = "it did not answer in time"
            for number in (signal.SIGABRT, signal.SIGCONT):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)

    # --- deaths ---------------------------------------------------------------------------------

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while dead := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                _hit("nanny.before_reap")
                pid = dead.si_pid
                if pid not in self._workers:
                    # A zygote's fork is told of before it becomes this process' child, if not by much.
                    self._hear_zygotes()
                worker_id = self._workers.pop(pid, None)
                if worker_id is None:
                    os.waitpid(pid, 0)
                    continue
                # The zombie still holds its group's number: nobody else can have got it.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)
                _, status, usage = os.wait4(pid, 0)
                self._kill_strays()
                self._report(worker_id, os.waitstatus_to_exitcode(status), usage.ru_maxrss * 1024)

    def _report(self, worker_id: str, exit_code: int, peak_rss_bytes: int) -> None:
        report = {"reaped": worker_id, "exit_code": exit_code, "peak_rss_bytes": peak_rss_bytes}
        if zygote := self._zygotes.get(worker_id):
            zygote.ended = report
            if zygote.hung_up:
                self._zygote_hung_up(zygote)
        else:
            self._say(report)

    def _kill_strays(self) -> None:
        own = children()
        self._hear_zygotes()  # after the look at the children: who is one by now has been told of
        for pid in own:
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
    _arm()
    control_fd, lifeline_fd = (_lift(int(word)) for word in sys.argv[1:3])
    coordinator = os.getppid()
    Nanny(socket.socket(fileno=control_fd), lifeline_fd).run()
    for folder in sys.argv[3:4]:
        _remove_after(coordinator, folder)


def _remove_after(coordinator: int, folder: str) -> None:
    """Remove a folder if the coordinator is dead. Its socket ends a moment before it does."""
    until_s = time.monotonic() + _DYING_S
    while os.path.isdir(folder) and time.monotonic() < until_s:
        if os.getppid() != coordinator:
            shutil.rmtree(folder, ignore_errors=True)
            return
        time.sleep(_BURIAL_MS / 1000)


if __name__ == "__main__":
    main()
