"""A stream, shown as it comes: what is written to standard output, what the program does to standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from orchestrator.cli.plain import plain, readable
from orchestrator.client.stream import Final, Item, Progress, Status, Token

Write = Callable[[str], object]


def as_lines(items: Iterable[Item], meta: Callable[[Any], Any], write: Write | None = None) -> None:
    """Write each item as one line of JSON, at once. meta: makes JSON data of how a request was executed."""
    write = write or _write
    for item in items:
        write(json.dumps(document(item, meta)) + "\n")


def document(item: Item, meta: Callable[[Any], Any]) -> dict[str, Any]:
    """Return an item as JSON data; `type` says what it is."""
    match item:
        case Token():
            return {"type": "token", "field": item.field, "text": item.text, "predictor": item.predictor}
        case Status():
            return {"type": "status", "message": item.message}
        case Progress():
            return {"type": "progress", "kind": item.kind, "fields": plain(item.fields)}
        case Final():
            return {"type": "final", "value": plain(item.value), "meta": meta(item.meta)}


def as_text(items: Iterable[Item], say: Write, write: Write | None = None) -> Any:
    """Write text as it comes, `field: ` before each field's; return how the request was executed.

    say: takes lines about what goes on. Of the value only what was not written already is shown at the end.
    """
    write = write or _write
    at: tuple[str, str] | None = None
    fields: set[str] = set()
    for item in items:
        match item:
            case Token():
                if (place := (item.predictor, item.field)) != at:
                    write(f"{'' if at is None else chr(10)}{item.field}: ")
                    at = place
                    fields.add(item.field)
                write(item.text)
            case Status():
                say(item.message)
            case Progress():
                say(f"{item.kind}: {json.dumps(plain(item.fields), ensure_ascii=False)}")
            case Final():
                if at is not None:
                    write("\n")
                if not isinstance(item.value, Mapping) or not fields:
                    write(readable(item.value) + "\n")
                elif rest := {name: value for name, value in item.value.items() if name not in fields}:
                    write("".join(f"{name}: {readable(value)}\n" for name, value in rest.items()))
                return item.meta
    return None


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
