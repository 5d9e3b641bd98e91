"""The slope of what grows."""

from __future__ import annotations

import pytest

from orchestrator.chaos.soak import slope


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        ([], 0.0),
        ([(1.0, 5.0)], 0.0),
        ([(1.0, 5.0), (1.0, 7.0)], 0.0),
        ([(0.0, 1.0), (1.0, 3.0)], 2.0),
        ([(0.0, 4.0), (1.0, 3.0), (2.0, 2.0)], -1.0),
        ([(0.0, 0.0), (1.0, 1.0), (2.0, 0.0)], 0.0),
    ],
)
def test_slope(samples: list[tuple[float, float]], expected: float) -> None:
    assert slope(samples) == pytest.approx(expected)
