"""The values a template works on: their text, their comparison and their arithmetic, each charged before it is done."""

from __future__ import annotations

import operator
import re
import types
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

from jinja2.runtime import LoopContext, Macro, TemplateReference, Undefined
from jinja2.utils import Namespace

from signatures.native.sandbox.meter import Meter, Refused

MAX_DEPTH: Final = 50
MAX_INT_BITS: Final = 4_096

SCALARS: Final = (str, int, float, type(None), Decimal, date, time, UUID, bytes)
# Reaching into one of these reaches the interpreter.
INTERNALS: Final = (
    types.ModuleType, types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.CodeType, types.FrameType,
    types.TracebackType, types.GeneratorType, types.CoroutineType, types.AsyncGeneratorType, type,
)  # fmt: skip

_SMALL: Final = frozenset({bool, float, type(None), datetime, date, time, timedelta, UUID})
_LISTS: Final = (list, tuple, set, frozenset, deque)
_UNPRINTED: Final = (Namespace, Macro, LoopContext, TemplateReference, *INTERNALS)


class Method:
    """A function that templates may call: a method bound to its owner, or a global (owner None)."""

    __slots__ = ("function", "name", "owner")

    def __init__(self, function: Callable[..., Any], name: str, owner: Any = None) -> None:
        self.function = function
        self.name = name
        self.owner = owner

    def __str__(self) -> str:
        raise Refused(f"'{self.name}' is a method; call it, as in '{self.name}()', or read an item as value['name']")

    __repr__ = __iter__ = __len__ = __bool__ = __str__


def kind(value: Any) -> str:
    """Return what to call a value in a message."""
    if value is None:
        return "none"
    plain: list[tuple[Any, str]] = [
        (bool, "true or false"), ((int, float, Decimal), "a number"), (str, "text"), (Mapping, "a mapping"),
        ((list, tuple), "a list"), (Undefined, "nothing"), (Method, "a method"),
    ]  # fmt: skip
    return next((words for one, words in plain if isinstance(value, one)), f"a {type(value).__name__}")


def fail_if_missing(value: Any) -> None:
    """Raise the error of a value that is not there."""
    if isinstance(value, Undefined):
        value._fail_with_undefined_error()


def weigh(meter: Meter, value: Any, depth: int = 0) -> None:
    """Charge what it costs to go through a value once, shared parts each time that they come up.

    A list that holds one list twice, which holds one list twice, … is small in memory and huge as text: what is
    charged is the text. Raises Refused for what has none.
    """
    one = type(value)
    if one is str:
        meter.write(len(value))
    elif one in _SMALL:
        meter.spend(1)
    elif isinstance(value, int):
        check_int(value)
        meter.spend(1)
    elif isinstance(value, (*_LISTS, Mapping)):
        if depth >= MAX_DEPTH:
            raise Refused(f"a value is nested deeper than {MAX_DEPTH}")
        meter.spend(1 + len(value))
        for item in value:
            weigh(meter, item, depth + 1)
            if isinstance(value, Mapping):
                weigh(meter, value[item], depth + 1)
    elif isinstance(value, _UNPRINTED):
        raise Refused(f"{kind(value)} cannot be written or compared; pass the data that you need from it")
    elif isinstance(value, Undefined):
        value._fail_with_undefined_error()
    else:
        meter.write(len(repr(value)))


def text(meter: Meter, value: Any) -> str:
    """Return the text of a value, charged."""
    if type(value) is str:
        meter.write(len(value))
        return value
    weigh(meter, value)
    return str(value)


def checked_text(meter: Meter, value: Any, what: str) -> str:
    """Return a value that has to be text, charged. Others are written out, as Jinja2's filters do."""
    fail_if_missing(value)
    if isinstance(value, (Mapping, *_LISTS)):
        raise Refused(f"'{what}' takes text, got {kind(value)}; apply it to each item, or join the items first")
    return text(meter, value)


def write_recased(meter: Meter, text: str) -> None:
    """Charge a text in another case: of one character it can have three."""
    meter.write(len(text) if text.isascii() else 3 * len(text))


def items(meter: Meter, value: Any, what: str) -> list[Any]:
    """Return the items of a list, a mapping's keys or a text's characters, charged."""
    if isinstance(value, str):
        # Most characters of the world become a text of their own, of 80 bytes.
        meter.spend(len(value))
    return list(sized(meter, value, what))


def sized(meter: Meter, value: Any, what: str) -> Any:
    """Return the value itself, its length charged. Refuses what has no length: it may have no end."""
    fail_if_missing(value)
    if isinstance(value, Method):
        str(value)
    if not (isinstance(value, Sized) and isinstance(value, Iterable)) or isinstance(value, _UNPRINTED):
        raise Refused(f"'{what}' takes a list, a mapping or text, got {kind(value)}; pass a list")
    meter.spend(1 + len(value))
    return value


def check_int(value: int) -> int:
    """Return a whole number that is not too long to compute with."""
    if value.bit_length() > MAX_INT_BITS:
        raise Refused(f"a whole number has more than {MAX_INT_BITS} bits; use a float")
    return value


def number(value: Any, what: str) -> Any:
    """Return an int or a float (bool counts as 0 or 1, as in Python). Refuses all else."""
    fail_if_missing(value)
    if not isinstance(value, (int, float)):
        raise Refused(f"'{what}' takes a number, got {kind(value)}; convert it with the filter 'float' or 'int'")
    return check_int(value) if isinstance(value, int) else value


def count(value: Any, what: str, most: int) -> int:
    """Return a whole number from 0 to `most`: a width, a size, a number of times."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise Refused(f"'{what}' takes a whole number from 0 to {most:,}")
    return value


def scalar(value: Any, what: str) -> Any:
    """Return a value that is no container: a key, an item to look for by its hash."""
    fail_if_missing(value)
    if not isinstance(value, SCALARS):
        raise Refused(f"{what} must be text or a number, got {kind(value)}")
    return check_int(value) if isinstance(value, int) else value


# --- comparison -------------------------------------------------------------------------------------

_COMPARE: Final[dict[str, Callable[[Any, Any], Any]]] = {
    "eq": operator.eq, "ne": operator.ne, "lt": operator.lt, "lteq": operator.le, "gt": operator.gt,
    "gteq": operator.ge,
}  # fmt: skip


def compare(meter: Meter, op: str, left: Any, right: Any) -> bool:
    """Return `left op right` for eq ne lt lteq gt gteq in notin."""
    if op in ("in", "notin"):
        return contains(meter, right, left) is (op == "in")
    for one in (left, right):
        if isinstance(one, str):
            meter.spend(1 + len(one) // 64)
        elif not isinstance(one, (int, float)):
            weigh(meter, one)
    return bool(_COMPARE[op](left, right))


def contains(meter: Meter, whole: Any, part: Any) -> bool:
    """Return whether a text has a part, a list an item, a mapping a key."""
    fail_if_missing(part)
    if isinstance(whole, str):
        if not isinstance(part, str):
            raise Refused(f"'in' looks for text in text, got {kind(part)}; convert it with the filter 'string'")
        charge_search(meter, whole, part)
        return part in whole
    if isinstance(whole, (Mapping, set, frozenset)):
        return scalar(part, "what is looked for") in whole
    sized(meter, whole, "in")
    if isinstance(whole, range):
        return isinstance(part, int) and part in whole
    weigh(meter, part)
    weigh(meter, whole)
    return part in whole


def charge_search(meter: Meter, whole: str, part: str) -> None:
    """Charge a search for a part of a text. Python's is quadratic for middling sizes, linear for large ones."""
    tries = min(len(part), 2_500 if len(whole) < 2_500 else 100)
    meter.spend(1 + len(whole) * (1 + tries) // 256)


# --- arithmetic -------------------------------------------------------------------------------------

_MATH: Final[dict[str, Callable[[Any, Any], Any]]] = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv, "//": operator.floordiv,
    "%": operator.mod, "**": operator.pow,
}  # fmt: skip
_TIMES: Final = (date, timedelta)


def arithmetic(meter: Meter, op: str, left: Any, right: Any) -> Any:
    """Return `left op right`: numbers; texts and lists added; text times a number; text % values; times of day."""
    fail_if_missing(left)
    fail_if_missing(right)
    if isinstance(left, (int, float, Decimal)) and isinstance(right, (int, float, Decimal)):
        return _calculate(op, left, right)
    if op == "%" and isinstance(left, str):
        return formatted(meter, left, tuple(right) if isinstance(right, (list, tuple)) else (right,))
    if op == "*" and isinstance(left, int) and isinstance(right, str):
        left, right = right, left
    if op == "*" and isinstance(left, str) and isinstance(right, int):
        meter.write(len(left) * max(0, right))
        return left * right
    if op == "+" and isinstance(left, str) and isinstance(right, str):
        meter.write(len(left) + len(right))
        return left + right
    if op == "+" and isinstance(left, (list, tuple)) and isinstance(right, type(left)):
        meter.spend(len(left) + len(right))
        return _MATH[op](left, right)
    if op in "+-" and isinstance(left, _TIMES) and isinstance(right, _TIMES):
        return _MATH[op](left, right)
    raise Refused(f"'{op}' does not take {kind(left)} and {kind(right)}; to put texts together use '~'")


def _calculate(op: str, left: Any, right: Any) -> Any:
    for one in (left, right):
        if isinstance(one, int):
            check_int(one)
    if op == "**":
        if isinstance(left, Decimal) or isinstance(right, Decimal):
            raise Refused("'**' takes no Decimal; convert it with the filter 'float'")
        if isinstance(left, int) and isinstance(right, int) and left.bit_length() * right > MAX_INT_BITS:
            raise Refused(f"the result of '**' has more than {MAX_INT_BITS} bits; use a float")
    return _MATH[op](left, right)


# --- formats ----------------------------------------------------------------------------------------

_CONVERSION: Final = re.compile(r"%(?:\((\w{1,80})\))?[#0 +-]{0,5}(\d*)(?:\.(\d*))?(.?)", re.DOTALL)
_MAX_WIDTH: Final = 1_000


def formatted(meter: Meter, template: str, args: Sequence[Any], named: Mapping[str, Any] | None = None) -> str:
    """Return `template % args`, as printf writes it: %s %d %f %e %g %x %o %c %%, widths up to 1,000, no '*'."""
    meter.write(len(template))
    for _, width, precision, letter in _CONVERSION.findall(template):
        if letter not in tuple("sdifFeEgGxXoc%"):
            raise Refused(f"the format has no conversion '%{letter}'; use %s, %d or %f, and '%%' for a percent sign")
        # Zeros in front count for nothing, and there can be any number of them.
        sizes = [int(size.lstrip("0")[:9] or 0) for size in (width, precision)]
        for size in sizes:
            count(size, "a width in a format", _MAX_WIDTH)
        meter.write(sum(sizes) + 20)
    if named is None:
        return template % tuple(_printable(meter, one) for one in args)
    values = {name: _printable(meter, one) for name, one in named.items()}
    # A named value can be written any number of times.
    meter.write(template.count("%(") * sum(len(one) if isinstance(one, str) else 20 for one in values.values()))
    return template % values


def _printable(meter: Meter, value: Any) -> int | float | str:
    fail_if_missing(value)
    return number(value, "a format") if isinstance(value, (int, float)) else text(meter, value)
