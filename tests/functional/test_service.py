"""Workers and pools taken in and out of service, on real processes: nobody's call is lost on the way."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator import AsyncClient, Client, Orchestrator, errors
from orchestrator.rundir import process_ticks
from tests.support.acceptance import MARKER, SOON_S, await_full, mark, marks, pools
from tests.support.waiting import wait_until


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    general = {"size": 2, "slots": 2, "prefetch": 2, "heartbeat_interval_s": 0.2}
    with Orchestrator(pools=pools(general), faults=True) as orchestrator, orchestrator.client() as client:
        client.deploy("marker", MARKER)
        yield client


@pytest.fixture(autouse=True)
def _two_workers(client: Client) -> Iterator[None]:
    yield
    client.resize("general", 2)
    await_full(client, "general")
    wait_until(lambda: len(living(client)) == 2, SOON_S, "the end of those that leave")


def living(client: Client) -> dict[str, dict[str, Any]]:
    return {row["id"]: row for row in client.workers() if row["state"] != "exited"}


def ended(client: Client, worker_id: str) -> dict[str, Any]:
    """Wait for a worker's end; return its row."""

    def row() -> dict[str, Any] | None:
        rows = client.workers()
        return next((row for row in rows if row["id"] == worker_id and row["state"] == "exited"), None)

    return wait_until(row, SOON_S, f"the end of {worker_id}") or {}


def incarnation(worker_id: str) -> int:
    return int(worker_id.rpartition(".")[2])


def test_a_pool_grows_and_shrinks_under_load_and_loses_no_call(client: Client, tmp_path: Path) -> None:
    evidence = tmp_path / "marks"
    futures = [client.submit("marker", mark(evidence, number, 0.05)) for number in range(60)]
    assert client.resize("general", 3)["size"] == 3
    await_full(client, "general")
    futures += [client.submit("marker", mark(evidence, number, 0.05)) for number in range(60, 120)]
    assert client.resize("general", 1)["size"] == 1
    assert [future.result(SOON_S).number for future in futures] == list(range(120))
    assert sorted(marks(evidence)) == list(range(120))  # each exactly once
    wait_until(lambda: len(living(client)) == 1, SOON_S, "the end of those beyond the size")
    [name] = living(client)
    assert name.startswith("general-1.")
    assert client.stats()["pools"]["general"]["restarts"] == 0
    for dead in (row for row in client.workers() if row["state"] == "exited"):
        assert dead["exit"]["cause"] == "the pool was resized to 1"
        assert (dead["exit"]["kind"], dead["exit"]["code"]) == ("exited", 0)


def test_a_drained_worker_finishes_its_call_and_stays_stopped(client: Client, tmp_path: Path) -> None:
    evidence = tmp_path / "marks"
    future = client.submit("marker", mark(evidence, 1, 0.8))
    wait_until(lambda: marks(evidence), SOON_S, "the call's start")
    [name] = [name for name, row in living(client).items() if row["in_flight"]]
    row = client.drain(name)
    assert (row["id"], row["state"], row["leaving"]) == (name, "draining", "drained")
    for number in range(8):
        assert client.ping()["worker"] != name, number
    assert future.result(SOON_S).number == 1
    dead = ended(client, name)
    assert (dead["exit"]["cause"], dead["exit"]["code"]) == ("drained", 0)
    assert process_ticks(dead["pid"]) is None
    stats = client.stats()["pools"]["general"]
    assert (stats["size"], stats["ready"], stats["state"]) == (2, 1, "ok")
    assert len(living(client)) == 1
    assert client.restart(name)["target"] == name
    await_full(client, "general")
    assert f"{name.rpartition('.')[0]}.{incarnation(name) + 1}" in living(client)


def test_a_pool_is_restarted_under_load_and_never_has_fewer_workers(client: Client) -> None:
    before = living(client)
    told = client.restart("general")
    assert told["replacing"] == sorted(before)
    fewest, calls = 2, 0
    while before.keys() & living(client).keys():
        fewest = min(fewest, client.stats()["pools"]["general"]["ready"])
        assert [future.result(SOON_S) for future in [client.submit("echo", n) for n in range(20)]] == list(range(20))
        calls += 20
    assert fewest == 2
    assert calls >= 20
    after = living(client)
    assert {name.rpartition(".")[0] for name in after} == {name.rpartition(".")[0] for name in before}
    assert not {row["pid"] for row in after.values()} & {row["pid"] for row in before.values()}
    assert {ended(client, name)["exit"]["cause"] for name in before} == {"restarted"}


def test_work_that_outlasts_the_grace_of_a_restart_is_lost(client: Client) -> None:
    future = client.submit("fault.hang", {"seconds": 60})
    wait_until(lambda: [row for row in living(client).values() if row["in_flight"]], SOON_S, "the hang")
    [name] = [name for name, row in living(client).items() if row["in_flight"]]
    client.restart(name, grace_s=0.2)
    error = future.exception(SOON_S)
    assert isinstance(error, errors.WorkerLost)
    assert error.cause == "restarted: its work did not end within 0.2 s"
    assert error.worker == name


def killed_spare(client: Client) -> dict[str, Any]:
    """Have a worker replaced and kill its spare; return the spare's row. A fork may be ready before it is killed."""
    known = living(client).keys()
    client.restart(sorted(known)[0])
    [spare] = living(client).keys() - known
    pid = wait_until(lambda: living(client).get(spare, {}).get("pid"), SOON_S, "the spare's process")
    assert pid
    os.kill(pid, signal.SIGKILL)
    return ended(client, spare)


def test_a_spare_that_dies_before_it_is_ready_changes_nothing(client: Client) -> None:
    for _ in range(10):
        before = living(client).keys()
        dead = killed_spare(client)
        assert dead["exit"]["signal"] == signal.SIGKILL
        if not dead["boot_ms"]:
            break
        await_full(client, "general")
        wait_until(lambda: len(living(client)) == 2, SOON_S, "the end of the old worker")
    assert not dead["boot_ms"], "each spare was ready before it could be killed"
    assert living(client).keys() == before
    assert client.execute("echo", 1) == 1


@pytest.mark.parametrize(
    ("ask", "error", "words"),
    [
        (lambda client: client.resize("generl", 2), errors.NotFound, "general"),
        (lambda client: client.resize("general", 1025), errors.InvalidRequest, "1024"),
        (lambda client: client.resize("general", (0, 2)), errors.InvalidRequest, "min"),
        (lambda client: client.resize("general", {"min": 3, "max": 2}), errors.InvalidRequest, "max"),
        (lambda client: client.resize("general", {"min": 3}), errors.InvalidRequest, "max"),
        (
            lambda client: client.execute("dspool.resize", {"pool": "general", "size": 2, "max": 1}),
            errors.InvalidRequest, "2 to 1",
        ),
        (
            lambda client: client.execute("dspool.resize", {"pool": "general", "size": 2, "max": "3"}),
            errors.InvalidRequest, "max",
        ),
        (lambda client: client.execute("dspool.resize", {"pool": "neural", "size": -1}), errors.InvalidRequest, "size"),
        (lambda client: client.execute("dspool.resize", {"pool": "general"}), errors.InvalidRequest, "size"),
        (lambda client: client.drain("general-1.999"), errors.NotFound, "general-1."),
        (lambda client: client.drain(7), errors.InvalidRequest, "worker_id"),
        (lambda client: client.restart("general-9.1"), errors.NotFound, "general"),
        (lambda client: client.restart("general", grace_s=-1), errors.InvalidRequest, "grace_s"),
        (lambda client: client.restart("general", grace_s="soon"), errors.InvalidRequest, "grace_s"),
        (lambda client: client.restart("neural"), errors.InvalidRequest, "resize"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_with_advice(
    client: Client, ask: Callable[[Client], object], error: type[errors.DspoolError], words: str
) -> None:
    before = set(living(client))
    with pytest.raises(error) as caught:
        ask(client)
    assert words in f"{caught.value} {caught.value.details}"
    assert set(living(client)) == before


def test_the_awaited_client_asks_the_same(client: Client) -> None:
    async def ask() -> list[Any]:
        async with AsyncClient(client.endpoint) as other:
            grown = await other.resize("general", (3, 4))
            names = [row["id"] for row in await other.workers() if row["state"] != "exited"]
            told = await other.restart(names[0], grace_s=5.0)
            return [
                grown["size"],
                grown["max_size"],
                told["replacing"] == names[:1],
                (await other.drain(names[1]))["leaving"],
            ]

    assert asyncio.run(ask()) == [3, 4, True, "drained"]


# --- by themselves --------------------------------------------------------------------------------------


def test_workers_are_recycled_by_requests_and_nobody_notices() -> None:
    general = {"size": 2, "slots": 2, "max_requests": 300}
    with Orchestrator(pools=pools(general)) as orchestrator, orchestrator.client() as client:
        before = living(client)

        def served() -> bool:
            assert list(client.map("echo", range(200), chunk=1)) == list(range(200))
            return not before.keys() & living(client).keys()

        wait_until(served, SOON_S, "both workers recycled")
        for name in before:
            cause = str(ended(client, name)["exit"]["cause"])
            assert cause.startswith("recycled: ")
            assert cause.endswith(" requests")
            assert int(cause.split()[1].replace(",", "")) >= 270
        assert client.stats()["requests"]["settled"] == client.stats()["requests"]["accepted"]
        assert client.stats()["pools"]["general"]["restarts"] == 0


def test_a_worker_that_has_grown_is_recycled() -> None:
    general = {"size": 1, "memory_limit_mb": 600, "heartbeat_interval_s": 0.1}
    with Orchestrator(pools=pools(general), faults=True) as orchestrator, orchestrator.client() as client:
        client.execute("fault.leak", {"mb": 700})
        cause = ended(client, "general-1.1")["exit"]["cause"]
        assert cause.startswith("recycled: ")
        assert cause.endswith(" MiB of memory")
        assert list(living(client)) == ["general-1.2"]
        assert client.execute("echo", 1) == 1


@pytest.mark.parametrize(("kind", "again"), [("permanent", True), ("transient", False), ("temporary", False)])
def test_restart_types_with_real_ends(kind: str, again: bool) -> None:
    general = {"size": 1, "slots": 1, "restart": {"type": kind}}
    with Orchestrator(pools=pools(general), faults=True) as orchestrator, orchestrator.client() as client:
        with pytest.raises(errors.WorkerLost):
            client.execute("fault.exit", {"code": 0})
        if not again:
            with pytest.raises(errors.Unavailable, match=f"exit code 0; {kind} workers are not started again"):
                client.execute("echo", 1)
            client.restart("general")
        assert client.execute("echo", 1) == 1
        assert list(living(client)) == ["general-1.2"]


def test_a_pool_that_cannot_boot_is_degraded_and_heals_by_itself(tmp_path: Path) -> None:
    gate, python = tmp_path / "gate", tmp_path / "python"
    python.write_text(
        f"#!/bin/sh\n[ -e {gate} ] && echo 'the disk is not there' >&2 && exit 7\nexec {sys.executable} \"$@\"\n"
    )
    python.chmod(0o755)
    general = {"size": 2, "slots": 1, "python": str(python), "restart": {"backoff_s": [0.1, 0.2]}}
    with Orchestrator(pools=pools(general)) as orchestrator, orchestrator.client() as client:
        gate.touch()
        for row in living(client).values():
            os.kill(row["pid"], signal.SIGKILL)

        def degraded() -> bool:
            return bool(client.stats()["pools"]["general"]["state"] == "degraded")

        wait_until(degraded, SOON_S, "the pool's degradation")
        assert "the disk is not there" in client.stats()["pools"]["general"]["why"]
        with pytest.raises(errors.Unavailable, match="the disk is not there"):
            client.execute("echo", 1)
        assert len(living(client)) <= 1  # a probe now and then
        gate.unlink()
        await_full(client, "general")
        stats = client.stats()["pools"]["general"]
        assert (stats["state"], stats["why"], stats["ready"]) == ("ok", None, 2)
        assert client.execute("echo", 1) == 1
