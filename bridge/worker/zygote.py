"""A zygote: a process that has imported what workers need, and forks them when it is asked to.

The root zygote is a fresh interpreter, `… --spec-fd N --slots-fd M --lifeline-fd K --control-fd C`. It loads DSPy and
forks workers, and further zygotes, which load modules of the user's first. It configures nothing, runs no request, and
has one thread whenever it forks: locks that another thread held would be held for ever in the child.

The control socket is the nanny's (`pools.launch.nanny` describes both ends). A child is forked twice; the process in
between forks all that were ordered by then, tells the nanny who was born, and ends, so that they are the nanny's,
whatever becomes of their zygote. EOF on the socket ends a zygote, and so does its nanny's death.
"""

from __future__ import annotations

import argparse
import ctypes
import faulthandler
import gc
import importlib
import json
import mmap
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

from bridge import faultpoints
from bridge.worker import birth, loaded_modules
from bridge.worker.surroundings import Surroundings

_MESSAGE_BYTES: Final = 65_536
_ERROR_CHARS: Final = 8_000
_PR_SET_PDEATHSIG: Final = 1
# A thread that was joined may still be leaving.
_THREADS_LEAVE_S: Final = 1.0
# So many are forked by one process in between. More would save little, and the first would wait for the last.
_LITTER: Final = 8

Work = Callable[[Sequence[str]], int]


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be forked: descriptors of its order (JSON), spec, slots, stdout and stderr, of a zygote's control."""

    name: str
    is_zygote: bool
    fds: list[int]

    def close(self) -> None:
        """Close the descriptors."""
        for fd in self.fds:
            os.close(fd)


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
    faultpoints.arm_by(os.environ)
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
    return worker.run(birth.SPEC_FD, birth.SLOTS_FD, birth.LIFELINE_FD)


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
        self._shared = mmap.mmap(-1, mmap.PAGESIZE)  # with the processes in between
        # Its parent is the nanny. If that died before this call, the socket is at its end.
        if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")

    def preload(self) -> None:
        """Import the modules of the pool."""
        with Surroundings().kept():
            for module in self._modules:
                importlib.import_module(module)
        loaded_modules.note()  # what its children find in memory, and may have to make anew, is made of this

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
        self._signals = birth.changed_signals()
        gc.collect()
        gc.freeze()  # the collector would write into pages that are shared with the children
        gc.disable()
        self._say({"ready": True})

    def serve(self) -> birth.Newborn:
        """Fork what is asked for. Returns in each child what it is; ends the process at the socket's end."""
        orders: list[Order] = []
        while orders or (orders := self._next_orders()):
            forked = self._fork(orders)
            if forked is not None:
                # Only the child is here.
                self._shared.close()
                number, parent = forked
                order, *others = orders[number:]
                own = [self._control.detach(), self._lifeline_fd, *(fd for other in others for fd in other.fds)]
                return birth.settle(order.fds, self._lifeline_fd, own, parent, self._signals, is_zygote=order.is_zygote)
            for order in orders[: self._settled]:
                order.close()
            del orders[: self._settled]
        os._exit(0)  # what was imported for others has nothing to say at the end

    def _next_orders(self) -> list[Order]:
        """Wait for an order; return it and those behind it, `_LITTER` at most. None are left at the socket's end."""
        orders: list[Order] = []
        while len(orders) < _LITTER and (not orders or select.select([self._control], [], [], 0)[0]):
            try:
                data, fds, _, _ = socket.recv_fds(self._control, _MESSAGE_BYTES, 6)
            except ConnectionResetError:
                return []
            if not data:
                return []
            message = json.loads(data)
            order = Order(message["fork"], message["zygote"], fds)
            if len(fds) == 5 + order.is_zygote:
                orders.append(order)
            else:
                order.close()
                self._say({"failed": order.name, "error": "no descriptor was free to receive what it was to get"})
        return orders

    def _fork(self, orders: list[Order]) -> tuple[int, int] | None:
        """Fork twice. Returns in a child the number of its order and a pidfd of its parent, None in the zygote.

        The nanny then knows what became of the first `_settled` orders. If one fails, those after it are left.
        """
        self._settled = 0
        try:
            _assert_alone()
            sys.stdout.flush()
            sys.stderr.flush()
            faultpoints.hit("zygote.before_fork")
            between = os.fork()
        except (OSError, NotAlone) as exc:
            self._failed(orders, str(exc))
            return None
        if not between:
            return self._fork_again(orders)
        _, status = os.waitpid(between, 0)
        faultpoints.hit("zygote.after_fork")
        if status:
            self._failed(orders, f"the process that was to fork it ended with {os.waitstatus_to_exitcode(status)}")
        return None

    def _fork_again(self, orders: list[Order]) -> tuple[int, int]:
        """Fork each and end, telling the nanny; return in the children as `_fork` does."""
        try:
            leaving = os.pidfd_open(os.getpid())
            for number, order in enumerate(orders):
                _assert_alone()
                child = os.fork()
                if not child:
                    return number, leaving
                os.setpgid(child, child)  # from now on, what ends the zygote's group does not end the child
                pidfd = os.pidfd_open(child)
                self._say({"forked": order.name, "pid": child}, [pidfd])
                self._settled = number + 1
                os.close(pidfd)
                order.close()
        except BaseException as exc:  # noqa: BLE001 - whatever it is, there must not be two zygotes
            self._failed(orders, f"{type(exc).__name__}: {exc}")
        os._exit(0)

    def _failed(self, orders: Sequence[Order], error: str) -> None:
        """Say that the first order that is not settled has failed."""
        if self._settled < len(orders):
            self._say({"failed": orders[self._settled].name, "error": error})
            self._settled += 1

    @property
    def _settled(self) -> int:
        """Of how many of the orders the nanny has been told what became of them; the process in between writes too."""
        return self._shared[0]

    @_settled.setter
    def _settled(self, count: int) -> None:
        self._shared[0] = count

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
