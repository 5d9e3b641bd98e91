"""Modules that run code which a language model writes, in a sandbox: ProgramOfThought, CodeAct, RLM."""

from __future__ import annotations

import inspect
from typing import Any, Final

import dspy  # type: ignore[import-untyped]

from bridge.worker import arguments, imports, sandbox
from bridge.worker.modules.agents import max_iters, tools_of
from bridge.worker.modules.plan import Blueprint, Kind


def _program_of_thought(blueprint: Blueprint) -> Any:
    module = dspy.ProgramOfThought(blueprint.signature, max_iters(blueprint, 3), sandbox.Interpreter)
    _configure(module, blueprint)
    return module


def _code_act(blueprint: Blueprint) -> Any:
    tools = _functions(blueprint)
    module = dspy.CodeAct(blueprint.signature, tools, max_iters(blueprint, 5), sandbox.Interpreter)
    _configure(module, blueprint)
    return module


def _rlm(blueprint: Blueprint) -> Any:
    options = blueprint.options
    sub_lm = options.get("sub_lm")
    module = dspy.RLM(
        blueprint.signature,
        max_iters=max_iters(blueprint, 20),
        max_llm_calls=arguments.whole(options.get("max_llm_calls", 50), "options.max_llm_calls", most=10_000),
        max_output_chars=arguments.whole(
            options.get("max_output_chars", 10_000), "options.max_output_chars", least=100, most=10_000_000
        ),
        tools=tools_of(blueprint, taken=("llm_query", "llm_query_batched", "SUBMIT", "print")),
        sub_lm=None if sub_lm is None else blueprint.models(arguments.text(sub_lm, "options.sub_lm")),
        interpreter_factory=sandbox.Interpreter,
    )
    _configure(module, blueprint)
    return module


def _configure(module: Any, blueprint: Blueprint) -> None:
    for _, predictor in module.named_predictors():
        predictor.update_config(**blueprint.config)


def _functions(blueprint: Blueprint) -> list[Any]:
    """Return CodeAct's tools: plain functions, whose source it copies into the sandbox."""
    paths = blueprint.options.get("tools") or []
    if not isinstance(paths, list):
        raise arguments.invalid("options.tools", "options.tools must be a list of import paths 'package.module:name'")
    functions: dict[str, Any] = {}
    for index, one in enumerate(paths):
        path = f"options.tools[{index}]"
        if not isinstance(one, str):
            text = f"{path}: dspy.CodeAct copies the source of its tools into the sandbox: name each by its import path"
            raise arguments.invalid(path, text)
        found = imports.find(arguments.text(one, path), path).value
        if not inspect.isfunction(found):
            text = f"{path}: dspy.CodeAct takes plain functions; {one} is a {type(found).__name__}"
            raise arguments.invalid(path, text)
        if found.__name__ in functions:
            raise arguments.invalid(path, f"{path}: a tool named {found.__name__!r} exists already")
        functions[found.__name__] = found
    return list(functions.values())


KINDS: Final = {
    "dspy.ProgramOfThought": Kind(
        _program_of_thought, ("max_iters",), sandboxed=True,
        taken=frozenset({"previous_code", "error", "generated_code", "final_generated_code", "code_output"}),
    ),
    "dspy.CodeAct": Kind(
        _code_act, ("tools", "max_iters"), sandboxed=True,
        taken=frozenset({"trajectory", "max_iters", "generated_code", "finished"}),
    ),
    "dspy.RLM": Kind(
        _rlm, ("max_iters", "max_llm_calls", "max_output_chars", "tools", "sub_lm"), sandboxed=True,
        taken=frozenset({"json"}),
    ),
}  # fmt: skip
