from __future__ import annotations

from typing import Any

import pytest

from bridge.protocol import messages as wire
from bridge.protocol.messages import PRIORITY_HIGH, PRIORITY_LOW, PRIORITY_NORMAL
from pools.config import DegradationConfig
from pools.core.events import CpuRead
from tests.support.fleet import Sim, pool


def crowded(max_queue: int = 6, **fields: Any) -> tuple[Sim, bytes, bytes]:
    """Return a fleet whose worker is busy and whose queue is full of one principal's requests; and two more clients."""
    sim = Sim(pool(slots=1, prefetch=0, max_queue=max_queue))
    second, third = sim.connect(2, "second"), sim.connect(3, "third")
    for _ in range(1 + max_queue):
        sim.submit(**fields)
    return sim, second, third


# --- the limit of a principal ----------------------------------------------------------------------------------


def test_the_clients_of_a_principal_share_one_limit() -> None:
    sim = Sim(principal_rows=10)
    other, stranger = sim.connect(2), sim.connect(3, "stranger")
    for _ in range(4):
        sim.submit()
        sim.submit(peer=other)
    last = [sim.submit(peer=other), sim.submit(peer=other)]  # more than half, and within the limit
    refused = sim.submit()
    error = sim.error(refused)
    assert error.code == "OVERLOADED"
    assert "'default' together have 10 rows in flight (limit 10)" in error.message
    assert error.details["retry_after_s"] > 0
    assert sim.submit(peer=stranger) in sim.tables.requests
    for request_id in last:
        sim.cancel(request_id, peer=other)
    assert sim.submit() in sim.tables.requests


def test_a_client_that_leaves_leaves_its_part_to_the_others() -> None:
    sim = Sim(principal_rows=10)
    other = sim.connect(2)
    for _ in range(8):
        sim.submit(peer=other)
    sim.handle(wire.Bye(), other)
    running = len(sim.process().attempts)  # until they have ended
    for _ in range(10 - running):
        assert sim.submit() in sim.tables.requests
    assert sim.error(sim.submit()).code == "OVERLOADED"


def test_a_message_larger_than_the_limit_is_under_way_alone() -> None:
    sim = Sim(principal_rows=4)
    large = sim.submit(rows=6)
    assert large in sim.tables.requests
    assert sim.error(sim.submit()).code == "OVERLOADED"


def test_a_principal_is_forgotten_with_its_last_client() -> None:
    sim = Sim()
    peers = [sim.connect(number, f"principal {number % 3}") for number in range(2, 8)]
    assert len(sim.tables.accounts) == 4
    for peer in peers:
        sim.handle(wire.Bye(), peer)
    assert list(sim.tables.accounts) == ["default"]


# --- a full queue ------------------------------------------------------------------------------------------------


def test_who_has_less_than_its_part_takes_the_place_of_the_greediest() -> None:
    sim, second, _ = crowded()
    newest = sim.queued()[-1]
    admitted = sim.submit(peer=second)
    assert admitted in sim.queued()
    error = sim.error(newest)
    assert error.code == "OVERLOADED"
    assert error.details["retry_after_s"] > 0
    assert sim.pool().shed == 1
    assert sim.pool().queued == 6


def test_a_full_queue_ends_up_in_equal_parts() -> None:
    sim, second, third = crowded()
    for _ in range(5):
        sim.submit(peer=second)
        sim.submit(peer=third)
    held = {lane.principal: lane.rows for lane in sim.pool().queue.lanes()}
    assert held == {"default": 2, "second": 2, "third": 2}
    assert sim.error(sim.submit(peer=second)).code == "OVERLOADED"
    assert sim.error(sim.submit()).code == "OVERLOADED"


def test_alone_with_a_full_queue_the_newcomer_is_refused() -> None:
    sim, _, _ = crowded()
    before = sim.queued()
    assert sim.error(sim.submit()).code == "OVERLOADED"
    assert sim.queued() == before
    assert (sim.pool().shed, sim.pool().rejected) == (0, 1)


def test_a_higher_class_takes_the_place_of_the_newest_in_the_lowest() -> None:
    sim, _, _ = crowded(priority=PRIORITY_LOW)
    newest = sim.queued()[-2:]
    normal, high = sim.submit(), sim.submit(priority=PRIORITY_HIGH, rows=1)
    assert {sim.error(request_id).code for request_id in newest} == {"OVERLOADED"}
    assert normal in sim.tables.requests
    assert high in sim.tables.requests


def test_a_lower_class_takes_nobodys_place() -> None:
    sim, _, _ = crowded(priority=PRIORITY_HIGH)
    sim.submit(priority=PRIORITY_HIGH)  # one went to the worker beyond its credit
    assert sim.error(sim.submit(priority=PRIORITY_LOW)).code == "OVERLOADED"
    assert sim.pool().shed == 0


def test_who_has_less_than_its_part_takes_no_place_of_a_higher_class() -> None:
    sim, second, _ = crowded(priority=PRIORITY_NORMAL)
    assert sim.error(sim.submit(peer=second, priority=PRIORITY_LOW)).code == "OVERLOADED"
    assert sim.pool().shed == 0
    assert sim.submit(peer=second, priority=PRIORITY_NORMAL) in sim.tables.requests
    assert sim.pool().shed == 1


@pytest.mark.parametrize("priority", [PRIORITY_NORMAL, PRIORITY_LOW])
def test_where_a_mode_leaves_less_room_one_newcomer_takes_one_place(priority: int) -> None:
    sim = Sim(pool(slots=1, prefetch=0, max_queue=100, heartbeat_limit_s=1e6), degradation=DegradationConfig())
    second = sim.connect(2, "second")
    for _ in range(96):
        sim.submit()
    sim.handle(CpuRead(1.0))
    sim.run_until(sim.now + 7.0)
    assert sim.tables.modes.mode == "critical"
    newcomer = sim.submit(peer=second, priority=priority)
    assert (newcomer in sim.tables.requests) == (priority == PRIORITY_NORMAL)
    assert sim.pool().shed == (1 if priority == PRIORITY_NORMAL else 0)
    assert sim.pool().queued == 95


def test_as_many_yield_as_the_newcomer_has_rows() -> None:
    sim, second, _ = crowded(max_queue=8)
    queued = sim.queued()
    assert sim.submit(peer=second, rows=3) in sim.tables.requests
    assert sim.queued()[:5] == queued[:5]
    assert all(sim.error(request_id).code == "OVERLOADED" for request_id in queued[5:])
    assert sim.pool().queued == 8


def test_more_than_its_part_at_once_is_refused() -> None:
    sim, second, _ = crowded(max_queue=8)
    assert sim.error(sim.submit(peer=second, rows=5)).code == "OVERLOADED"
    assert sim.pool().shed == 0


def test_what_a_worker_has_had_yields_to_nobody() -> None:
    sim = Sim(pool(size=2, slots=1, prefetch=1, max_queue=2))
    second = sim.connect(2, "second")
    for _ in range(6):
        sim.submit()
    held = [attempt.request_id for attempt in sim.process("general-2.1").attempts.values()]
    sim.die("general-2.1")
    assert set(held) <= set(sim.queued())  # it had started none of them: they come back
    for request_id in [r for r in sim.queued() if r not in held]:
        sim.cancel(request_id)
    assert set(sim.queued()) == set(held)
    assert sim.error(sim.submit(peer=second)).code == "OVERLOADED"
    assert set(sim.queued()) == set(held)


@pytest.mark.parametrize("rows", [1, 4])
def test_a_queue_that_is_empty_takes_one_message_of_any_size(rows: int) -> None:
    sim = Sim(pool(slots=1, prefetch=0, max_queue=3))
    sim.submit()
    assert sim.submit(rows=rows) in sim.queued()
