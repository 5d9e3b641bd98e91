"""The command line of a worker. No secret stands in it: those travel in the spec's memfd."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pools.launch.launcher import LaunchSpec
from pools.launch.nanny import LIFELINE_FD, SLOTS_FD, SPEC_FD

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
_BOOT = (
    FIND_PACKAGES
    + """\
import runpy
runpy.run_module("bridge.worker", run_name="__main__", alter_sys=True)
"""
)


@dataclass(frozen=True, slots=True)
class ChildFds:
    """The numbers under which a worker finds its descriptors."""

    spec: int = SPEC_FD
    slots: int = SLOTS_FD
    lifeline: int = LIFELINE_FD


Command = Callable[[LaunchSpec, ChildFds], list[str]]


def worker_command(run_id: str, root: Path = PACKAGES_ROOT) -> Command:
    """Return the command that runs `bridge.worker` from the packages under `root`.

    The last two words, worker id and run id, are for people and for finding what a run left behind.
    """

    def command(spec: LaunchSpec, fds: ChildFds) -> list[str]:
        words = [spec.python, "-P", "-c", _BOOT, str(root), "--spec-fd", str(fds.spec), "--slots-fd", str(fds.slots)]
        return [*words, "--lifeline-fd", str(fds.lifeline), spec.worker_id, run_id]

    return command
