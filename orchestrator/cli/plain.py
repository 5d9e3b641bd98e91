"""Values as JSON, and values as text for people. Pure."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping
from typing import Any, Final

from bridge.protocol.values import Prediction

# What moves the caret, or more, as terminals read it; ends of lines and tabs are not among them.
_CONTROLS: Final = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}
_LINES: Final = str.maketrans({"\n": "\\n", "\t": "\\t"})


def plain(value: Any) -> Any:
    """Return a value as plain JSON data.

    What JSON lacks becomes text (dates, decimals, UUIDs), a list (tuples, sets, arrays) or base64 (bytes); a float that
    is no number becomes null. A Prediction is its fields.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key if isinstance(key, str) else str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted((plain(item) for item in value), key=repr)
    if isinstance(value, bytes | bytearray | memoryview):
        return base64.b64encode(value).decode("ascii")
    if callable(getattr(value, "tolist", None)):  # numpy's arrays and scalars, without importing numpy
        return plain(value.tolist())
    return str(value)


def readable(value: Any) -> str:
    """Return a value as text: a Prediction as `field: value` lines, text as it is, the rest as JSON."""
    if isinstance(value, Prediction):
        return "\n".join(f"{name}: {_indented(readable(item))}" for name, item in value.items())
    if isinstance(value, str):
        return value
    if (shape := getattr(value, "shape", ())) and hasattr(value, "dtype"):
        return f"array of {value.dtype}, shape {tuple(shape)}\n{value}"
    return json.dumps(plain(value), indent=2, ensure_ascii=False)


def printable(text: str) -> str:
    """Return a text as it may be written to a terminal: what would steer that is shown as an escape."""
    return text.translate(_CONTROLS)


def in_line(text: str) -> str:
    """Return a text of a stranger's, such as a name, as it may stand in a line: `printable`, and no line ends in it."""
    return printable(text).translate(_LINES)


def _indented(text: str) -> str:
    first, *rest = text.split("\n")
    return "\n".join([first, *(f"  {line}" for line in rest)])


def duration(seconds: float | None) -> str:
    """Return a duration in the two units that matter: `2d 3h`, `4m 5s`, `12.3 s`, `85 ms`."""
    if seconds is None:
        return "-"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest_s = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d {hours}h"
    return f"{hours}h {minutes}m" if hours else f"{minutes}m {rest_s}s"


def milliseconds(value_ms: float | None) -> str:
    """Return a latency with digits that mean something, `-` for none."""
    if value_ms is None:
        return "-"
    return f"{value_ms:,.0f}" if value_ms >= 100 else f"{value_ms:.3g}"


def mebibytes(size_bytes: int | None) -> str:
    """Return a size in MiB, `-` for none."""
    return f"{size_bytes / (1 << 20):,.0f}" if size_bytes else "-"
