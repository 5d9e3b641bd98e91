"""SIGKILL to one process after another, in every order of two: whoever is left knows, and nothing is left over."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from orchestrator import Client, connect, errors
from orchestrator.processes import descendants
from orchestrator.rundir import process_ticks
from tests.support.acceptance import GONE_S, SOON_S, SPAWNER, Family, Script, pools, under_way
from tests.support.waiting import wait_until

MORTALS = ("client", "worker", "zygote", "nanny", "coordinator", "owner")
ACCEPTED, SLOTS = 20, 8
# Pairs are slow: thirty of them take a minute.
ORDERS = [*((one,) for one in MORTALS), *itertools.permutations(MORTALS, 2)]
READY = ("ready", "busy")
FATAL = {"coordinator", "owner"}  # nothing of the fleet outlives these


def _orders(*, fatal: bool) -> list[Any]:
    chosen = [order for order in ORDERS if bool(FATAL & set(order)) == fatal]
    slow = pytest.mark.slow
    return [pytest.param(one, id="-".join(one), marks=[slow] if len(one) > 1 else []) for one in chosen]


_OWNER = """
import json, sys, time
from orchestrator import Orchestrator
orc = Orchestrator(**json.loads(sys.argv[1])).start()
print(json.dumps([orc.pid, orc.endpoint]), flush=True)
time.sleep(600)
"""
# Has work running and work queued, and says how it ended.
_CLIENT = """
import json, sys
from orchestrator import connect
client = connect(sys.argv[1])
sys.stdin.readline()
futures = [client.submit("sleep", {"seconds": 600.0}, deadline_s=600.0) for _ in range(20)]
print(json.dumps(client.stats()["requests"]["accepted"]), flush=True)
print(json.dumps(sorted({type(future.exception(60)).__name__ for future in futures})), flush=True)
sys.stdin.readline()
client.close()
"""


@dataclass(frozen=True)
class House:
    """Everybody who can die, at work."""

    owner: Script
    coordinator: int
    endpoint: str

    def below(self, word: str) -> list[int]:
        """Return the processes below the coordinator in whose command line a word stands."""
        return [each.pid for each in descendants(self.coordinator) if word in each.command]

    def pid(self, who: str, visitor: Script, worker: int) -> int:
        """Return the process that plays this part."""
        match who:
            case "client":
                return visitor.process.pid
            case "worker":
                return worker
            case "nanny":
                return self.below("nanny.py")[0]
            case "zygote":
                return self.below("of-run-")[0]
            case "coordinator":
                return self.coordinator
            case _:
                return self.owner.process.pid


@contextmanager
def a_house(folder: Path) -> Iterator[House]:
    """Give a coordinator with one worker and an owner; the folder outlives them all."""
    general = {"size": 1, "restart": {"max_restarts": 1000}, "breaker": None, "heartbeat_interval_s": 0.1}
    settings: dict[str, Any] = {"pools": pools(general), "run_dir": str(folder / "r")}
    settings["limits"] = {"poison_deaths": 0}  # the calls that are under way at each death are alike
    with Script(_OWNER, json.dumps({**settings, "data_dir": str(folder / "d")}), TMPDIR=str(folder)) as owner:
        pid, endpoint = owner.said()
        try:
            yield House(owner, pid, endpoint)
        finally:
            family = Family([pid]) if process_ticks(pid) is not None else None
            owner.process.kill()
            if family is not None:
                family.assert_gone(time.monotonic())


@pytest.fixture(scope="module")
def lasting_house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """One that outlives the deaths of clients, workers and nannies."""
    with a_house(tmp_path_factory.mktemp("h")) as house:
        yield house


def kill_in_order(house: House, order: tuple[str, ...], visitor: Script, worker: int) -> float:
    """Kill them, as fast as it goes; return when the first one was."""
    pids = [house.pid(who, visitor, worker) for who in order]
    killed_at = time.monotonic()
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):  # the first one's death was its own
            os.kill(pid, signal.SIGKILL)
    return killed_at


def a_grandchild(client: Client) -> int:
    """Return a process in a session of its own below the worker."""
    client.deploy("spawner", SPAWNER)
    return int(client.execute("spawner", {"seconds": 600.0}).pid)


def next_worker(witness: Client, last: int) -> int:
    """Return the pid of the worker that came after `last`; 0 while there is none."""
    return next((row["pid"] for row in witness.workers() if row["state"] in READY and row["pid"] != last), 0)


@pytest.mark.parametrize("order", _orders(fatal=False))
def test_what_the_coordinator_outlives_it_makes_good(lasting_house: House, order: tuple[str, ...]) -> None:
    house = lasting_house
    with connect(house.endpoint) as witness, Script(_CLIENT, house.endpoint) as visitor:
        worker = witness.ping(deadline_s=SOON_S)["pid"]
        if not house.below("of-run-"):  # one that died young is replaced when it is needed
            os.kill(worker, signal.SIGKILL)
            worker = wait_until(lambda: next_worker(witness, worker), SOON_S, "a zygote and its worker")
        grandchild = Family([a_grandchild(witness)])
        visitor.tell()
        visitor.said()
        wait_until(lambda: len(witness.workers()[0]["running"]) == SLOTS, SOON_S, "a full worker")
        killed_at = kill_in_order(house, order, visitor, worker)
        lost = bool(set(order) & {"worker", "nanny"})
        if lost:
            grandchild.assert_gone(killed_at)
            wait_until(lambda: next_worker(witness, worker), SOON_S, "the next worker")
        else:
            assert grandchild.alive()
            assert witness.workers()[0]["pid"] == worker
        if "client" not in order:
            # What ran is lost; what had not started is with the next worker, until its client goes too.
            left = ACCEPTED - SLOTS if lost else ACCEPTED
            wait_until(lambda: under_way(witness) == left, SOON_S, "the end of what ran, and of nothing else")
            visitor.process.kill()
        wait_until(lambda: under_way(witness) == 0, SOON_S, "the end of what a dead client had asked for")
        assert witness.ping(deadline_s=SOON_S)["pong"]
        requests = witness.stats()["requests"]
        assert requests["accepted"] == requests["settled"]
        assert process_ticks(house.coordinator) is not None


@pytest.mark.parametrize("order", _orders(fatal=True))
def test_nothing_outlives_a_coordinator_or_its_owner(order: tuple[str, ...], run_dirs: Callable[[], Path]) -> None:
    with a_house(run_dirs()) as house, connect(house.endpoint) as witness:
        grandchild = psutil.Process(a_grandchild(witness))
        with Script(_CLIENT, house.endpoint) as visitor:
            visitor.tell()
            visitor.said()
            held = witness.submit("sleep", {"seconds": 600.0}, deadline_s=600.0)
            family = Family.of(house.coordinator)
            assert grandchild.pid in family
            killed_at = kill_in_order(house, order, visitor, witness.workers()[0]["pid"])
            error = held.exception(SOON_S)
            assert time.monotonic() - killed_at <= GONE_S
            assert isinstance(error, errors.Unavailable | errors.WorkerLost), error
            if {"nanny", "coordinator"} <= set(order):
                # Both at once leave nobody who could: what has left its worker's session is nobody's.
                grandchild.kill()
            family.assert_gone(killed_at)
            if "client" not in order:
                told = set(visitor.said())
                assert told <= {"Unavailable", "WorkerLost"}, told
                visitor.tell()
                assert visitor.process.wait(SOON_S) == 0
