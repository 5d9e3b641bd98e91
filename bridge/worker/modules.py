"""DSPy's own modules as operations: `dspy.Predict {signature, inputs, options}` and its kin."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import dspy  # type: ignore[import-untyped]

from bridge import native
from bridge.protocol.errors import BridgeError
from bridge.worker import arguments, imports, metrics
from bridge.worker.call import Call
from bridge.worker.dspy_signature import to_dspy
from bridge.worker.inputs import Field, Inputs
from bridge.worker.plain import to_plain
from bridge.worker.scope import Scope
from signatures.errors import SignatureError
from signatures.text.parser import read

# Built modules are kept: a signature costs 0.4 ms to build, a chain of thought 0.2 ms more.
_KEPT_PLANS: Final = 256

# Options that go to the language model with every call of the module.
GENERATION: Final = (
    "temperature", "max_tokens", "top_p", "top_k", "stop", "seed", "frequency_penalty", "presence_penalty",
    "rollout_id",
)  # fmt: skip
_COMMON: Final = ("instructions", "config", *GENERATION)


class Plan(NamedTuple):
    """A module ready to be called, any number of times and from any thread."""

    module: Any
    inputs: Inputs
    outputs: tuple[str, ...]


class BestOf(dspy.Module):  # type: ignore[misc]
    """`dspy.BestOfN`, which counts failures on itself, made anew for each call."""

    def __init__(self, module: Any, n: int, reward: metrics.Reward, threshold: float) -> None:
        super().__init__()
        self.module = module
        self.n = n
        self.reward = reward
        self.threshold = threshold

    def forward(self, **inputs: Any) -> Any:
        """Return the best of n answers."""
        # BestOfN raises at attempt k when k > fail_count - failures so far. With 2n - 3 that is so exactly when all
        # n attempts failed; its default returns None then.
        best = dspy.BestOfN(self.module, self.n, self.reward, self.threshold, fail_count=2 * self.n - 3)
        return best(**inputs)


class Modules:
    """The module operations of one worker."""

    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        self._plan = functools.lru_cache(maxsize=_KEPT_PLANS)(_build)

    def operations(self) -> dict[str, Callable[[Any, Call], Any]]:
        """Return the operations by name."""
        return {kind: functools.partial(self._run, kind) for kind in _MAKERS}

    def plan(self, kind: str, text: Any, options: Any) -> Plan:
        """Return the module `kind` for a signature text and options, shared by all who ask for the same.

        Raises BridgeError: SIGNATURE_ERROR with line and column, INVALID_REQUEST with the path of an option.
        """
        return self._plan(kind, arguments.text(text, "signature"), _canonical(options))

    def fresh(self, kind: str, text: Any, options: Any) -> Plan:
        """Return the same as `plan`, but a module of the caller's own."""
        return _build(kind, arguments.text(text, "signature"), _canonical(options))

    def _run(self, kind: str, args: Any, call: Call) -> Any:
        fields = arguments.read(args, kind, required=("signature", "inputs"), optional=("options",))
        plan = self.plan(kind, fields["signature"], fields.get("options"))
        inputs = plan.inputs.check(fields["inputs"], kind)
        if kind == "dspy.MultiChainComparison":
            _check_completions(inputs["completions"], plan)
        with self._scope.enter(call):
            return to_plain(plan.module(**inputs))


def _canonical(options: Any) -> str:
    """Return the options as the text they are cached by."""
    try:
        return json.dumps(arguments.mapping(options, "options"), sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as exc:
        raise arguments.invalid("options", f"options hold something that is no plain data: {exc}") from None


def _build(kind: str, text: str, canonical_options: str) -> Plan:
    options = json.loads(canonical_options)
    maker, own = _MAKERS[kind]
    problems = arguments.unknown_names(options, (*_COMMON, *own), kind, "options.")
    if problems:
        arguments.refuse(problems)
    config = {name: options.pop(name) for name in GENERATION if name in options}
    nested = arguments.mapping(options.pop("config", None), "options.config")
    problems = arguments.unknown_names(nested, GENERATION, kind, "options.config.")
    if problems:
        arguments.refuse(problems)
    instructions = options.pop("instructions", None)
    if instructions is not None:
        arguments.text(instructions, "options.instructions")
    signature = compile_signature(text, instructions)
    inputs = Inputs.of_signature(signature)
    if taken := _TAKEN.get(kind, frozenset()).intersection(inputs.names):
        raise signature_error(text, f"the input {min(taken)!r} is taken by {kind} itself; choose another name")
    try:
        module = maker(signature, {**config, **nested}, options)
    except BridgeError:
        raise
    except Exception as exc:
        raise signature_error(text, f"{kind} does not take this signature: {exc}") from exc
    if kind == "dspy.MultiChainComparison":
        inputs = Inputs({**inputs.fields, "completions": Field(required=True)})
    return Plan(module, inputs, tuple(signature.output_fields))


def compile_signature(text: str, instructions: str | None = None) -> Any:
    """Return DSPy's signature class for a text that the engine reads.

    instructions: for a text without a prefix. Raises BridgeError(SIGNATURE_ERROR) that tells every problem.
    """
    try:
        return to_dspy(read(text, instructions=instructions))
    except SignatureError as exc:
        # Some are about the canonical form: what was sent is what the caller knows.
        raise native.signature_error(exc if exc.text == text else SignatureError(exc.problems, text)) from exc


def signature_error(text: str, message: str) -> BridgeError:
    """Return a SIGNATURE_ERROR about a text as a whole."""
    return native.signature_error(SignatureError(message, text))


# --- the makers: (signature, generation config, the module's own options) -> module -----------------------------------


def _predict(signature: Any, config: dict[str, Any], options: Mapping[str, Any]) -> Any:
    return dspy.Predict(signature, **config)


def _chain_of_thought(signature: Any, config: dict[str, Any], options: Mapping[str, Any]) -> Any:
    return dspy.ChainOfThought(signature, **config)


def _react(signature: Any, config: dict[str, Any], options: Mapping[str, Any]) -> Any:
    max_iters = arguments.whole(options.get("max_iters", 20), "options.max_iters", least=1, most=1000)
    paths = options.get("tools") or []
    if not isinstance(paths, list):
        raise arguments.invalid("options.tools", "options.tools must be a list of import paths 'package.module:name'")
    tools: dict[str, Any] = {}
    for index, one in enumerate(paths):
        path = f"options.tools[{index}]"
        found = imports.find(arguments.text(one, path), path).value
        if not callable(found):
            raise arguments.invalid(path, f"{path}: {one} is a {type(found).__name__}, not a function")
        tool = found if isinstance(found, dspy.Tool) else dspy.Tool(found)
        if tool.name in tools or tool.name == "finish":
            raise arguments.invalid(path, f"{path}: a tool named {tool.name!r} exists already")
        tools[tool.name] = tool
    module = dspy.ReAct(signature, list(tools.values()), max_iters)
    module.react.update_config(**config)
    module.extract.predict.update_config(**config)
    return module


def _best_of_n(signature: Any, config: dict[str, Any], options: Mapping[str, Any]) -> Any:
    kind = options.get("module", "dspy.Predict")
    inner = {"dspy.Predict": _predict, "dspy.ChainOfThought": _chain_of_thought}.get(kind)
    if inner is None:
        text = f"options.module must be dspy.Predict or dspy.ChainOfThought, got {arguments.shown(kind)}"
        raise arguments.invalid("options.module", text)
    if "reward" not in options:
        raise arguments.invalid("options.reward", "dspy.BestOfN needs options.reward: 'filled:FIELD', 'concise:FIELD' "
                                                  "or an import path 'package.module:name'")  # fmt: skip
    n = arguments.whole(options.get("N", 3), "options.N", least=1, most=100)
    threshold = arguments.number(options.get("threshold", 1.0), "options.threshold", least=-1e12)
    return BestOf(inner(signature, config, {}), n, metrics.find_reward(options["reward"], "options.reward"), threshold)


def _multi_chain_comparison(signature: Any, config: dict[str, Any], options: Mapping[str, Any]) -> Any:
    m = arguments.whole(options.get("M", 3), "options.M", least=1, most=50)
    return dspy.MultiChainComparison(signature, M=m, **{"temperature": 0.7, **config})


def _check_completions(completions: Any, plan: Plan) -> None:
    """Refuse completions that MultiChainComparison cannot compare."""
    path = "inputs.completions"
    wanted = plan.module.M
    last = plan.outputs[-1]
    if not isinstance(completions, list) or len(completions) != wanted:
        count = len(completions) if isinstance(completions, list) else arguments.shown(completions)
        raise arguments.invalid(path, f"{path} must be a list of {wanted} answers (options.M), got {count}")
    for index, one in enumerate(completions):
        where = f"{path}[{index}]"
        reasoning = (one.get("rationale", one.get("reasoning"))) if isinstance(one, Mapping) else None
        if not isinstance(reasoning, str) or last not in one:
            text = f"{where} must be a mapping with the texts 'reasoning' and {last!r}, got {arguments.shown(one)}"
            raise arguments.invalid(where, text)


_MAKERS: Final[dict[str, tuple[Callable[..., Any], tuple[str, ...]]]] = {
    "dspy.Predict": (_predict, ()),
    "dspy.ChainOfThought": (_chain_of_thought, ()),
    "dspy.ReAct": (_react, ("tools", "max_iters")),
    "dspy.BestOfN": (_best_of_n, ("module", "N", "reward", "threshold")),
    "dspy.MultiChainComparison": (_multi_chain_comparison, ("M",)),
}
KINDS: Final = tuple(_MAKERS)
# Input names that a module uses for itself.
_TAKEN: Final = {
    "dspy.ReAct": frozenset({"trajectory", "max_iters"}),
    "dspy.MultiChainComparison": frozenset({"completions"}),
}
