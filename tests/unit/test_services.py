"""What the services process is told, what it is kept from, and how it lives with a store that cannot be used."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from bridge.protocol.errors import BridgeError
from bridge.protocol.worker_spec import WorkerSpec, decode_spec
from bridge.worker.spec_secrets import secrets_of
from orchestrator.bench.figures import FiguresReport
from orchestrator.bench.services import figures_of
from orchestrator.config import Settings, load
from orchestrator.coordinator.births import Births, environment
from orchestrator.coordinator.event_log import EventLog
from orchestrator.coordinator.internal import Internal, is_needed, orders
from orchestrator.coordinator.run_counter import RunCounter
from orchestrator.errors import ConfigError, StorageError
from orchestrator.services.keeper import StoreKeeper
from orchestrator.services.orders import BUILDER, Orders
from orchestrator.services.store import Store
from pools.core.events import Launch
from tests.support.fleet import Sim, pool

URL = "postgresql+psycopg://dspool:a-secret-word@db.example/dspool"


def settings(tmp_path: Path, **overrides: Any) -> Settings:
    overrides = {"data_dir": str(tmp_path), "lms": {"gpt": {"model": "openai/x", "api_key": "sk-secret"}}, **overrides}
    return load(environ={"HOME": str(tmp_path)}, overrides=overrides)


def born(found: Settings, pool: str) -> WorkerSpec:
    births = Births(found, run_id="r", endpoint="ipc://b", client_endpoint="ipc://f")
    try:
        births.open_page(f"{pool}-1.1")
        return decode_spec(births.launch_spec(Launch(f"{pool}-1.1", pool, 1, 1)).worker_spec)
    finally:
        births.close()


def test_it_alone_is_told_where_the_store_is_and_nothing_that_is_for_programs(tmp_path: Path) -> None:
    found = settings(tmp_path, store={"url": URL}, python_path=[str(tmp_path)])
    services, general = born(found, "services"), born(found, "general")
    assert services.builder == BUILDER
    assert Orders.read(services.services).store == URL
    assert (services.lms, services.embedder, services.mcp, services.python_path) == ({}, {}, {}, [])
    assert (general.builder, general.services) == ("", {})
    assert general.lms["gpt"]["api_key"] == "sk-secret"


def test_the_password_of_the_store_is_not_told(tmp_path: Path) -> None:
    found = settings(tmp_path, store={"url": URL})
    spec = born(found, "services")
    assert "a-secret-word" in secrets_of(spec)
    assert "a-secret-word" not in repr(spec)
    variables = {"PGPASSWORD": "a-secret-word", "PGHOST": "db.example"}
    assert "PGPASSWORD" not in environment(found, {}, variables)
    assert environment(found, {}, variables)["PGHOST"] == "db.example"


def test_orders_are_read_as_they_were_given(tmp_path: Path) -> None:
    given = orders(settings(tmp_path))
    assert Orders.read(given.as_plain()) == given
    assert given.store == str(tmp_path / "store.sqlite3")
    assert given.pools == ["general", "optimizer", "neural"]


@pytest.mark.parametrize(
    ("overrides", "needed"),
    [({}, False), ({"store": {"url": URL}}, True), ({"sessions": {"durable": True}}, True)],
)
def test_it_is_needed_from_the_start_where_something_is_to_be_known(
    tmp_path: Path, overrides: dict[str, Any], needed: bool
) -> None:
    found = settings(tmp_path, **overrides)
    assert is_needed(found) is needed
    (tmp_path / "store.sqlite3").touch()
    assert is_needed(found)


def test_its_pool_s_name_is_nobody_else_s(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"pools\.services: is the name of the coordinator's own process"):
        settings(tmp_path, pools={"services": {"size": 1}})
    with pytest.raises(ConfigError, match="no such pool: services"):
        settings(tmp_path, pools={"general": {"fallback": "services"}})
    assert "services" not in {pool.name for pool in settings(tmp_path).pools}


# --- what it tells the coordinator of the store -------------------------------------------------------


def test_the_first_store_of_a_run_is_its_store_and_the_run_comes_after_those_that_used_it(tmp_path: Path) -> None:
    sim, events = Sim(pool(size=1), run=1), EventLog(RunCounter.begin(tmp_path))
    told = Internal(sim.fleet, events, durable=True, programs=()).operations
    assert told["store_known"]({}, 0.0) == ""
    told["store_opened"]({"identity": "a", "last_run": 0}, 0.0)
    assert (told["store_known"]({}, 0.0), sim.fleet.run, events.run) == ("a", 1, 1)
    told["store_opened"]({"identity": "a", "last_run": 1}, 0.0)
    assert (sim.fleet.run, events.run) == (1, 1), "this run has written there meanwhile"

    told = Internal(sim.fleet, events, durable=True, programs=()).operations
    told["store_opened"]({"identity": "b", "last_run": 7}, 0.0)
    assert (sim.fleet.run, events.run, events.last >> 32) == (8, 8, 8)
    assert sim.tables.sessions.next_generation() >> 32 == 8
    with pytest.raises(BridgeError):
        told["store_opened"]({"identity": "b"}, 0.0)


# --- the keeper of the store --------------------------------------------------------------------------


class Told:
    """What the coordinator was told, and what was synced."""

    def __init__(self) -> None:
        self.reports: list[tuple[Mapping[str, Any] | None, str]] = []
        self.synced: list[Store] = []

    def report(self, store: Mapping[str, Any] | None, problem: str) -> None:
        self.reports.append((store, problem))


def keeper_of(
    file: Path, told: Told, *, again_s: float = 0.0, sync: Callable[[Store], None] | None = None, known: str = ""
) -> StoreKeeper:
    sync = sync or told.synced.append
    return StoreKeeper(str(file), known=lambda: known, sync=sync, report=told.report, again_s=again_s)


def test_a_store_that_opens_is_synced_before_anybody_gets_it(tmp_path: Path) -> None:
    told = Told()

    def sync(store: Store) -> None:
        assert keeper() is store, "what is synced uses it already"
        told.synced.append(store)

    keeper = keeper_of(tmp_path / "store.sqlite3", told, sync=sync)
    keeper.open()
    assert told.synced == [keeper()]
    assert [problem for _, problem in told.reports] == [""]
    keeper.close()


def test_a_store_that_does_not_is_tried_again_by_who_needs_it(tmp_path: Path) -> None:
    file, told = tmp_path / "store.sqlite3", Told()
    file.write_bytes(b"no database" * 200)
    keeper = keeper_of(file, told, again_s=3600.0)
    keeper.open()
    for _ in range(2):
        with pytest.raises(StorageError) as refused:
            keeper()
        assert refused.value.reason == "corrupt"
    assert [store for store, _ in told.reports] == [None]
    assert str(file) in told.reports[0][1]
    keeper.close()
    eager = keeper_of(file, told)
    file.unlink()
    eager.open()
    assert eager().where == str(file)
    assert told.reports[-1][1] == ""
    eager.close()


def test_the_store_of_this_run_is_not_made_anew(tmp_path: Path) -> None:
    file, told = tmp_path / "store.sqlite3", Told()
    Store.open(file).close()
    keeper = keeper_of(file, told, known="of another")
    keeper.open()
    with pytest.raises(StorageError, match="another store than before") as refused:
        keeper()
    assert refused.value.reason == "foreign"
    file.unlink()
    with pytest.raises(StorageError, match="is gone") as refused:
        keeper()
    assert refused.value.reason == "corrupt"
    assert (told.synced, file.exists()) == ([], False)
    keeper.close()


def test_what_could_not_be_synced_is_not_open(tmp_path: Path) -> None:
    told, fails = Told(), [True]

    def sync(store: Store) -> None:
        if fails:
            raise RuntimeError("the coordinator does not take it")

    keeper = keeper_of(tmp_path / "store.sqlite3", told, sync=sync)
    with pytest.raises(RuntimeError):
        keeper.open()
    fails.clear()
    keeper.open()
    assert keeper().info()["programs"] == 0
    keeper.close()


def test_what_goes_wrong_later_is_told_once_and_so_is_that_it_is_over(tmp_path: Path) -> None:
    file, told = tmp_path / "store.sqlite3", Told()
    keeper = keeper_of(file, told)
    keeper.open()
    full = StorageError("the disk is full")
    for _ in range(3):
        keeper.failed(full)
    for _ in range(3):
        keeper.worked()
    assert [problem for _, problem in told.reports] == ["", "the disk is full", ""]
    assert all(store is not None and store["where"] == str(file) for store, _ in told.reports)
    keeper.close()


def test_a_store_that_another_process_holds_is_not_used_beside_it(tmp_path: Path) -> None:
    file, told = tmp_path / "store.sqlite3", Told()
    first = keeper_of(file, told)
    first.open()
    with closing(sqlite3.connect(file)) as connection:
        assert connection.execute("SELECT version FROM schema_info").fetchone()
    second = keeper_of(file, told, again_s=3600.0)
    second.open(hold_s=0.0)
    with pytest.raises(StorageError) as refused:
        second()
    assert refused.value.reason == "locked"
    first.close()
    second.close()


# --- the bench ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("slowest_us", "passed"), [(299.0, True), (301.0, False)])
def test_the_bench_judges_p99_by_medians_where_the_services_are_busy(slowest_us: float, passed: bool) -> None:
    idle, busy = [[100.0] * 50 + [9000.0] * 50], [[100.0] * 97 + [slowest_us] * 3]
    report = FiguresReport({}, {}, [*figures_of("idle", idle), *figures_of("busy", busy)])
    assert report.passed is passed
    assert report.as_json()["passed"] is passed
