"""The goals of docs/reliability.md that are figures. `scripts/kills` measures G2 and G4 over more kills."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from bridge.protocol.messages import Reply
from tests.support.coordinator import CoordinatorProcess, WireClient, code_of, gone, value_of
from tests.support.kills import LIMITS, TOLD_S, CoordinatorKill, WorkerKill, kill_coordinators, kill_workers
from tests.support.waiting import wait_until

WORKER_KILLS = 10
# G11: with the budget of a SIGTERM that nobody shortened.
DRAIN_S, EXIT_S, AT_ONCE_S = 30.0, 35.0, 1.0


@pytest.mark.timeout(300)
@pytest.mark.parametrize("times", [4, pytest.param(10, marks=pytest.mark.slow)])
def test_g4_a_killed_coordinator_leaves_nobody_and_the_next_one_serves(times: int) -> None:
    kills = list(kill_coordinators(times, seed=4))
    assert len(kills) == times
    for kill in kills:
        assert kill.left == 0, kill
        assert kill.told_s <= TOLD_S[CoordinatorKill], kill
        assert kill.serves_s <= LIMITS["serves_s"], kill


def test_g2_the_caller_of_a_killed_worker_is_told_and_the_pool_answers_again() -> None:
    kills = list(kill_workers(WORKER_KILLS))
    assert len(kills) == WORKER_KILLS
    for kill in kills:
        assert kill.told_s <= TOLD_S[WorkerKill], kill
        assert kill.back_s <= LIMITS["back_s"], kill


def at_work(process: CoordinatorProcess, client: WireClient) -> dict[str, list[int]]:
    """Give a coordinator's one worker work of every kind; return the requests by what they are."""
    asked: dict[str, list[int]] = {
        "short": [client.request("sleep", {"seconds": 0.5}) for _ in range(2)],
        "deaf": [client.request("fault.hang", {"seconds": 600.0}, deadline_ms=600_000.0) for _ in range(2)],
        "long": [client.request("sleep", {"seconds": 600.0}, deadline_ms=600_000.0) for _ in range(4)],
    }
    asked["queued"] = [client.request("sleep", {"seconds": 600.0}, deadline_ms=600_000.0) for _ in range(12)]

    def busy() -> bool:
        requests = client.call("dspool.stats")["requests"]
        return bool(requests["in_flight"] >= 8 and requests["queued"])

    wait_until(busy, 10.0, "work of every kind")
    return asked


def outcomes(client: WireClient, asked: dict[str, list[int]], timeout_s: float) -> dict[str, list[Any]]:
    """Wait for the outcome of everything that was asked for."""
    kinds = {request_id: kind for kind, ids in asked.items() for request_id in ids}
    found: dict[str, list[Any]] = {kind: [] for kind in asked}
    for _ in range(len(kinds)):
        reply = client.expect(Reply, timeout_s)
        found[kinds.pop(reply.request_id)].append(value_of(reply))  # each once
    return found


@pytest.mark.parametrize("drain_s", [1.0, pytest.param(DRAIN_S, marks=pytest.mark.slow)])
def test_g11_sigterm_with_work_under_way_exits_0_in_time(drain_s: float, run_dirs: Callable[[], Any]) -> None:
    with CoordinatorProcess(run_dirs(), faults=True, drain_s=drain_s) as process:
        process.next_report()
        with WireClient(process.endpoint) as client:
            asked, below = at_work(process, client), process.descendants()
            began = time.monotonic()
            process.process.send_signal(signal.SIGTERM)
            found = outcomes(client, asked, EXIT_S)
            assert process.process.wait(EXIT_S) == 0
            took_s = time.monotonic() - began
        assert drain_s <= took_s <= drain_s + (EXIT_S - DRAIN_S)
        assert found["short"] == [{"seconds": 0.5}] * 2
        assert {code_of(each) for kind in ("deaf", "long", "queued") for each in found[kind]} == {"CANCELLED"}
        gone(below)
        assert not list(process.run_dir.iterdir())
        print(f"SIGTERM with a drain of {drain_s:g} s: exit 0 after {took_s:.2f} s")


def test_g11_a_second_sigterm_exits_0_at_once(run_dirs: Callable[[], Any]) -> None:
    with CoordinatorProcess(run_dirs(), faults=True, drain_s=DRAIN_S) as process:
        process.next_report()
        with WireClient(process.endpoint) as client:
            at_work(process, client)
            below = process.descendants()
            process.process.send_signal(signal.SIGTERM)
            # One that is still accepted waits behind all the others.
            wait_until(
                lambda: code_of(client.call("echo", 1, deadline_ms=50.0)) == "UNAVAILABLE", 5.0, "the end of intake"
            )
            began = time.monotonic()
            process.process.send_signal(signal.SIGTERM)
            assert process.process.wait(AT_ONCE_S) == 0
            print(f"a second SIGTERM: exit 0 after {time.monotonic() - began:.3f} s")
        gone(below)
