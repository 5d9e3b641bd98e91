"""Metrics: those that DSPy has are held against DSPy's own functions, the others against their definitions."""

# ruff: noqa: E501 - tables

from __future__ import annotations

import math
import time
import tracemalloc
import unicodedata
from collections import Counter
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from enum import Enum
from typing import Any

import dspy
import pytest
from dspy.evaluate.metrics import EM, F1, answer_exact_match, answer_passage_match, f1_score
from hypothesis import given, settings
from hypothesis import strategies as st

from signatures.native import metrics
from signatures.native.metrics import contains, exact, f1, json_match, list_overlap, numeric, set_overlap
from signatures.native.values import key, nfd

seeded = settings(derandomize=True, deadline=None, max_examples=150)

# Words that meet each other, and what text normalization is about: articles, punctuation, case, marks, odd blanks.
_WORDS = [
    "the", "The", "a", "an", "theory", "Eiffel", "eiffel", "tower.", "Tower", "U.S.", "don't", "é", "é", "İ",
    "ΟΔΟΣ", "日本", "日", "٣", "x-y", "—", "“q”", "\u00a0", "\u200b", "\n", "naïve", "ﬁ", "ß", "🙂", "1,000", "_",
    "\x1f", "Ⅷ", "ⓐ", "\u0345", "\u0300\u0316", "\U0001d4b3", "a\u0301n", "",
]  # fmt: skip
WORDS = st.sampled_from(_WORDS)
TEXT = st.lists(WORDS, max_size=7).map(" ".join) | st.text(max_size=25)
TEXTS = st.lists(TEXT, min_size=1, max_size=4)

QUIET = pytest.mark.usefixtures("capsys")


@QUIET
@seeded
@given(TEXT, TEXTS)
def test_exact_is_dspys(prediction: str, references: list[str]) -> None:
    assert exact(prediction, references) == float(EM(prediction, references))
    assert exact(prediction, references[0]) == float(EM(prediction, references[:1]))


@QUIET
@seeded
@given(TEXT, TEXTS, st.sampled_from([0.0, 0.3, 0.5, 2 / 3, 0.8, 1.0, 2.0]))
def test_exact_with_a_share_is_dspys(prediction: str, references: list[str], frac: float) -> None:
    example, answer = dspy.Example(answer=references), dspy.Prediction(answer=prediction)
    assert exact(prediction, references, frac) == float(answer_exact_match(example, answer, frac=frac))


@QUIET
@seeded
@given(TEXT, TEXTS)
def test_f1_is_dspys(prediction: str, references: list[str]) -> None:
    assert f1(prediction, references) == F1(prediction, references)
    assert f1(prediction, references[0]) == f1_score(prediction, references[0])


@QUIET
@seeded
@given(TEXTS, TEXTS)
def test_contains_is_dspys(passages: list[str], answers: list[str]) -> None:
    found = answer_passage_match(dspy.Example(answer=answers), dspy.Prediction(context=passages))
    assert contains(passages, answers) == float(found)
    one = answer_passage_match(dspy.Example(answer=answers[0]), dspy.Prediction(context=passages[:1]))
    assert contains(passages[0], answers[0]) == float(one)


@QUIET
@seeded
@given(TEXT, st.integers(0, 6), st.integers(0, 6))
def test_a_text_contains_what_dspy_finds_in_it(passage: str, start: int, size: int) -> None:
    answer = " ".join(passage.split(" ")[start : start + size])
    found = answer_passage_match(dspy.Example(answer=answer), dspy.Prediction(context=[passage]))
    assert contains(passage, answer) == float(found)


@pytest.mark.parametrize(
    ("prediction", "reference", "score"),
    [
        ("The Eiffel Tower!", "eiffel tower", 1.0),
        ("Paris", ["London", "paris."], 1.0),
        ("Paris, France", "Paris", 0.0),
        ("", "the", 1.0),
        (1, 1.0, 1.0),
        (1, True, 0.0),
        (0, False, 0.0),
        (True, True, 1.0),
        (None, None, 1.0),
        (None, "none", 0.0),
        ("1", 1, 0.0),
        ("1", [1, 2], 0.0),
        ("1", [1, "1"], 1.0),
        ([1, 2], [1, 2], 1.0),
        ((1, 2), [1, 2], 1.0),
        ([1, 2], [2, 1], 0.0),
        ({"a": [1, True]}, {"a": [1, 1]}, 0.0),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1.0}, 1.0),
        (["A"], ["a"], 0.0),
        (Decimal("0.5"), 0.5, 1.0),
        (Decimal("1e99999"), Decimal("1e99999"), 1.0),
        (Decimal("1e99999"), Decimal("2e99999"), 0.0),
        (math.nan, math.nan, 0.0),
        (math.inf, math.inf, 1.0),
        (2**70, 2**70 + 1, 0.0),
        (date(2024, 1, 1), date(2024, 1, 1), 1.0),
        (b"x", b"x", 1.0),
        ({1, 2}, {2, 1}, 1.0),
    ],
)
def test_exact(prediction: Any, reference: Any, score: float) -> None:
    assert exact(prediction, reference) == score


@pytest.mark.parametrize(
    ("metric", "prediction", "reference", "message"),
    [
        (exact, "a", [], "empty list"),
        (f1, "a", [], "from 1 to"),
        (f1, 3, "a", "the prediction must be a text"),
        (f1, "a", 3, "the reference must be a text"),
        (f1, ["a"], "a", "the prediction must be a text"),
        (contains, "a", [], "from 1 to"),
        (contains, [1], "a", "must be a text"),
        (numeric, 1, "one", "the reference must be a number"),
        (numeric, 1, True, "the reference must be a number"),
        (set_overlap, "ab", ["a"], "must be a list"),
        (list_overlap, ["a"], {"a": 1}, "must be a list"),
        (json_match, "{}", "{", "the reference must be JSON"),
        (exact, object(), 1, "cannot be compared"),
        (f1, "x" * (1 << 20) + "y", "x", "longer than"),
        (list_overlap, [1] * 200_001, [1], "too large"),
    ],
)
def test_what_cannot_be_measured_says_why(metric: Any, prediction: Any, reference: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        metric(prediction, reference)


# Whole numbers that a float holds exactly: beyond them `numeric` is exact and math.isclose is not.
NUMBERS = st.floats(allow_nan=True) | st.integers(-(2**50), 2**50)


@seeded
@given(NUMBERS, st.floats(-1e-8, 1e-8) | st.floats(), st.sampled_from([0.0, 1e-9, 1e-3, 0.5]), st.sampled_from([0.0, 1e-6, 1.0]))  # fmt: skip
def test_numeric_is_closeness(reference: float, off: float, rel_tol: float, abs_tol: float) -> None:
    prediction = reference * (1 + off) if math.isfinite(reference) else off
    edges = [tol * (1 + nudge) for tol in (rel_tol, abs_tol) for nudge in (-1e-6, 1e-6)]
    verdicts = {
        math.isclose(prediction, reference, rel_tol=rel, abs_tol=absolute)
        for rel in edges[:2]
        for absolute in edges[2:]
    }
    # At the very edge floats round; a little inside or outside both agree.
    if len(verdicts) == 1:
        assert numeric(prediction, reference, rel_tol, abs_tol) == float(verdicts.pop())


@pytest.mark.parametrize(
    ("prediction", "reference", "options", "score"),
    [
        ("42", 42, {}, 1.0),
        (" -4.20e1 ", "-42", {}, 1.0),
        (".5", Decimal("0.5"), {}, 1.0),
        ("about 42", 42, {}, 0.0),
        ("", 0, {}, 0.0),
        ("1_000", 1000, {}, 0.0),
        ("٤٢", 42, {}, 0.0),
        ("nan", 1, {}, 0.0),
        (None, 1, {}, 0.0),
        (True, 1, {}, 0.0),
        (10**400, 10**400, {}, 1.0),
        (10**400, 10**400 + 10**392, {}, 0.0),
        (10**400, 10**400 + 10**390, {}, 1.0),
        (math.inf, math.inf, {}, 1.0),
        (math.inf, -math.inf, {}, 0.0),
        (1, math.inf, {"abs_tol": 5.0}, 0.0),
        (9, 10, {"abs_tol": 1}, 1.0),
        (9, 10, {"rel_tol": 0.1}, 1.0),
        (8.9, 10, {"rel_tol": 0.1}, 0.0),
        (0.1 + 0.2, 0.3, {}, 1.0),
        (0.1 + 0.2, 0.3, {"rel_tol": 0.0}, 0.0),
    ],
)
def test_numeric(prediction: Any, reference: Any, options: dict[str, float], score: float) -> None:
    assert numeric(prediction, reference, **options) == score


ITEMS = st.lists(st.integers(-2, 3) | st.sampled_from("abA"), max_size=8)


@seeded
@given(ITEMS, ITEMS)
def test_set_overlap_is_the_jaccard_index(found: list[Any], wanted: list[Any]) -> None:
    one, other = set(found), set(wanted)
    assert set_overlap(found, wanted) == (len(one & other) / len(one | other) if one | other else 1.0)
    assert set_overlap(one, other) == set_overlap(wanted, found)


@seeded
@given(ITEMS, ITEMS)
def test_list_overlap_is_the_f1_of_multisets(found: list[Any], wanted: list[Any]) -> None:
    common = (Counter(found) & Counter(wanted)).total()
    if not found and not wanted:
        expected = 1.0
    elif not common:
        expected = 0.0
    else:
        precision, recall = common / len(found), common / len(wanted)
        expected = 2 * precision * recall / (precision + recall)
    assert list_overlap(found, wanted) == pytest.approx(expected)
    assert list_overlap(sorted(found, key=str), wanted) == list_overlap(found, wanted)


def test_overlaps_tell_types_apart_and_take_what_has_no_hash() -> None:
    assert set_overlap([1, True, "1"], [1.0]) == pytest.approx(1 / 3)
    assert list_overlap([{"a": [1]}, {"a": [2]}], [{"a": [1]}]) == pytest.approx(2 / 3)


def test_many_references_take_no_longer_than_they_are() -> None:
    words = " ".join(map(str, range(100_000)))
    began = time.process_time()
    assert f1(words, [str(number) for number in range(1_000)]) > 0
    assert (
        contains(["b " * 30 + str(number) for number in range(1_000)], [f"c{number}" for number in range(1_000)]) == 0
    )
    with pytest.raises(ValueError, match="too much to look for"):
        contains(["b " * 500] * 990, ["b " * 250 + f"c{number}" for number in range(990)])
    assert time.process_time() - began < 5


def test_a_text_does_not_go_on_in_the_next_one() -> None:
    assert contains(["red", "car"], "red car") == 0.0
    assert contains(["a red car", "x"], ["y", "red car"]) == 1.0


def test_numbers_take_little_room_whatever_their_size() -> None:
    tiny = [5e-324] * 30_000
    tracemalloc.start()
    try:
        assert exact(tiny, list(tiny)) == 1.0
        for number in (1 << 8_000_000, Decimal("1.3e-999")):
            with pytest.raises(ValueError, match="too large"):
                exact([number] * 2_000, 1)
        assert tracemalloc.get_traced_memory()[1] < 15e6
    finally:
        tracemalloc.stop()
    assert exact([1e300], [int(1e300)]) == 1.0
    assert exact([1e300], [1.0000000000000002e300]) == 0.0


def test_a_tolerance_may_be_a_huge_whole_number() -> None:
    assert numeric(1, 5, rel_tol=10**400) == 1.0


def test_numbers_that_share_a_hash_take_no_longer() -> None:
    same_hash = [n * (2**61 - 1) for n in range(30_000)]
    assert set_overlap(same_hash, same_hash[:15_000]) == 0.5


@pytest.mark.parametrize(
    ("prediction", "reference", "score"),
    [
        ({"a": 1, "b": 2}, {"a": 1, "b": 3}, 0.5),
        ('{"a": 1, "b": {"c": [1, 2]}}', {"a": 1, "b": {"c": [1, 3]}}, 2 / 3),
        ({"a": {"b": {"c": 1}}, "more": 5}, '{"a": {"b": {"c": 1}}}', 1.0),
        ({"a": 1}, {"a": True}, 0.0),
        ({"a": 1}, {"a": 1.0}, 1.0),
        ({}, {"a": None}, 0.0),
        ({"a": None}, {"a": None}, 1.0),
        ({}, {}, 1.0),
        ([], {}, 0.0),
        ([1, 2, 3], [1, 2], 1.0),
        ([1], [1, 2], 0.5),
        ({"a": []}, {"a": []}, 1.0),
        ({"a": [1]}, {"a": []}, 0.0),
        ("not JSON", {"a": 1}, 0.0),
        ("[" * 100_000, [1], 0.0),
        ("3", 3, 1.0),
        ({"a": 5}, {"a": {"b": 1, "c": 2}}, 0.0),
        ({"a.b": 1}, {"a": {"b": 1}}, 0.0),
    ],
)
def test_json_match(prediction: Any, reference: Any, score: float) -> None:
    assert json_match(prediction, reference) == pytest.approx(score)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=12,
)


def strictly_equal(one: Any, other: Any) -> bool:
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(strictly_equal(one[name], other[name]) for name in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(strictly_equal, one, other))
    return bool(one == other)


@seeded
@given(JSON, JSON)
def test_keys_are_equal_where_values_are(one: Any, other: Any) -> None:
    assert (key(one) == key(other)) is strictly_equal(one, other)
    assert exact([one], [one]) == 1.0
    assert json_match({"a": one}, {"a": one}) == 1.0


def test_enums_dataclasses_and_models_are_their_data() -> None:
    class Colour(Enum):
        RED = "red"

    @dataclass
    class Point:
        x: int

    import pydantic

    class Model(pydantic.BaseModel):
        x: int

    assert key(Colour.RED) == key("red")
    assert key(Point(1)) == key(Model(x=1)) == key({"x": 1})


@seeded
@given(st.text(st.sampled_from("aé\u0300\u0316\u0327\u0344\u1e69\uac00\u0f71\u0f80Å日\U0001d15e"), max_size=200), st.integers(0, 3))  # fmt: skip
def test_nfd_is_pythons(text: str, times: int) -> None:
    text = text + "\u0300\u0316" * (40 * times) + text
    assert nfd(text) == unicodedata.normalize("NFD", text)


def test_many_marks_in_a_row_take_no_quadratic_time() -> None:
    text = "a" + "\u0300\u0316" * 100_000
    assert nfd(text) == "a" + "\u0316" * 100_000 + "\u0300" * 100_000
    assert exact(text, text) == 1.0


@seeded
@given(st.sampled_from(sorted(metrics.METRICS)), JSON, JSON)
def test_every_score_is_a_float_from_0_to_1(name: str, prediction: Any, reference: Any) -> None:
    try:
        score = metrics.METRICS[name](prediction, reference)
    except ValueError:
        return
    assert type(score) is float
    assert 0.0 <= score <= 1.0
