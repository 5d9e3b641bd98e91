"""The worker process: `python -m bridge.worker --spec-fd N --slots-fd M --lifeline-fd K [worker_id run_id]`.

The last two words are for readers of process listings. Exit codes: 0 stopped as asked, 1 could not boot or was refused,
9 the coordinator is gone.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import signatures  # noqa: F401 - found now, before folders of users come first on the path
from bridge import faultpoints, nesting
from bridge.protocol.worker_spec import WorkerSpec, decode_spec
from bridge.worker import stacks
from bridge.worker.attempt import Runner
from bridge.worker.loop import Loop
from bridge.worker.parent import current_parent
from bridge.worker.raised import remote_error
from bridge.worker.slots import StartedSlots

log = logging.getLogger("bridge.worker")

# What a worker can do unless its spec says otherwise; it brings DSPy.
BUILDER: Final = "bridge.worker.operations:build"
# Threads that programs have left behind may hold up the end of the interpreter for so long.
EXIT_LIMIT_S = 1.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run a worker until it is stopped; return its exit code."""
    arguments = _arguments(argv)
    return run(arguments.spec_fd, arguments.slots_fd, arguments.lifeline_fd)


def run(spec_fd: int, slots_fd: int, lifeline_fd: int) -> int:
    """Run a worker on these descriptors until it is stopped; return its exit code."""
    born_s = time.perf_counter()
    for fd in (spec_fd, slots_fd, lifeline_fd):
        os.set_inheritable(fd, False)  # not for the children of programs
    stacks.keep(slots_fd)
    faultpoints.arm_by(os.environ)
    spec = _read_spec(spec_fd)
    slots = StartedSlots(slots_fd)
    os.close(slots_fd)
    sys.path[:0] = spec.python_path
    set_up_logging(spec.log_level)
    nesting.serve(spec.client_endpoint, current_parent, worker_id=spec.worker_id, client_token=spec.client_token)
    loop = Loop(spec, lifeline_fd)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the coordinator to decide about
    signal.signal(signal.SIGTERM, lambda *_: loop.stop())
    loop.start()
    code = _serve(spec, slots, loop, born_s)
    threading.Thread(target=_leave_for_sure, args=(code,), name="leave", daemon=True).start()
    return code


def set_up_logging(level: str = "info") -> None:
    """Have warnings of all, and from `level` on what is our own, written to stderr. Cheap when it is so already."""
    logging.basicConfig(format="%(levelname)s %(name)s %(message)s")
    ours = logging.getLogger("bridge")
    # Setting a level visits every logger there is.
    if ours.level != (wanted := logging.getLevelNamesMapping()[level.upper()]):
        ours.setLevel(wanted)


def _serve(spec: WorkerSpec, slots: StartedSlots, loop: Loop, born_s: float) -> int:
    try:
        operations = _builder(spec.builder or BUILDER)(spec)
        runner = Runner(operations, spec, slots)
    except BaseException as exc:  # noqa: BLE001 - what is imported may call sys.exit()
        error = remote_error(exc)
        log.error("boot_failed: %s\n%s", error.message, error.details["remote_traceback"])
        loop.boot_failed(error)
        return loop.join()
    # What booting made lives as long as the process: the collector need never look at it again.
    gc.collect()
    gc.freeze()
    loop.ready(runner, operations.program, (time.perf_counter() - born_s) * 1e3)
    code = loop.join()
    try:
        operations.close()
    except Exception:
        log.exception("close_failed")
    return code


def _builder(name: str) -> Callable[[WorkerSpec], Any]:
    """Return what makes the operations. Imported here: it may take long, and the loop is to say Hello before that."""
    module, _, attribute = name.partition(":")
    build: Callable[[WorkerSpec], Any] = getattr(importlib.import_module(module), attribute)
    return build


def _leave_for_sure(code: int) -> None:
    time.sleep(EXIT_LIMIT_S)
    os._exit(code)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bridge.worker", description="A dspool worker; its coordinator starts it.")
    parser.add_argument("--spec-fd", type=int, required=True, help="memfd of the encoded WorkerSpec")
    parser.add_argument("--slots-fd", type=int, required=True, help="memfd of the started-slots page and of stacks")
    parser.add_argument("--lifeline-fd", type=int, required=True, help="pipe whose other end the coordinator holds")
    parser.add_argument("names", nargs="*", help="worker id and run id, for process listings")
    return parser.parse_args(argv)


def _read_spec(fd: int) -> WorkerSpec:
    with open(fd, "rb") as file:
        file.seek(0)
        return decode_spec(file.read())


if __name__ == "__main__":
    sys.exit(main())
