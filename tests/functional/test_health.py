"""What a real coordinator says of its health, to clients and on the command line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from typer.testing import CliRunner

from orchestrator import Client, Orchestrator
from orchestrator.cli.app import app
from orchestrator.errors import Overloaded
from tests.support.acceptance import SOON_S, pools
from tests.support.waiting import wait_until


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    found = pools({"size": {"min": 1, "max": 3}}, {"size": 1, "slots": 1, "max_queue": 10})
    # Queues alone decide: how busy the machine is under tests is not ours to say.
    degradation = {"cpu": 1.0, "memory": 1.0, "queue": 0.5, "hold_s": 1.0}
    with Orchestrator(pools=found, degradation=degradation) as orchestrator, orchestrator.client() as client:
        yield client


def dspool(client: Client, *words: str) -> str:
    done = CliRunner().invoke(app, words, env={"DSPOOL_ENDPOINT": client.endpoint})
    assert done.exit_code == 0, done.output
    return done.stdout


def issues(client: Client) -> dict[str, dict[str, Any]]:
    return {issue["name"]: issue for issue in client.health()["issues"]}


def test_a_fleet_at_work_is_well(client: Client) -> None:
    assert client.execute("echo", 1) == 1
    health = client.health()
    # On a crowded machine timers are late; nothing else may be wrong.
    assert {issue["name"] for issue in health["issues"]} <= {"coordinator_slow"}
    assert health["mode"] == "normal"
    assert health["error_rate"] == 0.0
    assert health["p99_ms"] > 0
    assert health["uptime_s"] > 0


def test_the_load_of_the_machine_is_told(client: Client) -> None:
    wait_until(lambda: client.stats()["load"]["cpu"] is not None, SOON_S, "a second look at the processors")
    stats = client.stats()
    assert 0.0 <= stats["load"]["cpu"] <= 1.0
    assert 0.0 < stats["load"]["memory"] <= 1.0
    assert stats["load"]["queue"] == 0.0
    assert stats["mode"] == "normal"


def test_with_a_long_queue_less_is_let_in_until_it_is_short(client: Client) -> None:
    waiting = [client.submit("sleep", {"seconds": 30.0}, pool="optimizer") for _ in range(9)]
    wait_until(lambda: client.stats()["mode"] == "degraded", SOON_S, "the mode")
    # On a crowded machine the processors are too busy as well.
    why = r"\((the processors are busy and work waits and )?a queue is long\)"
    with pytest.raises(Overloaded, match=rf"degraded mode {why}: with low priority at most 5 rows wait"):
        client.execute("echo", 1, pool="optimizer", priority="low")
    with pytest.raises(Overloaded, match="optimize is put off until it is in normal mode again") as refused:
        client.execute("optimize", {}, pool="optimizer")
    assert refused.value.retry_after_s == 1.0
    assert client.execute("echo", 2, priority="low") == 2  # nothing waits in that pool
    assert "queue_standing" in issues(client)
    assert "health: degraded, mode degraded, " in dspool(client, "status")
    for future in waiting:
        future.cancel()
    wait_until(lambda: client.stats()["mode"] == "normal", SOON_S, "the normal mode")


def test_a_pool_that_nobody_serves_is_an_issue_with_a_way_out(client: Client) -> None:
    told = dspool(client, "status")
    assert "1–3" in told  # noqa: RUF001
    assert "health: " in told
    [worker] = [row["id"] for row in client.workers() if (row["pool"], row["state"]) == ("general", "ready")]
    client.drain(worker)
    wait_until(lambda: "pool_out_of_service" in issues(client), SOON_S, "the issue")
    health = client.health()
    assert health["status"] == "critical"
    issue = issues(client)["pool_out_of_service"]
    assert (issue["subject"], issue["level"]) == ("general", "critical")
    told = dspool(client, "status")
    assert "general is off: pool general has no worker in service (drained); restart it to use it" in told
    assert "health: critical, mode normal" in told
    assert "  critical: pool_out_of_service general for " in told
    assert "    `dspool restart general` fills it" in told
    for command in ("status", "top"):
        document = json.loads(dspool(client, command, "--json"))
        assert document["health"]["status"] == "critical"
        assert document["pools"]["general"]["state"] == "off"
        assert (document["pools"]["general"]["min_size"], document["pools"]["general"]["max_size"]) == (1, 3)
    client.restart("general")
    assert client.execute("echo", 2) == 2
