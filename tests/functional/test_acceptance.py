"""What users are promised of calls, through the public client, on a real coordinator with its defaults."""

from __future__ import annotations

import concurrent.futures
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator import Client, Orchestrator, errors
from orchestrator.client.future import Future
from tests.support.acceptance import (
    LISTENER,
    MARKER,
    ROOT,
    SOON_S,
    Script,
    await_full,
    await_under_way,
    mark,
    marks,
    pools,
    under_way,
)
from tests.support.waiting import wait_until

CLIENTS, ECHOES = 4, 5000


@pytest.fixture(scope="module")
def orc() -> Iterator[Orchestrator]:
    # Beside other tests the processors may be in use for so long that less is let in; that is not looked at here.
    settings: dict[str, Any] = {"degradation": None}
    with Orchestrator(pools=pools({"size": 2, "grace_s": 0.2}, 1), faults=True, **settings) as orchestrator:
        yield orchestrator


@pytest.fixture
def client(orc: Orchestrator) -> Iterator[Client]:
    with orc.client() as client:
        yield client
    with orc.client() as afterwards:
        wait_until(lambda: under_way(afterwards) == 0, SOON_S, "the end of what the test began")
        await_full(afterwards, "general")


# --- every reply is its own -------------------------------------------------------------------------


@pytest.mark.parametrize("window", [100, 0], ids=["a window of futures", "all sent before the first is read"])
def test_of_four_processes_with_5000_echoes_each_every_reply_is_its_own(
    orc: Orchestrator, client: Client, window: int
) -> None:
    before = client.stats()["requests"]
    code = "from tests.support.echo_client import main; main()"
    scripts = [Script(code, orc.endpoint, str(name), str(ECHOES), str(window)) for name in range(CLIENTS)]
    try:
        assert [script.said() for script in scripts] == ["ready"] * CLIENTS
        for script in scripts:
            script.tell()
        found = [script.said() for script in scripts]
    finally:
        for script in scripts:
            script.__exit__()
    assert found == [{"own": ECHOES, "foreign": 0, "errors": {}}] * CLIENTS
    after = client.stats()["requests"]
    assert after["accepted"] - before["accepted"] == CLIENTS * ECHOES
    assert after["rejected"] == before["rejected"]


def test_eight_threads_share_a_client_and_every_reply_is_its_own(client: Client) -> None:
    wrong: list[Any] = []

    def work(place: int) -> None:
        for number in range(500):
            if (found := client.execute("echo", [place, number])) != [place, number]:
                wrong.append((place, number, found))

    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        for done in [threads.submit(work, place) for place in range(8)]:
            done.result(SOON_S)
    assert wrong == []


# --- futures ----------------------------------------------------------------------------------------


def test_the_functions_of_concurrent_futures_take_ours(client: Client) -> None:
    echoes = [client.submit("echo", number) for number in range(200)]
    assert {future.result(0) for future in concurrent.futures.as_completed(echoes, SOON_S)} == set(range(200))
    slow, quick = client.submit("sleep", {"seconds": 1.0}), client.submit("echo", "q")
    first = concurrent.futures.wait([slow, quick], SOON_S, return_when=concurrent.futures.FIRST_COMPLETED)
    assert first == ({quick}, {slow})
    failing = client.submit("fault.raise", {"message": "no"})
    first = concurrent.futures.wait([slow, failing], SOON_S, return_when=concurrent.futures.FIRST_EXCEPTION)
    assert first.done == {failing}
    assert concurrent.futures.wait([slow, failing], SOON_S).not_done == set()


def test_a_callback_is_called_once_also_when_it_comes_late(client: Client) -> None:
    called: list[Any] = []
    done = threading.Event()

    def note(future: concurrent.futures.Future[Any]) -> None:
        called.append(future.result(0))
        done.set()

    future = client.submit("echo", 1)
    future.add_done_callback(note)
    assert done.wait(SOON_S)
    future.add_done_callback(note)
    assert called == [1, 1]


def test_a_timeout_leaves_the_request_to_go_on(client: Client) -> None:
    future = client.submit("sleep", {"seconds": 0.3})
    for ask in (future.result, future.exception):
        with pytest.raises(TimeoutError):
            ask(0.02)
    assert not future.done()
    assert future.meta is None
    assert future.result(SOON_S) == {"seconds": 0.3}


def test_meta_tells_who_executed_it_and_how_long_it_took(client: Client) -> None:
    future = client.submit("sleep", {"seconds": 0.1})
    future.result(SOON_S)
    meta = future.meta
    assert meta is not None
    assert (meta.request_id, meta.pool, meta.attempt) == (future.request_id, "general", 1)
    assert meta.worker in {row["id"] for row in client.workers()}
    assert 100.0 <= meta.run_ms <= meta.total_ms < 5000.0
    assert 0.0 <= meta.queue_ms <= meta.total_ms - meta.run_ms + 1.0


def test_an_error_has_its_type_and_its_meta(client: Client) -> None:
    future = client.submit("fault.raise", {"message": "the reason"})
    with pytest.raises(errors.RemoteError, match="the reason") as caught:
        future.result(SOON_S)
    assert caught.value.type == "RuntimeError"
    assert "in _raise" in caught.value.remote_traceback
    assert future.meta is not None
    assert future.meta.pool == "general"


# --- cancellation -----------------------------------------------------------------------------------


def test_queued_work_is_cancelled_and_never_runs(client: Client, tmp_path: Path) -> None:
    client.deploy("marker", MARKER)
    evidence = tmp_path / "marks"
    # The optimizer pool has one slot: the first runs, two more stand by in the worker, the rest is queued.
    futures = [client.submit("marker", mark(evidence, number, 0.5), pool="optimizer") for number in range(10)]
    wait_until(lambda: marks(evidence) == [0], SOON_S, "the first one's start")
    outcomes = [future.cancel().outcome(SOON_S) for future in futures[1:]]
    assert {(outcome.stage, outcome.how, bool(outcome)) for outcome in outcomes} == {("queued", "dequeued", True)}
    assert all(future.cancelled() for future in futures[1:])
    assert futures[0].result(SOON_S).number == 0
    assert client.execute("marker", mark(evidence, 10), pool="optimizer").number == 10
    assert marks(evidence) == [0, 10]


def started(client: Client, target: str, evidence: Path, seconds: float) -> Future:
    """Return the future of a program that has begun to run."""
    client.deploy("started", target)
    future = client.submit("started", mark(evidence, 1, seconds))
    wait_until(lambda: marks(evidence) == [1], SOON_S, "the call's start")
    return future


def test_running_work_is_asked_to_stop_and_stops(client: Client, tmp_path: Path) -> None:
    future = started(client, LISTENER, tmp_path / "marks", 60.0)
    began = time.monotonic()
    outcome = future.cancel().outcome(SOON_S)
    assert (outcome.stage, outcome.how, bool(outcome)) == ("running", "cooperative", True)
    with pytest.raises(errors.Cancelled):
        future.result(SOON_S)
    assert future.cancelled()
    assert time.monotonic() - began < 5.0


def test_work_that_does_not_listen_goes_on_and_cancel_does_not_wait(client: Client, tmp_path: Path) -> None:
    future = started(client, MARKER, tmp_path / "marks", 0.8)
    began = time.monotonic()
    asked = future.cancel()
    assert not asked
    assert time.monotonic() - began < 0.5
    with pytest.raises(TimeoutError):
        asked.outcome(0.05)
    outcome = asked.outcome(SOON_S)
    assert (outcome.how == "cooperative") == future.cancelled()
    assert (outcome.how == "none") == (future.exception(0) is None)


def test_a_forced_cancellation_kills_the_worker_and_the_pool_is_full_again(client: Client, tmp_path: Path) -> None:
    future = started(client, MARKER, tmp_path / "marks", 60.0)
    outcome = future.cancel(force=True).outcome(SOON_S)
    assert (outcome.stage, outcome.how, bool(outcome)) == ("running", "killed", True)
    with pytest.raises(errors.Cancelled):
        future.result(SOON_S)
    await_full(client, "general")
    assert client.execute("echo", 1) == 1


def test_what_has_finished_is_not_cancelled(client: Client) -> None:
    future = client.submit("echo", 1)
    assert future.result(SOON_S) == 1
    outcome = future.cancel(force=True)
    assert (outcome.stage, outcome.how, bool(outcome)) == ("finished", "none", False)
    assert future.result(0) == 1


def test_close_fails_what_is_unanswered_with_cancelled(orc: Orchestrator, client: Client) -> None:
    other = orc.client()
    held = [other.submit("sleep", {"seconds": 60.0}) for _ in range(40)]
    await_under_way(client, 40)
    other.close()
    assert {type(future.exception(0)) for future in held} == {errors.Cancelled}
    with pytest.raises(errors.Cancelled):
        other.execute("echo", 1)
    wait_until(lambda: under_way(client) == 0, SOON_S, "the end of what nobody waits for")


_FORK = """
import os, sys
from orchestrator import connect, errors
client = connect(sys.argv[1])
future = client.submit("sleep", {"seconds": 0.3})
pid = os.fork()
if pid == 0:
    refused = 0
    for use in (lambda: client.execute("echo", 1), lambda: client.submit("echo", 1), lambda: future.result(1)):
        try:
            use()
        except errors.DspoolError:
            refused += 1
    client.close()
    with connect(sys.argv[1]) as own:
        os._exit(refused if own.execute("echo", 4) == 4 else 9)
code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
print([code, future.result(10)["seconds"], client.execute("echo", 5)], flush=True)
"""


def test_a_fork_is_refused_the_parents_client_and_may_have_its_own(orc: Orchestrator, client: Client) -> None:
    with Script(_FORK, orc.endpoint) as script:
        assert script.said() == [3, 0.3, 5]


# --- books ------------------------------------------------------------------------------------------


def test_under_load_accepted_is_always_settled_queued_and_in_flight(orc: Orchestrator, client: Client) -> None:
    seen: list[dict[str, int]] = []
    over = threading.Event()
    before = client.stats()["requests"]

    def watch() -> None:
        with orc.client() as watcher:
            while not over.is_set():
                seen.append(watcher.stats()["requests"])

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        mixed = [client.submit("fault.raise") for _ in range(50)]
        mixed += [client.submit("sleep", {"seconds": 0.01 * number}) for number in range(30)]
        mixed += [client.submit("sleep", {"seconds": 60.0}, deadline_s=0.2) for _ in range(20)]
        cancelled = [client.submit("sleep", {"seconds": 60.0}) for _ in range(50)]
        seen.append(client.stats()["requests"])  # more is accepted than the workers hold
        for future in cancelled:
            future.cancel()
        mixed += [client.submit("echo", number) for number in range(1000)]
        rows = list(client.map("echo", range(1000)))
        concurrent.futures.wait([*mixed, *cancelled], SOON_S)
    finally:
        over.set()
        thread.join(SOON_S)
        assert not thread.is_alive()
    assert rows == list(range(1000))
    wrong = [row for row in seen if row["accepted"] != row["settled"] + row["queued"] + row["in_flight"]]
    assert wrong == []
    assert len(seen) >= 10
    assert any(row["queued"] and row["in_flight"] for row in seen)
    seen.append(client.stats()["requests"])
    assert (seen[-1]["queued"], seen[-1]["in_flight"]) == (0, 0)
    assert seen[-1]["accepted"] - before["accepted"] == len(mixed) + len(cancelled) + len(rows)
    assert seen[-1]["cancelled"] - before["cancelled"] == len(cancelled)


def test_stats_tell_of_every_pool(client: Client) -> None:
    client.execute("echo", 1)
    stats = client.stats()
    assert set(stats["pools"]) == {"general", "optimizer", "neural"}
    general = stats["pools"]["general"]
    assert (general["size"], general["ready"], general["busy"], general["queued"]) == (2, 2, 0, 0)
    assert general["completed"] > 0
    assert 0.0 < general["p50_ms"] <= general["p99_ms"]
    assert stats["uptime_s"] > 0.0
    assert set(stats["wire"]) >= {"malformed", "muted_peers", "dropped"}


def test_importing_orchestrator_loads_nothing_heavy() -> None:
    code = (
        "import json, sys; from orchestrator import AsyncClient, Client, Orchestrator, connect, errors; "
        "print(json.dumps([m for m in ('dspy', 'pydantic', 'numpy', 'typer', 'yaml', 'rich') if m in sys.modules]))"
    )
    with Script(code, PYTHONPATH=str(ROOT)) as script:
        assert script.said() == []


def test_a_default_fleet_is_ready_in_time() -> None:
    began = time.monotonic()
    with Orchestrator() as orchestrator, orchestrator.client() as client:
        assert time.monotonic() - began < 20.0
        ready = {name: pool["ready"] for name, pool in client.stats()["pools"].items()}
        assert ready == {row["pool"]: row["size"] for row in client.pools()}
        assert min(ready.values()) >= 1
