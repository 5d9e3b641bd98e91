"""A zygote: a process that has imported what workers need, and forks them when it is asked to.

The root zygote is a fresh interpreter, `… --spec-fd N --slots-fd M --lifeline-fd K --control-fd C`. It loads DSPy and
forks workers, and further zygotes, which load modules of the user's first. It configures nothing, runs no request, and
has one thread whenever it forks: locks that another thread held would be held for ever in the child.

The control socket is the nanny's (`pools.launch.nanny` describes both ends). A child is forked twice; the process in
between tells the nanny who was born and ends, so that the child is the nanny's, whatever becomes of its zygote. EOF on
the socket ends a zygote, and so does its nanny's death.
"""

from __future__ import annotations

import argparse
import ctypes
import faulthandler
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from bridge.worker import birth
from bridge.worker.surroundings import Surroundings

_MESSAGE_BYTES: Final = 65_536
_ERROR_CHARS: Final = 8_000
_PR_SET_PDEATHSIG: Final = 1
# A thread that was joined may still be leaving.
_THREADS_LEAVE_S: Final = 1.0

Work = Callable[[Sequence[str]], int]


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be forked: descriptors of its order (JSON), spec, slots, stdout and stderr, of a zygote's control."""

    name: str
    is_zygote: bool
    fds: list[int]


class NotAlone(Exception):
    """A process with several threads was to fork."""


def main(
    argv: Sequence[str] | None = None, *, prepare: Callable[[], None] | None = None, work: Work | None = None
) -> NoReturn:
    """Be the root zygote, and every process that is forked from it. prepare, work: what stands for DSPy and a worker.

    Ends the process.
    """
    parser = argparse.ArgumentParser(prog="bridge.worker.zygote")
    for name in ("--spec-fd", "--slots-fd", "--lifeline-fd", "--control-fd"):
        parser.add_argument(name, type=int, required=True)
    parser.add_argument("names", nargs="*", help="for process listings")
    fds = parser.parse_args(argv)
    faulthandler.enable()
    # Ctrl-C and a terminal's hang-up are the coordinator's business.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    zygote = Zygote(fds.spec_fd, fds.slots_fd, fds.lifeline_fd, fds.control_fd)
    if prepare is None:
        from bridge.worker import warmth  # found now, before folders of users come first on the path

        prepare = warmth.load
    zygote.load(prepare)
    while True:
        newborn = zygote.serve()
        if not newborn.is_zygote:
            sys.exit((work or _work)(newborn.words))
        zygote = Zygote(birth.SPEC_FD, birth.SLOTS_FD, birth.LIFELINE_FD, birth.CONTROL_FD)
        zygote.load(zygote.preload)


def _work(words: Sequence[str]) -> int:
    from bridge.worker import __main__ as worker

    sys.argv = [worker.__file__, *words]
    return worker.main(words)


class Zygote:
    """One zygote: `load`, then `serve` until it returns."""

    def __init__(self, spec_fd: int, slots_fd: int, lifeline_fd: int, control_fd: int) -> None:
        """Take over the descriptors; spec: JSON with `preload` and `python_path`, lists."""
        with open(spec_fd, "rb", closefd=False) as file:
            spec = json.load(file)
        # Their numbers stay taken: what modules leave open must not stand where workers have descriptors of theirs.
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        for fd in (spec_fd, slots_fd):
            os.dup2(null, fd, inheritable=False)
        os.close(null)
        self._modules: list[str] = spec["preload"]
        self._python_path: list[str] = spec["python_path"]
        self._lifeline_fd = lifeline_fd
        self._control = socket.socket(fileno=control_fd)
        for fd in (lifeline_fd, control_fd):
            os.set_inheritable(fd, False)
        self._path = sys.path[:]
        # Its parent is the nanny. If that died before this call, the socket is at its end.
        if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")

    def preload(self) -> None:
        """Import the modules of the pool."""
        with Surroundings().kept():
            for module in self._modules:
                importlib.import_module(module)

    def load(self, loading: Callable[[], None]) -> None:
        """Load what the children are to have, and say so. If that fails, say why and end the process."""
        sys.path[:0] = self._python_path
        try:
            loading()
            _assert_alone()
        except NotAlone as exc:
            self._break_off(str(exc))
        except BaseException as exc:  # noqa: BLE001 - what is imported may call sys.exit()
            self._break_off("".join(traceback.format_exception(exc)))
        # Workers put the pool's folders on the path themselves.
        sys.path[:] = self._path
        gc.collect()
        gc.freeze()  # the collector would write into pages that are shared with the children
        gc.disable()
        self._say({"ready": True})

    def serve(self) -> birth.Newborn:
        """Fork what is asked for. Returns in each child what it is; ends the process at the socket's end."""
        while (order := self._next_order()) is not None:
            parent = self._fork(order)
            if parent is not None:
                # Only the child is here.
                _await_end(parent)
                own = [self._control.detach(), self._lifeline_fd]
                return birth.settle(order.fds, self._lifeline_fd, own, is_zygote=order.is_zygote)
            for fd in order.fds:
                os.close(fd)
        os._exit(0)  # what was imported for others has nothing to say at the end

    def _next_order(self) -> Order | None:
        try:
            data, fds, _, _ = socket.recv_fds(self._control, _MESSAGE_BYTES, 6, socket.MSG_CMSG_CLOEXEC)
        except ConnectionResetError:
            return None
        if not data:
            return None
        message = json.loads(data)
        return Order(message["fork"], message["zygote"], fds)

    def _fork(self, order: Order) -> int | None:
        """Fork twice; return a pidfd of the one in between in the child, None in the zygote."""
        if len(order.fds) != 5 + order.is_zygote:
            self._say({"failed": order.name, "error": "no descriptor was free to receive what it was to get"})
            return None
        try:
            _assert_alone()
            sys.stdout.flush()
            sys.stderr.flush()
            between = os.fork()
        except (OSError, NotAlone) as exc:
            self._say({"failed": order.name, "error": str(exc)})
            return None
        if not between:
            return self._fork_again(order)
        _, status = os.waitpid(between, 0)
        if status:
            why = f"the process that was to fork it ended with {os.waitstatus_to_exitcode(status)}"
            self._say({"failed": order.name, "error": why})
        return None

    def _fork_again(self, order: Order) -> int:
        """Fork and end, telling the nanny; return, in the child, the parent's pidfd."""
        try:
            leaving = os.pidfd_open(os.getpid())
            child = os.fork()
            if not child:
                return leaving
            os.setpgid(child, child)  # from now on, what ends the zygote's group does not end the child
            pidfd = os.pidfd_open(child)
            self._say({"forked": order.name, "pid": child}, [pidfd])
        except BaseException as exc:  # noqa: BLE001 - whatever it is, there must not be two zygotes
            self._say({"failed": order.name, "error": f"{type(exc).__name__}: {exc}"})
        os._exit(0)

    def _say(self, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
        try:
            socket.send_fds(self._control, [json.dumps(message).encode()], fds)
        except (BrokenPipeError, ConnectionResetError):
            os._exit(0)  # nobody is left to fork for

    def _break_off(self, error: str) -> NoReturn:
        sys.stdout.flush()
        sys.stderr.flush()
        self._say({"broken": error[-_ERROR_CHARS:]})
        os._exit(1)


def _await_end(pidfd: int) -> None:
    """Wait until a process has ended: its children have their new parent by then."""
    waiter = select.poll()
    waiter.register(pidfd, select.POLLIN)
    waiter.poll()
    os.close(pidfd)


def _assert_alone() -> None:
    """Raise NotAlone, naming the threads, unless this process has but one."""
    until = time.monotonic() + _THREADS_LEAVE_S
    while len(os.listdir("/proc/self/task")) > 1:
        if time.monotonic() > until:
            names = ", ".join(_other_threads())
            raise NotAlone(
                f"a zygote must have one thread to fork, this one also has: {names}. A module of `preload` has started "
                "it: take that module out of `preload`, or set `launcher: spawn` for the pool"
            )
        time.sleep(0.001)


def _other_threads() -> list[str]:
    known = {thread.native_id: thread.name for thread in threading.enumerate()}
    found = []
    for tid in map(int, os.listdir("/proc/self/task")):
        if tid == os.getpid():
            continue
        try:
            with open(f"/proc/self/task/{tid}/comm", encoding="utf-8", errors="replace") as file:
                comm = file.read().strip()
        except FileNotFoundError:
            continue  # it has just ended
        found.append(f"{known[tid]!r}" if tid in known else f"{comm!r} (of a native library)")
    return found
