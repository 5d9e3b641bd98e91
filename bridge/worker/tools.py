"""Tools of agents: by import path, of MCP servers, of the caller's own process. All are called the same way."""

from __future__ import annotations

import asyncio
import functools
import inspect
import keyword
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Final

import dspy  # type: ignore[import-untyped]
from dspy.utils.callback import with_callbacks  # type: ignore[import-untyped]

from bridge.protocol.record import as_plain
from bridge.protocol.worker_spec import WorkerSpec
from bridge.worker import arguments, imports
from bridge.worker.call import current_call
from bridge.worker.caller_tools import ToolFailed, call_tool
from bridge.worker.mcp import Servers
from bridge.worker.program_loop import on_thread
from bridge.worker.typed_inputs import real

MCP: Final = "mcp:"
_CALLER_KEYS: Final = ("name", "description", "parameters")
_PLAIN_TYPES: Final = {"string": str, "integer": int, "number": float, "boolean": bool, "array": list, "object": dict}


class WorkerTool(dspy.Tool):  # type: ignore[misc]
    """A tool that can be called in either way: what blocks holds up no event loop, what is awaited can be waited for.

    A blocking function that is awaited runs on a thread, with the context of the task.
    """

    @with_callbacks  # type: ignore[untyped-decorator]
    def __call__(self, **given: Any) -> Any:
        """Call it; an asynchronous one is waited for, as long as its request has time."""
        found = self.func(**self._validate_and_parse_args(**given))
        return _waited(self.name, found) if inspect.isawaitable(found) else found

    @with_callbacks  # type: ignore[untyped-decorator]
    async def acall(self, **given: Any) -> Any:
        """Call it and await the answer."""
        function, parsed = self.func, self._validate_and_parse_args(**given)
        if inspect.iscoroutinefunction(function):
            try:
                return await function(**parsed)
            except ToolFailed as failure:
                # A model is told the traceback: it shall see DSPy's way to the tool, and what went wrong in it.
                raise failure.with_traceback(None) from None
        found = await on_thread(functools.partial(function, **parsed))
        return await found if inspect.isawaitable(found) else found


class _Process:
    servers = Servers({})
    message_bytes = 1 << 26


def serve(spec: WorkerSpec) -> None:
    """Take what the tools of this worker need to know: the MCP servers, and what a message may have."""
    _Process.servers = Servers(spec.mcp)
    _Process.message_bytes = spec.message_bytes


def close() -> None:
    """End the sessions with MCP servers, and the servers that were started for them."""
    _Process.servers.close()


def resolve(specs: Any, path: str, *, taken: Iterable[str] = ()) -> list[Any]:
    """Return the `dspy.Tool`s that specs name, in their order; those of an MCP server in the server's.

    specs: a list of texts "package.module:name", "/path/file.py:name" (a function or a `dspy.Tool`), "mcp:SERVER" or
    "mcp:SERVER/TOOL", and of mappings {name, description, parameters}: tools of the process that makes the request.
    These find their caller when they are called, so what is returned may be kept and shared. taken: names that the
    module uses itself. path: the argument's, for messages. A server that is not running is started: this may block.
    Raises BridgeError: INVALID_REQUEST with the path of the tool at fault, NOT_FOUND for a server or tool of one.
    """
    if specs is None:
        return []
    if not isinstance(specs, list):
        raise arguments.invalid(path, f"{path} must be a list of tools, got {arguments.shown(specs)}")
    found: dict[str, Any] = {}
    for index, spec in enumerate(specs):
        where = f"{path}[{index}]"
        for tool in _resolve_one(spec, where):
            if tool.name in found:
                raise arguments.invalid(where, f"{where}: a tool named {tool.name!r} exists already")
            if tool.name in taken:
                raise arguments.invalid(where, f"{where}: the name {tool.name!r} is taken by the module itself")
            found[tool.name] = tool
    return list(found.values())


def _resolve_one(spec: Any, path: str) -> list[Any]:
    if isinstance(spec, Mapping):
        return [_of_caller(spec, path)]
    text = arguments.text(spec, path)
    if text.startswith(MCP):
        server, _, tool = text.removeprefix(MCP).partition("/")
        return [_adopted(one) for one in _Process.servers.tools(server, tool, path)]
    return [_imported(text, path)]


def _imported(target: str, path: str) -> Any:
    found = imports.find(target, path).value
    if isinstance(found, dspy.Tool):
        return _adopted(found)
    if not callable(found):
        raise arguments.invalid(path, f"{path}: {target} is a {type(found).__name__}, not a function")
    try:
        return WorkerTool(found)
    except Exception as exc:  # annotations that cannot be read, or told to a model
        text = f"{path}: {target} cannot be a tool: {type(exc).__name__}: {exc}"
        raise arguments.invalid(path, text) from exc


def _adopted(tool: Any) -> Any:
    """Return a tool as a WorkerTool; one of a class of its own, which may have its own way to be called, as it is."""
    if type(tool) is not dspy.Tool:
        return tool
    adopted = _made(tool.func, tool.name, tool.desc, tool.args, tool.arg_types)
    adopted.has_kwargs = tool.has_kwargs
    return adopted


def _of_caller(spec: Mapping[str, Any], path: str) -> Any:
    if problems := arguments.unknown_names(spec, _CALLER_KEYS, "a tool", f"{path}."):
        arguments.refuse(problems)
    name = arguments.text(spec.get("name"), f"{path}.name")
    description = spec.get("description") or ""
    if not isinstance(description, str):
        raise arguments.invalid(f"{path}.description", f"{path}.description must be a text")
    schema = arguments.mapping(spec.get("parameters"), f"{path}.parameters")
    properties = arguments.mapping(schema.get("properties"), f"{path}.parameters.properties")
    message_bytes = _Process.message_bytes

    async def of_caller(**given: Any) -> Any:
        # A model whose class is not loaded here reads as its fields: so it reads where it is.
        return real(as_plain(await call_tool(name, given, message_bytes)), name, [])

    of_caller.__name__ = name
    of_caller.__signature__ = _signature(properties, schema, f"{path}.parameters")  # type: ignore[attr-defined]
    return _made(of_caller, name, description, properties, {})


def _signature(properties: Mapping[str, Any], schema: Mapping[str, Any], path: str) -> inspect.Signature:
    """Return what a function takes by a JSON Schema: code in a sandbox is given a function like it."""
    kind, keywords = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.VAR_KEYWORD
    parameters = []
    for name, one in properties.items():
        known = one if isinstance(one, Mapping) else {}
        default = known.get("default", inspect.Parameter.empty)
        annotation = _PLAIN_TYPES.get(str(known.get("type")), inspect.Parameter.empty)
        if not name.isidentifier() or keyword.iskeyword(name):
            raise arguments.invalid(path, f"{path}.properties: {name!r} is no name of a parameter")
        parameters.append(inspect.Parameter(name, kind, default=default, annotation=annotation))
    parameters.sort(key=lambda one: one.default is not inspect.Parameter.empty)
    if schema.get("additionalProperties"):
        parameters.append(inspect.Parameter("others", keywords))
    return inspect.Signature(parameters)


def _made(function: Callable[..., Any], name: str, description: str, args: Any, arg_types: Any) -> Any:
    return WorkerTool(function, name=name, desc=description, args=args, arg_types=arg_types)


# --- asynchronous tools of a program that is not ------------------------------------------------------


def _waited(name: str, work: Awaitable[Any]) -> Any:
    """Return what an awaitable comes to, on an event loop of this thread's own."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(_until_stopped(work))
    if inspect.iscoroutine(work):
        work.close()
    raise ValueError(f"the tool {name} is asynchronous: on an event loop it must be awaited: await tool.acall(…)")


async def _until_stopped(work: Awaitable[Any]) -> Any:
    """Await, unless the call must stop first: then cancel it and raise CallStopped."""
    call = current_call.get()
    if call is None:
        return await work
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    undo = call.on_stop(lambda: loop.call_soon_threadsafe(task.cancel))
    try:
        async with asyncio.timeout(call.remaining_s()):
            return await work
    except (asyncio.CancelledError, TimeoutError):
        call.check()
        raise
    finally:
        undo()
