"""The filters that templates may use: those of Jinja2 that prompts need, by the same names, each with a bound.

They give what Jinja2's own give, with these differences: `tojson` writes plain JSON (no HTML escapes, keys in their
own order), what would be a generator is a list, `unique` and `sum` take text and numbers only.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any, Final, TypeVar

from jinja2 import filters as jinja
from jinja2.runtime import Context, Undefined
from jinja2.utils import pass_context

from signatures.native.sandbox import values
from signatures.native.sandbox.meter import Meter, Refused

Filter = Callable[..., Any]
F = TypeVar("F", bound=Filter)

MAX_WIDTH: Final = 10_000
_MAX_DIGITS: Final = 30

# By the names that templates use.
FILTERS: Final[dict[str, Filter]] = {}


def meter_of(context: Context) -> Meter:
    """Return the budget of the render that a context belongs to."""
    meter: Meter = context.meter  # type: ignore[attr-defined]
    return meter


def named(*names: str) -> Callable[[F], F]:
    """Make a function the filter of these names. It is given the render's context first."""

    def add(function: F) -> F:
        # Python names the function where its arguments are wrong.
        function.__qualname__ = names[0]
        FILTERS.update(dict.fromkeys(names, pass_context(function)))
        return function

    return add


# --- text -------------------------------------------------------------------------------------------


@named("string")
def string(context: Context, value: Any) -> str:
    """Return the value as text."""
    return values.text(meter_of(context), value)


def _plain(name: str, change: Callable[[str], str]) -> None:
    """Add a filter that only changes a text: no arguments, a result about as long."""

    def apply(context: Context, value: Any) -> str:
        text = values.checked_text(meter_of(context), value, name)
        values.write_recased(meter_of(context), text)
        return change(text)

    named(name)(apply)


for _name, _change in {
    "upper": str.upper, "lower": str.lower, "capitalize": str.capitalize,
}.items():  # fmt: skip
    _plain(_name, _change)


@named("title")
def title(context: Context, value: Any) -> str:
    """Return the text with each word's first letter raised, the others lowered."""
    meter = meter_of(context)
    found = values.checked_text(meter, value, "title")
    # Jinja2 cuts the text into its words first.
    meter.spend(2 * len(found))
    return jinja.do_title(found)


@named("trim")
def trim(context: Context, value: Any, chars: str | None = None) -> str:
    """Return the text without blanks (or `chars`) at both ends."""
    meter = meter_of(context)
    found = values.checked_text(meter, value, "trim")
    if chars is not None:
        # Each character at the ends is looked up in all of `chars`.
        meter.spend(len(found) * (1 + len(values.checked_text(meter, chars, "trim"))) // 64)
    return found.strip(chars)


@named("replace")
def replace(context: Context, value: Any, old: Any, new: Any, count: int | None = None) -> str:
    """Return the text with `old` replaced by `new`, all of them or the first `count`."""
    meter = meter_of(context)
    whole, old, new = (values.checked_text(meter, one, "replace") for one in (value, old, new))
    values.charge_search(meter, whole, old)
    most = -1 if count is None else values.count(count, "replace", 1 << 30)
    found = whole.count(old)
    meter.write(max(0, (found if most < 0 else min(most, found)) * (len(new) - len(old))))
    return whole.replace(old, new, most)


@named("truncate")
def truncate(
    context: Context,
    value: Any,
    length: int = 255,
    killwords: bool = False,
    end: str = "...",
    leeway: int | None = None,
) -> str:
    """Return the text, cut to `length` characters with `end` in place of the rest."""
    found, end = (values.checked_text(meter_of(context), one, "truncate") for one in (value, end))
    length = max(len(end), values.count(length, "truncate", 1 << 30))
    return jinja.do_truncate(context.environment, found, length, bool(killwords), end, leeway)


@named("indent")
def indent(context: Context, value: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    """Return the text with its lines moved right: by `width` blanks, or behind the text `width`."""
    meter = meter_of(context)
    found = values.checked_text(meter, value, "indent")
    by = len(values.text(meter, width)) if isinstance(width, str) else values.count(width, "indent", MAX_WIDTH)
    meter.spend(len(found) // 2)
    meter.write((len(found.splitlines()) + 2) * by)
    return jinja.do_indent(found, width, bool(first), bool(blank))


@named("center")
def center(context: Context, value: Any, width: int = 80) -> str:
    """Return the text in the middle of `width` characters."""
    meter = meter_of(context)
    meter.write(values.count(width, "center", MAX_WIDTH))
    return values.checked_text(meter, value, "center").center(width)


@named("wordcount")
def wordcount(context: Context, value: Any) -> int:
    """Return how many words a text has."""
    found = values.checked_text(meter_of(context), value, "wordcount")
    meter_of(context).spend(len(found))
    return jinja.do_wordcount(found)


@named("format")
def formatted(context: Context, value: Any, *args: Any, **kwargs: Any) -> str:
    """Return `value % args`; see `values.formatted`."""
    if args and kwargs:
        raise Refused("'format' takes values in order or by name; not both")
    meter = meter_of(context)
    return values.formatted(meter, values.checked_text(meter, value, "format"), args, kwargs or None)


@named("tojson")
def tojson(context: Context, value: Any, indent: int | None = None) -> str:
    """Return the value as JSON: characters as they are, keys in their own order."""
    meter = meter_of(context)
    values.weigh(meter, value)
    if indent is None:
        return values.text(meter, json.dumps(value, ensure_ascii=False, allow_nan=False))
    encoder = json.JSONEncoder(ensure_ascii=False, allow_nan=False, indent=values.count(indent, "tojson", 16))
    return "".join(values.text(meter, piece) for piece in encoder.iterencode(value))


# --- numbers ----------------------------------------------------------------------------------------


def _readable(meter: Meter, value: Any) -> Any:
    """Return a number or a short text that may be one; a Decimal as a float: its exponent can be huge."""
    values.fail_if_missing(value)
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, int):
        return values.check_int(value)
    return value if isinstance(value, float) else values.text(meter, value)[:1_000]


@named("int")
def integer(context: Context, value: Any, default: Any = 0, base: int = 10) -> Any:
    """Return the value as a whole number, `default` where it is none."""
    base = values.count(base, "int", 36)
    found = _readable(meter_of(context), value)
    if isinstance(found, float) and not math.isfinite(found):
        return default
    return jinja.do_int(found, default, base)


@named("float")
def floating(context: Context, value: Any, default: Any = 0.0) -> Any:
    """Return the value as a float, `default` where it is no number."""
    return jinja.do_float(_readable(meter_of(context), value), default)


@named("round")
def rounded(context: Context, value: Any, precision: int = 0, method: str = "common") -> Any:
    """Return the number rounded; method is common, ceil or floor."""
    if not isinstance(precision, int) or abs(precision) > _MAX_DIGITS:
        raise Refused(f"'round' takes a precision from -{_MAX_DIGITS} to {_MAX_DIGITS}")
    if method not in ("common", "ceil", "floor"):
        raise Refused("'round' takes the method 'common', 'ceil' or 'floor'")
    value = float(value) if isinstance(value, Decimal) else values.number(value, "round")
    return jinja.do_round(value, precision, method)  # type: ignore[arg-type]


@named("abs")
def absolute(context: Context, value: Any) -> Any:
    """Return the number without its sign."""
    return abs(value) if isinstance(value, Decimal) else abs(values.number(value, "abs"))


# --- presence and size ------------------------------------------------------------------------------


@named("default", "d")
def default(context: Context, value: Any, default_value: Any = "", boolean: bool = False) -> Any:
    """Return the value; `default_value` where it is missing, or empty if `boolean`."""
    return default_value if isinstance(value, Undefined) or (boolean and not value) else value


@named("length", "count")
def length(context: Context, value: Any) -> int:
    """Return how many items or characters the value has."""
    values.fail_if_missing(value)
    if not hasattr(type(value), "__len__"):
        raise Refused(f"'length' takes text, a list or a mapping, got {values.kind(value)}")
    return len(value)


# --- lists ------------------------------------------------------------------------------------------


@named("list")
def listed(context: Context, value: Any) -> list[Any]:
    """Return the items as a list."""
    return values.items(meter_of(context), value, "list")


@named("items")
def pairs(context: Context, value: Any) -> list[tuple[Any, Any]]:
    """Return the (key, value) pairs of a mapping; none of one that is missing."""
    if isinstance(value, Undefined):
        return []
    if not isinstance(value, Mapping):
        raise Refused(f"'items' takes a mapping, got {values.kind(value)}")
    meter_of(context).spend(1 + 4 * len(value))
    return list(value.items())


def _ends(name: str, index: int) -> None:
    def pick(context: Context, value: Any) -> Any:
        found = values.sized(meter_of(context), value, name)
        if not len(found):
            return context.environment.undefined(f"'{name}' of an empty list")
        if isinstance(found, (str, list, tuple, range)):
            return found[index]
        return list(found)[index]

    named(name)(pick)


_ends("first", 0)
_ends("last", -1)


@named("reverse")
def reverse(context: Context, value: Any) -> Any:
    """Return a text backwards, or the items in reverse order."""
    meter = meter_of(context)
    return values.text(meter, value)[::-1] if isinstance(value, str) else values.items(meter, value, "reverse")[::-1]


@named("join")
def join(context: Context, value: Any, d: Any = "", attribute: str | int | None = None) -> str:
    """Return the items' texts with `d` between them."""
    meter = meter_of(context)
    between = values.checked_text(meter, d, "join")
    pieces = [values.text(meter, one) for one in _read_items(context, value, attribute, "join")]
    meter.write(len(between) * len(pieces))
    return between.join(pieces)


def reader(context: Context, attribute: Any) -> Callable[[Any], Any]:
    """Return a function that reads `a.b.0` of an item; None reads the item itself."""
    if attribute is None:
        return lambda item: item
    if not isinstance(attribute, (str, int)) or len(str(attribute)) > 200:
        raise Refused("an attribute is a short text, as in 'author.name'")
    path = [int(one) if one.isdecimal() else one for one in str(attribute).split(".")]
    meter = meter_of(context)

    def read(item: Any) -> Any:
        for one in path:
            meter.spend(2)
            item = context.environment.getitem(item, one)
        return item

    return read


def _read_items(context: Context, value: Any, attribute: Any, what: str) -> list[Any]:
    read = reader(context, attribute)
    return [read(item) for item in values.items(meter_of(context), value, what)]


def _ordered(context: Context, value: Any, attribute: Any, case_sensitive: bool, what: str) -> list[tuple[Any, Any]]:
    """Return (what to order by, item) for each item."""
    meter = meter_of(context)
    found = values.items(meter, value, what)
    paths = str(attribute).split(",") if isinstance(attribute, str) else [attribute]
    reads = [reader(context, path) for path in paths]
    keyed = []
    for item in found:
        keys = [read(item) for read in reads]
        values.weigh(meter, keys)
        lowered = [key if case_sensitive or not isinstance(key, str) else key.lower() for key in keys]
        keyed.append((lowered if len(lowered) > 1 else lowered[0], item))
    meter.spend(len(keyed) * len(keyed).bit_length() // 4)
    return keyed


@named("sort")
def sort(
    context: Context, value: Any, reverse: bool = False, case_sensitive: bool = False, attribute: Any = None
) -> list[Any]:
    """Return the items in order, by an attribute or several ("team,name"); text without regard to case."""
    keyed = _ordered(context, value, attribute, case_sensitive, "sort")
    return [item for _, item in sorted(keyed, key=lambda one: one[0], reverse=bool(reverse))]


@named("dictsort")
def dictsort(
    context: Context, value: Any, case_sensitive: bool = False, by: str = "key", reverse: bool = False
) -> list[tuple[Any, Any]]:
    """Return the (key, value) pairs of a mapping in order of keys, or values."""
    if by not in ("key", "value"):
        raise Refused("'dictsort' sorts by 'key' or 'value'")
    found: list[tuple[Any, Any]] = sort(
        context, pairs(context, value), reverse, case_sensitive, 0 if by == "key" else 1
    )
    return found


def _extreme(name: str, pick: Callable[..., Any]) -> None:
    def apply(context: Context, value: Any, case_sensitive: bool = False, attribute: Any = None) -> Any:
        keyed = _ordered(context, value, attribute, case_sensitive, name)
        if not keyed:
            return context.environment.undefined(f"'{name}' of an empty list")
        return pick(keyed, key=lambda one: one[0])[1]

    named(name)(apply)


_extreme("min", min)
_extreme("max", max)


@named("unique")
def unique(context: Context, value: Any, case_sensitive: bool = False, attribute: Any = None) -> list[Any]:
    """Return the items without repetitions, each where it comes first."""
    first: dict[Any, Any] = {}
    for key, item in _ordered(context, value, attribute, case_sensitive, "unique"):
        # As text a number's hash cannot be chosen to collide with others.
        first.setdefault(repr(values.scalar(key, "an item of 'unique'")), item)
    return list(first.values())


@named("sum")
def total(context: Context, value: Any, attribute: Any = None, start: Any = 0) -> Any:
    """Return the sum of numbers."""
    return sum(
        (values.number(one, "sum") for one in _read_items(context, value, attribute, "sum")),
        values.number(start, "sum"),
    )


@named("map")
def mapped(context: Context, value: Any, *args: Any, attribute: Any = None, default: Any = None, **kwargs: Any) -> Any:
    """Return an attribute of each item (`default` where missing), or each item through a filter named first."""
    meter = meter_of(context)
    if attribute is not None:
        found = _read_items(context, value, attribute, "map")
        return found if default is None else [default if isinstance(one, Undefined) else one for one in found]
    if not args or args[0] not in FILTERS:
        raise Refused("'map' takes attribute='name', or the name of a filter, as in map('upper')")
    name, *rest = args
    meter.enter()
    found = []
    for item in values.items(meter, value, "map"):
        meter.spend(2)
        found.append(FILTERS[name](context, item, *rest, **kwargs))
    meter.leave()
    return found


def _choose(name: str, keep: bool, by_attribute: bool) -> None:
    def apply(context: Context, value: Any, *args: Any) -> list[Any]:
        rest = list(args)
        if by_attribute and not rest:
            raise Refused(f"'{name}' takes the name of an attribute, as in {name}('open')")
        read = reader(context, rest.pop(0) if by_attribute else None)
        return [
            item for item in values.items(meter_of(context), value, name) if _passes(context, read(item), rest) is keep
        ]

    named(name)(apply)


def _passes(context: Context, value: Any, test: list[Any]) -> bool:
    meter_of(context).spend(2)
    if not test:
        return bool(value)
    tests = context.environment.tests
    if not isinstance(test[0], str) or test[0] not in tests:
        raise Refused("select and reject take the name of a test, as in select('defined')")
    passes: Any = tests[test[0]]
    return bool(passes(context, value, *test[1:]))


_choose("select", True, False)
_choose("reject", False, False)
_choose("selectattr", True, True)
_choose("rejectattr", False, True)
