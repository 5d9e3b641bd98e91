"""A pool that grows with its work, on real processes: nobody's call is lost on the way, up or down."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from orchestrator import Client, Orchestrator
from tests.support.acceptance import SOON_S, await_full, pools
from tests.support.waiting import wait_until

LIMIT_MB = 256


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    general = {
        "size": {"min": 1, "max": 3}, "slots": 1, "heartbeat_interval_s": 0.1, "memory_limit_mb": LIMIT_MB,
    }  # fmt: skip
    with Orchestrator(pools=pools(general), faults=True) as orchestrator, orchestrator.client() as client:
        yield client


def general(client: Client) -> dict[str, Any]:
    return dict(client.stats()["pools"]["general"])


def living(client: Client) -> list[str]:
    return [row["id"] for row in client.workers() if row["state"] != "exited"]


def test_a_pool_grows_while_work_waits(client: Client) -> None:
    assert (general(client)["size"], general(client)["max_size"]) == (1, 3)
    futures = [client.submit("sleep", {"seconds": 0.3}) for _ in range(10)]
    wait_until(lambda: general(client)["size"] == 3, SOON_S, "as many workers as there may be")
    await_full(client, "general")
    assert [future.result(SOON_S) for future in futures] == [{"seconds": 0.3}] * 10
    assert len({future.meta and future.meta.worker for future in futures}) > 1
    assert (general(client)["size"], general(client)["restarts"]) == (3, 0)


def test_a_fixed_size_stays_whatever_waits(client: Client) -> None:
    futures = [client.submit("sleep", {"seconds": 0.2}) for _ in range(7)]
    row = client.resize("general", 1)
    assert (row["size"], row["max_size"]) == (1, None)
    assert [future.result(SOON_S) for future in futures] == [{"seconds": 0.2}] * 7
    assert general(client)["size"] == 1
    wait_until(lambda: living(client) == ["general-1.1"], SOON_S, "the end of those beyond the size")
    row = client.resize("general", {"min": 2, "max": 3})
    assert (row["size"], row["max_size"]) == (2, 3)
    await_full(client, "general")


def test_a_worker_that_grows_beyond_its_memory_is_replaced_and_loses_no_call(client: Client) -> None:
    client.resize("general", 1)
    wait_until(lambda: len(living(client)) == 1, SOON_S, "the end of those beyond the size")
    client.execute("fault.leak", {"mb": LIMIT_MB})
    calls = 0

    def ended() -> dict[str, Any] | None:
        nonlocal calls
        assert client.execute("echo", calls) == calls
        calls += 1
        return next((row for row in client.workers() if row["id"] == "general-1.1" and row["exit"]), None)

    row = wait_until(ended, SOON_S, "the worker's replacement") or {}
    assert row["exit"]["cause"].startswith("recycled: ")
    assert row["exit"]["peak_rss_bytes"] > LIMIT_MB << 20
    assert (row["exit"]["kind"], row["exit"]["code"]) == ("exited", 0)
    assert living(client) == ["general-1.2"]
    assert calls > 10
    assert general(client)["failed"] == 0
