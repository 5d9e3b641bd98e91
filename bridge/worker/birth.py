"""What the child of a zygote does to be like a freshly started process: descriptors, signals, environment, chance."""

from __future__ import annotations

import ctypes
import faulthandler
import fcntl
import gc
import json
import os
import random
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

SPEC_FD, SLOTS_FD, LIFELINE_FD, CONTROL_FD = 3, 4, 5, 6

# What Python sets at its start. A fresh worker has the default for all others.
_IGNORED: Final = frozenset({signal.SIGPIPE, signal.SIGXFSZ})
_LOWEST_SPARE_FD: Final = 16  # above every number that a child finds something at
# /proc/self/stat: the fields after the command's name begin with the third.
_ARG_START: Final = 48 - 3


@dataclass(frozen=True, slots=True)
class Newborn:
    """A forked process. words: its command line, as a worker takes it."""

    is_zygote: bool
    words: list[str]


def settle(given: Sequence[int], lifeline: int, own: Sequence[int], *, is_zygote: bool) -> Newborn:
    """Become a process of one's own. Raises OSError.

    given: descriptors of order (JSON: argv, env), spec, slots, stdout, stderr and, for a zygote, control.
    own: those that the zygote needed and its child does not, `lifeline` among them.
    """
    os.setpgid(0, 0)
    if not is_zygote:
        _reset_signals()
    with open(given[0], "rb", closefd=False) as file:
        order = json.load(file)
    _place(given, lifeline, own)
    os.environ.clear()
    os.environ.update(order["env"])
    time.tzset()
    _reseed()
    words = list(order["argv"])
    if not is_zygote:
        _show(words)
        gc.enable()
    return Newborn(is_zygote, words)


def _reset_signals() -> None:
    faulthandler.disable()  # else enabling it again would change nothing
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGINT}:
        signal.signal(number, signal.SIG_IGN if number in _IGNORED else signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def _place(given: Sequence[int], lifeline: int, own: Sequence[int]) -> None:
    """Put what the process was given where it looks for it, and part with everything else that was open."""
    _, spec, slots, stdout, stderr, *control = given
    targets = [(0, os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)), (1, stdout), (2, stderr)]
    targets += [(SPEC_FD, spec), (SLOTS_FD, slots), (LIFELINE_FD, lifeline), *((CONTROL_FD, fd) for fd in control)]
    lifted = {number: fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _LOWEST_SPARE_FD) for number, fd in targets}
    for fd in {*given, *own, targets[0][1]}:
        os.close(fd)
    # Modules may have left files open. Their numbers stay taken: closing them later must not hit a stranger.
    kept = {0, 1, 2, SPEC_FD, SLOTS_FD, LIFELINE_FD, *lifted.values()}
    for fd in map(int, os.listdir("/proc/self/fd")):
        if fd not in kept and os.path.islink(f"/proc/self/fd/{fd}"):  # the listing's own is closed by now
            os.dup2(lifted[0], fd, inheritable=False)
    for number, fd in lifted.items():
        os.dup2(fd, number)
        os.close(fd)


def _reseed() -> None:
    random.seed()
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()


def _show(words: Sequence[str]) -> None:
    """Write a worker's words over its zygote's in the command line that others see of this process.

    The kernel shows the memory in which the arguments stood. Its size is fixed: what is left of it becomes spaces
    after the third word from the end. Words for which there is no room are not written.
    """
    with open("/proc/self/cmdline", "rb") as file:
        head, separator, rest = file.read().partition(b"--spec-fd")
    tail = [os.fsencode(word) for word in words]
    spare = len(separator + rest) - sum(len(word) + 1 for word in tail)
    if spare < 0 or len(tail) < 3:
        return
    tail[-3] += b" " * spare
    text = b"".join(word + b"\0" for word in tail)
    with open("/proc/self/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    ctypes.memmove(int(fields[_ARG_START]) + len(head), text, len(text))
