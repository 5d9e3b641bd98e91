"""When a client is told to have less under way: `Reply.pressed`."""

from __future__ import annotations

import pytest

from tests.support.fleet import Sim, pool

# One worker with four slots and nothing beside; a queue of 40.
SLOTS, QUEUE = 4, 40


@pytest.fixture
def sim() -> Sim:
    return Sim(pool(slots=SLOTS, prefetch=0, max_queue=QUEUE))


def pressed(sim: Sim, request_id: int) -> bool:
    """Return whether the answer to a running request says so."""
    sim.reply(request_id)
    return sim.replies[request_id].pressed


def test_a_client_alone_is_pressed_when_the_queue_is_more_than_half_full(sim: Sim) -> None:
    requests = [sim.submit() for _ in range(SLOTS + QUEUE // 2)]
    assert not pressed(sim, requests[0])
    sim.submit()
    sim.submit()
    assert pressed(sim, requests[1])


def test_who_waits_for_anothers_outcome_fills_no_queue(sim: Sim) -> None:
    first = sim.submit("pay", idempotency_key="k")
    followers = [sim.submit("pay", idempotency_key="k") for _ in range(10 * QUEUE)]
    assert not pressed(sim, first)
    assert not any(sim.replies[request_id].pressed for request_id in followers)
    refused = Sim(pool(slots=1, prefetch=0, max_queue=1, heartbeat_limit_s=1e6))
    for _ in range(500):
        refused.submit("pay", idempotency_key="k")
    refused.submit()
    assert refused.error(refused.submit()).details["retry_after_s"] < 0.1


def test_of_several_clients_the_one_with_more_than_its_share_is_pressed(sim: Sim) -> None:
    modest = sim.connect(2)
    greedy = [sim.submit() for _ in range(QUEUE // 2 + 1)]
    small = [sim.submit(peer=modest) for _ in range(2)]
    assert sim.tables.sharers == 2
    assert pressed(sim, greedy[0])
    assert not pressed(sim, greedy[1])  # since it was told it has had its share, no more
    for request_id in greedy[2:]:
        sim.reply(request_id)
    assert not pressed(sim, small[0])


def test_what_a_client_had_at_once_counts_not_what_is_left_of_it(sim: Sim) -> None:
    other = sim.connect(2)
    requests = [sim.submit() for _ in range(QUEUE // 2 + 2)]
    for request_id in requests[:-SLOTS]:
        sim.reply(request_id)
    sim.submit(peer=other)
    assert pressed(sim, requests[-SLOTS])


def test_where_slots_are_free_nobody_is_held_back_for_others(sim: Sim) -> None:
    other = sim.connect(2)
    sim.submit(peer=other)
    requests = [sim.submit() for _ in range(QUEUE // 2 + 2)]
    sim.tables.clients[sim.client].peak = QUEUE
    for request_id in requests[:-1]:
        sim.reply(request_id)
    sim.tables.clients[sim.client].peak = QUEUE
    assert not pressed(sim, requests[-1])


def test_who_asks_for_nothing_has_no_share_after_two_seconds(sim: Sim) -> None:
    other = sim.connect(2)
    sim.reply(sim.submit(peer=other))
    sim.reply(sim.submit())
    assert sim.tables.sharers == 2
    for left in (2, 1):
        sim.run_until(sim.now + 1.0)
        assert sim.tables.sharers == left
        sim.reply(sim.submit())
    requests = [sim.submit() for _ in range(SLOTS + QUEUE // 2)]
    assert not pressed(sim, requests[0])
