"""Dynamic batching: who is in a batch, in which order, and what becomes of a batch that fails."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bridge.batched import BatchLimits, batched, limits_of
from bridge.protocol.codec import unpack_outcomes
from bridge.protocol.errors import BridgeError, decode_error
from bridge.protocol.messages import ERROR, OK, ROWS, Message, Reply, Request
from bridge.protocol.values import decode_value, encode_value
from bridge.protocol.worker_spec import WorkerSpec
from bridge.worker.attempt import Runner
from bridge.worker.batch_limit import BatchLimit, is_out_of_memory, size_of
from bridge.worker.batch_members import Member, cut, take_batch
from bridge.worker.batching import BatchCall, miscounted, shares
from bridge.worker.call import Call, CallStopped, current_call
from bridge.worker.executor import Executor
from bridge.worker.lending import Attempt
from bridge.worker.parent import current_parent
from bridge.worker.slots import PAGE_BYTES, StartedSlots
from tests.support.waiting import wait_until

WAIT_S = 10.0
Run = Callable[[list[Any]], Any]


class OutOfMemoryError(RuntimeError):
    """Named as torch names its own."""


class Doubling:
    """A batched operation: doubles the numbers of each list it is given; `[1, 2]` -> `[2, 4]`.

    While `gate` is closed a batch waits in `run`, having said so by `entered`.
    """

    def __init__(self, limits: BatchLimits, run: Run | None = None) -> None:
        self.limits = limits
        self.batches: list[list[Any]] = []
        self.running = 0
        self.peak = 0
        self.entered = threading.Semaphore(0)
        self.gate = threading.Event()
        self.gate.set()
        self._run = run or (lambda items: [2 * item for item in items])
        self._lock = threading.Lock()

    def items(self, args: Any) -> list[Any]:
        if not isinstance(args, list):
            raise BridgeError("INVALID_REQUEST", "a list is wanted", details={"path": ""})
        return args

    def run(self, items: list[Any], call: Call) -> Any:
        with self._lock:
            self.running += 1
            self.peak = max(self.peak, self.running)
        self.batches.append(list(items))
        self.entered.release()
        assert self.gate.wait(WAIT_S)
        try:
            return self._run(items)
        finally:
            with self._lock:
                self.running -= 1

    def joined(self, parts: list[Any]) -> Any:
        return [value for part in parts for value in part]


class Worker:
    """A worker's executor and runner, with one batched operation `double` and a plain one `plain`."""

    def __init__(self, operation: Doubling, slots: int, message_bytes: int) -> None:
        self.double = operation
        self.plain = threading.Event()
        self.replies: list[Reply] = []
        self._arrived = threading.Condition()
        self._epochs = 0
        self.batched = {"double": operation}
        operations = SimpleNamespace(inline=frozenset(), find=self._find, unknown=None, batched=self.batched.get)
        spec = WorkerSpec(
            endpoint="", run_id="", token=b"", worker_id="w", pool="neural", incarnation=0, slots=slots,
            heartbeat_interval_s=1.0, message_bytes=message_bytes, nesting=32, lms={}, python_path=[], faults=False,
            log_level="info", cache_dir="",
        )  # fmt: skip
        fd = os.memfd_create("slots")
        os.ftruncate(fd, PAGE_BYTES)
        self.executor = Executor(slots, self._deliver)
        self.executor.start(Runner(operations, spec, StartedSlots(fd)))  # type: ignore[arg-type]
        os.close(fd)

    def _find(self, name: str) -> Any:
        return {"plain": self._run_plain}.get(name)

    def _run_plain(self, args: Any, call: Call) -> Any:
        self.plain.set()
        return args

    def _deliver(self, message: Message) -> None:
        if isinstance(message, Reply):
            with self._arrived:
                self.replies.append(message)
                self._arrived.notify_all()
            self.executor.settled(message)

    def send(self, args: Any = None, operation: str = "double", **fields: Any) -> Request:
        self._epochs += 1
        fields.setdefault("payload", encode_value(args))
        request = Request(request_id=self._epochs, epoch=self._epochs, operation=operation, priority=1, **fields)
        self.executor.submit(request, time.monotonic())
        return request

    def reply(self, request: Request) -> Reply:
        def found() -> Reply | None:
            return next((reply for reply in self.replies if reply.epoch == request.epoch), None)

        with self._arrived:
            assert self._arrived.wait_for(lambda: found() is not None, WAIT_S), self.double.batches
        reply = found()
        assert reply is not None
        return reply

    def value(self, request: Request) -> Any:
        reply = self.reply(request)
        assert reply.status == OK, decode_error(reply.payload or b"").message
        return decode_value(reply.payload or b"")

    def error(self, request: Request) -> BridgeError:
        reply = self.reply(request)
        assert reply.status == ERROR
        return decode_error(reply.payload or b"")

    def hold(self, args: Any) -> Request:
        """Send what makes a batch that runs until the gate is opened; return when it runs."""
        self.double.gate.clear()
        request = self.send(args)
        assert self.double.entered.acquire(timeout=WAIT_S)
        return request


@pytest.fixture
def make() -> Iterator[Callable[..., Worker]]:
    made: list[Worker] = []

    def worker(
        run: Run | None = None, *, max_items: int = 64, max_wait_ms: float = 0.0, slots: int = 1, size: int = 1 << 20
    ) -> Worker:
        made.append(Worker(Doubling(BatchLimits(max_items, max_wait_ms), run), slots, size))
        return made[-1]

    yield worker
    for one in made:
        one.double.gate.set()
        one.executor.close()


Make = Callable[..., Worker]


def test_what_waits_while_a_batch_runs_is_the_next_one_and_each_gets_its_own_part(make: Make) -> None:
    worker = make()
    first = worker.hold([0])
    others = [worker.send([n] * n) for n in (1, 2, 3)]
    worker.double.gate.set()
    assert worker.value(first) == [0]
    assert [worker.value(one) for one in others] == [[2], [4, 4], [6, 6, 6]]
    assert worker.double.batches == [[0], [1, 2, 2, 3, 3, 3]]


def test_a_batch_has_max_items_at_most(make: Make) -> None:
    worker = make(max_items=3)
    first = worker.hold([0])
    others = [worker.send([n]) for n in range(1, 8)]
    worker.double.gate.set()
    assert [worker.value(one) for one in (first, *others)] == [[2 * n] for n in range(8)]
    assert [len(batch) for batch in worker.double.batches] == [1, 3, 3, 1]


def test_the_first_waits_for_others_no_longer_than_max_wait_ms(make: Make) -> None:
    worker = make(max_items=3, max_wait_ms=9_000.0)
    requests = [worker.send([n]) for n in range(3)]
    assert [worker.value(one) for one in requests] == [[0], [2], [4]]
    assert worker.double.batches == [[0, 1, 2]]  # full, so it did not wait; one alone:
    lone = make(max_wait_ms=20.0)
    assert lone.value(lone.send([5])) == [10]


def test_a_thread_that_has_led_keeps_nobody(make: Make) -> None:
    worker = make()
    request = worker.send([1])
    assert worker.value(request) == [2]

    def is_kept() -> bool:
        return any(type(one) is Attempt and one.request is request for one in gc.get_objects())

    wait_until(lambda: not is_kept(), WAIT_S, "nobody to hold the attempt")


def test_a_bad_item_fails_alone(make: Make) -> None:
    def run(items: list[Any]) -> list[Any]:
        if 13 in items:
            raise ValueError("thirteen")
        return [2 * item for item in items]

    worker = make(run)
    first = worker.hold([0])
    good, bad, also_good = worker.send([1]), worker.send([13, 14]), worker.send([2])
    worker.double.gate.set()
    worker.value(first)
    assert (worker.value(good), worker.value(also_good)) == ([2], [4])
    error = worker.error(bad)
    assert (error.code, error.message, error.details["type"]) == ("REMOTE_ERROR", "thirteen", "ValueError")
    assert worker.double.batches[1:] == [[1, 13, 14, 2], [1], [13, 14], [2]]


@pytest.mark.parametrize("left", [SystemExit, KeyboardInterrupt])
def test_a_function_that_leaves_ends_no_worker(make: Make, left: type[BaseException]) -> None:
    def run(items: list[Any]) -> list[Any]:
        raise left("away")

    worker = make(run)
    assert worker.error(worker.send([1])).details["type"] == left.__name__


@pytest.mark.parametrize(
    ("results", "said"),
    [
        ([1], "double returned 1 results for 2 items; it must return one for each, in their order"),
        ({1: 1, 2: 2}, "double must return a list with a result for each item, got dict"),
        (None, "double must return a list with a result for each item, got NoneType"),
    ],
)
def test_results_that_are_not_one_for_each_item_are_refused(make: Make, results: Any, said: str) -> None:
    worker = make(lambda items: results)
    assert worker.error(worker.send([1, 2])).message == said
    assert len(worker.double.batches) == 1


def test_arrays_tuples_and_lists_are_results() -> None:
    assert [miscounted("f", found, 2) for found in ([1, 2], (1, 2), np.zeros((2, 5)), "ab")] == [None] * 4
    assert miscounted("f", {1, 2}, 2) is not None
    assert miscounted("f", np.float32(1), 1) is not None


@pytest.mark.parametrize("kind", [MemoryError, OutOfMemoryError])
def test_where_memory_runs_out_halves_are_run(make: Make, kind: type[BaseException]) -> None:
    def run(items: list[Any]) -> list[Any]:
        if len(items) > 3:
            raise kind("no room")
        return [2 * item for item in items]

    worker = make(run)
    assert worker.value(worker.send(list(range(10)))) == [2 * n for n in range(10)]
    assert [len(batch) for batch in worker.double.batches] == [10, 5, 2, 3, 5, 2, 3]
    # The next large one begins with what sufficed.
    assert worker.value(worker.send(list(range(6)))) == [2 * n for n in range(6)]
    assert max(len(batch) for batch in worker.double.batches[7:]) <= 3


def test_where_memory_does_not_suffice_for_one_item_it_fails_alone(make: Make) -> None:
    def run(items: list[Any]) -> list[Any]:
        if 7 in items:
            raise MemoryError("no room")
        return [2 * item for item in items]

    worker = make(run)
    first = worker.hold([0])
    good, bad = worker.send([1]), worker.send([7])
    worker.double.gate.set()
    worker.value(first)
    assert worker.value(good) == [2]
    assert worker.error(bad).details["type"] == "MemoryError"


def test_the_limit_halves_and_grows_back() -> None:
    limit = BatchLimit(64, 1000)
    limit.ran_out(64)
    assert (limit.items, limit.chars) == (32, 500)
    limit.ran_out(10)  # less than the limit was tried: that is what it goes by
    assert limit.items == 5
    for _ in range(20):
        limit.ran_out(1)
    assert (limit.items, limit.chars) == (1, 15)
    before = limit.items
    for _ in range(16 * 30):
        limit.ran()
        assert before <= limit.items <= 64
        before = limit.items
    assert (limit.items, limit.chars) == (64, 1000)


def test_what_says_that_memory_ran_out() -> None:
    class Deeper(OutOfMemoryError):
        pass

    assert all(is_out_of_memory(exc) for exc in (MemoryError(), OutOfMemoryError(), Deeper()))
    assert not is_out_of_memory(RuntimeError("out of memory"))


def test_a_large_request_holds_up_nobodys_few(make: Make) -> None:
    worker = make(max_items=4)
    large = worker.hold(list(range(40)))
    small = [worker.send([100]), worker.send([200])]
    worker.double.gate.set()
    assert [worker.value(one) for one in small] == [[200], [400]]
    assert worker.value(large) == [2 * n for n in range(40)]
    order = [reply.epoch for reply in worker.replies]
    assert order == [2, 3, 1]
    assert {100, 200} <= {*worker.double.batches[1]}


def test_who_is_cancelled_is_left_out_of_the_next_batch(make: Make) -> None:
    worker = make(max_items=4)
    large = worker.hold(list(range(8)))
    assert worker.executor.cancel(large.epoch) is None  # it runs: it is asked to stop
    worker.double.gate.set()
    assert worker.error(large).code == "CANCELLED"
    assert worker.double.batches == [[0, 1, 2, 3]]
    assert worker.value(worker.send([5])) == [10]


def test_who_waits_can_be_recalled_and_cancelled(make: Make) -> None:
    worker = make()
    first = worker.hold([0])
    recalled, cancelled = worker.send([1]), worker.send([2])
    assert worker.executor.queued == 2
    assert worker.executor.recall(recalled.epoch)
    assert worker.executor.cancel(cancelled.epoch) is not None
    worker.double.gate.set()
    worker.value(first)
    wait_until(lambda: worker.executor.running == 0, WAIT_S, "nothing runs")
    assert worker.double.batches == [[0]]


def test_whose_deadline_passed_in_the_queue_is_left_out(make: Make) -> None:
    worker = make()
    first = worker.hold([0])
    late = worker.send([1], deadline_ms=0.0)
    worker.double.gate.set()
    worker.value(first)
    assert (worker.error(late).code, worker.error(late).details["stage"]) == ("DEADLINE_EXCEEDED", "queued")
    assert worker.double.batches == [[0]]


def test_rows_are_items_and_a_bad_row_fails_alone(make: Make) -> None:
    worker = make()
    payload = b"".join(map(encode_value, ([1], "no list", [], [2, 3])))
    reply = worker.reply(worker.send(payload=payload, rows=4))
    assert reply.status == ROWS
    outcomes = unpack_outcomes(reply.payload or b"")
    assert [status for status, _ in outcomes] == [OK, ERROR, OK, OK]
    assert [decode_value(outcomes[n][1]) for n in (0, 2, 3)] == [[2], [], [4, 6]]
    assert decode_error(outcomes[1][1]).message == "a list is wanted"
    assert worker.double.batches == [[1, 2, 3]]


def test_rows_that_no_message_has_room_for_are_not_run(make: Make) -> None:
    worker = make(lambda items: ["x" * 600 for _ in items], size=2000)
    payload = b"".join(encode_value([n]) for n in range(6))
    reply = worker.reply(worker.send(payload=payload, rows=6))
    assert len(reply.payload or b"") < 2000
    statuses = [status for status, _ in unpack_outcomes(reply.payload or b"")]
    assert statuses[:3] == [OK] * 3
    assert OK not in statuses[3:]
    assert ERROR not in statuses


def test_one_batch_at_a_time_whatever_the_slots(make: Make) -> None:
    worker = make(max_items=2, slots=4)
    requests = [worker.hold([0]), *(worker.send([n]) for n in range(1, 30))]
    worker.double.gate.set()
    assert [worker.value(one) for one in requests] == [[2 * n] for n in range(30)]
    assert worker.double.peak == 1


def test_another_operation_has_its_turn(make: Make) -> None:
    worker = make(max_items=2)
    first = worker.hold([0])
    plain = worker.send("other", "plain")
    later = [worker.send([n]) for n in range(1, 5)]
    worker.double.gate.set()
    assert worker.value(plain) == "other"
    assert [worker.value(one) for one in (first, *later)] == [[2 * n] for n in range(5)]
    # What came after it goes after it: the leader claims no more while others wait.
    assert [reply.epoch for reply in worker.replies][:2] == [first.epoch, plain.epoch]


def test_what_comes_after_a_new_version_is_the_new_versions(make: Make) -> None:
    worker = make()
    old = worker.hold([1])
    worker.batched["double"] = Doubling(BatchLimits(64, 0.0), lambda items: [-item for item in items])
    new = [worker.send([n]) for n in (2, 3)]
    worker.double.gate.set()
    assert worker.value(old) == [2]
    assert [worker.value(one) for one in new] == [[-2], [-3]]
    assert worker.double.batches == [[1]]


def test_a_batch_goes_on_as_long_as_anybody_in_it_may() -> None:
    calls = [Call(n, n, "double") for n in range(3)]
    batch = BatchCall("double", calls)
    calls[0].cancel()
    calls[2].cancel()
    batch.step()
    calls[1].cancel()
    with pytest.raises(CallStopped):
        batch.step()
    assert BatchCall("d", [Call(1, 1, "d", deadline=5.0), Call(2, 2, "d", deadline=7.0)]).deadline == 7.0
    assert BatchCall("d", [Call(1, 1, "d", deadline=5.0), Call(2, 2, "d")]).deadline is None


def test_who_waits_in_a_batch_is_told_when_the_last_in_it_must_stop() -> None:
    calls = [Call(n, n, "double") for n in range(2)]
    with BatchCall("double", [*calls, calls[0]]) as batch:
        calls[0].cancel()
        assert not batch.cancelled.is_set()
        calls[1].cancel()
        assert batch.cancelled.is_set()


def test_a_batch_asks_in_nobodys_name(make: Make) -> None:
    def run(items: list[Any]) -> list[Any]:
        current_parent()
        return items

    worker = make(run)
    error = worker.error(worker.send([1]))
    assert error.code == "INVALID_REQUEST"
    assert "serves many callers at once: it cannot ask in one caller's name" in error.message
    with pytest.raises(BridgeError, match="serves many callers at once"):
        BatchCall("double", [Call(1, 1, "double")]).post(Reply(request_id=1))


def test_what_a_batch_used_is_its_members_by_their_items(make: Make) -> None:
    def run(items: list[Any]) -> list[Any]:
        call = current_call.get()
        assert call is not None
        call.used(lm_calls=1, tokens=10, cost_usd=0.4)
        return items

    worker = make(run)
    first = worker.hold([0])
    few, many = worker.send([1]), worker.send([1, 2, 3])
    worker.double.gate.set()
    used = [(r.lm_calls, r.tokens, r.cost_usd) for r in map(worker.reply, (first, few, many))]
    assert used == [(1, 10, 0.4), (0, 3, pytest.approx(0.1)), (1, 7, pytest.approx(0.3))]
    assert shares(7, [1, 1, 1]) == [3, 2, 2]


def test_run_ms_is_ones_share_of_the_batches(make: Make) -> None:
    worker = make()
    first = worker.hold([0])
    few, many = worker.send([1]), worker.send([1] * 9)
    worker.double.gate.set()
    worker.value(first)
    assert worker.reply(many).run_ms == pytest.approx(9 * worker.reply(few).run_ms)


# --- whose turn it is -----------------------------------------------------------------------------------


def members(*requests: list[Any]) -> deque[Member]:
    found: deque[Member] = deque()
    for items in requests:
        attempt = SimpleNamespace(request=Request(request_id=1, operation="d"), call=Call(1, 1, "d"), received_s=0.0)
        found.append(Member(attempt, 1000))
        found[-1].add(items)
    return found


def batch_of(found: deque[Member], most: int, chars: int = 1000) -> list[Any]:
    return [item for piece in take_batch(found, most, chars) for item in piece.items()]


def test_turns_go_round() -> None:
    found = members([1] * 10, [2], [3] * 4)
    assert batch_of(found, 6) == [1, 1, 2, 3, 3, 1]
    assert batch_of(found, 6) == [3, 3, 1, 1, 1, 1]
    assert batch_of(found, 6) == [1, 1, 1]
    assert batch_of(found, 6) == []


def test_a_batch_is_limited_by_characters_and_one_item_always_goes() -> None:
    found = members(["x" * 80], ["y" * 30, "y" * 30], ["z" * 500])
    assert [len(one) for one in batch_of(found, 64, 100)] == [80]
    assert [len(one) for one in batch_of(found, 64, 100)] == [30, 30]
    assert [len(one) for one in batch_of(found, 64, 100)] == [500]
    assert batch_of(found, 64, 100) == []


def test_sizes_of_items() -> None:
    assert [size_of(one) for one in ("abc", b"ab", np.zeros(3, np.float32), 5, None, {"a": 1})] == [3, 2, 12, 1, 1, 1]


@pytest.mark.parametrize("sizes", [(1, 1), (5,), (1, 5, 1), (4, 4), (2, 1)])
def test_a_batch_is_cut_in_halves(sizes: tuple[int, ...]) -> None:
    found = members(*([number] * size for number, size in enumerate(sizes)))
    whole = take_batch(found, 64, 1000)
    first, second = cut(whole)
    items = [item for piece in (*first, *second) for item in piece.items()]
    assert items == [item for piece in whole for item in piece.items()]
    assert sum(piece.size for piece in first) == sum(sizes) // 2


# --- the decorator --------------------------------------------------------------------------------------


def test_a_marked_function_is_the_function() -> None:
    @batched(max_items=8, max_wait_ms=2)
    def double(items: list[int]) -> list[int]:
        return [2 * item for item in items]

    assert double([1, 2]) == [2, 4]
    assert limits_of(double) == BatchLimits(8, 2.0)
    assert limits_of(len) is None


@pytest.mark.parametrize(
    "limits", [{"max_items": 0}, {"max_items": True}, {"max_items": 5000}, {"max_wait_ms": -1}, {"max_wait_ms": "5"}]
)
def test_limits_that_cannot_be(limits: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(limits))):
        batched(**limits)


def test_what_cannot_be_called_cannot_be_marked() -> None:
    with pytest.raises(TypeError, match="not list"):
        batched()([])  # type: ignore[type-var]
