"""Checks of one value against a common pattern: None when the value is fine, else what it must be, as a short text.

All take time linear in the length of the text, but for `regex`, which is timed.
"""

from __future__ import annotations

import json as _json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from decimal import Decimal
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import Any, Final

from signatures.converters.shown import shown, type_name
from signatures.native.patterns import check_pattern, matches
from signatures.native.values import key

__all__ = ["FORMATS", "check_pattern", "choice", "email", "json", "length", "matches", "range", "regex", "url"]

MAX_EMAIL_CHARS: Final = 254
MAX_URL_CHARS: Final = 8_000
MAX_JSON_CHARS: Final = 16 * 1024 * 1024
MAX_JSON_DEPTH: Final = 100

_LABEL: Final = "[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_ATOM: Final = "[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_HOST: Final = re.compile(rf"{_LABEL}(?:\.{_LABEL})*", re.ASCII)
_LOCAL: Final = re.compile(rf"{_ATOM}(?:\.{_ATOM})*", re.ASCII)
_CONTAINERS: Final = (list, tuple, set, frozenset, Mapping)
_NUMERIC: Final = re.compile(r"[0-9]+", re.ASCII)

_UNRESERVED: Final = r"A-Za-z0-9._~!$&'()*+,;=\-"
_URL: Final = re.compile(
    rf"""(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://
    (?:(?:[{_UNRESERVED}:]|%[0-9A-Fa-f]{{2}})*@)?
    (?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+)
    (?::(?P<port>[0-9]{{1,5}}))?
    (?:/(?:[{_UNRESERVED}:@/]|%[0-9A-Fa-f]{{2}})*)?
    (?:\?(?:[{_UNRESERVED}:@/?]|%[0-9A-Fa-f]{{2}})*)?
    (?:\#(?:[{_UNRESERVED}:@/?]|%[0-9A-Fa-f]{{2}})*)?""",
    re.VERBOSE | re.ASCII,
)
# Possessive: what a string has been read of is not kept for going back, which would take room for each character.
_NESTING: Final = re.compile(r'"(?:[^"\\]++|\\.)*+"?|[\[\]{}]', re.DOTALL)


def email(value: Any) -> str | None:
    """Check an e-mail address, as RFC 5321 has it, of the kind that mail providers give out.

    Taken: `local@domain` in ASCII, at most 254 characters; a local part of at most 64, a dot-atom (letters, digits,
    !#$%&'*+/=?^_`{|}~- and single dots within); a domain of two or more labels of letters, digits and inner hyphens,
    1 to 63 characters each, the last not of digits alone. Not taken though legal: quoted local parts, comments, address
    literals (`[127.0.0.1]`), a single label (`localhost`), and internationalized addresses (write the domain as
    `xn--…`). No mail server is asked.
    """
    problem = "must be an email address, like name@example.org"
    if not isinstance(value, str) or len(value) > MAX_EMAIL_CHARS:
        return problem
    local, at, domain = value.rpartition("@")
    if not at or len(local) > 64 or not _LOCAL.fullmatch(local) or not _HOST.fullmatch(domain):
        return problem
    labels = domain.split(".")
    return problem if len(labels) < 2 or _NUMERIC.fullmatch(labels[-1]) else None


def url(value: Any, schemes: Sequence[str] = ("http", "https")) -> str | None:
    """Check an absolute URL with a host: RFC 3986's `scheme://[user[:password]@]host[:port][/path][?query][#fragment]`.

    Taken: ASCII only (all else percent-encoded, each `%` before two hex digits), at most 8,000 characters; a scheme of
    `schemes`, in any case; a host that is a name of labels as in `email` (one is enough: `localhost`), an IPv4
    address in four decimal parts, or an IPv6 address in brackets; a port from 1 to 65535. Not taken: URLs without
    `//` or host (mailto:, file:///), a dot at the host's end, zones of IPv6 addresses, blanks, and
    internationalized names (write them as `xn--…`).
    """
    problem = f"must be a URL, like {schemes[0] if schemes else 'https'}://example.org/page"
    found = _URL.fullmatch(value) if isinstance(value, str) and len(value) <= MAX_URL_CHARS else None
    if not found or found["scheme"].lower() not in {scheme.lower() for scheme in schemes}:
        return problem
    port = found["port"]
    fine = _is_host(found["host"]) and (port is None or 1 <= int(port) <= 65_535)
    return None if fine else problem


def json(value: Any) -> str | None:
    """Check a JSON document (RFC 8259), as text or as UTF-8 bytes; any value at its top, names may be given twice.

    NaN and Infinity are no JSON. At most 16 MiB, and 100 levels deep.
    """
    if not isinstance(value, (str, bytes, bytearray)):
        return "must be JSON, as text or bytes"
    if len(value) > MAX_JSON_CHARS:
        return f"must be JSON of at most {MAX_JSON_CHARS:,} characters"
    try:
        text = value if isinstance(value, str) else value.decode("utf-8")
        if _depth_over(text, MAX_JSON_DEPTH):
            return f"must be JSON at most {MAX_JSON_DEPTH} levels deep"
        # Numbers stay text: a number of many digits is JSON, and slow to convert.
        _json.loads(text, parse_int=str, parse_float=str, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        return f"must be JSON in UTF-8; byte {error.start + 1} is not"
    except _json.JSONDecodeError as error:
        return f"must be JSON: {error.msg} at line {error.lineno}, column {error.colno}"
    except ValueError as error:
        return f"must be JSON: {error}"
    return None


def regex(value: Any, pattern: str) -> str | None:
    """Check that the pattern is found anywhere in a text; anchor it with ^ and $ to match all of it.

    Which patterns are taken is told by `check_pattern`. A search that takes more than 0.05 s is a problem of its own.
    Raises ValueError for a pattern that is not usable.
    """
    unusable = check_pattern(pattern)
    if unusable:
        raise ValueError(unusable)
    if not isinstance(value, str):
        return "must be a text"
    try:
        return None if matches(pattern, value) else f"must match the pattern {_short(pattern)}"
    except TimeoutError as error:
        return f"could not be checked: {error}"


def length(value: Any, min: int | None = None, max: int | None = None) -> str | None:
    """Check how many characters, bytes or items a value has; both ends are allowed."""
    unit = "characters" if isinstance(value, str) else "bytes" if isinstance(value, (bytes, bytearray)) else "items"
    if not isinstance(value, Sized):
        return "must be a text or a list: something with a length"
    if min is not None and len(value) < min:
        return f"must have at least {min:,} {unit}, has {len(value):,}"
    if max is not None and len(value) > max:
        return f"must have at most {max:,} {unit}, has {len(value):,}"
    return None


def choice(value: Any, options: Iterable[Any]) -> str | None:
    """Check that a value is one of the options: equal, and true or false only where the option is.

    Raises ValueError for a list or mapping that is too large or too deep to compare.
    """
    options = list(options)
    same = _same_as(value)
    if any(same(option) for option in options):
        return None
    more = f" or {len(options) - 10:,} others" if len(options) > 10 else ""
    return (
        f"must be one of {', '.join(_short(option) for option in options[:10])}{more}" if options else "has no options"
    )


def range(
    value: Any,
    min: float | Decimal | None = None,
    max: float | Decimal | None = None,
    exclusive_min: bool = False,
    exclusive_max: bool = False,
) -> str | None:
    """Check that a number (int, float or Decimal; no bool, no text) lies between two ends; NaN does not.

    Raises ValueError for an end that is NaN.
    """
    for name, end in (("min", min), ("max", max)):
        if end is not None and _is_nan(end):
            raise ValueError(f"{name} must be a number, not NaN")
    if isinstance(value, bool) or not isinstance(value, (int, float, Decimal)):
        return "must be a number"
    if _is_nan(value):
        return "must be a number, not NaN"
    if min is not None and (value <= min if exclusive_min else value < min):
        return f"must be {'more than' if exclusive_min else 'at least'} {_short(min)}"
    if max is not None and (value >= max if exclusive_max else value > max):
        return f"must be {'less than' if exclusive_max else 'at most'} {_short(max)}"
    return None


# The formats that a signature can ask of a text: `str[email]`.
FORMATS: Final[dict[str, Callable[[str], str | None]]] = {"email": email, "url": url, "json": json}


def _same_as(value: Any) -> Callable[[Any], bool]:
    """Return what tells whether another value equals this one."""
    if isinstance(value, _CONTAINERS):
        # One list can stand in many places: Python would compare it in each of them.
        wanted = key(value)
        return lambda other: isinstance(other, _CONTAINERS) and key(other) == wanted
    is_bool = isinstance(value, bool)
    # Asked first: a signaling NaN cannot be compared.
    if _is_nan(value):
        return lambda other: False
    return lambda other: not _is_nan(other) and bool(other == value) and isinstance(other, bool) == is_bool


def _is_host(host: str) -> bool:
    try:
        if host.startswith("["):
            IPv6Address(host[1:-1])
        elif _NUMERIC.fullmatch(host.rpartition(".")[2]):
            IPv4Address(host)
        else:
            return len(host) <= 253 and _HOST.fullmatch(host) is not None
    except AddressValueError:
        return False
    return True


def _is_nan(value: Any) -> bool:
    return value.is_nan() if isinstance(value, Decimal) else isinstance(value, float) and math.isnan(value)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON; use null")


def _depth_over(text: str, most: int) -> bool:
    """Return whether brackets outside strings nest deeper than `most`."""
    if text.count("[") + text.count("{") <= most:
        return False
    depth = 0
    for piece in _NESTING.finditer(text):
        sign = piece[0]
        if sign in "[{":
            depth += 1
            if depth > most:
                return True
        elif sign in "]}":
            depth -= 1
    return False


def _short(value: Any) -> str:
    return shown(value) or type_name(value)
