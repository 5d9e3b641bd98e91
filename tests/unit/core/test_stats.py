from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pools.core.stats import Histogram, RecentPeak


def test_no_samples_no_quantile() -> None:
    assert Histogram().quantile_ms(0.5) is None


@pytest.mark.parametrize("value_ms", [0.01, 0.5, 1.0, 37.0, 1234.5, 90_000.0])
def test_a_quantile_is_within_a_bucket_of_the_value(value_ms: float) -> None:
    histogram = Histogram()
    histogram.add(value_ms, now=1.0)
    quantile = histogram.quantile_ms(0.99)
    assert quantile is not None
    assert value_ms * 0.99 <= quantile <= value_ms * 1.1


def test_quantiles_of_a_spread() -> None:
    histogram = Histogram()
    for value in range(1, 101):
        histogram.add(float(value), now=1.0)
    p50, p99 = histogram.quantile_ms(0.5), histogram.quantile_ms(0.99)
    assert p50 == pytest.approx(50.0, rel=0.1)
    assert p99 == pytest.approx(99.0, rel=0.1)


def test_the_extremes_have_a_bucket() -> None:
    histogram = Histogram()
    histogram.add(0.0, now=1.0)
    assert histogram.quantile_ms(1.0) == pytest.approx(0.001, rel=0.1)
    histogram.add(1e12, now=1.0)
    largest = histogram.quantile_ms(1.0)
    assert largest is not None
    assert largest > 1e6


def test_only_the_last_one_to_two_minutes_count() -> None:
    histogram = Histogram()
    histogram.add(1.0, now=1000.0)
    histogram.add(100.0, now=1061.0)
    assert histogram.quantile_ms(0.5) == pytest.approx(1.0, rel=0.1)
    histogram.add(100.0, now=1122.0)
    assert histogram.quantile_ms(0.01) == pytest.approx(100.0, rel=0.1)
    histogram.add(5.0, now=5000.0)  # idle for long: what was before is forgotten
    assert histogram.quantile_ms(1.0) == pytest.approx(5.0, rel=0.1)


@settings(derandomize=True, deadline=None, max_examples=100)
@given(st.lists(st.tuples(st.floats(0.0, 40.0), st.integers(0, 9)), min_size=1, max_size=40))
def test_a_recent_peak_is_the_highest_of_the_last_minute(steps: list[tuple[float, int]]) -> None:
    peak, now = RecentPeak(), 1000.0
    seen: list[tuple[float, int]] = []
    for gap_s, value in steps:
        now += gap_s
        seen.append((now, value))
        assert peak.add(value, now=now) == max(value for at, value in seen if at > now - 60.0)
