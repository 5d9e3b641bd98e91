from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import numpy
import pytest

from bridge.protocol.values import Prediction
from orchestrator.cli.listings import new_lines
from orchestrator.cli.plain import duration, in_line, mebibytes, milliseconds, plain, printable, readable
from orchestrator.cli.screen import fill, out, table

VALUES: list[tuple[Any, Any]] = [
    (None, None),
    (True, True),
    (1 << 80, 1 << 80),
    (float("nan"), None),
    ("text", "text"),
    (b"\x00\xff", "AP8="),
    ((1, (2,)), [1, [2]]),
    ({3, 1}, [1, 3]),
    ({1: "a"}, {"1": "a"}),
    (datetime(2026, 1, 2, tzinfo=UTC), "2026-01-02 00:00:00+00:00"),
    (Decimal("1.50"), "1.50"),
    (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
    (numpy.array([[1.5, 2.0]], dtype=numpy.float32), [[1.5, 2.0]]),
    (numpy.int64(4), 4),
    (Prediction({"answer": "yes", "scores": (1, 2)}), {"answer": "yes", "scores": [1, 2]}),
]


@pytest.mark.parametrize(("value", "expected"), VALUES)
def test_every_value_has_a_form_in_json(value: Any, expected: Any) -> None:
    assert json.loads(json.dumps(plain(value))) == expected


def test_a_prediction_is_readable_field_by_field() -> None:
    prediction = Prediction({"reasoning": "first\nthen", "answer": "yes", "tags": ["a"]})
    assert readable(prediction) == 'reasoning: first\n  then\nanswer: yes\ntags: [\n    "a"\n  ]'


def test_text_is_readable_as_it_is_and_the_rest_as_json() -> None:
    assert readable("a\nb") == "a\nb"
    assert readable({"a": [1, "é"]}) == '{\n  "a": [\n    1,\n    "é"\n  ]\n}'
    assert readable(None) == "null"
    assert readable(numpy.zeros((2, 3), dtype=numpy.float32)).startswith("array of float32, shape (2, 3)\n")


def test_texts_of_others_do_not_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    text = "n\x1b[2J\x9b1m\x07\r\n\tx :smile: [bold]\x7f"
    shown = "n\\x1b[2J\\x9b1m\\x07\\x0d\n\tx :smile: [bold]\\x7f"
    assert printable(text) == shown
    assert in_line(text) == shown.replace("\n\t", "\\n\\t")
    console = out()
    console.print(text, markup=False)
    assert capsys.readouterr().out == shown.replace("\t", " " * 8) + "\n"
    console.print(fill(table("note"), [[text]]))
    told = capsys.readouterr().out
    assert "n\\x1b[2J\\x9b1m" in told
    assert not {"\x1b", "\x9b", "\x07", "\r"} & set(told)


def test_units() -> None:
    assert [duration(s) for s in (None, 0.085, 12.34, 245, 7380, 183600)] == [
        "-",
        "85 ms",
        "12.3 s",
        "4m 5s",
        "2h 3m",
        "2d 3h",
    ]
    assert [milliseconds(ms) for ms in (None, 0.1234, 12.34, 1234.5)] == ["-", "0.123", "12.3", "1,234"]
    assert [mebibytes(size) for size in (None, 0, 3 << 20)] == ["-", "-", "3"]


@pytest.mark.parametrize(
    ("before", "now", "new"),
    [
        ([], ["a"], ["a"]),
        (["a"], ["a"], []),
        (["a", "b"], ["a", "b", "c"], ["c"]),
        (["a", "b", "c"], ["b", "c", "d"], ["d"]),
        (["a", "b"], ["x", "y"], ["x", "y"]),
        (["a", "a"], ["a", "a", "a"], ["a"]),
    ],
)  # fmt: skip
def test_followed_lines_are_those_after_the_window_seen_before(
    before: list[str], now: list[str], new: list[str]
) -> None:
    assert new_lines(before, now) == new
