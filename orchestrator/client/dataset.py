"""Rows for an optimizer: given as they are, or as a file."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterable
from typing import Any, Final

from bridge.protocol.typed import is_example
from orchestrator.errors import InvalidRequest

Rows = list[Any]


def read_rows(source: Any, path: str) -> Rows:
    """Return rows: of an iterable of mappings or examples, or of a .jsonl, .json or .csv file.

    Mappings become dicts; a `dspy.Example` stays one, with its input keys.

    path names the argument in errors. Raises InvalidRequest for what is no such thing.
    """
    if isinstance(source, str | os.PathLike):
        return _read_file(os.fspath(source), path)
    try:
        return [row if is_example(row) else dict(row) for row in source]
    except (TypeError, ValueError) as exc:
        raise InvalidRequest(f"{path} must be rows (mappings) or the path of a file: {exc}", path=path) from None


def _read_file(name: str, path: str) -> Rows:
    read = _READERS.get(os.path.splitext(name)[1].lower())
    if read is None:
        raise InvalidRequest(f"{path}: {name} is none of {', '.join(_READERS)}", path=path)
    try:
        with open(name, encoding="utf-8", newline="") as file:
            rows = read(file)
    except OSError as exc:
        raise InvalidRequest(f"{path}: {name} cannot be read: {exc.strerror}", path=path) from None
    except (ValueError, csv.Error) as exc:
        raise InvalidRequest(f"{path}: {name}: {exc}", path=path) from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InvalidRequest(f"{path}: {name} must hold a list of objects", path=path)
    return rows


def _read_jsonl(lines: Iterable[str]) -> Rows:
    rows = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except ValueError as exc:
                raise ValueError(f"line {number}: {exc}") from None
    return rows


_READERS: Final[dict[str, Callable[[Any], Any]]] = {
    ".jsonl": _read_jsonl,
    ".json": json.load,
    ".csv": lambda file: list(csv.DictReader(file)),
}
