from __future__ import annotations

from collections import Counter
from itertools import count

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from bridge.protocol.messages import PRIORITY_HIGH, PRIORITY_LOW, PRIORITY_NORMAL, Request
from pools.core.credits import RunTimes
from pools.core.entries import ClientEntry, PoolEntry, RequestEntry
from pools.core.queueing import BY_CLASS, PoolQueue
from tests.support.fleet import Sim, pool

POOL = PoolEntry(pool(), lambda: 0.5)
TIMES = RunTimes()
IDS = count(1)


def entry(principal: str = "a", priority: int = PRIORITY_NORMAL, rows: int = 1, at: float = 0.0) -> RequestEntry:
    request_id = next(IDS)
    client = ClientEntry(b"", 1, principal, 0)
    message = Request(request_id=request_id, operation="echo", priority=priority, rows=rows)
    return RequestEntry(request_id, client, message, POOL, rows, TIMES, at, None, message.operation)


def queue_of(*entries: RequestEntry) -> PoolQueue:
    queue = PoolQueue()
    for one in entries:
        queue.push(one)
    return queue


def drain(queue: PoolQueue, most: int | None = None) -> list[RequestEntry]:
    return [queue.pop() for _ in range(len(queue) if most is None else most)]


def ids(entries: list[RequestEntry]) -> list[int]:
    return [one.request_id for one in entries]


# --- one lane ------------------------------------------------------------------------------------------


def test_one_principal_of_one_class_is_served_first_in_first_out() -> None:
    entries = [entry() for _ in range(5)]
    queue = queue_of(*entries)
    assert len(queue) == 5
    assert ids(drain(queue)) == ids(entries)
    assert not queue
    assert len(queue) == 0


def test_what_comes_back_is_first_in_its_lane() -> None:
    first, second, back = entry(), entry(), entry()
    queue = queue_of(first, second)
    assert queue.head() is first
    queue.push_first(back)
    assert queue.head() is back
    assert drain(queue) == [back, first, second]


def test_what_is_discarded_is_gone_and_may_be_discarded_again() -> None:
    first, second, stranger = entry(rows=3), entry(rows=2), entry("b")
    queue = queue_of(first, second)
    queue.discard(first)
    queue.discard(first)
    queue.discard(stranger)
    assert queue.head() is second
    assert next(queue.lanes()).rows == 2
    queue.discard(second)
    assert not queue
    assert list(queue.lanes()) == []


# --- principals ------------------------------------------------------------------------------------------


def test_principals_take_turns_however_much_one_has_queued() -> None:
    queue = queue_of(
        *(entry("greedy") for _ in range(100)), *(entry("b") for _ in range(10)), *(entry("c") for _ in range(10))
    )
    served = Counter(one.client.principal for one in drain(queue, 30))
    assert served == {"greedy": 10, "b": 10, "c": 10}
    assert {one.client.principal for one in drain(queue)} == {"greedy"}


def test_turns_are_counted_in_rows() -> None:
    queue = queue_of(*(entry("rows", rows=8) for _ in range(20)), *(entry("single") for _ in range(160)))
    rows: Counter[str] = Counter()
    for one in drain(queue, 90):
        rows[one.client.principal] += one.rows
        assert abs(rows["rows"] - rows["single"]) <= 16
    assert rows == {"rows": 80, "single": 80}


def test_who_was_alone_owes_nothing_to_who_comes_later() -> None:
    queue = queue_of(*(entry("early") for _ in range(200)))
    drain(queue, 100)
    for _ in range(10):
        queue.push(entry("late"))
    served = Counter(one.client.principal for one in drain(queue, 20))
    assert served == {"early": 10, "late": 10}


def test_who_comes_back_to_the_queue_has_saved_nothing_up() -> None:
    queue = queue_of(*(entry("b") for _ in range(50)))
    queue.push(entry("a"))
    drain(queue, 10)
    for _ in range(50):
        queue.push(entry("a"))
    served = Counter(one.client.principal for one in drain(queue, 40))
    assert abs(served["a"] - served["b"]) <= 1


# --- classes ----------------------------------------------------------------------------------------------


def test_a_higher_class_goes_first() -> None:
    low, normal, high = entry(priority=PRIORITY_LOW), entry(), entry(priority=PRIORITY_HIGH)
    assert drain(queue_of(low, normal, high)) == [high, normal, low]


def test_a_class_is_fair_by_itself() -> None:
    queue = queue_of(
        entry("a"), entry("b"), entry("a", PRIORITY_HIGH), entry("a", PRIORITY_HIGH), entry("b", PRIORITY_HIGH)
    )
    assert [one.client.principal for one in drain(queue)] == ["a", "b", "a", "a", "b"]


def test_each_eighth_step_goes_by_age_so_that_no_class_starves() -> None:
    high = [entry(priority=PRIORITY_HIGH, at=40.0) for _ in range(64)]
    queue = queue_of(*(entry(priority=PRIORITY_LOW, at=0.0) for _ in range(64)), *high)
    served = Counter(one.message.priority for one in drain(queue, 8 * (BY_CLASS + 1)))
    assert served == {PRIORITY_HIGH: 8 * BY_CLASS, PRIORITY_LOW: 8}


def test_a_class_that_is_not_old_yet_waits_for_the_higher_one() -> None:
    high = [entry(priority=PRIORITY_HIGH, at=29.0) for _ in range(64)]
    queue = queue_of(*(entry(priority=PRIORITY_LOW, at=0.0) for _ in range(64)), *high)
    assert drain(queue, 64) == high


def test_normal_work_ages_sooner_than_low() -> None:
    high = [entry(priority=PRIORITY_HIGH, at=31.0) for _ in range(16)]
    old = [entry(priority=PRIORITY_NORMAL, at=1.0), entry(priority=PRIORITY_LOW, at=0.0)]
    served = drain(queue_of(*old, *high), 16)
    assert [one for one in served if one in old] == old


# --- any sequence of steps -----------------------------------------------------------------------------------


class QueueModel(RuleBasedStateMachine):
    """Whatever is done: the head stays the head, lanes are first in first out, nothing is lost, nothing is left."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = PoolQueue()
        self.lanes: dict[tuple[str, int], list[RequestEntry]] = {}

    @rule(who=st.sampled_from("abc"), priority=st.sampled_from([0, 1, 1, 2]), rows=st.sampled_from([1, 1, 1, 5, 1024]))
    def push(self, who: str, priority: int, rows: int) -> None:
        one = entry(who, priority, rows)
        self.queue.push(one)
        self.lanes.setdefault((who, priority), []).append(one)

    @rule(who=st.sampled_from("abc"), priority=st.sampled_from([0, 1, 2]))
    def push_first(self, who: str, priority: int) -> None:
        one = entry(who, priority)
        self.queue.push_first(one)
        self.lanes.setdefault((who, priority), []).insert(0, one)

    @precondition(lambda self: self.queue)
    @rule(looked=st.booleans())
    def pop(self, looked: bool) -> None:
        head = self.queue.head() if looked else None
        one = self.queue.pop()
        assert head is None or head is one
        assert self.lanes[one.client.principal, one.message.priority].pop(0) is one

    @precondition(lambda self: self.queue)
    @rule(which=st.integers(0, 100))
    def discard(self, which: int) -> None:
        waiting = list(self.queue)
        one = waiting[which % len(waiting)]
        self.queue.discard(one)
        lane = self.lanes[one.client.principal, one.message.priority]
        lane[:] = [other for other in lane if other is not one]

    @invariant()
    def nothing_is_lost(self) -> None:
        expected = {key: lane for key, lane in self.lanes.items() if lane}
        assert len(self.queue) == sum(map(len, expected.values()))
        assert bool(self.queue) == bool(expected)
        found = {(lane.principal, lane.priority): lane for lane in self.queue.lanes()}
        assert found.keys() == expected.keys()
        for key, lane in expected.items():
            assert list(found[key].entries.values()) == lane
            assert found[key].rows == sum(one.rows for one in lane)
        if self.queue:
            assert self.queue.head() is self.queue.front().first()


TestQueueModel = QueueModel.TestCase
TestQueueModel.settings = settings(
    max_examples=100,
    stateful_step_count=60,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)


# --- in a fleet -----------------------------------------------------------------------------------------------


def test_high_work_has_a_credit_more_at_each_worker() -> None:
    sim = Sim(pool(slots=1, prefetch=1))
    held = [sim.submit() for _ in range(2)]
    waiting = sim.submit()
    high = [sim.submit(priority=PRIORITY_HIGH) for _ in range(2)]
    assert sim.attempt(high[0])  # though the worker has all that others may hand it
    assert set(sim.queued()) == {high[1], waiting}
    for request_id in held:
        sim.reply(request_id)
    assert sim.attempt(high[1])
    assert sim.queued() == [waiting]


def test_high_work_that_waits_alone_is_dispatched_at_once() -> None:
    sim = Sim(pool(slots=1, prefetch=0))
    sim.submit()
    assert sim.attempt(sim.submit(priority=PRIORITY_HIGH))
    assert sim.queued() == []
