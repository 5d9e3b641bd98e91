"""Circuit breakers and fallbacks around real workers that die and hang."""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest

from orchestrator import Client, Orchestrator, errors
from tests.support.acceptance import SOON_S
from tests.support.waiting import wait_until

MIN_CALLS, OPEN_S = 4, 1.0
REFUSED_S = 0.1
LONG = {"seconds": 60.0}
# No two of these requests are alike: what is to be found out is not whether one of them is poison.
CODES = itertools.count(1)


@pytest.fixture(scope="module")
def orchestrator() -> Iterator[Orchestrator]:
    breaker = {"window": 10, "min_calls": MIN_CALLS, "failure_rate": 0.5, "open_s": OPEN_S}
    frail = {"size": 1, "slots": 1, "grace_s": 0.05, "breaker": breaker}
    fallback = {"pool": "general", "operations": {"fault.exit": "echo"}}
    pools = {
        "general": {"size": 1},
        "optimizer": {"size": 0},
        "neural": {"size": 0},
        "frail": frail,
        "stuck": frail,
        "backed": {**frail, "breaker": {**breaker, "min_calls": 2, "open_s": 60.0}, "fallback": fallback},
        "empty": {"size": 0, "fallback": "general"},
    }
    with Orchestrator(pools=pools, faults=True, limits={"poison_deaths": 0}) as orchestrator:
        yield orchestrator


@pytest.fixture
def client(orchestrator: Orchestrator) -> Iterator[Client]:
    with orchestrator.client() as client:
        yield client


def lose_worker(client: Client, pool: str = "frail") -> None:
    with pytest.raises(errors.WorkerLost):
        client.execute("fault.exit", {"code": next(CODES)}, pool=pool)


def breaker(client: Client, operation: str, pool: str = "frail") -> dict[str, Any]:
    """Return the row of an operation's breaker, empty without one."""
    [found] = [row for row in client.pools() if row["pool"] == pool]
    return next((row for row in found["breakers"] if row["operation"] == operation), {})


def await_state(client: Client, operation: str, pool: str, state: str) -> None:
    wait_until(lambda: breaker(client, operation, pool).get("state") == state, SOON_S, f"{operation} is {state}")


def refused(client: Client, operation: str, args: Any, pool: str = "frail") -> errors.CircuitOpen:
    """Return the refusal of a call, which comes at once."""
    took_s = []
    for _ in range(3):  # the machine may be busy once
        began = time.monotonic()
        with pytest.raises(errors.CircuitOpen) as caught:
            client.execute(operation, args, pool=pool)
        took_s.append(time.monotonic() - began)
    assert min(took_s) <= REFUSED_S
    assert caught.value.retryable
    assert caught.value.retry_after_s is not None
    assert 0 < caught.value.retry_after_s <= OPEN_S
    return caught.value


def test_a_users_errors_never_open_it(client: Client) -> None:
    for n in range(3 * MIN_CALLS):
        with pytest.raises(errors.RemoteError):
            client.execute("fault.raise", {"message": str(n)}, pool="frail")
    assert client.stats()["pools"]["frail"]["breaker"] == "closed"
    assert breaker(client, "")["failures"] == 0


def test_it_opens_after_so_many_deaths_half_opens_and_closes(client: Client) -> None:
    for n in range(MIN_CALLS):
        assert client.stats()["pools"]["frail"]["breaker"] == "closed", n
        before = time.monotonic()  # the last of these opens it
        lose_worker(client)
    row = breaker(client, "fault.exit")
    assert (row["state"], row["failures"], row["outcomes"], row["opens"]) == ("open", MIN_CALLS, MIN_CALLS, 1)
    assert "fault.exit in pool frail" in str(refused(client, "fault.exit", {"code": next(CODES)}))
    assert client.execute("echo", 1, pool="frail") == 1  # it fails alone
    await_state(client, "fault.exit", "frail", "half_open")
    assert time.monotonic() >= before + OPEN_S
    lose_worker(client)  # a probe that fails
    assert breaker(client, "fault.exit")["opens"] == 2
    refused(client, "fault.exit", {"code": next(CODES)})
    await_state(client, "fault.exit", "frail", "half_open")
    with pytest.raises(errors.InvalidRequest):
        client.execute("fault.exit", {"code": 999}, pool="frail")  # a worker answered
    assert client.stats()["pools"]["frail"]["breaker"] == "closed"
    lose_worker(client)
    assert breaker(client, "fault.exit")["failures"] == 1  # what was before is forgotten


def test_a_probe_that_is_killed_frees_its_slot(client: Client) -> None:
    for _ in range(MIN_CALLS):
        client.execute("sleep", {"seconds": 0}, pool="stuck")  # a worker that has hung is gone
        with pytest.raises(errors.DeadlineExceeded):
            client.execute("fault.hang", {"seconds": 60.0 + next(CODES)}, pool="stuck", deadline_s=0.25)
    # A caller's own deadline proves nothing; that the worker had to be killed does, a grace later.
    wait_until(lambda: breaker(client, "fault.hang", "stuck").get("opens") == 1, SOON_S, "fault.hang is open")
    await_state(client, "fault.hang", "stuck", "half_open")
    worker = client.ping("stuck")["pid"]
    probe = client.submit("fault.hang", LONG, pool="stuck")
    refused(client, "fault.hang", LONG, "stuck")
    os.kill(worker, signal.SIGKILL)
    assert isinstance(probe.exception(SOON_S), errors.WorkerLost)
    await_state(client, "fault.hang", "stuck", "half_open")
    assert client.execute("fault.hang", {"seconds": 0.001}, pool="stuck")
    assert breaker(client, "fault.hang", "stuck") == {}


def test_a_fallback_runs_what_is_refused_and_says_so(client: Client) -> None:
    lose_worker(client, "backed")
    lose_worker(client, "backed")
    future = client.submit("fault.exit", {"code": next(CODES)}, pool="backed")
    assert future.result(SOON_S)["code"] > 0
    assert future.meta is not None
    assert (future.meta.pool, future.meta.fallback_used) == ("general", True)
    beside = client.submit("echo", 1, pool="backed")
    assert beside.result(SOON_S) == 1
    assert beside.meta is not None
    assert (beside.meta.pool, beside.meta.fallback_used) == ("backed", False)


def test_a_pool_without_workers_falls_back(client: Client) -> None:
    future = client.submit("echo", 1, pool="empty")
    assert future.result(SOON_S) == 1
    assert future.meta is not None
    assert (future.meta.pool, future.meta.fallback_used) == ("general", True)
