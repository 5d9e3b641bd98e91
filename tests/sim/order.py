"""What must hold of the order in which a queue is served: within a lane by arrival, between classes and principals.

A lane is a class and a principal; nested requests are a class that goes before all others each time. What a worker gave
back, or held unstarted as it died, goes first in its lane. A higher class goes before a lower one, but for one step in
eight that goes by age, where a class counts as so much younger. The principals of a class share its rows: none is
passed by another for more than two turns, and a turn is the largest message.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Final

from bridge.protocol import messages as wire
from tests.sim.ledger import NESTED, Case, Lane, Ledger
from tests.sim.step import broken

# A class is served by age as if its requests had come so much later.
LATER_S: Final = {wire.PRIORITY_HIGH: 0.0, wire.PRIORITY_NORMAL: 10.0, wire.PRIORITY_LOW: 30.0}
# Steps by class from one step by age to the next.
BY_CLASS: Final = 7
_TURNS: Final = 2
_EPSILON_S: Final = 1e-6


class Order:
    """Checks each case that leaves its queue.

    steps: of a pool, since it went by age last. passed: rows of others that went before a lane's head, by lane.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._steps = dict.fromkeys(ledger.pools, BY_CLASS)
        self._passed: dict[Lane, Counter[Lane]] = {}

    def check(self, case: Case, *, new: bool) -> None:
        """Check a case that is about to be dispatched. new: it has just been accepted."""
        ledger = self._ledger
        self._steps[case.pool] += case.priority != NESTED
        if ledger.emptied:
            for lane in ledger.emptied:
                self._passed.pop(lane, None)
            ledger.emptied.clear()
        self._passed.pop(case.lane, None)
        waiting = ledger.queues[case.pool]
        if len(waiting) == 1 or case.astray or case.resends:
            return
        if new and case.priority > wire.PRIORITY_HIGH:
            first = next(other for other in waiting.values() if other is not case)
            if not first.astray:
                broken("first come, first served", f"{case} was dispatched before {first}")
            return
        heads: dict[Lane, Case] = {}
        is_known = True
        for other in waiting.values():
            if other.astray:
                is_known = False
                continue
            lane = other.lane
            if lane not in heads or other.rank < heads[lane].rank:
                heads[lane] = other
        if heads[case.lane] is not case:
            broken("first come, first served", f"{case} was dispatched before {heads[case.lane]}")
        if len(heads) > 1 and is_known and not ledger.waiting[case.pool]:
            self._check_class(case, heads.values())
            self._check_share(case, heads)

    def _check_class(self, case: Case, heads: Iterable[Case]) -> None:
        first = min(heads, key=lambda head: head.priority)
        if case.priority == first.priority:
            return
        if first.priority == NESTED or self._steps[case.pool] <= BY_CLASS:
            broken("higher classes first", f"{case} was dispatched before {first}")
        self._steps[case.pool] = 0
        own = case.came_at + LATER_S[case.priority]
        for priority, later_s in LATER_S.items():
            ages = [head.came_at + later_s for head in heads if head.priority == priority]
            if priority != case.priority and ages and max(ages) < own - _EPSILON_S:
                broken("by age the oldest", f"{case} was dispatched before {first}")

    def _check_share(self, case: Case, heads: dict[Lane, Case]) -> None:
        turn = self._ledger.turns[case.pool].get(case.priority, 1)
        for lane, head in heads.items():
            if head.priority == case.priority and head.principal != case.principal:
                passed = self._passed.setdefault(lane, Counter())
                passed[case.lane] += case.rows
                if passed[case.lane] > _TURNS * turn:
                    broken("principals share", f"{passed[case.lane]} rows of {case.principal} went before {head}")
