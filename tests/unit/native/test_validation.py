from __future__ import annotations

from typing import Any

import pytest

from signatures import SignatureError, ValidationError, parse
from signatures.native.validation import validate

TEXT = "question: str, k: int = 3 -> answer: Literal['yes', 'no'], score: float[0..1]"


def test_inputs_and_outputs_are_converted() -> None:
    assert validate({"signature": TEXT, "inputs": {"question": "why?"}}) == {"question": "why?", "k": 3}
    found = validate({"signature": TEXT, "outputs": {"answer": "yes", "score": "0.5"}})
    assert found == {"answer": "yes", "score": 0.5}


@pytest.mark.parametrize("form", [parse(TEXT), parse(TEXT).spec])
def test_a_signature_or_a_spec_stands_for_its_text(form: Any) -> None:
    args = {"inputs": {"question": "why?", "k": "7"}}
    assert (
        validate({"signature": form, **args}) == validate({"signature": TEXT, **args}) == {"question": "why?", "k": 7}
    )


@pytest.mark.parametrize(
    ("args", "told"),
    [
        ({"inputs": {}}, {"signature": "validate needs signature"}),
        ({"signature": TEXT}, {"inputs": "validate needs inputs, or outputs"}),
        ({"signature": TEXT, "inputs": {}, "outputs": {}}, {"outputs": "call it twice"}),
        ({"signature": TEXT, "input": {}}, {"inputs": "needs inputs", "input": "did you mean inputs?"}),
        ({"signature": 3, "inputs": {}}, {"signature": "must be a text such as"}),
        ({"signature": TEXT, "inputs": [1]}, {"inputs": "inputs must be a mapping"}),
        (
            {"signature": TEXT, "inputs": {"question": 5, "k": "x", "q": 1}},
            {"inputs.question": "must be a string, got int (5)", "inputs.k": "integer", "inputs.q": "unknown"},
        ),
        ({"signature": TEXT, "outputs": {"answer": "maybe"}}, {"outputs.answer": "one of", "outputs.score": "missing"}),
        ([], {"": "validate takes a mapping"}),
    ],
)  # fmt: skip
def test_every_problem_is_told_with_its_path(args: Any, told: dict[str, str]) -> None:
    with pytest.raises(ValidationError) as caught:
        validate(args)
    problems = {problem.path: problem.message for problem in caught.value.problems}
    assert problems.keys() == told.keys()
    for path, words in told.items():
        assert words in problems[path]


def test_a_bad_text_is_told_each_time() -> None:
    for _ in range(2):
        with pytest.raises(SignatureError, match="did you mean 'str'"):
            validate({"signature": "a: strr -> b", "inputs": {}})


def test_a_long_text_is_read_and_not_kept() -> None:
    from signatures.native import validation

    text = f"{', '.join(f'field_{n}: str' for n in range(190))}, last: str '{'x' * 3_000}' -> b"
    kept = validation._read.cache_info().currsize
    values = {**{f"field_{n}": "v" for n in range(190)}, "last": "v"}
    assert validate({"signature": text, "inputs": values}) == values
    assert validation._read.cache_info().currsize == kept
