"""The table of native operations: names, arguments, answers."""

# ruff: noqa: E501 - tables

from __future__ import annotations

from typing import Any

import pytest

from signatures.errors import ValidationError
from signatures.native.operations import NATIVE, Native, is_native, names
from signatures.native.templates import TemplateError

ANSWERS: list[tuple[str, dict[str, Any], Any]] = [
    ("template", {"template": "Hi {{ name }}", "values": {"name": "Bo"}}, "Hi Bo"),
    ("metrics.exact", {"prediction": "The cat", "reference": ["dog", "cat"]}, 1.0),
    ("metrics.exact", {"prediction": "red cat", "reference": "cat", "frac": 0.5}, 1.0),
    ("metrics.contains", {"prediction": "the cat sat", "reference": "cat"}, 1.0),
    ("metrics.f1", {"prediction": "red cat", "reference": "cat"}, 2 / 3),
    ("metrics.numeric", {"prediction": "3.1", "reference": 3, "abs_tol": 0.2, "rel_tol": None}, 1.0),
    ("metrics.set_overlap", {"prediction": [1, 2], "reference": [2, 3]}, 1 / 3),
    ("metrics.list_overlap", {"prediction": [1, 1], "reference": [1]}, 2 / 3),
    ("metrics.json_match", {"prediction": '{"a": 1}', "reference": {"a": 1, "b": 2}}, 0.5),
    ("validators.email", {"value": "a@example.org"}, {"valid": True, "problem": None}),
    ("validators.url", {"value": "ftp://a.b", "schemes": ["ftp"]}, {"valid": True, "problem": None}),
    ("validators.json", {"value": "[1]"}, {"valid": True, "problem": None}),
    ("validators.regex", {"value": "a1", "pattern": "[0-9]"}, {"valid": True, "problem": None}),
    ("validators.length", {"value": "abc", "max": 2}, {"valid": False, "problem": "must have at most 2 characters, has 3"}),
    ("validators.choice", {"value": "a", "options": ["b"]}, {"valid": False, "problem": "must be one of 'b'"}),
    ("validators.range", {"value": 1, "min": 1, "exclusive_min": True}, {"valid": False, "problem": "must be more than 1"}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "args", "answer"), ANSWERS)
def test_an_operation_answers(name: str, args: dict[str, Any], answer: Any) -> None:
    found = NATIVE[name](args)
    assert found == (pytest.approx(answer) if isinstance(answer, float) else answer)


def test_every_checked_operation_has_an_answer_here() -> None:
    checked = {name for name, operation in NATIVE.items() if isinstance(operation, Native)}
    assert checked == {name for name, _, _ in ANSWERS}


def test_names() -> None:
    assert names() == tuple(sorted(NATIVE))
    assert is_native("template")
    assert is_native("metrics.f1")
    assert not is_native("metrics.f2")
    assert not is_native("program.run")


def test_all_that_is_wrong_with_the_arguments_is_told_at_once() -> None:
    with pytest.raises(ValidationError) as caught:
        NATIVE["metrics.numeric"]({"predction": 1, "rel_tol": "x", "abs_tol": True, "zzz": 1})
    assert [(problem.path, problem.message) for problem in caught.value.problems] == [
        ("prediction", "metrics.numeric needs 'prediction': anything"),
        ("reference", "metrics.numeric needs 'reference': anything"),
        ("predction", "metrics.numeric takes no 'predction'; did you mean 'prediction'?"),
        ("rel_tol", "rel_tol must be a number, got str ('x')"),
        ("abs_tol", "abs_tol must be a number, got bool (True)"),
        ("zzz", "metrics.numeric takes no 'zzz'; it takes prediction, reference, rel_tol, abs_tol"),
    ]


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("template", [], "takes a mapping of arguments, got list"),
        ("template", {"template": 3, "values": {}}, "template must be a string, got int (3)"),
        ("template", {"template": "x", "values": {1: 2}}, "values must be a mapping of names to values"),
        ("template", {"template": "x"}, "template needs 'values'"),
        ("template", {"template": "x", "values": {}, 3: 4}, "takes no '3'"),
        ("metrics.f1", {"prediction": 1, "reference": "a"}, "metrics.f1: the prediction must be a text"),
        ("validators.regex", {"value": "a", "pattern": "("}, "validators.regex: the pattern cannot be read"),
        ("validators.length", {"value": "a", "min": -1}, "min must be an integer of at least 0, got int (-1)"),
        ("validators.length", {"value": "a", "max": 10**400}, ""),
        ("validators.url", {"value": "a", "schemes": "http"}, "schemes must be a list of strings, got str ('http')"),
        ("validators.choice", {"value": "a", "options": "abc"}, "options must be a list"),
    ],
)
def test_wrong_arguments(name: str, args: Any, message: str) -> None:
    if not message:
        assert NATIVE[name](args) == {"valid": True, "problem": None}
        return
    with pytest.raises(ValidationError) as caught:
        NATIVE[name](args)
    assert message in str(caught.value)


def test_a_flood_of_wrong_names_is_cut() -> None:
    with pytest.raises(ValidationError) as caught:
        NATIVE["template"]({f"x{n}": n for n in range(10_000)})
    assert len(caught.value.problems) == 20


def test_a_flood_of_arguments_that_validate_does_not_take_is_cut() -> None:
    with pytest.raises(ValidationError) as caught:
        NATIVE["validate"]({"signature": "a -> b", "inputs": {}, **{f"x{number}": 1 for number in range(100_000)}})
    assert len(caught.value.problems) == 20


def test_a_long_value_is_not_repeated() -> None:
    with pytest.raises(ValidationError) as caught:
        NATIVE["template"]({"template": 10**5000, "values": "x" * 5000})
    assert str(caught.value).splitlines() == [
        "template must be a string, got int",
        "values must be a mapping of names to values, got str",
    ]


def test_a_templates_error_is_its_own() -> None:
    with pytest.raises(TemplateError, match="'x' has no value"):
        NATIVE["template"]({"template": "{{ x }}", "values": {}})
