"""Calling a DSPy module: every call of one goes through here, plain, asynchronous or streamed."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Mapping
from typing import Any

import dspy  # type: ignore[import-untyped]

from bridge.worker.call import Call
from bridge.worker.program_loop import on_thread
from bridge.worker.streaming import streaming


def runs_async(module: Any) -> bool:
    """Tell whether a module may run on an event loop: it and all modules in it have an `aforward`, all tools await.

    To be asked once for each module, when it is built.
    """
    return all(_awaits(part) and _tools_await(part) for _, part in module.named_sub_modules())


def run_module(module: Any, inputs: Mapping[str, Any], call: Call) -> Any:
    """Call a module on this thread and return what it returns. To be called within a Scope."""
    if _has(module, "forward"):
        return module(**inputs)
    return asyncio.run(module.acall(**inputs))


async def arun_module(module: Any, inputs: Mapping[str, Any], call: Call, *, is_async: bool) -> Any:
    """Call a module from the program loop: awaited if `is_async` (see `runs_async`), else on a thread of the loop's.

    What it answers is streamed to a caller who reads that. To be called within a Scope.
    """
    if not call.streams:
        return await _called(module, inputs, is_async)
    with streaming(module, call) as stream:
        result = await _called(module, inputs, is_async)
        await stream.end()
        return result


async def _called(module: Any, inputs: Mapping[str, Any], is_async: bool) -> Any:
    if is_async:
        return await module.acall(**inputs)
    return await on_thread(functools.partial(module, **inputs))


def _awaits(module: Any) -> bool:
    """Tell whether a module's asynchronous side is its own, and not that of a class whose `forward` it replaces."""
    if isinstance(module, dspy.RLM):
        return False  # it waits for its interpreter where it stands
    own = vars(module)
    mirrored = _at_least_as_new(module, "aforward", "forward") and _at_least_as_new(module, "acall", "__call__")
    return mirrored and ("forward" not in own or "aforward" in own)


def _at_least_as_new(module: Any, name: str, than: str) -> bool:
    """Tell whether the class that defines `name` is the one that defines `than`, or is derived from it."""
    for cls in type(module).__mro__:
        if name in vars(cls):
            return callable(vars(cls)[name])
        if than in vars(cls):
            return False
    return False


def _has(module: Any, name: str) -> bool:
    return callable(inspect.getattr_static(type(module), name, None))


def _tools_await(module: Any) -> bool:
    """Tell whether no tool of a module would hold up the loop: DSPy calls a plain function where it stands."""
    tools = getattr(module, "tools", None)
    listed = tools.values() if isinstance(tools, Mapping) else tools if isinstance(tools, list | tuple) else ()
    return all(
        inspect.iscoroutinefunction(tool.func) or tool.name == "finish"
        for tool in listed
        if isinstance(tool, dspy.Tool)
    )
