"""What is due to a principal: how much its clients may have under way, and its part of a queue that is full."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pools.core.entries import ClientEntry, RequestEntry
from pools.core.queueing import Lane, PoolQueue

if TYPE_CHECKING:
    from pools.core.tables import Tables


def join(tables: Tables, client: ClientEntry) -> None:
    """Count a client in among those of its principal."""
    client.account = tables.accounts.setdefault(client.principal, client.account)
    client.account.clients += 1


def leave(tables: Tables, client: ClientEntry) -> None:
    """Forget a client, and its principal with the last one."""
    client.account.clients -= 1
    if not client.account.clients:
        del tables.accounts[client.principal]


def who_yields(
    queue: PoolQueue, limit: int, principal: str, priority: int, rows: int, excess: int
) -> list[RequestEntry]:
    """Return whose requests make room for a principal's `rows` in a full queue of `limit` rows; empty if nobody's do.

    excess: the rows that are too many. A principal that has less than its part (the queue, divided by those who wait in
    it) takes the place of the one that has most, in its lowest class, unless that is a higher one; a higher class takes
    that of the greediest in the lowest. The newest yield; never what a worker has had.
    """
    lanes = list(queue.lanes())
    held: dict[str, int] = {principal: 0}
    for lane in lanes:
        held[lane.principal] = held.get(lane.principal, 0) + lane.rows
    part_rows = limit / len(held)
    greediest = max(held, key=lambda name: held[name])
    if held[principal] + rows <= part_rows < held[greediest]:
        theirs = [lane for lane in lanes if lane.principal == greediest and lane.priority >= priority]
        found = _newest(max(theirs, key=lambda lane: lane.priority), excess) if theirs else []
        if found:
            return found
    lowest = max((lane.priority for lane in lanes), default=priority)
    if lowest <= priority:
        return []
    return _newest(max((lane for lane in lanes if lane.priority == lowest), key=lambda lane: lane.rows), excess)


def _newest(lane: Lane, rows: int) -> list[RequestEntry]:
    """Return the newest of a lane that hold so many rows; empty if not so many have never been with a worker."""
    found: list[RequestEntry] = []
    for entry in reversed(lane.entries.values()):
        if rows <= 0:
            break
        if not entry.epoch:
            found.append(entry)
            rows -= entry.rows
    return found if rows <= 0 else []
