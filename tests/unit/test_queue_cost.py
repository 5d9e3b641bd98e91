"""What a request costs does not depend on how many are queued before it."""

from __future__ import annotations

import time

from bridge.protocol.messages import Request, request_id_base
from pools.config import FleetConfig
from pools.core.events import ClientConnected
from pools.core.fleet import Fleet
from tests.support.fleet import pool

QUEUED, BATCH, ROUNDS = 50_000, 500, 10
# A queue that is copied, or looked through, for each request costs a hundred times as much.
DEARER_AT_MOST = 8.0


def queue_up(fleet: Fleet, first_id: int, count: int) -> float:
    """Queue requests with deadlines; return the seconds that one took."""
    requests = [
        Request(request_id=first_id + number, operation="echo", payload=b"", deadline_ms=60_000.0 + number % 7)
        for number in range(count)
    ]
    began = time.perf_counter()
    for request in requests:
        fleet.handle(request, 1.0, b"peer")
    return (time.perf_counter() - began) / count


def test_queueing_costs_the_same_behind_50000_requests() -> None:
    config = FleetConfig(pools=(pool(max_queue=10 * QUEUED),), client_rows=10 * QUEUED, principal_rows=10 * QUEUED)
    fleet = Fleet(config, lms=frozenset(), random=lambda: 0.5, open_page=lambda _: ())
    fleet.start(1.0)
    fleet.handle(ClientConnected(1, "default"), 1.0, b"peer")
    next_id = request_id_base(1) + 1
    costs: list[list[float]] = []
    for _ in range(2):
        rounds = [queue_up(fleet, next_id + number * BATCH, BATCH) for number in range(ROUNDS)]
        costs.append(sorted(rounds))
        next_id += ROUNDS * BATCH
        queue_up(fleet, next_id, QUEUED)
        next_id += QUEUED
    assert fleet.stats(1.0)["requests"]["queued"] == 2 * (ROUNDS * BATCH + QUEUED)
    empty, full = (rounds[0] for rounds in costs)
    assert full <= DEARER_AT_MOST * empty, f"{empty * 1e6:.1f} µs each, then {full * 1e6:.1f} µs"
