"""Loading a program: a module of the caller's own, made of what a spec says.

A spec is a mapping {target, state, config}. That of a version also has {sha256, source_sha256, source}: the digests of
what was deployed, and the sources that the target is in, packed (see `sources`).
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import dspy  # type: ignore[import-untyped]

from bridge.protocol.errors import not_found
from bridge.worker import arguments, batched_programs, imports, pickled, program_state
from bridge.worker.described import described
from bridge.worker.imports import Found
from bridge.worker.inputs import Inputs, signature_of
from bridge.worker.modules import KINDS, BestOf, Modules
from bridge.worker.running import runs_async

_TARGET_KEYS: Final = ("module", "signature", "options")
_NO_SOURCE: Final = hashlib.sha256().hexdigest()


class Loaded(NamedTuple):
    """A program in memory.

    outputs: as far as its signatures tell. signature: text of the signature that it is called by, None for a forward of
    its own. sha256: of source, target, state and config; source_sha256: of the source alone, None where there is none.
    state: what is to be kept of it, None if it was given none. found: what the target names. is_async: it runs on the
    worker's event loop. settings: DSPy's settings to call it under.
    """

    module: Any
    inputs: Inputs
    outputs: tuple[str, ...]
    signature: str | None
    sha256: str
    source_sha256: str | None
    state: dict[str, Any] | None = None
    found: Found | None = None
    is_async: bool = False
    settings: Mapping[str, Any] = {}


class Loader:
    """Loads programs, one at a time. unpickles: whether it takes pickled ones."""

    def __init__(self, modules: Modules, *, unpickles: bool = False) -> None:
        self._modules = modules
        self._unpickles = unpickles

    def load(self, spec: Mapping[str, Any], *, source: bytes | None = None, found: Found | None = None) -> Loaded:
        """Return a program of the caller's own for a spec. To be called within a Scope.

        source: packed, of which it is made whatever is on disk; never that of a spec which a client sent. found: what
        the target named when the same spec was loaded before: it is not looked for again.
        Raises BridgeError: INVALID_REQUEST or SIGNATURE_ERROR for a spec that is wrong, REMOTE_ERROR with the root
        traceback for code that does not load.
        """
        target = spec.get("target")
        config = arguments.mapping(spec.get("config"), "config")
        with imports.turn():
            # DSPy lets only the first thread that configures do so again. Programs do it where they are imported, on
            # whatever thread loads them; requests override what they set.
            _dspy_settings.config_owner_thread_id = None
            _dspy_settings.config_owner_async_task = None
            if isinstance(target, str):
                found = found or imports.find(target, "target", kept=source)
                loaded = self._of_code(target, config, spec, found)
            elif isinstance(target, dict) and "pickled" in target:
                loaded = self._of_pickle(target, config)
            else:
                loaded = self._of_module(target, config)
            state = spec.get("state")
            if state is not None:
                loaded = loaded._replace(state=program_state.load(loaded.module, state))
        return loaded._replace(sha256=_digest(loaded.source_sha256, target, loaded.state, config))

    def _of_code(self, target: str, config: dict[str, Any], spec: Mapping[str, Any], found: Found) -> Loaded:
        """Load what an import path names; its digest is still to be worked out, as below."""
        batched = batched_programs.load(found.value, target, config, spec.get("state"))
        if batched is not None:
            return Loaded(batched, Inputs({}), (), None, "", found.sha256, found=found)
        with imports.importing(target):
            module = _instance(found.value, target, config)
        return _made(module, found.sha256)._replace(found=found)

    def _of_pickle(self, target: dict[str, Any], config: dict[str, Any]) -> Loaded:
        pickle = pickled.read(target, is_allowed=self._unpickles)
        where = str(target["pickled"])
        with imports.importing(where):
            module = _instance(pickled.unpickle(pickle), where, config)
            for predictor in module.predictors():
                predictor.lm = None  # as in a state: the request names the language model
        return _made(module, pickle.sha256)

    def _of_module(self, target: Any, config: dict[str, Any]) -> Loaded:
        kind, signature, options = _read_target(target)
        plan = self._modules.fresh(kind, signature, {**options, **config})
        text = _described(plan.module)
        return Loaded(plan.module, plan.inputs, plan.outputs, text, "", None, None, None, plan.is_async, plan.settings)


# The module: `dspy.dsp.utils.settings` as an attribute is the settings object in it.
_dspy_settings: Any = importlib.import_module("dspy.dsp.utils.settings")


def _made(module: Any, source_sha256: str | None) -> Loaded:
    inputs, outputs = Inputs.of_program(module), _outputs(module)
    return Loaded(module, inputs, outputs, _described(module), "", source_sha256, is_async=runs_async(module))


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


def _digest(source_sha256: str | None, target: Any, state: Any, config: Any) -> str:
    head = json.dumps([target, state, config], sort_keys=True, default=repr).encode("utf-8", "surrogatepass")
    return hashlib.sha256(bytes.fromhex(source_sha256 or _NO_SOURCE) + head).hexdigest()
