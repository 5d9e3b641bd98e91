from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.cli.arguments import parse_pairs, parse_size, parse_target, parse_value, read_args
from orchestrator.errors import InvalidRequest


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("hello", "hello"),
        ("", ""),
        ("5", 5),
        ("-2.5", -2.5),
        ("true", True),
        ("True", "True"),
        ("null", None),
        ('"5"', "5"),
        ("01", "01"),
        ("[1, 2]", [1, 2]),
        ('{"a": {"b": null}}', {"a": {"b": None}}),
        ("{broken", "{broken"),
        ("a=b", "a=b"),
        ("NaN", "NaN"),
        ("Infinity", "Infinity"),
        ("1e999", "1e999"),
        ("question -> answer", "question -> answer"),
    ],
)
def test_a_value_is_json_where_it_parses_as_json_else_text(text: str, value: Any) -> None:
    parsed = parse_value(text)
    assert parsed == value
    assert type(parsed) is type(value)


@given(st.text())
def test_any_text_is_some_value(text: str) -> None:
    assert parse_pairs([f"key={text}"]) == {"key": parse_value(text)}


@pytest.mark.parametrize("words", [["alone"], ["=5"], ["a=1", "a=2"], [""]])
def test_what_is_no_pair_is_refused(words: list[str]) -> None:
    with pytest.raises(InvalidRequest):
        parse_pairs(words)


def test_args_come_from_json_a_file_or_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "args.json"
    file.write_text('{"from": "file"}', encoding="utf-8")
    monkeypatch.setattr("sys.stdin", io.StringIO("[1, 2]"))
    assert read_args(None, []) is None
    assert read_args('{"a": 1, "b": 2}', ["b=3", "c=x"]) == {"a": 1, "b": 3, "c": "x"}
    assert read_args(f"@{file}", []) == {"from": "file"}
    assert read_args("-", []) == [1, 2]
    assert read_args(None, ["a=1"]) == {"a": 1}


@pytest.mark.parametrize(
    ("option", "pairs", "part"),
    [
        ("[1]", ["a=1"], "JSON object"),
        ("{", [], "no JSON"),
        ("@/no/such/file", [], "cannot be read"),
    ],
)
def test_bad_args_say_what_is_wrong(option: str, pairs: list[str], part: str) -> None:
    with pytest.raises(InvalidRequest, match=part) as caught:
        read_args(option, pairs)
    assert caught.value.path == "args"


def test_a_target_is_text_or_a_mapping() -> None:
    assert parse_target("pkg.mod:QA") == "pkg.mod:QA"
    assert parse_target(' {"module": "dspy.Predict"}') == {"module": "dspy.Predict"}
    with pytest.raises(InvalidRequest, match="no JSON"):
        parse_target("{module}")


@pytest.mark.parametrize(("text", "size"), [("4", 4), ("0", 0), ("1:8", (1, 8)), ("3:3", (3, 3))])
def test_a_size_is_a_number_or_two(text: str, size: object) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "x", "1:", ":8", "-1", "1:2:3", "1.5"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="MIN:MAX"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "word"), [("8:1", "MAX not below"), ("0:4", "1 or more"), ("1:1025", "1024"), ("2000", "1024")]
)
def test_a_size_that_no_pool_can_have_is_refused_in_the_words_of_the_command_line(text: str, word: str) -> None:
    with pytest.raises(InvalidRequest, match=word) as caught:
        parse_size(text)
    assert caught.value.message.startswith(f"{text!r} is no size")
    assert "(" not in caught.value.message


def test_what_is_nested_too_deep_is_refused_by_name() -> None:
    deep = "[" * 60_000
    with pytest.raises(InvalidRequest, match=r"^x is nested too deep"):
        parse_pairs([f"x={deep}"])
    with pytest.raises(InvalidRequest, match=r"^--args is nested too deep"):
        read_args(deep, [])
    with pytest.raises(InvalidRequest, match=r"^the target is nested too deep"):
        parse_target(f'{{"module": {deep}')
