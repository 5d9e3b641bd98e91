"""Native operations in a worker: the same answer and the same error as in a client's process."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from typing import Any

import pytest

from bridge import native
from bridge.protocol.errors import BridgeError
from bridge.protocol.names import is_taken
from bridge.worker import metrics
from bridge.worker.operations import Operations
from tests.support.operations import built, refused, run


@pytest.fixture(scope="module")
def ops() -> Iterator[Operations]:
    with built() as operations:
        yield operations


TYPED = "text: str, n: int[1..9] = 3, on: datetime.date | None = None -> team: Literal['a', 'b'], score: float[0..1]"

ANSWERS: list[tuple[str, Any, Any]] = [
    ("template", {"template": "Dear {{ name }}!", "values": {"name": "Ann"}}, "Dear Ann!"),
    ("validate", {"signature": TYPED, "inputs": {"text": "x"}}, {"text": "x", "n": 3, "on": None}),
    (
        "validate",
        {"signature": TYPED, "inputs": {"text": "x", "n": " 7 ", "on": "2024-02-29"}},
        {"text": "x", "n": 7, "on": datetime.date(2024, 2, 29)},
    ),
    ("validate", {"signature": TYPED, "outputs": {"team": "b", "score": 1}}, {"team": "b", "score": 1.0}),
    ("metrics.exact", {"prediction": "The Answer!", "reference": ["x", "answer"]}, 1.0),
    ("metrics.contains", {"prediction": "it is Paris", "reference": "paris"}, 1.0),
    ("metrics.f1", {"prediction": "a red car", "reference": "red bike"}, 0.5),
    ("metrics.numeric", {"prediction": "3.14", "reference": 3.1, "rel_tol": 0.1}, 1.0),
    ("metrics.set_overlap", {"prediction": ["a", "b"], "reference": ["b", "c", "d"]}, 0.25),
    ("metrics.list_overlap", {"prediction": ["a"], "reference": ["a", "a", "b"]}, 0.5),
    ("metrics.json_match", {"prediction": {"a": 1, "b": 2}, "reference": {"a": 1, "b": 3}}, 0.5),
    ("validators.email", {"value": "a@example.org"}, {"valid": True, "problem": None}),
    ("validators.range", {"value": 3, "min": 1, "max": 5}, {"valid": True, "problem": None}),
]


@pytest.mark.parametrize(("operation", "args", "answer"), ANSWERS)
def test_answers(ops: Operations, operation: str, args: Any, answer: Any) -> None:
    there, here = run(ops, operation, args), native.run(operation, args)
    assert (there, type(there)) == (here, type(here))
    assert there == answer


ERRORS: list[tuple[str, Any, str, str]] = [
    ("template", {"template": "{{ nam }}", "values": {"name": "x"}}, "INVALID_REQUEST", "template"),
    ("template", {"template": "{% if %}", "values": {}}, "INVALID_REQUEST", "template"),
    ("template", {"tmplate": "x"}, "INVALID_REQUEST", "template"),
    ("metrics.f1", {"prediction": "x"}, "INVALID_REQUEST", "reference"),
    ("metrics.f1", None, "INVALID_REQUEST", ""),
    ("metrics.numeric", {"prediction": 1, "reference": "many"}, "INVALID_REQUEST", ""),
    ("validators.length", {"value": "x", "mn": 3}, "INVALID_REQUEST", "mn"),
    ("validate", {"signature": TYPED, "inputs": {"n": 10, "m": 1}}, "INVALID_REQUEST", "inputs.text"),
    ("validate", {"signature": TYPED, "inputs": {"text": ["x"]}}, "INVALID_REQUEST", "inputs.text"),
    ("validate", {"signature": TYPED, "outputs": {"team": "c", "score": 2}}, "INVALID_REQUEST", "outputs.team"),
    ("validate", {"signature": TYPED, "inputs": 7}, "INVALID_REQUEST", "inputs"),
    ("validate", {"signature": TYPED}, "INVALID_REQUEST", "inputs"),
    ("validate", {"inputs": {}}, "INVALID_REQUEST", "signature"),
    ("validate", {"signature": TYPED, "inputs": {}, "outputs": {}}, "INVALID_REQUEST", "outputs"),
    ("validate", {"signature": TYPED, "input": {}}, "INVALID_REQUEST", "inputs"),
    ("validate", {"signature": 7, "inputs": {}}, "INVALID_REQUEST", "signature"),
    ("validate", [TYPED], "INVALID_REQUEST", ""),
    ("validate", {"signature": "a: strr -> b", "inputs": {}}, "SIGNATURE_ERROR", ""),
]


@pytest.mark.parametrize(("operation", "args", "code", "path"), ERRORS)
def test_errors(ops: Operations, operation: str, args: Any, code: str, path: str) -> None:
    there = refused(ops, operation, args)
    with pytest.raises(BridgeError) as caught:
        native.run(operation, args)
    here = caught.value
    assert (there.code, there.message, there.details) == (here.code, here.message, here.details)
    assert (there.code, there.details.get("path", "")) == (code, path)


def test_every_problem_is_told() -> None:
    with pytest.raises(BridgeError) as caught:
        native.run("validate", {"signature": TYPED, "inputs": {"n": 10, "m": 1}})
    problems = caught.value.details["problems"]
    assert len(problems) == 3
    for problem in problems:
        assert problem in caught.value.message
        assert "inputs." in problem


def test_of_very_many_problems_some_are_told() -> None:
    with pytest.raises(BridgeError) as caught:
        native.run("validate", {"signature": "-> a", "inputs": {f"x{number}": 1 for number in range(200)}})
    assert len(caught.value.details["problems"]) <= 21
    assert caught.value.details["problems"][-1].startswith("and ")


def test_a_bad_signature_is_told_with_all_its_places() -> None:
    text = "a: strr -> b: lst[int]"
    with pytest.raises(BridgeError) as caught:
        native.run("validate", {"signature": text, "inputs": {}})
    details = caught.value.details
    assert (details["text"], details["line"], details["column"]) == (text, 1, 4)
    assert [one["column"] for one in details["problems"]] == [4, 15]


def test_a_name_that_is_none(ops: Operations) -> None:
    with pytest.raises(BridgeError) as caught:
        native.run("metrics.f2", {})
    assert (caught.value.code, caught.value.details["suggestions"][0]) == ("NOT_FOUND", "metrics.f1")
    assert refused(ops, "metrics.f2", {}).code == "NOT_FOUND"


@pytest.mark.parametrize("name", native.names())
def test_a_worker_has_them_and_no_program_can_be_called_so(ops: Operations, name: str) -> None:
    assert ops.find(name) is not None
    assert is_taken(name)


@pytest.mark.parametrize(
    ("name", "label", "answer", "score"),
    [
        ("exact:a", "The  Cat.", "cat", 1.0),
        ("exact:a", "cat", "dog", 0.0),
        ("exact:a", 1, True, 0.0),
        ("f1:a", "red bike", "a red car", 0.5),
        ("contains:a", "paris", "it is Paris", 1.0),
        ("numeric:a", 3, "3.0", 1.0),
        ("set_overlap:a", ["x"], ["x", "y"], 0.5),
    ],
)
def test_metrics_of_programs_are_the_native_ones(name: str, label: Any, answer: Any, score: float) -> None:
    assert metrics.find_metric(name)({"a": label}, {"a": answer}) == score
    assert metrics.label_field(name) == "a"
