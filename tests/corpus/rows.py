"""Reading the corpus.

`signatures.jsonl`, one text that is a signature a line:
    text; source ("dspy-docs", "dspy-tests" or "made"); custom_types: names of classes in `classes.py` that it uses;
    difference: id of the row in docs/signatures.md that says why DSPy reads it otherwise, or not at all;
    extension, expect: a form that DSPy does not have, with the instructions and the fields that must come out.
`mistakes.jsonl`, one text that is no signature a line:
    text; problems: for each mistake, in order, its line, its column and a part of the message that names the fix;
    custom_types; difference: as above, where DSPy takes the text.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from tests.corpus.classes import named

_HERE: Final = Path(__file__).parent

Row = dict[str, Any]


def load(name: str) -> list[Row]:
    """Return the rows of one file of the corpus."""
    lines = (_HERE / f"{name}.jsonl").read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines if line]


def types_of(row: Row) -> dict[str, type]:
    """Return the classes that a row names, for `parse`."""
    return named(row.get("custom_types", []))


def short(row: Row) -> str:
    """Return a name for the row's test."""
    text = " ".join(row["text"].split())
    shown = text if len(text) <= 50 else f"{text[:49]}~"
    return shown.encode("ascii", "replace").decode()
