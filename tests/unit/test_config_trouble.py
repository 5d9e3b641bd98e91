"""The configuration of what happens under trouble: breakers, fallbacks, limits of principals, modes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from orchestrator.config import Settings, load, schema, show
from orchestrator.config.model import keys_at
from orchestrator.errors import ConfigError
from pools.config import BreakerConfig, DegradationConfig, Machine, PoolConfig

MACHINE = Machine(cores=4, gpus=0)
Load = Callable[..., Settings]


@pytest.fixture
def load_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Load a text as ./dspool.yaml."""
    monkeypatch.chdir(tmp_path)

    def loaded(text: str = "", environ: Mapping[str, str] | None = None, **overrides: Any) -> Settings:
        (tmp_path / "dspool.yaml").write_text(text)
        return load(environ=environ or {}, overrides=overrides, machine=MACHINE)

    return loaded


def general(settings: Settings) -> PoolConfig:
    return settings.fleet.pool("general")


def problems_of(loading: Callable[[], object]) -> list[tuple[str, str, str]]:
    with pytest.raises(ConfigError) as caught:
        loading()
    return [(problem["where"], problem["path"], problem["message"]) for problem in caught.value.problems]


# --- what can be set --------------------------------------------------------------------------------


def test_without_a_word_breakers_and_modes_are_on_and_nothing_falls_back(load_text: Load) -> None:
    settings = load_text()
    assert [pool.breaker for pool in settings.pools] == [BreakerConfig()] * 3
    assert [(pool.fallback, pool.fallback_operations, pool.queue_age_s) for pool in settings.pools] == [
        (None, {}, None)
    ] * 3
    assert settings.fleet.degradation == DegradationConfig()
    assert (settings.fleet.principal_rows, settings.fleet.poison_deaths) == (16_384, 2)


def test_every_key_arrives(load_text: Load) -> None:
    text = """
    pools:
      general:
        breaker: {window: 20, min_calls: 5, failure_rate: 0.25, open_s: 0.5, probes: 3}
        fallback: {pool: spare, operations: {dspy.ReAct: dspy.Predict, qa: qa_small}}
        queue_age_s: 1.5
      optimizer:
        fallback: spare
      spare:
        breaker: {open_s: 2}
    limits: {principal_rows: 100, poison_deaths: 0}
    degradation: {cpu: 0.5, memory: 0.7, queue: 1, hold_s: 0}
    """
    settings = load_text(text)
    found = general(settings)
    assert found.breaker == BreakerConfig(window=20, min_calls=5, failure_rate=0.25, open_s=0.5, probes=3)
    assert (found.fallback, found.queue_age_s) == ("spare", 1.5)
    assert found.fallback_operations == {"dspy.ReAct": "dspy.Predict", "qa": "qa_small"}
    assert settings.fleet.pool("optimizer").fallback == "spare"
    assert settings.fleet.pool("spare").breaker == BreakerConfig(open_s=2)
    assert (settings.fleet.principal_rows, settings.fleet.poison_deaths) == (100, 0)
    assert settings.fleet.degradation == DegradationConfig(cpu=0.5, memory=0.7, queue=1, hold_s=0)


@pytest.mark.parametrize("null", ["", " null", " ~"])
def test_null_turns_off(load_text: Load, null: str) -> None:
    settings = load_text(f"pools:\n  general:\n    breaker:{null}\n    fallback:{null}\ndegradation:{null}\n")
    assert (general(settings).breaker, general(settings).fallback, settings.fleet.degradation) == (None, None, None)


def test_what_is_laid_over_null_turns_on_again(load_text: Load) -> None:
    text = "pools: {general: {breaker: null}}\ndegradation: null\n"
    variables = {"DSPOOL_POOLS__GENERAL__BREAKER__OPEN_S": "1", "DSPOOL_DEGRADATION__QUEUE": "0.9"}
    settings = load_text(text, variables)
    assert general(settings).breaker == BreakerConfig(open_s=1)
    assert settings.fleet.degradation == DegradationConfig(queue=0.9)


def test_variables_and_overrides_reach_every_key(load_text: Load) -> None:
    text = "pools: {general: {breaker: {open_s: 5, probes: 2}, fallback: neural}}\n"
    variables = {
        "DSPOOL_POOLS__GENERAL__BREAKER__OPEN_S": "1",
        "DSPOOL_POOLS__GENERAL__FALLBACK": "optimizer",
        "DSPOOL_POOLS__NEURAL__FALLBACK__OPERATIONS__EMBED": "embed_small",
        "DSPOOL_POOLS__NEURAL__BREAKER": "null",
        "DSPOOL_LIMITS__POISON_DEATHS": "0",
        "DSPOOL_DEGRADATION": "null",
    }
    settings = load_text(text, variables, pools={"general": {"breaker": {"probes": 4}}}, limits={"principal_rows": 7})
    assert general(settings).breaker == BreakerConfig(open_s=1, probes=4)
    assert general(settings).fallback == "optimizer"
    neural = settings.fleet.pool("neural")
    assert (neural.breaker, neural.fallback, neural.fallback_operations) == (None, None, {"embed": "embed_small"})
    assert (settings.fleet.poison_deaths, settings.fleet.principal_rows) == (0, 7)
    assert settings.fleet.degradation is None


def test_two_pools_may_fall_back_on_each_other(load_text: Load) -> None:
    settings = load_text("pools: {general: {fallback: neural}, neural: {fallback: {pool: general}}}")
    assert (general(settings).fallback, settings.fleet.pool("neural").fallback) == ("neural", "general")


# --- what is wrong, and where -----------------------------------------------------------------------


def test_every_problem_is_told_with_its_line(load_text: Load) -> None:
    text = """pools:
  general:
    breaker:
      windw: 3
      failure_rate: 1.5
    fallback: 7
    queue_age_s: 0
  neural:
    breaker: true
    fallback:
      pool: general
      operations: {embed: ''}
limits:
  poison_deaths: -1
  principal_rows: 0
degradation:
  cpu: 80
"""
    assert problems_of(lambda: load_text(text)) == [
        ("dspool.yaml:4", "pools.general.breaker.windw", "unknown key; did you mean 'window'?"),
        ("dspool.yaml:5", "pools.general.breaker.failure_rate", "must be less than or equal to 1, got 1.5"),
        ("dspool.yaml:6", "pools.general.fallback", "must be text (numbers and words like `yes` need quotes), got 7"),
        ("dspool.yaml:7", "pools.general.queue_age_s", "must be greater than 0, got 0"),
        ("dspool.yaml:9", "pools.neural.breaker", "must be a mapping of keys to values, got True"),
        ("dspool.yaml:12", "pools.neural.fallback.operations.embed", "must have at least 1 character, got ''"),
        ("dspool.yaml:14", "limits.poison_deaths", "must be greater than or equal to 0, got -1"),
        ("dspool.yaml:15", "limits.principal_rows", "must be greater than or equal to 1, got 0"),
        ("dspool.yaml:17", "degradation.cpu", "must be less than or equal to 1, got 80"),
    ]


def test_a_fallback_is_another_pool_that_is_there(load_text: Load) -> None:
    text = """pools:
  general:
    fallback: neurl
  neural:
    fallback: neural
  optimizer:
    fallback:
      pool: xyz
"""
    known = "general, optimizer, neural"
    assert problems_of(lambda: load_text(text)) == [
        ("dspool.yaml:3", "pools.general.fallback", "no such pool: neurl; did you mean 'neural' or 'general'?"),
        ("dspool.yaml:5", "pools.neural.fallback", "must be another pool than the pool itself"),
        ("dspool.yaml:8", "pools.optimizer.fallback.pool", f"no such pool: xyz (known: {known})"),
    ]


def test_a_window_holds_what_opens_the_breaker(load_text: Load) -> None:
    text = "pools:\n  general:\n    breaker:\n      window: 5\n"
    least, window = "pools.general.breaker.min_calls", "pools.general.breaker.window"
    assert problems_of(lambda: load_text(text)) == [
        ("dspool.yaml:4", window, "must be at least min_calls, got 5 and 10")
    ]
    assert general(load_text(text + "      min_calls: 5\n")).breaker == BreakerConfig(window=5, min_calls=5)
    wrong = text + "      min_calls: 6\n"
    assert problems_of(lambda: load_text(wrong)) == [("dspool.yaml:5", least, "must be at most window, got 6 and 5")]


@pytest.mark.parametrize(
    ("variable", "value", "path", "message"),
    [
        ("SIZE__MIN", "9", "size.min", "must not be above max (8), got 9"),
        ("SIZE__MAX", "1", "size.max", "must not be below min (2), got 1"),
        ("HEARTBEAT_INTERVAL_S", "20", "heartbeat_interval_s", "must be below heartbeat_limit_s, got 20 and 9"),
        ("HEARTBEAT_LIMIT_S", "1", "heartbeat_limit_s", "must be above heartbeat_interval_s, got 1 and 2"),
        ("BREAKER__WINDOW", "4", "breaker.window", "must be at least min_calls, got 4 and 7"),
    ],
)
def test_of_two_that_do_not_go_together_the_one_on_top_is_blamed(
    load_text: Load, variable: str, value: str, path: str, message: str
) -> None:
    text = """pools:
  general:
    size: {min: 2, max: 8}
    heartbeat_interval_s: 2
    heartbeat_limit_s: 9
    breaker: {min_calls: 7}
"""
    name = f"DSPOOL_POOLS__GENERAL__{variable}"
    assert problems_of(lambda: load_text(text, {name: value})) == [(name, f"pools.general.{path}", message)]


def test_overrides_are_above_variables(load_text: Load) -> None:
    found = problems_of(
        lambda: load_text("", {"DSPOOL_POOLS__GENERAL__SIZE__MAX": "3"}, pools={"general": {"size": {"min": 4}}})
    )
    assert found == [("override", "pools.general.size.min", "must not be above max (3), got 4")]


# --- shown ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "",
        "pools: {general: {breaker: null, fallback: neural}}\ndegradation: null",
        "pools: {general: {breaker: {open_s: 3}, fallback: {operations: {a: b}}, queue_age_s: 2}}",
        "pools: {neural: {fallback: {pool: general, operations: {embed: embed_small}}}}\nlimits: {poison_deaths: 0}",
        "limits: {principal_rows: 50}\ndegradation: {cpu: 0.5}",
    ],
)
def test_what_is_shown_can_be_loaded_again(load_text: Load, text: str) -> None:
    settings = load_text(text, {"HOME": "/h"})
    again = load_text("", {}, **show(settings))
    assert again.fleet == settings.fleet


def test_what_is_shown_is_the_whole_of_it(load_text: Load) -> None:
    shown = show(load_text("pools: {general: {fallback: {pool: neural, operations: {a: b}}}, neural: {breaker: null}}"))
    pool = shown["pools"]["general"]
    assert pool["breaker"] == {"window": 50, "min_calls": 10, "failure_rate": 0.5, "open_s": 10.0, "probes": 1}
    assert (pool["fallback"], pool["queue_age_s"]) == ({"pool": "neural", "operations": {"a": "b"}}, None)
    assert (shown["pools"]["neural"]["breaker"], shown["pools"]["neural"]["fallback"]) == (None, None)
    assert (shown["limits"]["principal_rows"], shown["limits"]["poison_deaths"]) == (16_384, 2)
    assert shown["degradation"] == {"cpu": 0.8, "memory": 0.9, "queue": 0.5, "hold_s": 5.0}


def test_the_schema_knows_the_keys() -> None:
    models = schema()["$defs"]
    assert set(models["BreakerModel"]["properties"]) == set(keys_at(("pools", "any", "breaker")))
    assert set(models["DegradationModel"]["properties"]) == set(keys_at(("degradation",)))
    assert set(models["FallbackModel"]["properties"]) == set(keys_at(("pools", "any", "fallback")))
    kinds = models["PoolModel"]["properties"]["breaker"]["anyOf"]
    assert {"type": "null"} in kinds
