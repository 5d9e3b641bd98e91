"""The coordinator's log as JSON: each line as its fields."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.cli.listings import log_entry


@pytest.mark.parametrize(
    ("line", "entry"),
    [
        ('{"event": "worker_ready", "worker": "general-1.1"}', {"event": "worker_ready", "worker": "general-1.1"}),
        ("Traceback (most recent call last):", {"text": "Traceback (most recent call last):"}),
        ("[1, 2]", {"text": "[1, 2]"}),
        ("7", {"text": "7"}),
        ("", {"text": ""}),
        ('{"half', {"text": '{"half'}),
        ("[" * 100_000, {"text": "[" * 100_000}),
    ],
    ids=["entry", "traceback", "list", "number", "nothing", "half", "deep"],
)
def test_a_line_is_its_fields_or_a_text(line: str, entry: dict[str, Any]) -> None:
    assert log_entry(line) == entry
