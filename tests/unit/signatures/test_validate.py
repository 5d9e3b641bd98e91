"""Validation of all fields at once: order, defaults, every problem; recursive classes; threads."""

from __future__ import annotations

import collections
import dataclasses
import threading
from collections.abc import Callable
from typing import Any

import pydantic
import pytest

from signatures.converters import convert
from signatures.errors import ValidationError
from signatures.model import Field, Spec
from signatures.types import NONE, STR, Constrained, Constraints, Custom, Generic, Record, Scalar, union
from signatures.validate import validator
from tests.support.convertible import (
    BadMapping,
    Caller,
    Fixed,
    Hostile,
    Left,
    Model,
    Node,
    Right,
    Sulky,
    SulkyModel,
    chain,
    knotted,
    problem,
    tree,
)

C = Constraints
DOC = Record((Field.of("title", "member"), Field.of("n", "member", Scalar("int"), default="3")))
FIELDS = (
    Field.of("question", "input"),
    Field.of("docs", "input", Generic("list", (DOC,))),
    Field.of("limit", "input", Scalar("int"), default=5, constraints=C(ge=1)),
    Field.of("tags", "input", Generic("dict", (STR, Generic("list", (STR,)))), default={"a": ["b"]}),
)


def test_values_come_in_the_order_of_fields_with_defaults() -> None:
    made = validator(FIELDS)({"limit": "7", "docs": [{"title": "a"}, {"n": 1, "title": "b"}], "question": "q"})
    assert list(made) == ["question", "docs", "limit", "tags"]
    assert made["docs"] == [{"title": "a", "n": 3}, {"title": "b", "n": 1}]
    assert (made["limit"], made["tags"]) == (7, {"a": ["b"]})


def test_defaults_and_given_containers_are_copied() -> None:
    check, given = validator(FIELDS), {"question": "q", "docs": []}
    first, second = check(given), check(given)
    first["tags"]["a"].append("c")
    first["docs"].append({})
    assert second["tags"] == check(given)["tags"] == {"a": ["b"]}
    assert given["docs"] == []


def test_a_default_of_a_class_is_a_fresh_object_each_time() -> None:
    check = validator((Field.of("m", "input", Custom("Model", Model), default={"count": "1"}),))
    first, second = check({}), check({})
    assert first == second == {"m": Model(count=1)}
    assert first["m"] is not second["m"]


def test_all_problems_are_told_with_their_paths() -> None:
    with pytest.raises(ValidationError) as caught:
        validator(FIELDS)({"qestion": "q", "docs": [{"title": "a"}, {"title": 5, "n": "x", "z": 1}], "limit": 0, 7: 1})
    assert [(one.path, one.message) for one in caught.value.problems] == [
        ("question", "question is missing; give a string"),
        ("docs[1].title", "docs[1].title must be a string, got int (5)"),
        ("docs[1].n", "docs[1].n must be an integer, got str ('x')"),
        ("docs[1].z", "docs[1].z is unknown; known are title, n"),
        ("limit", "limit must be an integer of at least 1, got int (0)"),
        ("qestion", "qestion is unknown; did you mean 'question'?"),
        ("", "the value has the name 7; a name must be a string"),
    ]
    assert caught.value.__context__ is None


def test_a_great_many_problems_are_cut() -> None:
    told = problem(list[int], ["x"] * 1000).split("\n")
    assert len(told) == 101
    assert told[-1] == "and more: these are the first 100"


@pytest.mark.parametrize("values", [None, [], "question", 5, Hostile(), BadMapping(), {Hostile: 1}, {1: 2}, [("a", 1)]])
def test_what_is_no_mapping_of_names_is_refused(values: Any) -> None:
    with pytest.raises(ValidationError):
        validator(FIELDS)(values)


def test_any_mapping_will_do() -> None:
    assert validator(FIELDS[:1])(collections.ChainMap({"question": "a"})) == {"question": "a"}


def test_fields_are_compiled_once() -> None:
    again = tuple(field.replace() for field in FIELDS)
    assert validator(again) is validator(FIELDS)


def test_a_spec_validates_by_these() -> None:
    spec = Spec(FIELDS, (Field.of("answer", "output", union(STR, Scalar("None"))),))
    assert spec.validate_outputs({"answer": None}) == {"answer": None}
    with pytest.raises(ValidationError, match="answer is missing; give a string or None"):
        spec.validate_outputs({})


# --- classes that contain themselves; hostile values ------------------------------------------------


def test_recursive_classes_are_bounded() -> None:
    made = convert(tree(Node), NONE, chain(64), "v")
    depth = 0
    while made is not None:
        made, depth = made.next, depth + 1
    assert depth == 64
    assert problem(Node, chain(65)) == "v is nested deeper than 64 levels"
    assert problem(Node, chain(400)).endswith("is nested deeper than 64 levels")
    knot = chain(1)
    knot["next"] = knot
    assert problem(Node, knot).endswith("is nested deeper than 64 levels")
    # The depth reached by one value does not count for the next.
    convert(tree(list[Node]), NONE, [chain(64)] * 3, "v")


@pytest.mark.parametrize("bottom", [{"x": "z", "y": 1}, {"x": 1, "y": None}, {"x": 1, "y": 1}])
@pytest.mark.parametrize("y", [1, "s", None])
@pytest.mark.timeout(20)
def test_unions_of_recursive_classes_take_no_exponential_time(bottom: Any, y: Any) -> None:
    value = bottom
    for _ in range(60):
        value = {"x": value, "y": y}
    good = bottom == {"x": 1, "y": 1} and y is not None
    if good:
        made = convert(tree(Left | Right), NONE, value, "v")
        assert type(made) is (Left if y == 1 else Right)
    else:
        problem(Left | Right, value)


# --- classes that are odd ---------------------------------------------------------------------------


def test_annotations_that_cannot_be_resolved_ask_for_nothing() -> None:
    @dataclasses.dataclass
    class Inner:
        n: int

    @dataclasses.dataclass
    class Outer:
        inner: Inner
        n: int
        call: Callable[[], int] | None = None

    inner = Inner(1)
    made = convert(tree(Outer), NONE, {"inner": inner, "n": "2"}, "v")
    assert (made.inner, made.n, made.call) == (inner, 2, None)
    assert problem(Outer, {"inner": None, "n": "x"}) == "v.n must be an integer, got str ('x')"


def test_what_is_no_type_of_a_value_is_left_to_the_class() -> None:
    made = convert(tree(Caller), NONE, {"call": len, "n": "1"}, "v")
    assert made == Caller(len, 1)
    assert problem(Caller, {"call": None, "n": "x"}) == "v.n must be an integer, got str ('x')"


def test_read_only_members_of_a_typed_dict() -> None:
    assert convert(tree(Fixed), NONE, {"title": "a"}, "v") == {"title": "a"}
    assert problem(Fixed, {"n": "x"}) == "v.title is missing; give a string\nv.n must be an integer, got str ('x')"


def test_what_a_class_raises_is_told() -> None:
    assert problem(Sulky, {"n": 1}) == "v makes no Sulky: SulkyError"
    assert problem(SulkyModel, {"n": 1}) == "v makes no SulkyModel: SulkyError"
    assert problem(SulkyModel, {"n": 1, "odd name": 2}) == "v['odd name'] is unknown; leave it out"


def test_a_model_of_one_value() -> None:
    Numbers = pydantic.RootModel[list[int]]
    custom = Custom("Numbers", Numbers)
    assert convert(custom, NONE, ["1"], "v") == Numbers([1])
    assert problem(custom, ["x"]).startswith("v[0] must be a valid integer")


def test_constraints_add_up() -> None:
    for constraints, good, bad in (
        (C(ge=0, multiple_of=5), 10, [-5, 7]),
        (C(gt=0, multiple_of=5, lt=20), 10, [0, 7, 20]),
    ):
        assert convert(Scalar("int"), constraints, good, "v") == good
        assert all(problem(Scalar("int"), one, constraints) for one in bad)
    both = C(max_length=2, pattern="^a")
    assert convert(STR, both, "ab", "v") == "ab"
    assert problem(STR, "abc", both) == "v must be a string of at most 2 characters that matches '^a', got 3 characters"
    assert problem(STR, "b", both) == "v must be a string of at most 2 characters that matches '^a', got str ('b')"


def test_a_list_that_contains_itself() -> None:
    assert problem(list[list[int]], knotted()) == "v[0][0] must be an integer, got list ([[…]])"
    assert convert(tree(list), NONE, knotted(), "v")


def test_threads_share_a_validator() -> None:
    check, wrong = validator((*FIELDS, Field.of("node", "input", Custom("Node", Node)))), []
    good = {"question": "q", "docs": [{"title": "a"}], "node": chain(60)}

    def run(number: int) -> None:
        for turn in range(30):
            try:
                made = check({**good, "limit": number + 1})
                if made["limit"] != number + 1:
                    wrong.append(made)
                check({**good, "limit": 0} if turn % 2 else {**good, "node": chain(70)})
                wrong.append("accepted")
            except ValidationError:
                continue

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.timeout(20)
def test_one_slow_pattern_ends_the_search() -> None:
    slow = Constrained(STR, C(pattern="(a|aa)+$"))
    many = ["a" * 60 + "b"] * 500
    assert problem(slow, many[0]) == "v takes too long to match against '(a|aa)+$'; shorten it"
    record = Record((Field.of("n", "member", Scalar("int")), Field.of("all", "member", Generic("list", (slow,)))))
    assert (
        problem(record, {"n": "x", "all": many}) == "v.n must be an integer, got str ('x')\n"
        "v.all[0] takes too long to match against '(a|aa)+$'; shorten it"
    )
