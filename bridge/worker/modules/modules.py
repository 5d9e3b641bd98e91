"""The module operations of a worker: `dspy.Predict {signature, inputs, options}` and its kin, by name."""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from bridge.protocol.errors import BridgeError, closest
from bridge.worker import arguments, sandbox
from bridge.worker.call import Call
from bridge.worker.inputs import Inputs
from bridge.worker.modules import adapters, agents, choosing, coding, parallel, predicting, retrieval, voting
from bridge.worker.modules.plan import (
    GENERATION,
    Blueprint,
    Kind,
    Plan,
    compile_signature,
    read_config,
    read_instructions,
    signature_error,
)
from bridge.worker.operations import Asynchronous
from bridge.worker.plain import to_plain
from bridge.worker.program_loop import on_thread
from bridge.worker.running import arun_module, run_module, runs_async
from bridge.worker.scope import Scope

if TYPE_CHECKING:
    from bridge.worker.embedding import Embedder

# Built modules are kept: a signature costs 0.4 ms to build, a chain of thought 0.2 ms more.
_KEPT_PLANS: Final = 256

_KINDS: Final[dict[str, Kind]] = {**predicting.KINDS, **agents.KINDS, **choosing.KINDS, **coding.KINDS}
# Modules that a signature and options make: they can be deployed, and called by others.
KINDS: Final = tuple(_KINDS)
_COMMON: Final = ("instructions", "config", *GENERATION, *adapters.OPTIONS)

# Options that name code, or a module that may be slow to build.
_IMPORTING: Final = frozenset({"tools", "reward", "module"})


class _Failed(threading.local):
    """The module that this thread could not build last: the same attempt, which follows, does not build it again.

    A server of tools that says nothing is waited for once, a file that cannot be imported runs once.
    """

    last: tuple[Any, BridgeError | None] = (None, None)


class Modules:
    """The module operations of one worker. embedder: for those that compare texts; None = the built-in one."""

    def __init__(self, scope: Scope, embedder: Embedder | None = None) -> None:
        self._scope = scope
        self._plan = functools.lru_cache(maxsize=_KEPT_PLANS)(self._build)
        self._retrieval = retrieval.Retrieval(scope, embedder)
        self._failed = _Failed()

    def operations(self) -> dict[str, Callable[[Any, Call], Any]]:
        """Return the operations by name."""
        return {
            **{kind: self._operation(kind) for kind in KINDS},
            parallel.NAME: parallel.Parallel(self.plan, self._scope),
            voting.NAME: voting.majority,
            **self._retrieval.operations(),
        }

    def plan(self, kind: str, text: Any, options: Any) -> Plan:
        """Return the module `kind` for a signature text and options, shared by all who ask for the same.

        Raises BridgeError: SIGNATURE_ERROR with line and column, INVALID_REQUEST with the path of an option,
        SANDBOX_MISSING for a module that needs one, NOT_FOUND for a language model that an option names.
        """
        return self._plan(kind, arguments.text(text, "signature"), canonical(options))

    def fresh(self, kind: str, text: Any, options: Any) -> Plan:
        """Return the same as `plan`, but a module of the caller's own."""
        return self._build(kind, arguments.text(text, "signature"), canonical(options))

    def _operation(self, kind: str) -> Asynchronous:
        of = functools.partial
        run, run_async, is_async = of(self._run, kind), of(self._run_async, kind), of(self._is_async, kind)
        return Asynchronous(run, run_async, is_async, at_once=of(self._is_at_once, kind))

    def _run(self, kind: str, args: Any, call: Call) -> Any:
        plan, inputs = self._read(kind, args)
        with self._scope.enter(call, module=plan.module, **plan.settings):
            return to_plain(run_module(plan.module, inputs, call))

    async def _run_async(self, kind: str, args: Any, call: Call) -> Any:
        read = functools.partial(self._read, kind, args)
        plan, inputs = await on_thread(read) if _may_block(kind, args) else read()
        with self._scope.enter(call, module=plan.module, **plan.settings):
            return to_plain(await arun_module(plan.module, inputs, call, is_async=plan.is_async))

    def _is_async(self, kind: str, args: Any) -> bool:
        try:
            return self.plan(kind, args["signature"], args.get("options")).is_async
        except BridgeError as error:
            self._failed.last = args, error
            return False  # it is told when they are run
        except (TypeError, LookupError, AttributeError):
            return False  # what is wrong with them is told then too

    def _is_at_once(self, kind: str, args: Any, call: Call) -> bool:
        # Asked where `_is_async` says yes. An adapter may have a language model of its own.
        plan = self.plan(kind, args["signature"], args.get("options"))
        return not plan.settings and self._scope.answers_at_once(plan.module, call)

    def _read(self, kind: str, args: Any) -> tuple[Plan, dict[str, Any]]:
        fields = arguments.read(args, kind, required=("signature", "inputs"), optional=("options",))
        asked, error = self._failed.last
        self._failed.last = None, None
        if error is not None and asked is args:
            raise error
        plan = self.plan(kind, fields["signature"], fields.get("options"))
        return plan, plan.inputs.check(fields["inputs"], kind)

    def _build(self, name: str, text: str, canonical_options: str) -> Plan:
        options = json.loads(canonical_options)
        kind = _KINDS[name]
        other = _called(options.get("module"), name) if kind.calls_another else None
        own = (*kind.options, *(_KINDS[other].options if other else ()))
        problems = arguments.unknown_names(options, (*_COMMON, *own), name, "options.")
        if problems:
            arguments.refuse(problems)
        for one in (name, other):
            if one is not None and _KINDS[one].sandboxed:
                sandbox.require(one)
        config = read_config(options, name)
        signature = compile_signature(text, read_instructions(options))
        adapter = adapters.read_adapter(options, self._scope.language_model)
        choosing.check_adapter(name, adapter)
        blueprint = Blueprint(other or name, signature, config, options, self._scope.language_model)
        module, inputs = _built(blueprint, text)
        if other is not None:
            module, _ = _built(blueprint._replace(kind=name, module=module), text, inputs)
        settings = {} if adapter is None else {"adapter": adapter}
        is_async = not kind.sandboxed and runs_async(module)
        return Plan(module, inputs, tuple(signature.output_fields), settings, is_async)


def _may_block(kind: str, args: Any) -> bool:
    """Tell whether building a module may wait for something: code that is imported, a server or a Deno that starts."""
    options = args.get("options") if isinstance(args, dict) else None
    return _KINDS[kind].sandboxed or (isinstance(options, dict) and not _IMPORTING.isdisjoint(options))


def canonical(options: Any) -> str:
    """Return options as the text they are cached by."""
    try:
        return json.dumps(arguments.mapping(options, "options"), sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as exc:
        raise arguments.invalid("options", f"options hold something that is no plain data: {exc}") from None


def _called(other: Any, owner: str) -> str:
    """Return the module that another one is to call."""
    can_be = [kind for kind in KINDS if not _KINDS[kind].calls_another and kind != "dspy.MultiChainComparison"]
    if other is None:
        return "dspy.Predict"
    if other not in can_be:
        near = closest(other, can_be)[:1] if isinstance(other, str) else []
        hint = f"; did you mean {near[0]}?" if near else f" (it calls {', '.join(can_be)})"
        text = f"{owner} calls no module {arguments.shown(other)}{hint}"
        raise arguments.invalid("options.module", text)
    return str(other)


def _built(blueprint: Blueprint, text: str, checked: Inputs | None = None) -> tuple[Any, Inputs]:
    """Return the module and what it takes. checked: the inputs of the module that it calls."""
    kind = _KINDS[blueprint.kind]
    inputs = checked or Inputs.of_signature(blueprint.signature)
    if taken := kind.taken.intersection(inputs.names):
        message = f"the input {min(taken)!r} is taken by {blueprint.kind} itself; choose another name"
        raise signature_error(text, message)
    try:
        module = kind.build(blueprint)
    except BridgeError:
        raise
    except Exception as exc:
        raise signature_error(text, f"{blueprint.kind} does not take this signature: {exc}") from exc
    extra: Mapping[str, Any] = {} if kind.extra is None else kind.extra(blueprint)
    return module, Inputs({**inputs.fields, **extra})
