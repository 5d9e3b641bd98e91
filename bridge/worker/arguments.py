"""Reading the arguments of an operation. Every refusal is an INVALID_REQUEST that names the path at fault."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from bridge.protocol import errors
from bridge.protocol.errors import INVALID_REQUEST, BridgeError, closest

# Of many problems this many are told in the message; all of them are in the details.
_SHOWN = 20


def invalid(path: str, message: str) -> BridgeError:
    """Return an INVALID_REQUEST about one place of the arguments."""
    return BridgeError(INVALID_REQUEST, message, details={"path": path})


def refuse(problems: Sequence[tuple[str, str]]) -> NoReturn:
    """Raise one INVALID_REQUEST for all `(path, message)` problems; its path is that of the first."""
    shown = "; ".join(message for _, message in problems[:_SHOWN])
    more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    details = {"path": problems[0][0], "problems": [message for _, message in problems[:_SHOWN]]}
    raise BridgeError(INVALID_REQUEST, shown + more, details=details)


def read(args: Any, operation: str, *, required: Iterable[str] = (), optional: Iterable[str] = ()) -> dict[str, Any]:
    """Return the arguments as a dict that has every required name and no unknown one."""
    if args is None:
        args = {}
    if not isinstance(args, dict):
        raise invalid("", f"{operation} takes a mapping of arguments, not {type(args).__name__}")
    wanted = tuple(required)
    problems = [(name, f"{operation} needs {name}") for name in wanted if name not in args]
    problems += unknown_names(args, (*wanted, *optional), operation)
    if problems:
        refuse(problems)
    return args


def unknown_names(given: Iterable[Any], known: Iterable[str], owner: str, prefix: str = "") -> list[tuple[str, str]]:
    """Return a problem, with a suggestion, for each given name that is not known."""
    names = sorted(known)
    problems = []
    for name in given:
        if name in names:
            continue
        label = name[:80] if isinstance(name, str) else errors.shown(name, 80)
        near = closest(label, names)
        listing = f" (it takes {', '.join(names)})" if names else " (it takes none)"
        hint = f"; did you mean {near[0]}?" if near else listing
        problems.append((f"{prefix}{label}", f"{owner} takes no {prefix}{label}{hint}"))
    return problems


def mapping(value: Any, path: str) -> dict[str, Any]:
    """Return `value` as a dict with text keys; None is an empty one."""
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise invalid(path, f"{path} must be a mapping with text keys, got {shown(value)}")
    return value


def text(value: Any, path: str) -> str:
    """Return `value`, a text that is not empty."""
    if not isinstance(value, str) or not value.strip():
        raise invalid(path, f"{path} must be a text that is not empty, got {shown(value)}")
    return value


def number(value: Any, path: str, *, least: float = 0.0) -> float:
    """Return `value`, a finite number that is at least `least`."""
    # A whole number can be beyond what a float can hold.
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= sys.float_info.max:
        raise invalid(path, f"{path} must be a number of at least {least:g}, got {shown(value)}")
    return float(value)


def whole(value: Any, path: str, *, least: int = 0, most: int = 1_000_000) -> int:
    """Return `value`, a whole number within the bounds."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise invalid(path, f"{path} must be a whole number from {least} to {most}, got {shown(value)}")
    return value


def shown(value: Any) -> str:
    """Return the type and the start of a value, for a message."""
    return f"{type(value).__name__} ({errors.shown(value, 60)})"
