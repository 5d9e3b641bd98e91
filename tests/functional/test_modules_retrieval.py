"""Modules without a prompt of their own: Parallel, KNN, Embeddings, Retrieve, majority."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import dspy
import pytest

from bridge.worker.call import Call, CallStopped
from bridge.worker.embedding.hashing import HashEmbedder
from bridge.worker.operations import Operations
from tests.support.operations import built, refused, run

CORPUS = ["red cats sleep", "blue dogs bark", "a green parrot talks", "cats and dogs"]
TRAINSET = [{"text": "my invoice is wrong", "team": "billing"}, {"text": "the server crashed", "team": "tech"}]


@pytest.fixture(scope="module")
def ops() -> Iterator[Operations]:
    with built() as operations:
        yield operations


def rows(count: int) -> list[dict[str, int]]:
    return [{"number": number} for number in range(count)]


def test_parallel_answers_in_order_and_is_counted(ops: Operations) -> None:
    call = Call(1, 1, "dspy.Parallel")
    args = {"signature": "number: int -> same: int", "inputs": rows(20), "options": {"num_threads": 4}}
    assert [one.same for one in run(ops, "dspy.Parallel", args, call=call)] == list(range(20))
    assert call.lm_calls == 20


def test_parallel_runs_any_module_with_its_options(ops: Operations) -> None:
    options = {"module": "dspy.ChainOfThought", "adapter": "json", "num_threads": 1, "temperature": 0.5}
    args = {"signature": "number: int -> same: int", "inputs": rows(2), "options": options}
    assert [list(one) for one in run(ops, "dspy.Parallel", args)] == [["reasoning", "same"]] * 2
    assert run(ops, "dspy.Parallel", {**args, "inputs": []}) == []


def test_rows_that_fail_are_none_and_told(ops: Operations) -> None:
    options = {"module": "dspy.BestOfN", "reward": "concise:sme", "N": 1}
    args = {"signature": "number: int -> same: int", "inputs": rows(3), "options": options}
    assert "no field 'sme'" in refused(ops, "dspy.Parallel", args).message
    # A model that fails two requests of three: which ones is settled by its seed.
    with built(lms={"default": {"model": "offline/knn?error_rate=0.5&seed=5"}}) as shaky:
        plain = {"signature": "number: int -> same: int", "inputs": rows(12), "options": {"max_errors": 100}}
        results = run(shaky, "dspy.Parallel", plain)
        missing = [number for number, one in enumerate(results) if one is None]
        assert 0 < len(missing) < 12
        told = run(shaky, "dspy.Parallel", {**plain, "options": {"max_errors": 100, "return_failed_examples": True}})
        assert sorted(row["number"] for row in told["failed_examples"]) == missing
        assert len(told["exceptions"]) == len(missing)
        error = refused(shaky, "dspy.Parallel", {**plain, "options": {"max_errors": 2}})
        assert error.code == "LM_ERROR"


def test_parallel_stops_at_the_deadline(ops: Operations) -> None:
    began = time.monotonic()
    args = {"signature": "number: int -> same: int", "inputs": rows(50)}
    with pytest.raises(CallStopped):
        run(ops, "dspy.Parallel", args, lm="slow", deadline=began + 0.1)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("args", "path"),
    [
        ({"inputs": {"number": 1}}, "inputs"),
        ({"inputs": [{"number": 1}, {"number": "x"}]}, "inputs[1].number"),
        ({"inputs": [{"number": 1}, 5]}, "inputs[1]"),
        ({"inputs": [], "options": {"num_threads": 0}}, "options.num_threads"),
        ({"inputs": [], "options": {"num_thread": 1}}, "options.num_thread"),
        ({"inputs": [], "options": {"return_failed_examples": "yes"}}, "options.return_failed_examples"),
    ],
)
def test_parallel_names_what_is_wrong(ops: Operations, args: Any, path: str) -> None:
    error = refused(ops, "dspy.Parallel", {"signature": "number: int -> same: int", **args})
    assert (error.code, error.details["path"]) == ("INVALID_REQUEST", path)


def test_knn_finds_what_dspys_own_finds(ops: Operations) -> None:
    trainset = [{"text": text, "number": number} for number, text in enumerate(CORPUS)]
    examples = [dspy.Example(**row).with_inputs("text") for row in trainset]
    own = dspy.KNN(2, examples, HashEmbedder(HashEmbedder.DIMENSION))
    for query in ("cats", "a parrot", "blue"):
        for _ in range(2):
            found = run(ops, "dspy.KNN", {"inputs": {"text": query}, "options": {"k": 2, "trainset": trainset}})
            assert [one["number"] for one in found] == [one.number for one in own(text=query)]


def test_knn_takes_few_rows_and_examples(ops: Operations) -> None:
    inputs = {"text": "a crash"}
    assert len(run(ops, "dspy.KNN", {"inputs": inputs, "options": {"k": 9, "trainset": TRAINSET}})) == 2
    (found,) = run(ops, "dspy.KNN", {"inputs": inputs, "options": {"k": 1, "trainset": TRAINSET[:1]}})
    assert found["team"] == "billing"
    examples = [dspy.Example(**row) for row in TRAINSET]
    assert len(run(ops, "dspy.KNN", {"inputs": inputs, "options": {"k": 1, "trainset": examples}})) == 1


def test_embeddings_find_what_dspys_own_find(ops: Operations) -> None:
    embedder = HashEmbedder(HashEmbedder.DIMENSION)
    own = dspy.retrievers.Embeddings(CORPUS, embedder, k=3)
    try:
        expected = own("dogs and cats")
    finally:
        own.search_fn.stop_event.set()
    found = run(ops, "dspy.Embeddings", {"query": "dogs and cats", "corpus": CORPUS, "k": 3})
    assert (found.passages, found.indices) == (expected.passages, expected.indices)
    assert found.scores == sorted(found.scores, reverse=True)
    many = run(ops, "dspy.Embeddings", {"queries": ["parrot", "dogs and cats"], "corpus": CORPUS, "k": 3})
    assert many[1].passages == found.passages
    assert run(ops, "dspy.Embeddings", {"queries": [], "corpus": CORPUS}) == []
    assert (
        run(ops, "dspy.Retrieve", {"query": "dogs and cats", "corpus": CORPUS, "k": 2}).passages == found.passages[:2]
    )


def test_majority_is_the_most_common_answer(ops: Operations) -> None:
    completions = [{"why": "x", "city": "Rome"}, {"why": "y", "city": "Paris."}, {"why": "z", "city": "the paris"}]
    assert run(ops, "dspy.majority", {"completions": completions}).why == "y"
    assert run(ops, "dspy.majority", {"completions": completions, "normalize": False}).why == "x"
    assert run(ops, "dspy.majority", {"completions": completions, "field": "why"}).why == "x"
    numbers = [{"n": [1]}, {"n": [2]}, {"n": [2]}]
    assert run(ops, "dspy.majority", {"completions": numbers}).n == [2]


@pytest.mark.parametrize(
    ("name", "args", "path"),
    [
        ("dspy.KNN", {"inputs": {"text": "x"}, "options": {}}, "options.trainset"),
        ("dspy.KNN", {"inputs": {"text": "x"}, "options": {"trainset": [{"txt": 1}]}}, "options.trainset[0].text"),
        ("dspy.KNN", {"inputs": {}, "options": {"trainset": TRAINSET}}, "inputs"),
        ("dspy.KNN", {"inputs": {"text": "x"}, "options": {"trainset": TRAINSET, "kk": 1}}, "options.kk"),
        ("dspy.Embeddings", {"query": "x", "corpus": ["a", 3]}, "corpus[1]"),
        ("dspy.Embeddings", {"query": "x", "corpus": []}, "corpus"),
        ("dspy.Embeddings", {"corpus": ["a"]}, "query"),
        ("dspy.Embeddings", {"query": "x", "queries": [], "corpus": ["a"]}, "query"),
        ("dspy.Embeddings", {"query": "x", "corpus": ["a"], "normalize": 1}, "normalize"),
        ("dspy.Retrieve", {"query": "x", "corpus": ["a"], "k": 0}, "k"),
        ("dspy.majority", {"completions": []}, "completions"),
        ("dspy.majority", {"completions": [{"a": 1}, {"b": 1}]}, "completions[1]"),
        ("dspy.majority", {"completions": [{"a": 1}], "field": "b"}, "completions[0]"),
    ],
)
def test_what_is_wrong_has_its_path(ops: Operations, name: str, args: Any, path: str) -> None:
    error = refused(ops, name, args)
    assert (error.code, error.details["path"]) == ("INVALID_REQUEST", path)


def test_an_unknown_module_is_suggested_a_known_one(ops: Operations) -> None:
    error = refused(ops, "dspy.ChainOfThougt", {})
    assert error.code == "NOT_FOUND"
    assert error.details["suggestions"][0] == "dspy.ChainOfThought"
