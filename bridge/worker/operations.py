"""The operations of a worker, by name: built-ins, native operations, DSPy modules, deployed programs.

DSPy is imported by `build`, after the environment that it reads at import is set.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from bridge import native
from bridge.protocol.errors import BridgeError, not_found
from bridge.protocol.messages import Program
from bridge.protocol.worker_spec import WorkerSpec
from bridge.worker import arguments, faults
from bridge.worker.call import Call

if TYPE_CHECKING:
    from bridge.worker.lm import LanguageModels
    from bridge.worker.programs import Programs

Operation = Callable[[Any, Call], Any]


def build(spec: WorkerSpec) -> Operations:
    """Import DSPy and return the operations of this worker. Called once, on the main thread, while the worker boots."""
    prepare_environment(spec.cache_dir)
    import dspy  # type: ignore[import-untyped]

    from bridge.worker.embed import embed
    from bridge.worker.lm import LanguageModels
    from bridge.worker.modules import Modules
    from bridge.worker.optimize import Optimize
    from bridge.worker.programs import Programs
    from bridge.worker.scope import Scope

    # Answers are not kept between requests: DSPy's keys leave out whose endpoint and whose key was used.
    dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=False)
    models = LanguageModels(spec.lms)
    scope = Scope(models)
    modules = Modules(scope)
    built_in: dict[str, Operation] = {
        "ping": functools.partial(_ping, spec.worker_id),
        "echo": _echo,
        "sleep": _sleep,
        "embed": embed,
        **faults.operations(enabled=spec.faults),
        **modules.operations(),
        **{name: functools.partial(_native, name) for name in native.names()},
    }
    programs = Programs(modules, scope)
    built_in["programs.load"] = programs.load_operation
    built_in["optimize"] = Optimize(programs, scope)
    return Operations(built_in, programs, models)


class Operations:
    """Finds operations. `inline` names those that take well under a millisecond and run on the io thread."""

    inline: Final = frozenset({"ping", "echo"})

    def __init__(self, built_in: dict[str, Operation], programs: Programs, models: LanguageModels) -> None:
        self._built_in = built_in
        self._programs = programs
        self._models = models

    def find(self, name: str) -> Operation | None:
        """Return the operation `(args, call) -> value`, None if there is none of that name."""
        return self._built_in.get(name) or self._programs.find(name)

    def unknown(self, name: str) -> BridgeError:
        """Return the NOT_FOUND for a name that `find` does not know."""
        if name.startswith("dspy."):
            known = [one for one in self._built_in if one.startswith("dspy.")]
            return not_found("DSPy module", name, known, advice=f"(modules: {', '.join(known)})")
        known = [one for one in self._built_in if not one.startswith("fault.")] + self._programs.names()
        return not_found("operation", name, known, advice="a program is called by the name it was deployed under")

    def program(self, message: Program) -> None:
        """Take a deployed or removed program."""
        self._programs.define(message)

    def close(self) -> None:
        """Release what the language models hold."""
        self._models.close()


def prepare_environment(cache_dir: str) -> None:
    """Set what DSPy and its libraries read when they are imported. cache_dir: "" = as the environment says."""
    # Without it the first LM call of every process downloads a price list.
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    # Progress bars of libraries would only fill the log.
    os.environ.setdefault("TQDM_DISABLE", "1")
    if cache_dir:
        os.environ["DSPY_CACHEDIR"] = cache_dir


def _ping(worker_id: str, args: Any, call: Call) -> dict[str, Any]:
    arguments.read(args, "ping")
    return {"pong": True, "worker": worker_id, "pid": os.getpid()}


def _echo(args: Any, call: Call) -> Any:
    return args


def _native(name: str, args: Any, call: Call) -> Any:
    return native.run(name, args)


def _sleep(args: Any, call: Call) -> dict[str, Any]:
    """Operation `sleep {seconds}`: wait, unless cancelled or out of time."""
    seconds = arguments.number(arguments.read(args, "sleep", required=("seconds",))["seconds"], "seconds")
    remaining_s = call.remaining_s()
    limits = (seconds, threading.TIMEOUT_MAX, *(() if remaining_s is None else (remaining_s,)))
    call.cancelled.wait(min(limits))
    call.check()
    return {"seconds": seconds}
