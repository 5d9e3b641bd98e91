"""SIGKILL to a coordinator, or to whoever owns one: nothing outlives it, everybody knows, nothing runs afterwards."""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import os
import queue
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator import AsyncClient, Client, Orchestrator, connect, errors
from orchestrator.rundir import discover, process_ticks
from tests.support.acceptance import (
    GONE_S,
    MARKER,
    SOON_S,
    SPAWNER,
    Family,
    Script,
    await_under_way,
    mark,
    marks,
    pools,
    under_way,
)
from tests.support.waiting import wait_until

HELD = {"seconds": 60.0}

# --- every way of waiting ---------------------------------------------------------------------------


def by_execute(client: Client) -> Any:
    return client.execute("sleep", HELD)


def by_result(client: Client) -> Any:
    return client.submit("sleep", HELD).result()


def by_callback(client: Client) -> Any:
    settled: queue.SimpleQueue[concurrent.futures.Future[Any]] = queue.SimpleQueue()
    client.submit("sleep", HELD).add_done_callback(settled.put)
    return settled.get(timeout=SOON_S).result(0)


def by_as_completed(client: Client) -> Any:
    futures = [client.submit("sleep", HELD) for _ in range(3)]
    found = [future.exception(0) for future in concurrent.futures.as_completed(futures, SOON_S)]
    assert [type(error) for error in found] == [errors.Unavailable] * 3
    return futures[0].result(0)


def by_map(client: Client) -> Any:
    return list(client.map("sleep", [HELD] * 3, chunk=1))


def by_asyncio(client: Client) -> Any:
    async def main() -> Any:
        async with AsyncClient(client.endpoint) as own:
            return await own.execute("sleep", HELD)

    return asyncio.run(main())


# Each way of waiting, and how many requests it holds.
WAITS: dict[Callable[[Client], Any], int] = {
    by_execute: 1, by_result: 1, by_callback: 1, by_as_completed: 3, by_map: 3, by_asyncio: 1,
}  # fmt: skip


def until_unavailable(wait: Callable[[Client], Any], client: Client) -> float:
    """Return when a wait ended (monotonic). Raises AssertionError unless it ended with Unavailable."""
    try:
        found = wait(client)
    except errors.Unavailable:
        return time.monotonic()
    raise AssertionError(f"{wait.__name__} returned {found!r}")


# --- the death of a coordinator -----------------------------------------------------------------------


@pytest.fixture
def own_place(monkeypatch: pytest.MonkeyPatch, run_dirs: Callable[[], Path]) -> Iterator[Path]:
    """Let `connect` look, and start, in a folder of this test's own."""
    folder = run_dirs()
    monkeypatch.setenv("DSPOOL_RUN_DIR", str(folder / "r"))
    monkeypatch.setenv("DSPOOL_DATA_DIR", str(folder / "d"))
    monkeypatch.setenv("DSPOOL_FAULTS", "true")
    for pool, settings in pools(1, 1).items():
        monkeypatch.setenv(f"DSPOOL_POOLS__{pool.upper()}__SIZE", str(settings["size"]))
    yield folder
    if (info := discover(folder / "r")) is not None:
        os.kill(info.pid, signal.SIGKILL)


def kill_under_load(evidence: Path) -> list[Client]:
    """Start a coordinator, let everybody wait in every way, kill it; assert what is promised. Return the clients."""
    client = connect()
    clients = [client, *(connect(start=False) for _ in WAITS)]
    client.deploy("marker", MARKER)
    pid = client.stats()["pid"]
    client.deploy("spawner", SPAWNER)
    orphan = client.execute("fault.spawn_daemon", HELD)["pid"]  # adopted by the nanny, which kills it
    grandchild = client.execute("spawner", HELD).pid
    load = [client.submit("marker", mark(evidence, number, 0.05), pool="optimizer") for number in range(40)]
    with concurrent.futures.ThreadPoolExecutor(2 * len(WAITS)) as threads:
        # Each with a client to itself, and all of them, the load too, with one.
        waits = [threads.submit(until_unavailable, wait, own) for wait, own in zip(WAITS, clients[1:], strict=True)]
        waits += [threads.submit(until_unavailable, wait, client) for wait in WAITS]
        wait_until(lambda: under_way(clients[1]) > 2 * sum(WAITS.values()), SOON_S, "everybody's requests")
        wait_until(lambda: len(marks(evidence)) >= 3, SOON_S, "the load at work")
        family = Family.of(pid)
        assert grandchild in family
        assert len(family) >= 5  # the coordinator, its nanny, two workers and the grandchild in a session of its own
        killed_at = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        assert max(wait.result(SOON_S) for wait in waits) - killed_at <= GONE_S
        assert {type(future.exception(GONE_S)) for future in load} <= {type(None), errors.Unavailable}
        assert load[-1].exception(0) is not None
        family.assert_gone(killed_at)
        assert process_ticks(orphan) is None
    return clients


def test_a_killed_coordinator_leaves_nobody_and_the_next_one_executes_nothing_of_it(
    own_place: Path, tmp_path: Path
) -> None:
    evidence = tmp_path / "marks"
    clients = kill_under_load(evidence)
    executed = marks(evidence)
    assert len(executed) == len(set(executed)) < 40

    with connect() as successor:
        assert successor.stats()["pid"] != clients[0].connection.coordinator_pid
        assert len(list((own_place / "r").glob("*/coordinator.json"))) == 1  # what the dead one left is swept away
        successor.deploy("marker", MARKER)
        for pool in ("general", "optimizer"):
            assert successor.execute("marker", mark(evidence, 100), pool=pool).number == 100
        assert successor.stats()["requests"]["accepted"] == 3  # one of them loads the program
        for client in clients:  # they do not come back by themselves
            with pytest.raises(errors.Unavailable, match=r"connect\(\)"):
                client.execute("echo", 1)
            client.close()
        assert marks(evidence) == [*executed, 100, 100]
        end(successor)


def end(client: Client) -> None:
    pid = client.stats()["pid"]
    client.execute("dspool.down", {"drain_s": 0})
    wait_until(lambda: process_ticks(pid) is None, SOON_S, "the coordinator's end")


def test_a_killed_private_coordinator_is_noticed_by_its_owner_and_replaced_on_the_same_folders(
    run_dirs: Callable[[], Path],
) -> None:
    folder = run_dirs()
    settings: dict[str, Any] = {"pools": pools(), "run_dir": str(folder / "r"), "data_dir": str(folder / "d")}
    with Orchestrator(**settings) as first:
        client = first.client()
        family = Family.of(first.pid)
        future = client.submit("sleep", HELD)
        await_under_way(client, 1)
        killed_at = time.monotonic()
        os.kill(first.pid, signal.SIGKILL)
        with pytest.raises(errors.Unavailable, match=str(first.pid)):
            future.result(SOON_S)
        family.assert_gone(killed_at)
        with pytest.raises(errors.Unavailable):
            first.client()
        with Orchestrator(**settings) as second, second.client() as other:
            assert other.execute("echo", 1) == 1
            assert second.pid != first.pid
    assert not list((folder / "r").glob("*/"))


# --- the death of its owner -------------------------------------------------------------------------

# Without a `__main__` guard, each. They say: the coordinator's pid and endpoint, a forked child's pid or 0.
_SAY = "import json; print(json.dumps([orc.pid, orc.endpoint, {child}]), flush=True); import time; time.sleep(60)\n"
_START = """
import os, json, sys, threading
from orchestrator import Orchestrator
"""
_PLAIN = f"{_START}\norc = Orchestrator(**json.loads(sys.argv[1])).start()\n{_SAY.format(child=0)}"
# The child holds whatever its parent held, the pipe into the coordinator too.
_FORKED = f"""{_START}
orc = Orchestrator(**json.loads(sys.argv[1])).start()
child = os.fork()
if child == 0:
    import time; time.sleep(60); os._exit(0)
{_SAY.format(child="child")}"""
# The thread that started it has ended: what belongs to a process must not end with a thread.
_THREAD = f"""{_START}
orc = Orchestrator(**json.loads(sys.argv[1]))
thread = threading.Thread(target=orc.start)
thread.start()
thread.join()
{_SAY.format(child=0)}"""


@pytest.mark.parametrize("code", [_PLAIN, _FORKED, _THREAD], ids=["plain", "with a forked child", "from a thread"])
def test_a_killed_owner_leaves_nobody(code: str, run_dirs: Callable[[], Path], tmp_path: Path) -> None:
    evidence = tmp_path / "marks"
    settings: dict[str, Any] = {"pools": pools(), "faults": True, "data_dir": str(run_dirs() / "d")}
    with Script(code, json.dumps(settings), TMPDIR=str(run_dirs())) as owner:
        pid, endpoint, child = owner.said()
        try:
            with connect(endpoint) as client:
                kill_owner(owner, pid, client, evidence)
        finally:
            if child:
                os.kill(child, signal.SIGKILL)
                wait_until(lambda: process_ticks(child) is None, SOON_S, "the forked child's end")
    executed = marks(evidence)
    with Orchestrator(**settings) as orchestrator, orchestrator.client() as client:
        client.deploy("marker", MARKER)
        client.execute("marker", mark(evidence, 100))
        assert client.stats()["requests"]["accepted"] == 2
    assert marks(evidence) == [*executed, 100]


def kill_owner(owner: Script, pid: int, client: Client, evidence: Path) -> None:
    """Kill the owner of the coordinator `pid` under load; assert what is promised."""
    client.deploy("marker", MARKER)
    client.deploy("spawner", SPAWNER)
    grandchild = client.execute("spawner", HELD).pid
    load = [client.submit("marker", mark(evidence, number, 0.2)) for number in range(60)]
    wait_until(lambda: marks(evidence), SOON_S, "the load at work")
    family = Family.of(pid)
    assert grandchild in family
    killed_at = time.monotonic()
    owner.process.kill()
    assert {type(future.exception(GONE_S)) for future in load} <= {type(None), errors.Unavailable}
    assert isinstance(load[-1].exception(0), errors.Unavailable)
    assert time.monotonic() - killed_at <= GONE_S
    family.assert_gone(killed_at)
