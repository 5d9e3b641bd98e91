"""What waits in a pool: three classes, and before them what running programs ask for.

In each the principals have it by turns, first in first out within one of them.

In a class the principals take turns by deficit round robin over rows (Shreedhar and Varghese 1995), with the largest
message that is queued as the quantum: each step finds somebody whose turn it is. The classes are strict, but for every
eighth step: that one goes by age, so that what a higher class keeps waiting gets an eighth of the pool at least.
Nested requests always go first, and no such step is theirs: somebody who is under way waits for each of them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from bridge.protocol.messages import Request
    from pools.core.entries import RequestEntry

# The class of nested requests, above the high one.
NESTED: Final = -1
# A class is this much older than it is where it goes by age: high, normal, low.
_AHEAD_S: Final = (0.0, 10.0, 30.0)
# So many steps go by class, the next one by age. (All by age would end what a high class is for wherever a standing
# queue of another is older than these seconds.)
BY_CLASS: Final = 7


def class_of(message: Request) -> int:
    """Return the class that a request waits in: its priority, or NESTED."""
    return NESTED if message.depth else message.priority


class Lane:
    """What one principal has queued in one class (`priority`, see `class_of`), oldest first.

    more: its rows beyond one of each request. deficit: rows that it may still take in its turn. looked_at: when its
    head was last found to have waited long; above_since: since when each had (see `pools.core.shedding`).
    """

    __slots__ = ("above_since", "deficit", "entries", "looked_at", "more", "principal", "priority")

    def __init__(self, principal: str, priority: int) -> None:
        self.principal = principal
        self.priority = priority
        self.entries: OrderedDict[int, RequestEntry] = OrderedDict()
        self.more = 0
        self.deficit = 0
        self.above_since = self.looked_at = 0.0

    @property
    def rows(self) -> int:
        """How many rows wait in it."""
        return len(self.entries) + self.more

    def first(self) -> RequestEntry:
        """Return the oldest; there is one."""
        return next(iter(self.entries.values()))


class _Class:
    """The lanes of one class, by principal, in the order of their turns.

    quantum: rows that a turn adds. served: the lane whose turn has begun.
    """

    __slots__ = ("lanes", "quantum", "served")

    def __init__(self) -> None:
        self.lanes: OrderedDict[str, Lane] = OrderedDict()
        self.quantum = 1
        self.served: Lane | None = None

    def turn(self) -> Lane:
        """Return the lane whose turn it is; there is one. Asked again, it is the same one until something changes."""
        lanes = self.lanes
        quantum = self.quantum
        while True:
            lane = next(iter(lanes.values()))
            if len(lanes) == 1:
                lane.deficit = quantum  # alone it has no turns: nothing is counted against it
                self.served = lane
                return lane
            if lane is not self.served:
                self.served = lane
                lane.deficit += quantum
            if lane.deficit >= lane.first().rows:
                return lane
            lanes.move_to_end(lane.principal)

    def allow(self, rows: int) -> None:
        """A message of so many rows is queued: a turn must be able to take it."""
        self.quantum = max(self.quantum, rows)

    def close(self, lane: Lane) -> None:
        """Forget an empty lane."""
        del self.lanes[lane.principal]
        if self.served is lane:
            self.served = None
        if not self.lanes:
            self.quantum = 1


class PoolQueue:
    """The queue of one pool. All steps are O(1), whatever waits; lanes that are empty leave nothing behind.

    open_lanes: lanes that hold something; 0 = the queue is empty (hot paths read it, for `bool` costs a call).
    """

    __slots__ = ("_classes", "_front", "_head", "_steps", "open_lanes")

    def __init__(self) -> None:
        self._classes = (_Class(), _Class(), _Class(), _Class())  # by class - NESTED
        self._front: Lane | None = None  # the lane of the head, while it is known
        self._head: RequestEntry | None = None  # the first of that lane, while it is known
        self.open_lanes = 0
        self._steps = 0

    def __bool__(self) -> bool:
        return self.open_lanes > 0

    def __len__(self) -> int:
        return sum(len(lane.entries) for one in self._classes for lane in one.lanes.values())

    def __iter__(self) -> Iterator[RequestEntry]:
        """Yield the entries, in no promised order."""
        for one in self._classes:
            for lane in one.lanes.values():
                yield from lane.entries.values()

    def push(self, entry: RequestEntry) -> None:
        """Add an entry, last in its lane."""
        lane = self._front
        message = entry.message
        priority = NESTED if message.depth else message.priority
        if lane is None or lane.priority != priority or lane.principal != entry.client.principal:
            lane = self._lane_of(entry)
        lane.entries[entry.request_id] = entry
        if entry.rows > 1:
            lane.more += entry.rows - 1
            self._classes[priority - NESTED].allow(entry.rows)

    def push_first(self, entry: RequestEntry) -> None:
        """Add an entry that comes back, first in its lane."""
        self.push(entry)
        lane = self._classes[class_of(entry.message) - NESTED].lanes[entry.client.principal]
        lane.entries.move_to_end(entry.request_id, last=False)
        self._front = self._head = None

    def head(self) -> RequestEntry:
        """Return the next entry; there is one."""
        entry = self._head
        if entry is None:
            lane = self._front or self.front()
            self._head = entry = next(iter(lane.entries.values()))
        return entry

    def front(self) -> Lane:
        """Return the lane of the next entry; there is one."""
        lane = self._front
        if lane is None:
            self._front = lane = self._choose()
        return lane

    def pop(self) -> RequestEntry:
        """Take the next entry; there is one."""
        lane = self._front or self.front()
        entries = lane.entries
        self._head = None
        entry: RequestEntry
        _, entry = entries.popitem(last=False)
        if entry.rows > 1:
            lane.more -= entry.rows - 1
        if self.open_lanes > 1 or not entries:
            self._step(lane, entry.rows)
        return entry

    def discard(self, entry: RequestEntry) -> None:
        """Take out an entry if it is there."""
        lane = self._classes[class_of(entry.message) - NESTED].lanes.get(entry.client.principal)
        if lane is None or lane.entries.pop(entry.request_id, None) is None:
            return
        lane.more -= entry.rows - 1
        self._front = self._head = None
        if not lane.entries:
            self._close(lane)

    def oldest_at(self) -> float:
        """Return when what has waited longest was accepted; there is something. O(lanes)."""
        return min(lane.first().accepted_at for one in self._classes for lane in one.lanes.values())

    def lanes(self) -> Iterator[Lane]:
        """Yield the lanes, of the highest class first."""
        for one in self._classes:
            yield from one.lanes.values()

    def lane(self, priority: int, principal: str) -> Lane | None:
        """Return what a principal has queued in a class, None if nothing."""
        return self._classes[priority - NESTED].lanes.get(principal)

    def _lane_of(self, entry: RequestEntry) -> Lane:
        """Return the lane of an entry that is to be queued; another head may follow."""
        self._front = self._head = None
        priority, principal = class_of(entry.message), entry.client.principal
        lanes = self._classes[priority - NESTED].lanes
        lane = lanes.get(principal)
        if lane is None:
            lane = lanes[principal] = Lane(principal, priority)
            self.open_lanes += 1
        return lane

    def _step(self, lane: Lane, rows: int) -> None:
        """Count what was taken where somebody else waits too; see who is next."""
        if lane.priority != NESTED:
            self._steps += 1
        self._front = None
        lane.deficit -= rows
        if not lane.entries:
            self._close(lane)

    def _close(self, lane: Lane) -> None:
        self._classes[lane.priority - NESTED].close(lane)
        self.open_lanes -= 1

    def _choose(self) -> Lane:
        nested, *others = self._classes
        if nested.lanes:
            return nested.turn()
        turns = [(one.turn(), ahead_s) for one, ahead_s in zip(others, _AHEAD_S, strict=True) if one.lanes]
        if len(turns) == 1 or self._steps % (BY_CLASS + 1) < BY_CLASS:
            return turns[0][0]
        return min(turns, key=lambda turn: turn[0].first().accepted_at + turn[1])[0]
