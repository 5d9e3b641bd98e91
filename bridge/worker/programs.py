"""Programs: what users deploy, by name. Known from the coordinator's Program messages, loaded at their first call."""

from __future__ import annotations

import functools
import hashlib
import importlib
import inspect
import json
import logging
import threading
from collections.abc import Mapping
from typing import Any, NamedTuple

import dspy  # type: ignore[import-untyped]

from bridge.protocol.errors import not_found
from bridge.protocol.messages import Program
from bridge.protocol.names import is_taken
from bridge.protocol.values import decode_value
from bridge.worker import arguments, batched_programs, imports
from bridge.worker.batched_programs import BatchedFunction
from bridge.worker.call import Call
from bridge.worker.described import described
from bridge.worker.inputs import Inputs, signature_of
from bridge.worker.modules import KINDS, BestOf, Modules
from bridge.worker.operations import Asynchronous, Operation
from bridge.worker.plain import to_plain
from bridge.worker.program_loop import on_thread
from bridge.worker.running import arun_module, run_module, runs_async
from bridge.worker.scope import Scope

log = logging.getLogger(__name__)

_SPEC_KEYS = ("name", "version", "sha256", "target", "state", "config", "pool")
_TARGET_KEYS = ("module", "signature", "options")


class Loaded(NamedTuple):
    """A program in memory.

    outputs: as far as its signatures tell. signature: text of the signature that it is called by, None for a forward of
    its own. sha256: of source, target, state and config. is_async: it runs on the worker's event loop. settings:
    DSPy's settings to call it under.
    """

    module: Any
    inputs: Inputs
    outputs: tuple[str, ...]
    signature: str | None
    sha256: str
    is_async: bool = False
    settings: Mapping[str, Any] = {}


class _Entry:
    """A deployed program and, once called, what was loaded for it."""

    def __init__(self, spec: Mapping[str, Any]) -> None:
        self.spec = spec
        self.lock = threading.Lock()
        self.loaded: Loaded | None = None
        self.operation: Operation | None = None

    def is_async(self, args: Any) -> bool:
        """Tell whether a call belongs on the event loop. It is there that the first one finds out."""
        return self.loaded is None or self.loaded.is_async

    @property
    def module(self) -> Any:
        """The program, None before its first call."""
        return None if self.loaded is None else self.loaded.module


class Programs:
    """The program table of one worker. Thread-safe: messages change it while calls read it.

    A loaded program is shared by the concurrent calls of its worker: its `forward` must keep a call's state in local
    variables. A new version is a new entry; calls that run keep the old one.
    """

    def __init__(self, modules: Modules, scope: Scope) -> None:
        self._modules = modules
        self._scope = scope
        self._entries: dict[str, _Entry] = {}

    def define(self, message: Program) -> None:
        """Take a program from the coordinator; an empty payload removes it. Loads nothing."""
        if not message.payload:
            self._entries.pop(message.name, None)
            return
        spec = decode_value(message.payload)
        entry = _Entry({**spec, "name": message.name, "version": message.program_version})
        run, run_async = (functools.partial(one, message.name, entry) for one in (self._call, self._acall))
        entry.operation = Asynchronous(run, run_async, entry.is_async, functools.partial(self._is_at_once, entry))
        self._entries[message.name] = entry

    def names(self) -> list[str]:
        """Return the names of the deployed programs."""
        return sorted(self._entries)

    def find(self, name: str) -> Operation | None:
        """Return the operation that calls the program, None if there is none of that name."""
        entry = self._entries.get(name)
        return None if entry is None else entry.operation

    def batched(self, name: str) -> BatchedFunction | None:
        """Return the program if it is `@batched` and loaded: its first call loads it."""
        entry = self._entries.get(name)
        module = None if entry is None or entry.loaded is None else entry.loaded.module
        return module if isinstance(module, BatchedFunction) else None

    def spec(self, name: str) -> Mapping[str, Any]:
        """Return the spec of a deployed program. Raises BridgeError(NOT_FOUND)."""
        entry = self._entries.get(name)
        if entry is None:
            raise not_found("program", name, self._entries, advice="deploy it first")
        return entry.spec

    def load_operation(self, args: Any, call: Call) -> dict[str, Any]:
        """Operation `programs.load {name, target, state, config}`; keeps nothing.

        Returns {sha256, inputs, outputs, signature}, see `Loaded`.

        Raises BridgeError: INVALID_REQUEST or SIGNATURE_ERROR for a spec that is wrong, REMOTE_ERROR with the root
        traceback for a program whose code does not load.
        """
        fields = arguments.read(args, "programs.load", required=("target",), optional=_SPEC_KEYS)
        name = fields.get("name")
        if name is not None:
            _check_name(arguments.text(name, "name"))
        with self._scope.enter(call):
            loaded = self.load(fields)
        return {
            "sha256": loaded.sha256, "inputs": list(loaded.inputs.names), "outputs": list(loaded.outputs),
            "signature": loaded.signature,
        }  # fmt: skip

    def load(self, spec: Mapping[str, Any]) -> Loaded:
        """Return a program of the caller's own for a spec. To be called within a Scope."""
        target = spec.get("target")
        config = arguments.mapping(spec.get("config"), "config")
        state = spec.get("state")
        settings: Mapping[str, Any] = {}
        with _loading:
            # DSPy lets only the first thread that configures do so again. Programs do it where they are imported, on
            # whatever thread loads them; requests override what they set.
            _dspy_settings.config_owner_thread_id = None
            _dspy_settings.config_owner_async_task = None
            if isinstance(target, str):
                found = imports.find(target, "target")
                batched = batched_programs.load(found.value, target, config, state)
                if batched is not None:
                    digest = _digest(found.source, target, state, config)
                    return Loaded(batched, Inputs({}), (), None, digest, is_async=False)
                with imports.importing(target):
                    module = _instance(found.value, target, config)
                source = found.source
                inputs, outputs, is_async = Inputs.of_program(module), _outputs(module), runs_async(module)
            else:
                kind, signature, options = _read_target(target)
                plan = self._modules.fresh(kind, signature, {**options, **config})
                module, inputs, outputs, settings, is_async = plan
                source = b""
            if state is not None:
                _load_state(module, state)
        sha256 = _digest(source, target, state, config)
        return Loaded(module, inputs, outputs, _described(module), sha256, is_async, settings)

    def _call(self, name: str, entry: _Entry, args: Any, call: Call) -> Any:
        with self._scope.enter(call, module=entry.module):
            loaded = entry.loaded or self._first_load(name, entry)
            if isinstance(loaded.module, BatchedFunction):
                return loaded.module(args, call)
            inputs = loaded.inputs.check({} if args is None else args, name)
            with dspy.context(**loaded.settings):
                return to_plain(run_module(loaded.module, inputs, call))

    async def _acall(self, name: str, entry: _Entry, args: Any, call: Call) -> Any:
        with self._scope.enter(call, module=entry.module):
            loaded = entry.loaded
            if loaded is None:
                loaded = await on_thread(functools.partial(self._first_load, name, entry))
            if isinstance(loaded.module, BatchedFunction):
                return await on_thread(functools.partial(loaded.module, args, call))
            inputs = loaded.inputs.check({} if args is None else args, name)
            with dspy.context(**loaded.settings):
                return to_plain(await arun_module(loaded.module, inputs, call, is_async=loaded.is_async))

    def _is_at_once(self, entry: _Entry, args: Any, call: Call) -> bool:
        loaded = entry.loaded
        return loaded is not None and not loaded.settings and self._scope.answers_at_once(loaded.module, call)

    def _first_load(self, name: str, entry: _Entry) -> Loaded:
        with entry.lock:
            if entry.loaded is None:
                loaded = self.load(entry.spec)
                expected = entry.spec.get("sha256")
                if expected and expected != loaded.sha256:
                    log.warning("program_changed_since_deployed: %s, sha256 %s, was %s", name, loaded.sha256, expected)
                entry.loaded = loaded
            return entry.loaded


def _check_name(name: str) -> None:
    if is_taken(name):
        raise arguments.invalid("name", f"the name {name!r} is taken by a built-in operation; choose another")


# One program loads at a time: imports change sys.path, and DSPy's settings have one owner.
_loading = threading.RLock()
# The module: `dspy.dsp.utils.settings` as an attribute is the settings object in it.
_dspy_settings: Any = importlib.import_module("dspy.dsp.utils.settings")


def _read_target(target: Any) -> tuple[str, Any, dict[str, Any]]:
    if not isinstance(target, dict):
        forms = "'package.module:name', '/path/file.py:name' or {'module': 'dspy.Predict', 'signature': '…'}"
        raise arguments.invalid("target", f"target must be {forms}, got {arguments.shown(target)}")
    problems = arguments.unknown_names(target, _TARGET_KEYS, "a program", "target.")
    problems += [(f"target.{key}", f"target.{key} is missing") for key in ("module", "signature") if key not in target]
    if problems:
        arguments.refuse(problems)
    if target["module"] not in KINDS:
        raise not_found("DSPy module", str(target["module"]), KINDS)
    return target["module"], target["signature"], arguments.mapping(target.get("options"), "target.options")


def _instance(found: Any, target: str, config: dict[str, Any]) -> Any:
    """Return a module of our own for what a target names: a class, an instance, or a factory."""
    wanted = "a dspy.Module subclass, an instance of one, or a function without required arguments that returns one"
    if isinstance(found, dspy.Module):
        if config:
            raise arguments.invalid("config", f"{target} is an instance and takes no config; name its class")
        # The imported one belongs to its module: a state loaded into it would show in every later load.
        return _checked(found.deepcopy(), target)
    if not callable(found) or (inspect.isclass(found) and not issubclass(found, dspy.Module)):
        raise arguments.invalid("target", f"target must be {wanted}; {target} is {_kind_of(found)}")
    try:
        if inspect.isclass(found):
            # DSPy's metaclass hides what the constructor takes.
            inspect.signature(found.__init__).bind(None, **config)
        else:
            inspect.signature(found).bind(**config)
    except TypeError as exc:
        problem = f"it cannot be called with config {sorted(config)}" if config else "it needs arguments"
        raise arguments.invalid("target", f"target must be {wanted}; {target}: {problem} ({exc})") from exc
    made = found(**config)
    if not isinstance(made, dspy.Module):
        raise arguments.invalid("target", f"target must be {wanted}; {target} returned {_kind_of(made)}")
    return _checked(made, target)


def _checked(module: Any, target: str) -> Any:
    if all(inspect.getattr_static(type(module), name, None) is None for name in ("forward", "aforward")):
        raise arguments.invalid("target", f"{target} is a dspy.Module without a forward method: it cannot be called")
    return module


def _kind_of(value: Any) -> str:
    return f"the class {value.__qualname__}" if inspect.isclass(value) else f"of type {type(value).__name__}"


def _outputs(module: Any) -> tuple[str, ...]:
    """Return the output fields of the program's own signature, else of its last predictor."""
    signature = signature_of(module)
    if signature is None:
        predictors = module.predictors()
        signature = predictors[-1].signature if predictors else None
    return () if signature is None else tuple(signature.output_fields)


def _described(module: Any) -> str | None:
    own = signature_of(module.module if isinstance(module, BestOf) else module)
    return None if own is None else described(own)


def _load_state(module: Any, state: Any) -> None:
    """Load a JSON state (`dump_state`) after checking that it is this program's.

    A language model in the state is left out: the request names the model. DSPy itself would load the state of
    another signature silently, with its field descriptions shifted.
    """
    given = dict(arguments.mapping(state, "state"))
    given.pop("metadata", None)
    # A predictor alone keeps its state without a name; DSPy counts it as its own parameter "self".
    alone = isinstance(module, dspy.Predict)
    parameters = {"": module} if alone else dict(module.named_parameters())
    states = {"": given} if alone else given
    if set(states) != set(parameters):
        text = f"state is of another program: it has the predictors {sorted(states)}, this one has {sorted(parameters)}"
        raise arguments.invalid("state", text)
    clean = {name: _predictor_state(f"state.{name}".rstrip("."), states[name], parameters[name]) for name in parameters}
    try:
        module.load_state(clean[""] if alone else clean)
    except Exception as exc:
        raise arguments.invalid("state", f"state cannot be loaded: {type(exc).__name__}: {exc}") from exc


def _predictor_state(path: str, state: Any, parameter: Any) -> dict[str, Any]:
    """Return the state of one predictor, checked, without a language model."""
    one = arguments.mapping(state, path)
    signature = getattr(parameter, "signature", None)
    fields = arguments.mapping(one.get("signature"), f"{path}.signature").get("fields")
    if signature is not None and (not isinstance(fields, list) or len(fields) != len(signature.fields)):
        count = len(fields) if isinstance(fields, list) else 0
        text = f"{path} is of another signature: it has {count} fields, this one has {len(signature.fields)}"
        raise arguments.invalid(path, text)
    demos = one.get("demos")
    if not isinstance(demos, list) or not all(isinstance(demo, dict) for demo in demos):
        raise arguments.invalid(
            f"{path}.demos", f"{path}.demos must be a list of mappings, got {arguments.shown(demos)}"
        )
    return {**one, "lm": None}


def _digest(source: bytes, target: Any, state: Any, config: Any) -> str:
    head = json.dumps([target, state, config], sort_keys=True, default=repr).encode("utf-8", "surrogatepass")
    return hashlib.sha256(hashlib.sha256(source).digest() + head).hexdigest()
