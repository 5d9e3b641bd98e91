"""Large payloads through shared memory: there and back, and nothing of them is left by anybody's end."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator import Client, Orchestrator, errors
from orchestrator.rundir import SHARED_BASE
from tests.support.acceptance import ROOT, SOON_S, Script, await_full, pools
from tests.support.waiting import wait_until

pytestmark = pytest.mark.skipif(not os.path.ismount(SHARED_BASE), reason=f"no memory file system at {SHARED_BASE}")
HOLDER = f"{ROOT}/tests/support/programs/holder.py:Holder"
BIG = os.urandom(1 << 20)
ARRAY = np.arange(1 << 17, dtype=np.float64)

# Has large calls under way until it is killed.
_ENDLESS = """
import json, sys
from orchestrator import connect
client = connect(sys.argv[1])
held = {"blob": b"y" * 300_000, "seconds": 3.0, "path": sys.argv[2]}
future = client.submit("holder", held, deadline_s=600.0)
client.execute("echo", b"x" * 300_000)
print(json.dumps(client.connection._sharing._segments._folder), flush=True)
sys.stdin.readline()
"""


@pytest.fixture(scope="module")
def orchestrator() -> Iterator[Orchestrator]:
    with Orchestrator(pools=pools({"size": 1, "grace_s": 0.2, "breaker": None})) as orchestrator:
        with orchestrator.client() as client:
            client.deploy("holder", HOLDER)
        yield orchestrator


@pytest.fixture
def client(orchestrator: Orchestrator) -> Iterator[Client]:
    with orchestrator.client() as client:
        await_full(client, "general")
        yield client


def folder_of(client: Client) -> Path:
    """Return where a client's segments are."""
    segments = client.connection._sharing._segments
    assert segments is not None
    return Path(segments._folder)


def lent(client: Client) -> int:
    """Return how many requests of a client have a segment."""
    return len(client.connection._sharing.lent)


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(ARRAY, id="array"),
        pytest.param({"a": ARRAY, "b": [ARRAY[::2], "text"], "c": (1, {2})}, id="arrays"),
        pytest.param({"blob": BIG}, id="bytes"),
        pytest.param({"text": "ä" * 100_000}, id="text"),
        pytest.param([list(range(1000))] * 100, id="numbers"),
    ],
)
def test_large_values_come_back_as_they_were(client: Client, value: Any) -> None:
    for _ in range(2):  # the second time in a segment that was used
        np.testing.assert_equal(client.execute("echo", value), value)
    assert len(os.listdir(folder_of(client))) == 1
    assert lent(client) == 0
    folder = folder_of(client)
    client.close()
    assert not folder.exists()


def test_who_is_interrupted_while_it_waits_for_room_keeps_nothing_there(client: Client) -> None:
    class Interrupt(BaseException):
        pass

    def interrupt(*_: object) -> None:
        raise Interrupt

    client.execute("echo", ARRAY)
    folder, room = folder_of(client), client.connection._room
    room.rows += client.connection.max_in_flight
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(Interrupt):
            client.submit("echo", {"blob": BIG})
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        room.rows -= client.connection.max_in_flight
    segments = client.connection._sharing._segments
    assert segments is not None
    assert (segments._out, segments._out_bytes) == (set(), 0)
    assert not os.listdir(folder)
    np.testing.assert_array_equal(client.execute("echo", ARRAY), ARRAY)


def test_many_at_once_do_not_meet(client: Client) -> None:
    values = [np.full(20_000, number, dtype=np.int64) for number in range(40)]
    futures = [client.submit("echo", value) for value in values]
    for value, future in zip(values, futures, strict=True):
        np.testing.assert_array_equal(future.result(SOON_S), value)
    np.testing.assert_array_equal(list(client.map("echo", values)), values)


def test_a_large_outcome_of_small_arguments_comes_that_way_from_the_second_one_on(client: Client) -> None:
    texts = [f"text {number}" for number in range(100)]
    first = client.execute("embed", {"texts": texts}, pool="general")
    assert not folder_of(client).exists()
    np.testing.assert_array_equal(client.execute("embed", {"texts": texts}, pool="general"), first)
    assert len(os.listdir(folder_of(client))) == 1
    small = client.execute("embed", {"texts": texts[:1]}, pool="general")
    np.testing.assert_array_equal(small, first[:1])


def held(seconds: float, evidence: Path) -> dict[str, Any]:
    return {"blob": BIG, "seconds": seconds, "path": str(evidence)}


def runs(evidence: Path) -> int:
    """Return how many runs of the holder have begun with all that they were given."""
    lines = evidence.read_text().split() if evidence.exists() else []
    assert set(lines) <= {str(len(BIG))}
    return len(lines)


def test_a_segment_is_not_used_again_after_an_attempt_that_may_still_write(client: Client, tmp_path: Path) -> None:
    evidence = tmp_path / "runs"
    with pytest.raises(errors.DeadlineExceeded):
        client.execute("holder", held(600.0, evidence), deadline_s=0.5)
    assert os.listdir(folder_of(client)) == []
    await_full(client, "general")
    future = client.submit("holder", held(600.0, evidence))
    wait_until(lambda: runs(evidence) == 2, SOON_S, "its run")
    future.cancel(force=True)
    assert isinstance(future.exception(SOON_S), errors.Cancelled)
    assert os.listdir(folder_of(client)) == []


def test_what_runs_again_finds_its_arguments(client: Client, tmp_path: Path) -> None:
    evidence = tmp_path / "runs"
    future = client.submit("holder", held(1.0, evidence), idempotent=True)
    wait_until(lambda: runs(evidence) == 1, SOON_S, "its run")
    os.kill(client.workers()[0]["pid"], signal.SIGKILL)
    assert future.result(SOON_S).bytes == len(BIG)
    assert runs(evidence) == 2
    assert lent(client) == 0


def test_with_a_key_payloads_travel_in_frames_and_are_compared(client: Client) -> None:
    assert client.execute("echo", {"blob": BIG}, idempotency_key="big")["blob"] == BIG
    assert client.execute("echo", {"blob": BIG}, idempotency_key="big")["blob"] == BIG
    with pytest.raises(errors.InvalidRequest, match="with other arguments"):
        client.execute("echo", {"blob": BIG[:-1] + b"?"}, idempotency_key="big")
    assert not folder_of(client).exists()


def test_a_killed_client_leaves_nothing(orchestrator: Orchestrator, tmp_path: Path) -> None:
    with Script(_ENDLESS, orchestrator.endpoint, str(tmp_path / "runs")) as script:
        folder = Path(script.said())
        assert os.listdir(folder)
        script.process.kill()
        wait_until(lambda: not folder.exists(), SOON_S, "the end of its folder")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_that_ends_leaves_nothing(number: signal.Signals) -> None:
    with Orchestrator(pools=pools(1)) as orchestrator, orchestrator.client() as client:
        client.execute("echo", BIG)
        run = folder_of(client).parent
        assert run.stat().st_mode & 0o777 == 0o700
        os.kill(orchestrator.pid, number)
        wait_until(lambda: not run.exists(), SOON_S, "the end of the run's folder")


def test_it_can_be_turned_off() -> None:
    with Orchestrator(pools=pools(1), limits={"shared_bytes": 0}) as orchestrator, orchestrator.client() as client:
        np.testing.assert_array_equal(client.execute("echo", ARRAY), ARRAY)
        assert client.connection._sharing._segments is None


def test_a_request_that_names_no_segment_of_its_own_is_refused(client: Client) -> None:
    connection = client.connection
    place = connection._sharing.place

    def elsewhere(*args: Any, **more: Any) -> Any:
        payload, segment = place(*args, **more)
        assert segment is not None
        segment.name = "../1/1"
        return payload, segment

    connection._sharing.place = elsewhere  # type: ignore[method-assign]
    with pytest.raises(errors.InvalidRequest, match="no name of a shared segment"):
        client.execute("echo", BIG)
