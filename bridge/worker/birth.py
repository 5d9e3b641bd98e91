"""What the child of a zygote does to be like a freshly started process: descriptors, signals, environment, chance."""

from __future__ import annotations

import ctypes
import faulthandler
import fcntl
import gc
import json
import os
import random
import select
import signal
import sys
import time
from collections.abc import Collection, Mapping, Sequence
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


def changed_signals() -> frozenset[int]:
    """Return the signals that this process does not treat as a freshly started one would."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        masks = dict(line.split(":", 1) for line in file if line.startswith(("SigIgn", "SigCgt")))
    ignored, caught = (int(masks[name], 16) for name in ("SigIgn", "SigCgt"))
    fresh = sum(1 << number - 1 for number in _IGNORED)
    changed = caught | (ignored ^ fresh)
    return frozenset(
        int(number) for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP} if changed >> number - 1 & 1
    )


def settle(
    given: Sequence[int],
    lifeline: int,
    own: Sequence[int],
    parent: int,
    changed: Collection[int],
    *,
    is_zygote: bool,
) -> Newborn:
    """Become a process of one's own, and the nanny's child. Raises OSError.

    given: descriptors of order (JSON: argv, env), spec, slots, stdout, stderr and, for a zygote, control.
    own: those that the zygote needed and its child does not, `lifeline` among them. parent: pidfd of the process that
    forked this one and is about to end. changed: the zygote's `changed_signals`.
    """
    os.setpgid(0, 0)
    if not is_zygote:
        _reset_signals(changed)
    with open(given[0], "rb", closefd=False) as file:
        order = json.load(file)
    _place(given, lifeline, own, parent)
    _set_environment(order["env"])
    _reseed()
    words = list(order["argv"])
    if not is_zygote:
        _show(words)
        gc.enable()
    _await_end(parent)
    return Newborn(is_zygote, words)


def _reset_signals(changed: Collection[int]) -> None:
    faulthandler.disable()  # else enabling it again would change nothing
    signal.set_wakeup_fd(-1)
    for number in changed:
        signal.signal(number, signal.SIG_IGN if number in _IGNORED else signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def _set_environment(wanted: Mapping[str, str]) -> None:
    """Make the environment that of `wanted`. Most of it is: what is not touched stays shared with the zygote."""
    for name in [name for name in os.environ if name not in wanted]:
        del os.environ[name]
    for name, value in wanted.items():
        if os.environ.get(name) != value:
            os.environ[name] = value
    time.tzset()


def _place(given: Sequence[int], lifeline: int, own: Sequence[int], parent: int) -> None:
    """Put what the process was given where it looks for it. Of what else was open only `parent` stays."""
    _, spec, slots, stdout, stderr, *control = given
    targets = [(0, os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)), (1, stdout), (2, stderr)]
    targets += [(SPEC_FD, spec), (SLOTS_FD, slots), (LIFELINE_FD, lifeline), *((CONTROL_FD, fd) for fd in control)]
    lifted = {number: fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _LOWEST_SPARE_FD) for number, fd in targets}
    for fd in {*given, *own, targets[0][1]}:
        os.close(fd)
    # Modules may have left files open. Their numbers stay taken: closing them later must not hit a stranger.
    kept = {0, 1, 2, SPEC_FD, SLOTS_FD, LIFELINE_FD, parent, *lifted.values()}
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
        # Without a number it would look for 128 bits of chance, which takes as long as the rest of all this.
        numpy_random.seed(int.from_bytes(os.urandom(4), "little"))


def _await_end(pidfd: int) -> None:
    """Wait until a process has ended: its children have their new parent by then."""
    waiter = select.poll()
    waiter.register(pidfd, select.POLLIN)
    waiter.poll()
    os.close(pidfd)


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
