"""The benchmark of embedding measures both ways and judges them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.bench.embedding import CALLERS, EmbeddingReport, run_embedding


@pytest.mark.slow
def test_both_ways_are_measured(tmp_path: Path) -> None:
    said: list[str] = []
    report = run_embedding(texts=800, rounds=1, say=said.append)
    assert said == ["round 1 of 1: batched", "round 1 of 1: one by one"]
    assert all(rates[0] > 0 for rates in report.rates.values())
    report.write_json(tmp_path / "report.json")
    found = json.loads((tmp_path / "report.json").read_text())
    assert found["settings"]["callers"] == CALLERS
    assert found["ratio"] == pytest.approx(found["rates"]["batched"]["rate"] / found["rates"]["one by one"]["rate"])


@pytest.mark.parametrize(("batched", "passed"), [([3900.0, 4000.0, 9000.0], True), ([3900.0, 4000.0, 3000.0], False)])
def test_the_median_of_the_rounds_is_judged(batched: list[float], passed: bool) -> None:
    report = EmbeddingReport({}, {}, {"batched": batched, "one by one": [1000.0, 1000.0, 1000.0]})
    assert report.passed is passed
    assert report.as_json()["passed"] is passed
