"""Where configuration comes from. Each source becomes a `Layer`: plain data, and for each value where it stands.

What is wrong with a source is collected, not raised: the reader wants all problems at once.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

import yaml

from bridge.faultpoints import VARIABLE as FAULT_POINTS
from bridge.protocol.errors import closest
from orchestrator.config.model import KeyPath, is_mapping, is_text, keys_at, null_turns_off

ENVIRONMENT_PREFIX: Final = "DSPOOL_"
# Ours, but no configuration keys.
RESERVED: Final = frozenset({"DSPOOL_ENDPOINT", "DSPOOL_CONFIG", FAULT_POINTS})
OVERRIDE: Final = "override"

_DEEPEST: Final = 32
_REFERENCE: Final = re.compile(
    r"\$(?P<escaped>\$\{)|\$\{(?P<name>[A-Za-z_]\w*)(?::-(?P<default>[^}]*))?\}|(?P<bad>\$\{)"
)


class PlainLoader(yaml.SafeLoader):
    """Reads YAML, but no numbers of base 60: `1:8` would be 68, and nobody means that."""

    def construct_yaml_int(self, node: yaml.ScalarNode) -> Any:
        """Return a whole number, or the text that was written."""
        return node.value if ":" in node.value else super().construct_yaml_int(node)

    def construct_yaml_float(self, node: yaml.ScalarNode) -> Any:
        """Return a number, or the text that was written."""
        return node.value if ":" in node.value else super().construct_yaml_float(node)


PlainLoader.add_constructor("tag:yaml.org,2002:int", PlainLoader.construct_yaml_int)
PlainLoader.add_constructor("tag:yaml.org,2002:float", PlainLoader.construct_yaml_float)


class Problem(NamedTuple):
    """One thing wrong. where: `dspool.yaml:4`, a variable's name or `override`; path: `pools.general.size`."""

    where: str
    path: str
    message: str

    def __str__(self) -> str:
        return ": ".join(filter(None, self))


@dataclass
class Layer:
    """One source, read. `origins` says where each key path was set; deeper paths stand where their parent does."""

    tree: dict[str, Any] = field(default_factory=dict)
    origins: dict[KeyPath, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def problem(self, where: str, path: KeyPath, message: str) -> None:
        """Note a problem."""
        self.problems.append(Problem(where, show_path(path), message))


def show_path(path: KeyPath) -> str:
    """Return `pools.general.size` or `python_path[0]`."""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path).removeprefix(".")


# --- environment variables and references to them ---------------------------------------------------


def read_environment(environ: Mapping[str, str]) -> Layer:
    """Read `DSPOOL_POOLS__GENERAL__SIZE=4`. Values are YAML, but text where text belongs; empty ones count as unset."""
    layer = Layer()
    for name in sorted(environ):
        if name.startswith(ENVIRONMENT_PREFIX) and name not in RESERVED and environ[name]:
            path = _variable_path(name)
            if _is_foreign(path):
                continue
            try:
                value = environ[name] if is_text(path) else yaml.load(environ[name], PlainLoader)
            except (yaml.YAMLError, ValueError, RecursionError):
                layer.problem(name, path, "its value is not YAML")
            else:
                if path == ("python_path",) and isinstance(value, str):
                    value = value.split(os.pathsep)
                _set(layer, name, path, value)
    return layer


def _variable_path(name: str) -> KeyPath:
    parts = name.removeprefix(ENVIRONMENT_PREFIX).split("__")
    keys = [part.lower() for part in parts]
    if keys[0] in ("pools", "mcp") and keys[2:3] == ["env"] and len(keys) > 3:
        # Variables of the workers, and of what they start, keep their case, and may hold `__` themselves.
        return (*keys[:3], "__".join(parts[3:]))
    return tuple(keys)


def _is_foreign(path: KeyPath) -> bool:
    """Return whether the variable means something else: Kubernetes sets DSPOOL_SERVICE_HOST for a service `dspool`."""
    known = keys_at(())
    return len(path) == 1 and path[0] not in known and not closest(str(path[0]), known)


def _set(layer: Layer, name: str, path: KeyPath, value: Any) -> None:
    into: Any = layer.tree
    for depth, key in enumerate(path[:-1], 1):
        into = into.setdefault(key, {})
        layer.origins.setdefault(path[:depth], name)
        if not isinstance(into, dict):
            layer.problem(name, path, f"{layer.origins[path[:depth]]} gives {show_path(path[:depth])} another value")
            return
    into[path[-1]] = value
    layer.origins[path] = name


def expand(text: str, environ: Mapping[str, str]) -> tuple[str, list[str]]:
    """Replace `${NAME}` and `${NAME:-default}`; `$${` stands for `${`. Return the text and what is wrong with it."""
    wrong: list[str] = []

    def replacement(match: re.Match[str]) -> str:
        if match["escaped"]:
            return "${"
        if match["bad"]:
            wrong.append("${ must be ${NAME} or ${NAME:-default}; write $${ for the two characters themselves")
            return ""
        name, default = match["name"], match["default"]
        if default is not None:
            return environ.get(name) or default
        if name not in environ:
            wrong.append(f"environment variable {name} is not set; ${{{name}:-…}} would give it a default")
        return environ.get(name, "")

    return _REFERENCE.sub(replacement, text), wrong


# --- overrides --------------------------------------------------------------------------------------


def read_overrides(overrides: Mapping[str, Any], environ: Mapping[str, str]) -> Layer:
    """Read what a caller or the command line gives: mappings, lists, tuples, paths and plain values."""
    layer = Layer()
    layer.tree = _plain(overrides, (), layer, environ)
    return layer


def _plain(value: Any, path: KeyPath, layer: Layer, environ: Mapping[str, str]) -> Any:
    layer.origins[path] = OVERRIDE
    if len(path) > _DEEPEST:
        layer.problem(OVERRIDE, path[:3], "is nested too deeply")
    elif isinstance(value, str):
        text, wrong = expand(value, environ)
        for message in wrong:
            layer.problem(OVERRIDE, path, message)
        return text
    elif value is None or isinstance(value, bool | int | float):
        return value
    elif isinstance(value, os.PathLike):
        return os.fspath(value)
    elif isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                layer.problem(OVERRIDE, path, f"keys must be text, got {key!r}")
        return {key: _plain(item, (*path, key), layer, environ) for key, item in value.items() if isinstance(key, str)}
    elif isinstance(value, list | tuple):
        return [_plain(item, (*path, index), layer, environ) for index, item in enumerate(value)]
    else:
        layer.problem(OVERRIDE, path, f"must be plain data, got a value of type {type(value).__name__}")
    return None


# --- layers together --------------------------------------------------------------------------------


def anchor(layer: Layer, base: Path, home: str) -> None:
    """Make the paths in a layer absolute: relative ones are meant from `base`, `~` is `home`."""

    def absolute(text: Any) -> Any:
        if not isinstance(text, str) or not text:
            return text
        expanded = home + text[1:] if text == "~" or text.startswith("~/") else text
        return os.path.normpath(base / expanded)

    tree = layer.tree
    for key in ("data_dir", "run_dir"):
        if key in tree:
            tree[key] = absolute(tree[key])
    if isinstance(tree.get("python_path"), list):
        tree["python_path"] = [absolute(entry) for entry in tree["python_path"]]
    pools = tree.get("pools")
    for pool in pools.values() if isinstance(pools, dict) else ():
        # A bare name is looked up on PATH.
        if isinstance(pool, dict) and isinstance(pool.get("python"), str) and "/" in pool["python"]:
            pool["python"] = absolute(pool["python"])
    programs = tree.get("programs")
    for program in programs.values() if isinstance(programs, dict) else ():
        if isinstance(program, dict):
            _anchor_program(program, absolute)
    servers = tree.get("mcp")
    for server in servers.values() if isinstance(servers, dict) else ():
        command = server.get("command") if isinstance(server, dict) else None
        if isinstance(command, list) and command and isinstance(command[0], str) and "/" in command[0]:
            command[0] = absolute(command[0])


def _anchor_program(program: dict[str, Any], absolute: Callable[[Any], Any]) -> None:
    """Make the paths of a program absolute: of its state, of a file that its target is in."""
    if "state" in program:
        program["state"] = absolute(program["state"])
    target = program.get("target")
    if isinstance(target, dict) and "pickled" in target:
        target["pickled"] = absolute(target["pickled"])
    elif isinstance(target, str):
        path, _, attribute = target.rpartition(":")
        if path.endswith(".py"):
            program["target"] = f"{absolute(path)}:{attribute}"


def merge(layers: list[Layer]) -> Layer:
    """Lay the layers over each other, later ones on top; mappings are merged key by key, all else is replaced."""
    merged = Layer()
    for layer in layers:
        _merge_into(merged.tree, layer.tree, ())
        for path, where in layer.origins.items():
            if not is_mapping(path) or path not in merged.origins:
                merged.origins[path] = where
        merged.problems += layer.problems
    return merged


def _merge_into(below: dict[str, Any], above: Mapping[str, Any], path: KeyPath) -> None:
    for key, value in above.items():
        here = (*path, key)
        # A key whose children are all commented out reads as null.
        value = {} if value is None and is_mapping(here) and not null_turns_off(here) else value
        if isinstance(value, dict) and isinstance(below.get(key), dict):
            _merge_into(below[key], value, here)
        elif isinstance(value, dict):
            below[key] = {}
            _merge_into(below[key], value, here)
        else:
            below[key] = value


def origin_of(origins: Mapping[KeyPath, str], path: KeyPath) -> str:
    """Return where the value at `path` was set, or where its nearest parent was."""
    return next((origins[prefix] for prefix in _prefixes(path) if prefix in origins), "")


def last_set(origins: Mapping[KeyPath, str], *paths: KeyPath) -> KeyPath:
    """Return which of these values was set by the source on top, the first of several: others had to fit before."""
    return max(paths, key=lambda path: _height(origins[path]) if path in origins else -1)


def _height(where: str) -> int:
    """Return how high a source lies: a file (`dspool.yaml:4`), the environment, overrides."""
    if where == OVERRIDE:
        return 2
    return 1 if where.startswith(ENVIRONMENT_PREFIX) and ":" not in where else 0


def _prefixes(path: KeyPath) -> Iterator[KeyPath]:
    for size in range(len(path), -1, -1):
        yield path[:size]
