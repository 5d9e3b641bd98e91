"""What must hold of the fleet's tables after every event."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bridge.protocol import messages as wire
from pools.core.entries import PoolEntry
from pools.core.states import DISPATCHED, QUEUED, READY, RUNNING, WAITING

if TYPE_CHECKING:
    from tests.support.fleet import Sim


def check_books(sim: Sim) -> None:
    """Assert everything that must hold after every event."""
    tables = sim.tables
    requests = list(tables.requests.values())
    assert not (tables.requests.keys() & sim.replies.keys()), "answered and still open"
    assert len(tables.deadlines) == sum(1 for entry in requests if entry.deadline is not None)
    for client in tables.clients.values():
        assert client.in_flight == sum(entry.rows for entry in requests if entry.client is client)
        theirs = [entry for entry in requests if entry.client.account is client.account]
        assert client.account.in_flight == sum(entry.rows for entry in theirs)
    for parent_id, children in tables.children.items():
        assert children, "no children"
        for request_id, child in children.items():
            assert child.tied
            assert tables.requests[request_id] is child
            assert child.message.parent_request_id == parent_id
    assert not tables.orphans
    assert set(tables.tool_calls) <= {epoch for worker in tables.workers.values() for epoch in worker.attempts}
    for entry in requests:
        out = entry.state in (DISPATCHED, RUNNING)
        assert out == (entry.worker is not None)
        assert (entry.state == QUEUED) == (entry.request_id in sim.queued(entry.pool.name))
        assert entry.worker is None or entry.worker.attempts[entry.epoch] is entry
    for worker in tables.workers.values():
        attempts = worker.attempts.values()
        assert worker.held == sum(entry.rows for entry in attempts if not entry.paused) >= 0
        assert worker.paused == sum(entry.paused for entry in attempts)
        assert set(worker.attempts) <= set(sim.processes[worker.worker_id].attempts), "an attempt nobody has"
        assert (worker in worker.pool.ready) == (worker.state == READY and not sim.processes[worker.worker_id].dead)
    for one in tables.pools.values():
        _check_pool(sim, one)
    assert tables.wary or not (tables.draining or tables.memory_paused)
    totals = sim.fleet.stats(sim.now)["requests"]
    assert totals["accepted"] == totals["settled"] + totals["queued"] + totals["in_flight"]
    assert totals["settled"] >= totals["cancelled"]


def _check_pool(sim: Sim, one: PoolEntry) -> None:
    mine = [entry for entry in sim.tables.requests.values() if entry.pool is one]
    assert sum(entry.rows for entry in mine if entry.state == QUEUED) == sum(entry.rows for entry in one.queue)
    assert one.queued == sum(entry.rows for entry in mine if entry.state in (QUEUED, WAITING))
    keyed = [entry for entry in mine if entry.keyed is not None and entry.keyed.runner is not entry]
    lined = [entry for entry in mine if entry.waits_for is not None]
    turns = [entry for entry in mine if entry.session is not None and entry.request_id in entry.session.line]
    followers = keyed + lined + turns
    in_lines = {entry.request_id for worker in one.lined.values() for entry in worker.line or ()}
    assert in_lines == {entry.request_id for entry in lined}
    assert all(worker.line is not None and worker in one.ready for worker in one.lined.values())
    assert one.following == sum(entry.rows for entry in followers)
    assert all(entry.state == WAITING for entry in followers)
    assert one.in_flight == sum(entry.rows for entry in mine if entry.state in (DISPATCHED, RUNNING))
    _check_places(one)
    assert one.over == sum(1 for worker in one.ready if worker.held > one.slots)
    lives = one.lives.values()
    assert one.lent == sum(entry.rows for worker in lives for entry in worker.attempts.values() if entry.paused)
    if one.config.prefetch is None:
        return  # credit differs between operations
    credit = one.slots + one.config.prefetch
    for worker in one.ready:
        newest = worker.attempts.get(worker.last_epoch)
        # One of high priority is given one more; that may be answered already.
        more = 1 if newest is None or newest.message.priority == wire.PRIORITY_HIGH else 0
        before = worker.held - (newest.rows if newest is not None else 0)
        within = before < credit + more or worker.worker_id in sim.resumed
        assert within, "more than a message over its credit"
        takes = not worker.reserved and worker.paused < one.most_paused
        assert not one.queue or not takes or worker.held >= credit, "queued beside a worker with credit"


def _check_places(one: PoolEntry) -> None:
    """Nobody holds two places, no place is held by two, and whoever has none leaves or is a spare."""
    assert one.least <= one.size <= one.most
    assert list(one.places) == sorted(one.places)
    holders = [place.worker for place in one.places.values() if place.worker is not None]
    assert len(holders) == len(set(holders))
    assert all(one.lives[worker.worker_id] is worker for worker in holders)
    for worker in one.lives.values():
        place = one.places[worker.place]
        spare = one.succession is not None and one.succession.spare is worker
        assert place.worker is worker or spare or worker.stop_wanted or worker.kill_why, "a worker without a place"
        assert worker.stop_wanted or worker.kill_why or worker.state != "draining"
        assert not (worker.stop_wanted and worker in one.ready)
    if one.succession is not None:
        assert one.succession.old.worker_id in one.lives
    assert all(place.worker is None or place.number <= one.size for place in one.places.values())
