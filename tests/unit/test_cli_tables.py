"""The tables of pools: what they hold, and that eighty columns are enough for it."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from orchestrator.cli.dead_letters import counted
from orchestrator.cli.health import lines as health_lines
from orchestrator.cli.listings import pools_table, troubles
from orchestrator.cli.top import lines

ROW: dict[str, Any] = {
    "state": "ok", "why": None, "size": 4, "min_size": 1, "max_size": 8, "ready": 3, "busy": 2, "queued": 1000,
    "in_flight": 128, "p50_ms": 0.8512, "p99_ms": 1234.5, "restarts": 120, "resent": 17, "shed": 4321,
    "breaker": "closed",
}  # fmt: skip
POOLS = {
    "general": ROW,
    "optimizer": {**ROW, "max_size": None, "breaker": "half_open"},
    "neural": {**ROW, "breaker": "open", "state": "degraded", "why": "its workers cannot boot"},
}
RATES = {"general": 12345.6, "optimizer": None, "neural": 2.0}


def shown(made: Any, width: int) -> list[str]:
    console = Console(width=width, file=io.StringIO(), highlight=False)
    console.print(made)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize("rates", [None, RATES], ids=["status", "top"])
def test_eighty_columns_are_enough_for_all_of_a_pool(rates: dict[str, float | None] | None) -> None:
    told = shown(pools_table(POOLS, rates), 80)
    assert max(map(len, told)) <= 80
    assert "…" not in "\n".join(told)
    [general] = [line.split() for line in told if "general" in line]
    per_s = [] if rates is None else ["12,346"]
    assert general == [
        "general", "3/1–8", "2", "1000", "128", *per_s, "0.851", "1,234", "120", "17", "4321", "closed",  # noqa: RUF001
    ]  # fmt: skip
    assert "half" in "\n".join(told)


def test_where_a_line_may_be_long_each_heading_is_one() -> None:
    told = shown(pools_table(POOLS, narrow=False), 200)
    [headings] = [line for line in told if "pool" in line]
    for heading in ("ready/size", "in flight", "p50 ms", "restarts", "resent", "shed", "breaker"):
        assert heading in headings
    [optimizer] = [line for line in told if "optimizer" in line]
    assert optimizer.rstrip().endswith("half open")


def test_a_pool_that_is_not_well_is_a_line_of_its_own() -> None:
    assert troubles(POOLS) == ["neural is degraded: its workers cannot boot"]


def test_a_line_of_top_says_what_its_table_does() -> None:
    _, optimizer, _ = lines(POOLS, RATES)
    assert optimizer == (
        "optimizer: ok, 3/4 ready, 2 busy, 1000 queued, 128 in flight, - per s, p50 0.851 ms, p99 1,234 ms, "
        "120 restarts, 17 resent, 4321 shed, breaker half open"
    )


@pytest.mark.parametrize(
    ("rate", "told"),
    [
        (None, "health: ok, mode normal, no request in the last minute"),
        (0.125, "health: ok, mode normal, 12.5 % of the last minute's requests failed"),
    ],
)
def test_health_says_how_many_requests_failed_if_there_were_any(rate: float | None, told: str) -> None:
    assert health_lines({"status": "ok", "mode": "normal", "issues": [], "error_rate": rate}) == [told]


def test_causes_of_deaths_are_told_once_with_their_number() -> None:
    assert counted(["exit code 1", "killed by signal 9", "exit code 1"]) == "2x exit code 1; killed by signal 9"
    assert counted([]) == ""
