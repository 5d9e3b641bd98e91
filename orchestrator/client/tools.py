"""Tools of the caller's own process: functions, described for a language model, and kept to be called."""

from __future__ import annotations

import functools
import inspect
import math
import re
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from bridge.protocol.errors import shown
from orchestrator.client.calls import absolute_target
from orchestrator.client.tool_calls import Serving
from orchestrator.errors import InvalidRequest

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

    from orchestrator.client.core import Connection

# What providers take as the name of a function.
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")
_TAKES: Final = "a function, an import path 'package.module:name', or 'mcp:SERVER'"
_MISSING: Final = inspect.Parameter.empty


@dataclass(frozen=True, slots=True)
class Tool:
    """One function, as a model is told of it.

    parameters: JSON Schema of an object; what has a default is not required. types: of the parameters that have one.
    """

    name: str
    description: str
    parameters: Mapping[str, Any]
    function: Callable[..., Any]
    types: Mapping[str, Any]

    @property
    def spec(self) -> dict[str, Any]:
        """What the worker is told."""
        return {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}

    @property
    def is_async(self) -> bool:
        """Whether the function itself runs on an event loop."""
        return inspect.iscoroutinefunction(_inner(self.function))

    def read(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Return arguments as the annotations want them, converted as pydantic does. Raises ValueError."""
        from pydantic import TypeAdapter

        known = {name: TypeAdapter(self.types[name]) for name in arguments if name in self.types}
        return {
            name: known[name].validate_python(value) if name in known else value for name, value in arguments.items()
        }


@dataclass(frozen=True, slots=True)
class Toolset:
    """The tools that a module is given. specs: all of them, as the worker is told; own: this process's, by name."""

    specs: tuple[str | dict[str, Any], ...]
    own: Mapping[str, Tool]

    def serve(self, connection: Connection, loop: AbstractEventLoop | None = None) -> Serving:
        """Begin to serve one request. loop: where asynchronous tools run; None = one of the client's own."""
        return Serving(self.own, connection, loop)

    @classmethod
    def of(cls, tools: Any) -> Toolset:
        """Describe what was given as `tools`. Raises InvalidRequest with the path, such as `tools[1]`."""
        if isinstance(tools, str | bytes | Mapping) or not isinstance(tools, Sequence):
            raise _invalid("tools", f"tools must be a list of tools ({_TAKES}), got {shown(tools)}")
        specs: list[str | dict[str, Any]] = []
        own: dict[str, Tool] = {}
        for index, one in enumerate(tools):
            path = f"tools[{index}]"
            if isinstance(one, str):
                specs.append(_text_spec(one, path))
                continue
            tool = _of_dspy(one, path) if _is_dspy_tool(one) else _of_function(one, path)
            if tool.name in own:
                raise _invalid(path, f"{path}: a tool named {tool.name!r} exists already")
            own[tool.name] = tool
            specs.append(tool.spec)
        return cls(tuple(specs), own)


def _text_spec(text: str, path: str) -> str:
    if ":" not in text.strip(":"):
        raise _invalid(path, f"{path} must be {_TAKES}, got {text!r}")
    return str(absolute_target(text))


# --- functions --------------------------------------------------------------------------------------


def _of_function(function: Any, path: str) -> Tool:
    if not callable(function) or isinstance(function, type):
        raise _invalid(path, f"{path} must be {_TAKES}, got {shown(function)}")
    name = _checked_name(getattr(function, "__name__", None), function, path)
    description = _inner(function).__doc__ or ""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError) as exc:
        raise _invalid(path, f"{path}: what {name} takes cannot be read: {exc}") from exc
    hints = _hints(function, name, path)
    properties: dict[str, Any] = {}
    types: dict[str, Any] = {}
    open_ended = False
    for parameter in parameters.values():
        where = f"{path}: {name} takes {str(parameter).partition(':')[0]}"
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.VAR_POSITIONAL):
            raise _invalid(path, f"{where} by position; a tool's arguments are given by name")
        if parameter.kind is parameter.VAR_KEYWORD:
            open_ended = True
            continue
        annotation = hints.get(parameter.name, Any)
        if annotation is not Any:
            types[parameter.name] = annotation
        properties[parameter.name] = schema = _schema(annotation, where, path)
        if parameter.default is not _MISSING:
            schema["default"] = _plain(parameter.default)
    return Tool(name, description, _object(properties, open_ended), function, types)


def _checked_name(name: Any, tool: Any, path: str) -> str:
    if name == "<lambda>":
        raise _invalid(path, f"{path} is a lambda: a model calls a tool by its name; write a function with def")
    if not isinstance(name, str):
        raise _invalid(path, f"{path}: {shown(tool)} has no name (__name__), by which a model could call it")
    if not _NAME.fullmatch(name):
        raise _invalid(path, f"{path}: {shown(name)} is no name of a tool: up to 64 letters, digits, _ and -")
    return name


def _inner(function: Any) -> Any:
    """Return the function that a partial or an object that can be called comes down to."""
    while isinstance(function, functools.partial):
        function = function.func
    return function if inspect.isroutine(function) else type(function).__call__


def _hints(function: Any, name: str, path: str) -> dict[str, Any]:
    try:
        return typing.get_type_hints(_inner(function), include_extras=True)
    except Exception as exc:
        text = f"{path}: the annotations of {name} cannot be read: {type(exc).__name__}: {exc}"
        raise _invalid(path, text) from exc


def _schema(annotation: Any, where: str, path: str) -> dict[str, Any]:
    """Return the JSON Schema of an annotation, without references."""
    from pydantic import PydanticUserError, TypeAdapter
    from pydantic.errors import PydanticInvalidForJsonSchema

    if annotation is Any:
        return {}
    try:
        schema = TypeAdapter(annotation).json_schema()
    except (PydanticUserError, PydanticInvalidForJsonSchema, TypeError) as exc:
        text = f"{where}, which is {shown(annotation)}: a model cannot be told of that type"
        raise _invalid(path, text) from exc
    found = _inlined(schema, schema.get("$defs", {}), (), f"{where}, a type that holds itself", path)
    assert isinstance(found, dict)
    return found


def _inlined(schema: Any, defs: Mapping[str, Any], open_names: tuple[str, ...], wrong: str, path: str) -> Any:
    """Return a schema with each reference replaced by what it names: a tool's schema becomes part of others."""
    if isinstance(schema, list):
        return [_inlined(item, defs, open_names, wrong, path) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" not in schema:
        return {key: _inlined(item, defs, open_names, wrong, path) for key, item in schema.items() if key != "$defs"}
    name = str(schema["$ref"]).rpartition("/")[2]
    if name in open_names:
        raise _invalid(path, f"{wrong}: that has no end when it is written out")
    beside = {key: value for key, value in schema.items() if key != "$ref"}
    return {**_inlined(defs[name], defs, (*open_names, name), wrong, path), **beside}


def _object(properties: dict[str, Any], open_ended: bool) -> dict[str, Any]:
    required = [name for name, schema in properties.items() if "default" not in schema]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": open_ended}


def _plain(value: Any) -> Any:
    """Return a default as JSON can say it; what it cannot say is told by its repr."""
    from pydantic_core import to_jsonable_python

    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    return to_jsonable_python(value, inf_nan_mode="strings", fallback=repr)


# --- dspy.Tool ------------------------------------------------------------------------------------------


def _is_dspy_tool(tool: Any) -> bool:
    """Whether it is a `dspy.Tool`. DSPy is not imported for that: where there is one, it is loaded."""
    dspy = sys.modules.get("dspy")
    return dspy is not None and isinstance(tool, dspy.Tool)


def _of_dspy(tool: Any, path: str) -> Tool:
    name = _checked_name(tool.name, tool, path)
    parameters = _object(_plain(tool.args or {}), bool(tool.has_kwargs))
    types = {name: one for name, one in (tool.arg_types or {}).items() if one is not Any and name in (tool.args or {})}
    return Tool(name, tool.desc or "", parameters, tool.func, types)


def _invalid(path: str, text: str) -> InvalidRequest:
    return InvalidRequest(text, path=path)
