"""The operations of a worker, by name: built-ins, native operations, DSPy modules, deployed programs.

DSPy is imported by `build`, after the environment that it reads at import is set.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, Protocol

from bridge import native
from bridge.batched import BatchLimits
from bridge.protocol.errors import BridgeError, not_found
from bridge.protocol.messages import Program
from bridge.protocol.worker_spec import WorkerSpec
from bridge.worker import arguments, faults, sessions
from bridge.worker.call import Call

if TYPE_CHECKING:
    from bridge.worker.batching import Batched
    from bridge.worker.lm import LanguageModels
    from bridge.worker.programs import Programs


class Operation(Protocol):
    """What a request runs: arguments in, a value that can travel out. A plain function is one.

    Where it has `is_async` and `run_async` too (see `Asynchronous`), it may run on the worker's event loop.
    """

    def __call__(self, args: Any, call: Call, /) -> Any:
        """Run on a thread of the executor's."""


class Asynchronous:
    """An operation that can run on the worker's event loop.

    is_async: tells whether it may for these arguments; cheap, and raises nothing. run_async: runs there, whatever
    `is_async` says: a request whose answer is streamed always does. It must not block the loop. run: does the same on
    a thread. at_once: tells that a call waits for nothing: then threads do it, one after the other.
    """

    def __init__(
        self,
        run: Callable[[Any, Call], Any],
        run_async: Callable[[Any, Call], Awaitable[Any]],
        is_async: Callable[[Any], bool],
        at_once: Callable[[Any, Call], bool] = lambda args, call: False,
    ) -> None:
        self._run = run
        self.run_async = run_async
        self.is_async = is_async
        self.at_once = at_once

    def __call__(self, args: Any, call: Call, /) -> Any:
        """Run on a thread of the executor's."""
        return self._run(args, call)


def build(spec: WorkerSpec) -> Operations:
    """Import DSPy and return the operations of this worker. Called once, on the main thread, while the worker boots."""
    prepare_environment(spec.cache_dir)
    _prepare_dspy()
    from bridge.worker import tools
    from bridge.worker.embedding import Embedder
    from bridge.worker.embedding.operation import Embed
    from bridge.worker.lm import LanguageModels
    from bridge.worker.loading import Loader
    from bridge.worker.modules import Modules
    from bridge.worker.optimize import Optimize
    from bridge.worker.programs import Programs
    from bridge.worker.scope import Scope

    tools.serve(spec)
    models = LanguageModels(spec.lms)
    scope = Scope(models)
    embedder = Embedder.of(spec)
    embed = Embed(embedder, BatchLimits(**spec.batch))
    modules = Modules(scope, embedder)
    built_in: dict[str, Operation] = {
        "ping": functools.partial(_ping, spec.worker_id),
        "echo": _echo,
        "sleep": _sleep,
        "embed": embed,
        sessions.SET: sessions.set_state,
        sessions.DELETE: sessions.delete_state,
        **faults.operations(enabled=spec.faults),
        **modules.operations(),
        **{name: functools.partial(_native, name) for name in native.names()},
    }
    programs = Programs(Loader(modules, unpickles=spec.allow_pickled_programs), scope)
    built_in["programs.load"] = programs.load_operation
    built_in["programs.warm"] = programs.warm_operation
    built_in["optimize"] = Optimize(programs, scope)
    return Operations(built_in, programs, models, {"embed": embed} if spec.batch else {})


class Operations:
    """Finds operations. `inline` names those that take well under a millisecond and run on the io thread."""

    inline: Final = frozenset({"ping", "echo", sessions.SET, sessions.DELETE})

    def __init__(
        self, built_in: dict[str, Operation], programs: Programs, models: LanguageModels, batched: dict[str, Batched]
    ) -> None:
        self._built_in = built_in
        self._programs = programs
        self._models = models
        self._batched = batched

    def find(self, name: str) -> Operation | None:
        """Return the operation `(args, call) -> value`, None if there is none of that name."""
        return self._built_in.get(name) or self._programs.find(name)

    def batched(self, name: str) -> Batched | None:
        """Return the operation of that name if it takes the items of many callers at once."""
        return self._batched.get(name) or self._programs.batched(name)

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
        """Release what the language models and the tools hold."""
        from bridge.worker import tools  # it imports dspy

        tools.close()
        self._models.close()


def prepare_environment(cache_dir: str) -> None:
    """Set what DSPy and its libraries read when they are imported. cache_dir: "" = as the environment says."""
    # Without it the first LM call of every process downloads a price list.
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    # Progress bars of libraries would only fill the log.
    os.environ.setdefault("TQDM_DISABLE", "1")
    if cache_dir:
        os.environ["DSPY_CACHEDIR"] = cache_dir


def _prepare_dspy() -> None:
    """Import DSPy, and change what workers need changed of it."""
    import dspy  # type: ignore[import-untyped]

    from bridge.worker import configuring, handlers, remembered

    # Answers are not kept between requests: DSPy's keys leave out whose endpoint and whose key was used.
    dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=False)
    handlers.remember()
    remembered.remember()
    configuring.confine()


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
