"""The filters that the compiler weaves into a template, in place of what Python would do without counting."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

from jinja2.runtime import Context
from jinja2.utils import pass_context

from signatures.native.sandbox import values
from signatures.native.sandbox.filters import meter_of
from signatures.native.sandbox.meter import Refused


@pass_context
def tick(context: Context, work: int) -> None:
    """Charge one turn of a loop or one call of a macro whose body holds this much work."""
    meter_of(context).turn(work)


@pass_context
def counted(context: Context, value: Any, work: int) -> Any:
    """Return what a loop goes through, its turns charged at `work` each: what decides whether a turn is taken."""
    found = values.sized(meter_of(context), value, "for")
    meter_of(context).spend(len(found) * work)
    return found


@pass_context
def compared(context: Context, left: Any, *rest: Any) -> bool:
    """Return a chain of comparisons: `left op value op value …`, each operator before its value."""
    operands: Iterator[Any] = iter(rest)
    for op, right in zip(operands, operands, strict=True):
        if not values.compare(meter_of(context), op, left, right):
            return False
        left = right
    return True


@pass_context
def joined(context: Context, *parts: Any) -> str:
    """Return the texts of all parts, put together."""
    return "".join(values.text(meter_of(context), part) for part in parts)


@pass_context
def sliced(context: Context, value: Any, start: Any, stop: Any, step: Any) -> Any:
    """Return `value[start:stop:step]` of a text or a list."""
    values.fail_if_missing(value)
    if not isinstance(value, (str, list, tuple, range)):
        raise Refused(f"a slice takes text or a list, got {values.kind(value)}")
    part = slice(start, stop, step)
    size = len(range(*part.indices(len(value))))
    meter = meter_of(context)
    (meter.write if isinstance(value, str) else meter.spend)(size)
    return value[part]


@pass_context
def mapping(context: Context, _: Any, *parts: Any) -> dict[Any, Any]:
    """Return a dict of keys and values that take turns."""
    meter_of(context).spend(2 * len(parts))
    found: Iterator[Any] = iter(parts)
    return {values.scalar(key, "a key"): value for key, value in zip(found, found, strict=True)}


# No template can write a name with parentheses.
WOVEN: Final[dict[str, Callable[..., Any]]] = {
    "(tick)": tick, "(for)": counted, "(compare)": compared, "(concat)": joined, "(slice)": sliced, "(dict)": mapping,
}  # fmt: skip
