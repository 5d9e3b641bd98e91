"""The terminal: consoles and tables. Where output is no terminal, plain lines that are never wrapped."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from rich import box
from rich.console import Console
from rich.table import Table

from orchestrator.cli.plain import printable

_PLAIN_WIDTH = 200


class Screen(Console):
    """A console that is steered by nothing in the texts that it prints, whoever wrote them."""

    def print(self, *objects: Any, **options: Any) -> None:
        """Print; see `Console.print`."""
        super().print(*(printable(one) if isinstance(one, str) else one for one in objects), **options)


def out() -> Console:
    """Return a console on standard output."""
    return _console(stderr=False)


def err() -> Console:
    """Return a console on standard error."""
    return _console(stderr=True)


def _console(*, stderr: bool) -> Console:
    console = Screen(stderr=stderr, highlight=False, soft_wrap=True, emoji=False)
    if not console.is_terminal:
        console.width = _PLAIN_WIDTH
    return console


def table(*headings: str, title: str | None = None, tight: bool = False) -> Table:
    """Return an empty table. A heading that starts with `>` is of a column of numbers.

    Where the terminal is narrow, the first column, which names the row, is the last to be cut. tight: one space between
    columns instead of two.
    """
    padding = (0, 0) if tight else (0, 1)
    made = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", title_style="bold", padding=padding)
    made.pad_edge, made.collapse_padding = False, True
    for number, heading in enumerate(headings):
        side: Literal["left", "right"] = "right" if heading.startswith(">") else "left"
        made.add_column(heading.removeprefix(">"), justify=side, no_wrap=not number)
    return made


def fill(made: Table, rows: Iterable[Sequence[Any]]) -> Table:
    """Add rows of anything that has a text; markup in it means nothing, nor does what would steer a terminal."""
    from rich.text import Text

    for row in rows:
        made.add_row(*(cell if isinstance(cell, Text) else Text(printable(str(cell))) for cell in row))
    return made


def print_json(document: Any) -> None:
    """Print one JSON document on standard output."""
    text = json.dumps(document, indent=2, ensure_ascii=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(document, indent=2)
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
