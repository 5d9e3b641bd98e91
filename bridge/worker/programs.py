"""Programs: what users deploy, by name. Known from the coordinator's Program messages, loaded at their first call."""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping
from typing import Any, Final

import dspy  # type: ignore[import-untyped]

from bridge.protocol.errors import REMOTE_ERROR, BridgeError, not_found
from bridge.protocol.messages import Program
from bridge.protocol.names import is_taken
from bridge.worker import arguments, imports, program_state
from bridge.worker.batched_programs import BatchedFunction
from bridge.worker.call import Call
from bridge.worker.loading import Loaded, Loader
from bridge.worker.operations import Asynchronous, Operation
from bridge.worker.plain import to_plain
from bridge.worker.program_loop import on_thread
from bridge.worker.running import arun_module, run_module
from bridge.worker.scope import Scope
from bridge.worker.versions import Version, Versions

_SPEC_KEYS: Final = ("name", "version", "sha256", "state", "config", "pool")


class Programs:
    """The program table of one worker. Thread-safe: messages change it while calls read it.

    A loaded program is shared by the concurrent calls of its worker: its `forward` must keep a call's state in local
    variables. Calls that run keep the version that they began with.
    """

    def __init__(self, loader: Loader, scope: Scope) -> None:
        self._loader = loader
        self._scope = scope
        self._versions = Versions(self._operation_of)

    def define(self, message: Program) -> None:
        """Take a version of a program from the coordinator, or its end (see `Versions.define`). Loads nothing."""
        self._versions.define(message)

    def names(self) -> list[str]:
        """Return the names of the deployed programs."""
        return self._versions.names()

    def find(self, name: str) -> Operation | None:
        """Return the operation that calls the program, None if there is none of that name."""
        version = self._versions.find(name)
        return None if version is None else version.operation

    def batched(self, name: str) -> BatchedFunction | None:
        """Return the program if it is `@batched` and loaded: its first call loads it."""
        version = self._versions.find(name)
        module = None if version is None else version.module
        return module if isinstance(module, BatchedFunction) else None

    def load(self, program: str | Mapping[str, Any]) -> Loaded:
        """Return a program of the caller's own: a deployed one, by name, or what a spec says.

        To be called within a Scope. Raises BridgeError: NOT_FOUND, and as `Loader.load` does.
        """
        if not isinstance(program, str):
            return self._loader.load(program)
        version = self._versions.find(program)
        if version is None:
            raise not_found("program", program, self.names(), advice="deploy it first")
        return self._load(version)

    def load_operation(self, args: Any, call: Call) -> dict[str, Any]:
        """Operation `programs.load {name, target, state, config}`; keeps nothing.

        Returns {sha256, source_sha256, source, state, predictors, inputs, outputs, signature}, see `Loaded`; `source`
        is the packed source, None where there is none or it is too large to be kept; `predictors` are what they are,
        with the state or without.

        Raises BridgeError: INVALID_REQUEST or SIGNATURE_ERROR for a spec that is wrong, TOO_LARGE for its state,
        REMOTE_ERROR with the root traceback for a program whose code does not load.
        """
        fields = arguments.read(args, "programs.load", required=("target",), optional=_SPEC_KEYS)
        name = fields.get("name")
        if name is not None:
            _check_name(arguments.text(name, "name"))
        for key in ("target", "config"):
            program_state.plain(fields.get(key), key)
        with self._scope.enter(call):
            loaded = self._loader.load(fields)
        sources = None if loaded.found is None else loaded.found.sources
        return {
            "sha256": loaded.sha256, "source_sha256": loaded.source_sha256,
            "source": None if sources is None else sources.pack(),
            "state": loaded.state, "predictors": program_state.told(loaded.module),
            "inputs": list(loaded.inputs.names), "outputs": list(loaded.outputs), "signature": loaded.signature,
        }  # fmt: skip

    def warm_operation(self, args: Any, call: Call) -> dict[str, Any]:
        """Operation `programs.warm {name, version}`: load a version now rather than at its first call.

        Returns {sha256, load_ms, was_loaded}. Raises BridgeError: NOT_FOUND for a version that this worker was not told
        of, and what its first call would raise.
        """
        fields = arguments.read(args, "programs.warm", required=("name", "version"))
        name = arguments.text(fields["name"], "name")
        number = arguments.whole(fields["version"], "version", least=1, most=1 << 62)
        version = self._versions.find(f"{name}@{number}")
        if version is None:
            raise not_found("version of a program", f"{name}@{number}", self.names())
        started = time.perf_counter()
        with self._scope.enter(call):
            was_loaded = version.loaded is not None
            loaded = self._loaded(version)
        load_ms = round((time.perf_counter() - started) * 1e3, 1)
        return {"sha256": loaded.sha256, "load_ms": load_ms, "was_loaded": was_loaded}

    def _operation_of(self, version: Version) -> Operation:
        run, run_async = (functools.partial(one, version) for one in (self._call, self._acall))
        return Asynchronous(run, run_async, version.is_async, functools.partial(self._is_at_once, version))

    def _call(self, version: Version, args: Any, call: Call) -> Any:
        with self._scope.enter(call, module=version.module):
            loaded = self._loaded(version)
            if isinstance(loaded.module, BatchedFunction):
                return loaded.module(args, call)
            inputs = loaded.inputs.check({} if args is None else args, version.name)
            with dspy.context(**loaded.settings):
                return to_plain(run_module(loaded.module, inputs, call))

    async def _acall(self, version: Version, args: Any, call: Call) -> Any:
        with self._scope.enter(call, module=version.module):
            loaded = version.loaded
            if loaded is None:
                loaded = await on_thread(functools.partial(self._loaded, version))
            else:
                self._versions.touch(version)
            if isinstance(loaded.module, BatchedFunction):
                return await on_thread(functools.partial(loaded.module, args, call))
            inputs = loaded.inputs.check({} if args is None else args, version.name)
            with dspy.context(**loaded.settings):
                return to_plain(await arun_module(loaded.module, inputs, call, is_async=loaded.is_async))

    def _is_at_once(self, version: Version, args: Any, call: Call) -> bool:
        loaded = version.loaded
        return loaded is not None and not loaded.settings and self._scope.answers_at_once(loaded.module, call)

    def _loaded(self, version: Version) -> Loaded:
        """Return the program of a version; load it if it is not in memory."""
        loaded = version.loaded
        if loaded is not None:
            self._versions.touch(version)
            return loaded
        with imports.turn():
            loaded = version.loaded
            if loaded is None:
                loaded = self._load(version)
                self._versions.keep(version, loaded)
            return loaded

    def _load(self, version: Version) -> Loaded:
        """Load a version's program. One whose source is not kept with it must still be what was deployed."""
        spec = version.spec
        loaded = self._loader.load(spec, source=spec.get("source"), found=version.found)
        expected, target = spec.get("source_sha256"), spec.get("target")
        if expected and expected != loaded.source_sha256:
            text = (
                f"{version} cannot be loaded: the source of {target} is not what it was deployed with any more, and "
                "not kept with the version (it is too large, or installed); deploy it again"
            )
            raise BridgeError(REMOTE_ERROR, text, details={"type": "SourceChanged", "target": str(target)})
        return loaded


def _check_name(name: str) -> None:
    if is_taken(name):
        raise arguments.invalid("name", f"the name {name!r} is taken by a built-in operation; choose another")
