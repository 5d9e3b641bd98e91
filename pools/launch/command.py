"""The command line of a worker. No secret stands in it: those travel in the spec's memfd."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pools.launch.launcher import LaunchSpec
from pools.launch.nanny import CONTROL_FD, LIFELINE_FD, SLOTS_FD, SPEC_FD

PACKAGES_ROOT = Path(__file__).resolve().parents[2]

# Code that takes the packages' root from sys.argv[1] and sees to it that ours are found there. Another interpreter need
# not have them, and a user's folder may have others of these names. Where none is there the root goes to the end of the
# path, so that the interpreter's own packages win over those that happen to lie beside ours.
FIND_PACKAGES = """\
import importlib.util, os, sys
root = sys.argv.pop(1)
found = [importlib.util.find_spec(name) for name in ("signatures", "bridge", "pools", "orchestrator")]
homes = [os.path.join(os.path.dirname(each.origin), os.pardir) for each in found if each and each.origin]
if not any(found):
    sys.path.append(root)
elif len(homes) < len(found) or not all(os.path.samefile(home, root) for home in homes):
    sys.path.insert(0, root)
"""
_BOOT_ZYGOTE = (
    FIND_PACKAGES
    + """\
from bridge.worker.zygote import main
main()
"""
)
# A forked worker writes its own last words over a zygote's, and needs room for them.
_ROOM = " " * 64
_BOOT = (
    FIND_PACKAGES
    + """\
import runpy
runpy.run_module("bridge.worker", run_name="__main__", alter_sys=True)
"""
)


@dataclass(frozen=True, slots=True)
class ChildFds:
    """The numbers under which a worker finds its descriptors; the last is a zygote's."""

    spec: int = SPEC_FD
    slots: int = SLOTS_FD
    lifeline: int = LIFELINE_FD
    control: int = CONTROL_FD


Command = Callable[[LaunchSpec, ChildFds], list[str]]


def worker_command(run_id: str, root: Path = PACKAGES_ROOT) -> Command:
    """Return the command that runs `bridge.worker` from the packages under `root`.

    The last two words, worker id and run id, are for people and for finding what a run left behind.
    """
    words = forked_command(run_id)

    def command(spec: LaunchSpec, fds: ChildFds) -> list[str]:
        return [spec.python, "-P", "-c", _BOOT, str(root), *words(spec, fds)]

    return command


def forked_command(run_id: str) -> Command:
    """Return the words that a worker takes; a forked one has no others."""

    def command(spec: LaunchSpec, fds: ChildFds) -> list[str]:
        words = ["--spec-fd", str(fds.spec), "--slots-fd", str(fds.slots), "--lifeline-fd", str(fds.lifeline)]
        return [*words, spec.worker_id, run_id]

    return command


def zygote_command(run_id: str, root: Path = PACKAGES_ROOT) -> Command:
    """Return the command of a root zygote, `bridge.worker.zygote` from the packages under `root`."""

    def command(spec: LaunchSpec, fds: ChildFds) -> list[str]:
        words = ["--spec-fd", str(fds.spec), "--slots-fd", str(fds.slots), "--lifeline-fd", str(fds.lifeline)]
        words += ["--control-fd", str(fds.control), f"{spec.worker_id}{_ROOM}", f"of-run-{run_id}"]
        return [spec.python, "-P", "-c", _BOOT_ZYGOTE, str(root), *words]

    return command
