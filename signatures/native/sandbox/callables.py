"""What templates may call: methods of text, lists, mappings and dates, `range`, `namespace`, `dict`; and the tests."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import date, time
from decimal import Decimal
from typing import Any, Final

from jinja2.runtime import Context, LoopContext, Undefined
from jinja2.utils import Namespace, pass_context

from signatures.native.sandbox import filters, values
from signatures.native.sandbox.filters import meter_of
from signatures.native.sandbox.meter import MAX_ITERATIONS, Refused
from signatures.native.sandbox.values import Method

Function = Callable[..., Any]


# --- methods: the context, the value, the arguments of the call ----------------------------------------


def _simple(method: Callable[[str], Any]) -> Function:
    def call(context: Context, text: str) -> Any:
        values.write_recased(meter_of(context), text)
        return method(text)

    return call


def _strip(method: Callable[[str, str | None], str]) -> Function:
    def call(context: Context, text: str, chars: str | None = None) -> str:
        meter = meter_of(context)
        meter.write(len(text))
        if chars is not None:
            # Each character at the ends is looked up in all of `chars`.
            meter.spend(len(text) * (1 + len(values.checked_text(meter, chars, method.__name__))) // 64)
        return method(text, chars)

    return call


def _affix(method: Callable[[str, str], Any]) -> Function:
    def call(context: Context, text: str, affix: str | tuple[str, ...]) -> Any:
        meter = meter_of(context)
        ends = affix if isinstance(affix, tuple) else (affix,)
        meter.write(sum(len(values.checked_text(meter, end, method.__name__)) for end in ends))
        found = method(text, affix)  # type: ignore[arg-type]
        meter.write(len(found) if isinstance(found, str) else 0)
        return found

    return call


def _split(method: Callable[..., list[str]]) -> Function:
    def call(context: Context, text: str, sep: str | None = None, maxsplit: int = -1) -> list[str]:
        meter = meter_of(context)
        meter.write(len(text))
        if sep is not None:
            values.charge_search(meter, text, values.checked_text(meter, sep, "split"))
        # A piece takes more room than its characters do.
        pieces = len(text) // 2 + 1 if sep is None else text.count(sep) + 1
        meter.spend(2 * (pieces if maxsplit < 0 else min(maxsplit + 1, pieces)))
        return method(text, sep, maxsplit)

    return call


def _splitlines(context: Context, text: str, keepends: bool = False) -> list[str]:
    meter_of(context).write(len(text))
    meter_of(context).spend(len(text) // 2)
    return text.splitlines(bool(keepends))


def _search(method: Callable[[str, str], int]) -> Function:
    def call(context: Context, text: str, part: Any) -> int:
        values.charge_search(meter_of(context), text, values.checked_text(meter_of(context), part, method.__name__))
        return method(text, part)

    return call


def _join(context: Context, text: str, items: Any) -> str:
    joined: str = filters.join(context, items, text)
    return joined


def _get(context: Context, mapping: Mapping[Any, Any], key: Any, default: Any = None) -> Any:
    return mapping.get(values.scalar(key, "a key"), default)


def _keys(context: Context, mapping: Mapping[Any, Any]) -> list[Any]:
    return values.items(meter_of(context), mapping, "keys")


def _values(context: Context, mapping: Mapping[Any, Any]) -> list[Any]:
    return [value for _, value in filters.pairs(context, mapping)]


def _index(context: Context, items: Any, item: Any) -> int:
    values.weigh(meter_of(context), items)
    values.weigh(meter_of(context), item)
    return int(items.index(item))


def _count(context: Context, items: Any, item: Any) -> int:
    values.weigh(meter_of(context), items)
    values.weigh(meter_of(context), item)
    return int(items.count(item))


def _isoformat(context: Context, moment: date | time) -> str:
    return moment.isoformat()


# A width, as in %1000000d, is an extension of some C libraries.
_STRFTIME: Final = re.compile(r"(?:[^%]|%-?[A-Za-z%])*")


def _strftime(context: Context, moment: date | time, format: str) -> str:
    if not isinstance(format, str) or len(format) > 200 or not _STRFTIME.fullmatch(format):
        raise Refused("'strftime' takes a format of at most 200 characters, without widths, as in '%d %B %Y'")
    return moment.strftime(format)


def _cycle(context: Context, loop: LoopContext, *args: Any) -> Any:
    return loop.cycle(*args)


def _changed(context: Context, loop: LoopContext, *args: Any) -> bool:
    values.weigh(meter_of(context), args)
    return loop.changed(*args)


_TEXT: Final[dict[str, Function]] = {
    **{
        method.__name__: _simple(method)
        for method in (
            str.upper, str.lower, str.title, str.capitalize, str.casefold, str.swapcase, str.isdigit, str.isalpha,
            str.isalnum, str.isspace, str.isupper, str.islower, str.isnumeric, str.isdecimal,
        )
    },
    **{
        method.__name__: _affix(method)
        for method in (str.startswith, str.endswith, str.removeprefix, str.removesuffix)
    },
    **{method.__name__: _strip(method) for method in (str.strip, str.lstrip, str.rstrip)},
    **{method.__name__: _search(method) for method in (str.find, str.rfind, str.count)},
    "split": _split(str.split), "rsplit": _split(str.rsplit), "splitlines": _splitlines,
    "join": _join, "replace": filters.replace, "center": filters.center,
}  # fmt: skip
_LIST: Final[dict[str, Function]] = {"index": _index, "count": _count}

# The first type that a value is an instance of counts.
METHODS: Final[tuple[tuple[Any, dict[str, Function]], ...]] = (
    (str, _TEXT),
    (Mapping, {"items": filters.pairs, "keys": _keys, "values": _values, "get": _get}),
    ((list, tuple), _LIST),
    ((date, time), {"isoformat": _isoformat, "strftime": _strftime}),
    (LoopContext, {"cycle": _cycle, "changed": _changed}),
)


def methods_of(value: Any) -> dict[str, Function]:
    """Return the methods that templates may call on a value, by name."""
    return next((table for one, table in METHODS if isinstance(value, one)), {})


# --- globals ----------------------------------------------------------------------------------------


def _range(context: Context, _: None, *args: Any) -> range:
    found = range(*(values.number(one, "range") for one in args))
    if len(found) > MAX_ITERATIONS:
        raise Refused(f"a range has more than {MAX_ITERATIONS:,} numbers")
    return found


def _namespace(context: Context, _: None, **kwargs: Any) -> Namespace:
    return Namespace(**kwargs)


def _dict(context: Context, _: None, **kwargs: Any) -> dict[str, Any]:
    return kwargs


_FUNCTIONS: Final[dict[str, Function]] = {"range": _range, "namespace": _namespace, "dict": _dict}
GLOBALS: Final = {name: Method(function, name) for name, function in _FUNCTIONS.items()}  # fmt: skip


# --- tests ------------------------------------------------------------------------------------------


def _typed(*types: type) -> Function:
    def test(context: Context, value: Any) -> bool:
        return isinstance(value, types) and not (isinstance(value, bool) and bool not in types)

    return test


def _compared(op: str) -> Function:
    def test(context: Context, value: Any, other: Any) -> bool:
        return values.compare(meter_of(context), op, value, other)

    return test


def _divisible(context: Context, value: Any, by: Any) -> bool:
    return bool(values.number(value, "divisibleby") % values.number(by, "divisibleby") == 0)


def _cased(name: str, method: Callable[[str], bool]) -> Function:
    def test(context: Context, value: Any) -> bool:
        return method(values.checked_text(meter_of(context), value, name))

    return test


def _length(value: Any) -> bool:
    return hasattr(type(value), "__len__") and not isinstance(value, Undefined)


_PLAIN_TESTS: Final[dict[str, Function]] = {
    "defined": lambda context, value: not isinstance(value, Undefined),
    "undefined": lambda context, value: isinstance(value, Undefined),
    "none": lambda context, value: value is None,
    "true": lambda context, value: value is True,
    "false": lambda context, value: value is False,
    "boolean": _typed(bool), "integer": _typed(int), "float": _typed(float), "string": _typed(str),
    # As in Jinja2, true and false are numbers here.
    "number": lambda context, value: isinstance(value, (int, float, Decimal)),
    "mapping": lambda context, value: isinstance(value, Mapping),
    "sequence": lambda context, value: _length(value),
    "iterable": lambda context, value: _length(value),
    "sameas": lambda context, value, other: value is other,
    "odd": lambda context, value: values.number(value, "odd") % 2 == 1,
    "even": lambda context, value: values.number(value, "even") % 2 == 0,
    "divisibleby": _divisible,
    "lower": _cased("lower", str.islower), "upper": _cased("upper", str.isupper),
    "in": _compared("in"),
}  # fmt: skip
_COMPARISONS: Final = {
    "eq": ("==", "eq", "equalto"), "ne": ("!=", "ne"), "lt": ("<", "lt", "lessthan"), "lteq": ("<=", "le"),
    "gt": (">", "gt", "greaterthan"), "gteq": (">=", "ge"),
}  # fmt: skip

TESTS: Final[dict[str, Function]] = {
    name: pass_context(test)
    for name, test in {
        **_PLAIN_TESTS,
        **{name: _compared(op) for op, names in _COMPARISONS.items() for name in names},
    }.items()
}
