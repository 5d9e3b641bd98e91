"""What stands on the command line, as values. Pure but for reading what `@file` and `-` name.

`k=v`: v is JSON where it parses as JSON (`5`, `true`, `null`, `[1, 2]`, `{"a": 1}`, `"5"` for the text 5), else text.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from orchestrator.errors import InvalidRequest
from pools.config import MAX_SIZE

_TOO_DEEP: Final = "is nested too deep to be read as JSON"


def parse_pairs(pairs: Sequence[str]) -> dict[str, Any]:
    """Read `k=v` words. Raises InvalidRequest for a word without `=`, an empty or a repeated key, a value too deep."""
    found: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise InvalidRequest(f"{pair!r} is no argument: write key=value (or --args for a whole JSON value)")
        if key in found:
            raise InvalidRequest(f"{key} is given twice", path=key)
        try:
            found[key] = parse_value(text)
        except RecursionError:
            raise InvalidRequest(f"{key} {_TOO_DEEP}", path=key) from None
    return found


def parse_value(text: str) -> Any:
    """Return text as JSON if it is JSON, else as it is. Raises RecursionError for JSON that is nested too deep."""
    try:
        return json.loads(text, parse_constant=_refuse, parse_float=_finite)
    except ValueError:
        return text


def _refuse(name: str) -> Any:
    # NaN and Infinity are no JSON: left as text.
    raise ValueError(name)


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(text)
    return value


def read_args(option: str | None, pairs: Sequence[str]) -> Any:
    """Return a call's args: `--args` (JSON, @file, or - for standard input), with `k=v` words laid over it.

    None where neither is given. Raises InvalidRequest.
    """
    base = None if option is None else _read_json(option)
    named = parse_pairs(pairs)
    if not named:
        return base
    if base is not None and not isinstance(base, dict):
        raise InvalidRequest(f"key=value needs --args to be a JSON object, got {type(base).__name__}", path="args")
    return {**(base or {}), **named}


def _read_json(option: str) -> Any:
    text, source = option, "--args"
    if option == "-":
        text, source = read_input(), "standard input"
    elif option.startswith("@"):
        source = option[1:]
        text = read_text(source)
    try:
        return json.loads(text)
    except ValueError as exc:
        raise InvalidRequest(f"{source} is no JSON: {exc}", path="args") from None
    except RecursionError:
        raise InvalidRequest(f"{source} {_TOO_DEEP}", path="args") from None


def read_input() -> str:
    """Return what stands on standard input. Raises InvalidRequest if it is no text."""
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as exc:
        raise InvalidRequest(f"standard input is no {exc.encoding} text (byte {exc.start})", path="args") from None


def read_text(path: str) -> str:
    """Return a file's text. Raises InvalidRequest if it cannot be read."""
    try:
        return Path(path).expanduser().read_text(encoding="utf-8")
    except OSError as exc:
        raise InvalidRequest(f"{path} cannot be read: {exc.strerror}", path="args") from None
    except UnicodeDecodeError as exc:
        raise InvalidRequest(f"{path} is no UTF-8 text (byte {exc.start})", path="args") from None


def parse_size(text: str) -> int | tuple[int, int]:
    """Read a pool's size: `4`, or `1:8` for one that grows and shrinks. Raises InvalidRequest."""
    low, colon, high = text.partition(":")
    if not low.isdecimal() or (colon and not high.isdecimal()):
        raise InvalidRequest(f"{text!r} is no size: write N, or MIN:MAX such as 1:8", path="size")
    least, most = int(low), int(high or low)
    if most > MAX_SIZE:
        raise InvalidRequest(f"{text!r} is no size: a pool has at most {MAX_SIZE} workers", path="size")
    if not colon:
        return least
    if not 1 <= least <= most:
        raise InvalidRequest(f"{text!r} is no size: MIN must be 1 or more, and MAX not below it", path="size")
    return least, most


def parse_target(text: str) -> str | dict[str, Any]:
    """Read a program's target: `pkg.module:Class`, `file.py:Class`, or a JSON mapping of module and signature."""
    if not text.lstrip().startswith("{"):
        return text
    try:
        target = json.loads(text)
    except ValueError as exc:
        raise InvalidRequest(f"the target is no JSON: {exc}", path="target") from None
    except RecursionError:
        raise InvalidRequest(f"the target {_TOO_DEEP}", path="target") from None
    return dict(target)
