"""Converters of dates, times, durations and UUIDs."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

from signatures.converters.levels import Refused, Take

_MAX_TEXT: Final = 200

# ISO 8601, without years and months, which have no length.
_DURATION: Final = re.compile(
    r"([+-]?)P(?:([0-9]{1,12})W)?(?:([0-9]{1,12})D)?"
    r"(T(?:([0-9]{1,12})H)?(?:([0-9]{1,12})M)?(?:([0-9]{1,12})(?:[.,]([0-9]{1,9}))?S)?)?"
)
_HEX: Final = "[0-9a-fA-F]"
_UUID: Final = re.compile(rf"(?:urn:uuid:)?{_HEX}{{8}}(-?){_HEX}{{4}}\1{_HEX}{{4}}\1{_HEX}{{4}}\1{_HEX}{{12}}")


def instance(python: type, but: tuple[type, ...] = ()) -> Take:
    """Return the converter that takes instances of a class as they are."""

    def take(value: Any) -> Any:
        if isinstance(value, python) and not isinstance(value, but):
            return value
        raise Refused

    return take


def _from_text(plain: Take, read: Callable[[str], Any]) -> Take:
    def take(value: Any) -> Any:
        if not isinstance(value, str):
            return plain(value)
        if str.__len__(value) > _MAX_TEXT:
            raise Refused
        try:
            return read(str.strip(value))
        except (ValueError, OverflowError):
            raise Refused from None

    return take


def _to_timedelta(value: Any) -> timedelta:
    if isinstance(value, timedelta):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        raise Refused
    try:
        # A Decimal may be a signalling nan, an int too long for a float.
        return timedelta(seconds=float(value))
    except (ValueError, OverflowError):
        raise Refused from None


def _duration(text: str) -> timedelta:
    found = _DURATION.fullmatch(text)
    if found is None or text[-1] in "PT":
        raise Refused
    sign, weeks, days, _, hours, minutes, seconds, fraction = found.groups()
    length = timedelta(
        weeks=int(weeks or 0),
        days=int(days or 0),
        hours=int(hours or 0),
        minutes=int(minutes or 0),
        seconds=int(seconds or 0),
        # Whole microseconds: a float of seconds would lose some.
        microseconds=int((fraction or "0").ljust(6, "0")[:6]),
    )
    return -length if sign == "-" else length


def _uuid(text: str) -> UUID:
    if text.startswith("{") and text.endswith("}"):
        text = text[1:-1]
    if not _UUID.fullmatch(text):
        raise Refused
    return UUID(text)


_datetime: Final = instance(datetime)
_date: Final = instance(date, but=(datetime,))
_time: Final = instance(time)
_timedelta: Final = instance(timedelta)
_is_uuid: Final = instance(UUID)

# By canonical name: the type, what takes its instances, what converts to it.
RULES: Final[dict[str, tuple[type, Take, Take]]] = {
    "datetime.datetime": (datetime, _datetime, _from_text(_datetime, datetime.fromisoformat)),
    "datetime.date": (date, _date, _from_text(_date, date.fromisoformat)),
    "datetime.time": (time, _time, _from_text(_time, time.fromisoformat)),
    "datetime.timedelta": (timedelta, _timedelta, _from_text(_to_timedelta, _duration)),
    "uuid.UUID": (UUID, _is_uuid, _from_text(_is_uuid, _uuid)),
}
