"""The corpus: what is a signature, what it means, and where each mistake is told."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest

from signatures import MISSING, SignatureError, ValidationError, parse
from signatures.model import Field
from tests.corpus.rows import Row, load, short, types_of

SIGNATURES = load("signatures")
MISTAKES = load("mistakes")
EXTENSIONS = [row for row in SIGNATURES if row.get("extension")]


def test_the_corpus_is_large_and_has_no_row_twice() -> None:
    assert len(SIGNATURES) >= 300
    assert len(MISTAKES) >= 150
    texts = [row["text"] for row in (*SIGNATURES, *MISTAKES)]
    assert len(set(texts)) == len(texts)
    assert {row["source"] for row in SIGNATURES} == {"dspy-docs", "dspy-tests", "made"}
    assert len(EXTENSIONS) >= 40


@pytest.mark.parametrize("row", SIGNATURES, ids=short)
def test_a_signature_is_read_and_its_text_reads_back_equal(row: Row) -> None:
    types = types_of(row)
    read = parse(row["text"], types=types)
    again = parse(str(read), types=types)
    assert again == read
    assert again.sha256 == read.sha256
    assert str(again) == str(read)


@pytest.mark.parametrize("row", EXTENSIONS, ids=short)
def test_a_form_that_dspy_lacks_means_what_the_row_says(row: Row) -> None:
    read = parse(row["text"], types=types_of(row)).spec
    expected = row["expect"]
    assert read.instructions == expected["instructions"]
    assert [_told(field) for field in read.inputs] == expected["inputs"]
    assert [_told(field) for field in read.outputs] == expected["outputs"]


@pytest.mark.parametrize("row", MISTAKES, ids=short)
def test_every_mistake_is_told_at_its_place_with_its_fix(row: Row) -> None:
    with pytest.raises(SignatureError) as raised:
        parse(row["text"], types=types_of(row))
    problems = raised.value.problems
    told = [(one.line, one.column, one.message) for one in problems]
    wanted = [(one["line"], one["column"]) for one in row["problems"]]
    assert [one[:2] for one in told] == wanted, told
    for problem, one in zip(problems, row["problems"], strict=True):
        assert one["fix"] in problem.message


def test_values_are_converted_as_the_page_says() -> None:
    rows = re.findall(r"^\| `(.+)` \| `(.+)` \| (?:`(.+)`|rejects) \|$", _section("Values"), re.MULTILINE)
    assert len(rows) >= 30
    for type_, given, wanted in rows:
        read = parse("-> a: " + type_.replace(r"\|", "|"))
        try:
            result = repr(read.validate_outputs({"a": ast.literal_eval(given)})["a"])
        except ValidationError:
            result = ""
        assert result.replace("'", '"') == wanted, type_


def test_the_page_shows_an_error_as_it_is() -> None:
    example = r'^parse\("(.+)"\)\n```\n\n```\nsignatures.errors.SignatureError: \S+:3: (.+?)\n```'
    found = re.search(example, _section("Errors"), re.MULTILINE | re.DOTALL)
    assert found is not None
    with pytest.raises(SignatureError) as raised:
        parse(found[1])
    error = raised.value
    assert str(error) == f"{error.file}: {found[2]}"


def _section(title: str) -> str:
    """Return a section of the page about signatures."""
    page = (Path(__file__).parents[3] / "docs" / "signatures.md").read_text(encoding="utf-8")
    return page.split(f"\n## {title}\n")[1].split("\n## ")[0]


def _told(field: Field) -> dict[str, Any]:
    """Return a field as a row of the corpus writes it: what is not said is left out."""
    constraints = field.constraints.items()
    return {
        "name": field.name,
        "type": str(field.type),
        **({} if field.default is MISSING else {"default": field.default}),
        **({"description": field.description} if field.description else {}),
        **({"constraints": constraints} if constraints else {}),
        **({} if field.typed else {"typed": False}),
    }
