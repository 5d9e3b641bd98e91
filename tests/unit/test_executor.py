"""The executor: how many attempts run at once, on threads and on the program loop; slots that are lent."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from queue import SimpleQueue
from typing import Any, NoReturn

import pytest

from bridge.protocol.codec import unpack_outcomes
from bridge.protocol.errors import CANCELLED, DEADLINE_EXCEEDED, OVERLOADED, BridgeError, decode_error, not_found
from bridge.protocol.messages import OK, Message, Pause, Reply, Request, Resume, ToolReply
from bridge.protocol.values import decode_value, encode_value
from bridge.worker import executor as executor_module
from bridge.worker import lending
from bridge.worker.attempt import Runner
from bridge.worker.call import Call
from bridge.worker.executor import Executor
from bridge.worker.operations import Asynchronous
from bridge.worker.program_loop import on_thread
from bridge.worker.slots import PAGE_BYTES, StartedSlots
from tests.support.operations import SPEC
from tests.support.waiting import wait_until

WAIT_S = 10.0


class Bodies:
    """The operation "work": its argument is the name of a function of the test, with "a" in front an async one."""

    inline: frozenset[str] = frozenset()

    def __init__(self) -> None:
        self.functions: dict[str, Callable[[Call], Any]] = {}
        self.operation = Asynchronous(
            self._run, self._run_async, lambda args: str(args).startswith("a"), lambda args, call: "at once" in args
        )

    def find(self, name: str) -> Any:
        return self.operation if name == "work" else None

    def unknown(self, name: str) -> BridgeError:
        return not_found("operation", name, ["work"])

    def batched(self, name: str) -> None:
        """Nothing is."""

    def _run(self, args: Any, call: Call) -> Any:
        return self.functions[args](call)

    async def _run_async(self, args: Any, call: Call) -> Any:
        function = self.functions[args]
        return await (function(call) if self.operation.is_async(args) else on_thread(partial(function, call)))


class Bench:
    """An executor, what it sends, and who sends it attempts."""

    def __init__(self, slots: int) -> None:
        self.bodies = Bodies()
        self.sent: SimpleQueue[Message] = SimpleQueue()
        self.log: list[Message] = []
        self.executor = Executor(slots, self.sent.put)
        self._epoch = 0
        fd = os.memfd_create("slots")
        os.ftruncate(fd, PAGE_BYTES)
        self.runner = Runner(self.bodies, SPEC, StartedSlots(fd))  # type: ignore[arg-type]
        self.executor.start(self.runner)
        os.close(fd)

    def submit(self, *names: str, deadline_ms: float | None = None) -> int:
        """Send an attempt with a row for each name; return its epoch."""
        self._epoch += 1
        payload = b"".join(map(encode_value, names))
        request = Request(
            operation="work", payload=payload, rows=len(names), epoch=self._epoch, request_id=100 + self._epoch,
            deadline_ms=deadline_ms,
        )  # fmt: skip
        self.executor.submit(request, time.monotonic())
        return self._epoch

    def next_reply(self) -> Reply:
        """Return the next reply, settled as the io loop does."""
        while True:
            message = self.sent.get(timeout=WAIT_S)
            self.log.append(message)
            self.executor.settled(message)
            if isinstance(message, Reply):
                return message


@pytest.fixture
def make() -> Iterator[Callable[[int], Bench]]:
    made: list[Bench] = []

    def build(slots: int) -> Bench:
        made.append(Bench(slots))
        return made[-1]

    yield build
    for bench in made:
        bench.executor.close()


def error_of(reply: Reply) -> BridgeError:
    assert reply.status != OK
    return decode_error(reply.payload or b"")


class Meter:
    """Counts who is between "begun" and "ended"."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.now = self.peak = 0

    def __enter__(self) -> None:
        with self._lock:
            self.now += 1
            self.peak = max(self.peak, self.now)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self.now -= 1


# --- slots --------------------------------------------------------------------------------------------


def test_slots_are_how_many_run_at_once_on_threads_and_on_the_loop(make: Callable[[int], Bench]) -> None:
    bench, meter = make(3), Meter()

    def sync(call: Call) -> str:
        with meter:
            threading.Event().wait(0.03)
        return threading.current_thread().name

    async def awaited(call: Call) -> str:
        with meter:
            await asyncio.sleep(0.03)
        return threading.current_thread().name

    bench.bodies.functions = {"sync": sync, "async": awaited}
    for number in range(10):
        bench.submit("async" if number % 2 else "sync")
    where = [decode_value(bench.next_reply().payload or b"") for _ in range(10)]
    assert meter.peak == 3
    assert where.count("programs") == 5
    assert sum(name.startswith("executor[") for name in where) == 5


def test_what_waits_for_nothing_runs_on_threads_one_after_the_other(make: Callable[[int], Bench]) -> None:
    bench, meter = make(4), Meter()

    def computes(call: Call) -> str:
        with meter:
            time.sleep(0.005)  # lets others in, as a switch of threads would
        return threading.current_thread().name

    bench.bodies.functions = {"a at once": computes}
    for _ in range(8):
        bench.submit("a at once")
    where = [decode_value(bench.next_reply().payload or b"") for _ in range(8)]
    assert all(name.startswith("executor[") for name in where)
    assert meter.peak == 1


def test_what_is_in_line_does_not_wait_for_what_a_thread_turns_to(make: Callable[[int], Bench]) -> None:
    bench, first_may_end, other_may_end = make(2), threading.Event(), threading.Event()
    bench.bodies.functions = {
        "a first at once": lambda call: first_may_end.wait(WAIT_S),
        "a second at once": lambda call: True,
        "other": lambda call: other_may_end.wait(WAIT_S),
    }
    first, second = bench.submit("a first at once"), bench.submit("a second at once")
    wait_until(lambda: bench.executor.queued == 0, WAIT_S, "both have a slot")
    other = bench.submit("other")  # for the thread of the first: the other one has handed over the second and sleeps
    first_may_end.set()
    assert [bench.next_reply().epoch for _ in range(2)] == [first, second]
    other_may_end.set()
    assert bench.next_reply().epoch == other


def test_what_was_cancelled_in_line_stops_when_its_turn_comes(make: Callable[[int], Bench]) -> None:
    bench, first_may_end = make(2), threading.Event()
    bench.bodies.functions = {
        "a first at once": lambda call: first_may_end.wait(WAIT_S),
        "a second at once": lambda call: call.step(),
    }
    bench.submit("a first at once")
    second = bench.submit("a second at once")
    wait_until(lambda: bench.executor.queued == 0, WAIT_S, "both have a slot")
    assert bench.executor.cancel(second) is None
    first_may_end.set()
    assert bench.next_reply().status == OK
    assert error_of(bench.next_reply()).code == CANCELLED


def test_rows_of_an_asynchronous_operation_run_one_after_the_other(make: Callable[[int], Bench]) -> None:
    bench, meter = make(2), Meter()

    async def awaited(call: Call) -> int:
        with meter:
            await asyncio.sleep(0.005)
        return call.rows_done

    async def failing(call: Call) -> NoReturn:
        raise ValueError("a bad row")

    bench.bodies.functions = {"async": awaited, "awry": failing, "sync": lambda call: threading.current_thread().name}
    bench.submit("async", "awry", "async", "sync")
    first, second, third, fourth = unpack_outcomes(bench.next_reply().payload or b"")
    assert (decode_value(first[1]), decode_value(third[1]), meter.peak) == (0, 2, 1)
    assert decode_error(second[1]).message == "a bad row"
    assert decode_value(fourth[1]) not in ("programs", "executor[0]", "executor[1]")  # a thread that the loop waits for


def test_an_attempt_is_marked_as_started_before_its_operation_is_asked_where_it_runs(
    make: Callable[[int], Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make(1)
    seen: list[object] = []

    def is_async(args: Any) -> bool:
        seen.append("asked")
        return False

    monkeypatch.setattr(bench.runner, "mark", seen.append)
    monkeypatch.setattr(bench.bodies.operation, "is_async", is_async)
    bench.bodies.functions = {"sync": lambda call: None}
    epoch = bench.submit("sync")
    assert bench.next_reply().status == OK
    assert seen[:2] == [epoch, "asked"]


def test_rows_on_the_loop_are_not_asked_there_where_they_run(
    make: Callable[[int], Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    """To be asked, a module may have to be built, which imports what its options name."""
    bench = make(1)
    asked_on: list[str] = []

    def is_async(args: Any) -> bool:
        asked_on.append(threading.current_thread().name)
        return True

    async def fine(call: Call) -> None:
        await asyncio.sleep(0)

    monkeypatch.setattr(bench.bodies.operation, "is_async", is_async)
    monkeypatch.setattr(bench.bodies.operation, "run_async", lambda args, call: fine(call))
    bench.submit("async", "async")
    assert [status for status, _ in unpack_outcomes(bench.next_reply().payload or b"")] == [OK, OK]
    assert asked_on == ["executor[0]"]


def test_what_a_task_raises_ends_its_call_alone(make: Callable[[int], Bench]) -> None:
    bench = make(2)

    async def exits(call: Call) -> NoReturn:
        raise SystemExit("bye")

    async def child_exits(call: Call) -> None:
        await asyncio.create_task(exits(call))

    async def fine(call: Call) -> str:
        await asyncio.sleep(0)
        return "fine"

    bench.bodies.functions = {"a exits": exits, "a child exits": child_exits, "a fine": fine}
    for name in ("a exits", "a child exits"):
        bench.submit(name)
        assert error_of(bench.next_reply()).details["type"] == "SystemExit"
        bench.submit("a fine")
        assert bench.next_reply().status == OK


def test_who_stops_the_loop_ends_nobody(make: Callable[[int], Bench]) -> None:
    bench = make(2)

    async def stops(call: Call) -> str:
        asyncio.get_running_loop().stop()
        await asyncio.sleep(0)
        return "went on"

    bench.bodies.functions = {"a stops": stops}
    for _ in range(2):
        bench.submit("a stops")
        assert bench.next_reply().status == OK


# --- the end of what runs on the loop -----------------------------------------------------------------


@pytest.mark.parametrize("why", [CANCELLED, DEADLINE_EXCEEDED])
@pytest.mark.parametrize("body", ["sleeps", "groups", "gathers"])
def test_a_task_is_stopped_where_it_waits(make: Callable[[int], Bench], why: str, body: str) -> None:
    bench, begun = make(1), threading.Event()

    async def sleeps(call: Call) -> None:
        begun.set()
        await asyncio.sleep(60)

    async def groups(call: Call) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(sleeps(call))

    async def gathers(call: Call) -> None:
        await asyncio.gather(sleeps(call), sleeps(call))

    bench.bodies.functions = {"a": {"sleeps": sleeps, "groups": groups, "gathers": gathers}[body]}
    epoch = bench.submit("a", deadline_ms=50 if why == DEADLINE_EXCEEDED else None)
    assert begun.wait(WAIT_S)
    began_s = time.monotonic()
    if why == CANCELLED:
        bench.executor.cancel(epoch)
    assert error_of(bench.next_reply()).code == why
    assert time.monotonic() - began_s < 2


def test_what_a_program_leaves_on_the_loop_ends_with_it(make: Callable[[int], Bench]) -> None:
    bench, ended = make(2), SimpleQueue[str]()
    kept: list[Any] = []

    async def sleeps() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            ended.put("cancelled")
            raise

    async def leaves(call: Call) -> str:
        kept.append(asyncio.create_task(sleeps()))
        await asyncio.sleep(0)
        return "done"

    async def stays(call: Call) -> str:
        await asyncio.create_task(asyncio.sleep(0.02))
        return "done"

    bench.bodies.functions = {"a leaves": leaves, "a stays": stays}
    bench.submit("a leaves")
    assert bench.next_reply().status == OK
    assert ended.get(timeout=WAIT_S) == "cancelled"
    bench.submit("a stays")
    assert bench.next_reply().status == OK


def test_a_task_left_behind_that_waits_for_a_thread_is_cancelled(make: Callable[[int], Bench]) -> None:
    bench = make(1)
    begun, go_on, ended = threading.Event(), threading.Event(), SimpleQueue[type[BaseException]]()
    kept: list[Any] = []

    def blocks() -> None:
        begun.set()
        go_on.wait(WAIT_S)

    async def waits() -> None:
        try:
            await on_thread(blocks)
        except BaseException as exc:
            ended.put(type(exc))
            raise

    async def leaves(call: Call) -> str:
        kept.append(asyncio.create_task(waits()))
        while not begun.is_set():  # noqa: ASYNC110 - it is set on a thread
            await asyncio.sleep(0.001)
        return "done"

    bench.bodies.functions = {"a": leaves}
    bench.submit("a")
    assert bench.next_reply().status == OK
    assert ended.get(timeout=WAIT_S) is asyncio.CancelledError
    go_on.set()


def test_a_task_that_cancels_itself_is_an_error_of_the_program(make: Callable[[int], Bench]) -> None:
    bench = make(1)

    async def gives_up(call: Call) -> NoReturn:
        raise asyncio.CancelledError

    bench.bodies.functions = {"a": gives_up}
    bench.submit("a")
    assert error_of(bench.next_reply()).details["type"] == "asyncio.exceptions.CancelledError"


# --- slots that are lent ------------------------------------------------------------------------------


def pausing(begun: SimpleQueue[int], go_on: Future[None]) -> tuple[Callable[[Call], Any], Callable[[Call], Any]]:
    """Return a body for a thread and one for the loop: each lends its slot until `go_on`."""

    def sync(call: Call) -> str:
        with call.paused():
            begun.put(call.epoch)
            go_on.result(WAIT_S)
        return "came back"

    async def awaited(call: Call) -> str:
        async with call.apaused():
            begun.put(call.epoch)
            await asyncio.wrap_future(go_on)
        return "came back"

    return sync, awaited


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_paused_attempt_lets_others_run(make: Callable[[int], Bench], kind: str) -> None:
    bench, begun, go_on = make(1), SimpleQueue[int](), Future[None]()
    sync, awaited = pausing(begun, go_on)
    bench.bodies.functions = {"sync": sync, "async": awaited, "quick": lambda call: "quick", "a": awaited}
    parents = [bench.submit(kind) for _ in range(3)]
    assert [begun.get(timeout=WAIT_S) for _ in parents] == parents
    bench.submit("quick")
    assert decode_value(bench.next_reply().payload or b"") == "quick"
    go_on.set_result(None)
    replies = [bench.next_reply() for _ in parents]
    assert [decode_value(reply.payload or b"") for reply in replies] == ["came back"] * 3
    assert sorted(reply.epoch for reply in replies) == parents
    told = [(type(message), getattr(message, "epoch", 0)) for message in bench.log if not isinstance(message, Reply)]
    assert sorted(epoch for kind_, epoch in told if kind_ is Pause) == parents
    assert sorted(epoch for kind_, epoch in told if kind_ is Resume) == parents


def test_who_lent_a_slot_comes_before_who_has_not_begun(make: Callable[[int], Bench]) -> None:
    bench, begun, go_on = make(1), SimpleQueue[int](), Future[None]()
    held = threading.Event()

    def holds(call: Call) -> str:
        begun.put(call.epoch)
        assert held.wait(WAIT_S)
        return "held"

    sync, _ = pausing(begun, go_on)
    bench.bodies.functions = {"sync": sync, "holds": holds, "late": lambda call: "late"}
    parent = bench.submit("sync")
    assert begun.get(timeout=WAIT_S) == parent
    holder = bench.submit("holds")
    assert begun.get(timeout=WAIT_S) == holder
    late = bench.submit("late")
    go_on.set_result(None)
    wait_until(lambda: bench.executor._slots._returning, WAIT_S, "the parent wants its slot back")
    held.set()
    assert [bench.next_reply().epoch for _ in range(3)] == [holder, parent, late]


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_stopped_attempt_does_not_wait_for_its_slot(make: Callable[[int], Bench], kind: str) -> None:
    bench, begun, go_on = make(1), SimpleQueue[int](), Future[None]()
    held = threading.Event()

    def holds(call: Call) -> None:
        begun.put(call.epoch)
        assert held.wait(WAIT_S)

    sync, awaited = pausing(begun, go_on)
    bench.bodies.functions = {"sync": sync, "async": awaited, "holds": holds}
    parent = bench.submit(kind)
    assert begun.get(timeout=WAIT_S) == parent
    bench.submit("holds")
    begun.get(timeout=WAIT_S)
    go_on.set_result(None)
    wait_until(lambda: bench.executor._slots._returning, WAIT_S, "the parent wants its slot back")
    bench.executor.cancel(parent)
    reply = bench.next_reply()
    assert (reply.epoch, error_of(reply).code) == (parent, CANCELLED)
    held.set()
    bench.next_reply()
    # The books are right: one slot, free.
    bench.bodies.functions["quick"] = lambda call: "quick"
    bench.submit("quick")
    assert bench.next_reply().status == OK
    assert (bench.executor._slots.free, bench.executor._slots._away) == (1, 0)


def test_pauses_are_counted(make: Callable[[int], Bench]) -> None:
    bench = make(1)

    def twice(call: Call) -> None:
        with call.paused(), call.paused():
            pass
        with call.paused():
            pass

    bench.bodies.functions = {"sync": twice}
    bench.submit("sync")
    assert bench.next_reply().status == OK
    assert [type(message) for message in bench.log] == [Pause, Resume, Pause, Resume, Reply]


def test_threads_that_pause_at_once_lend_and_take_back_one_slot(make: Callable[[int], Bench]) -> None:
    bench, meter = make(2), Meter()

    def many(call: Call) -> None:
        def one() -> None:
            for _ in range(50):
                with call.paused():
                    time.sleep(0)

        threads = [threading.Thread(target=one) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with meter:
            time.sleep(0.01)

    bench.bodies.functions = {"sync": many}
    for _ in range(6):
        bench.submit("sync")
    assert [bench.next_reply().status for _ in range(6)] == [OK] * 6
    assert meter.peak <= 2
    wait_until(lambda: bench.executor._slots.free == 2, WAIT_S, "both slots are free")
    assert bench.executor._slots._away == 0


@pytest.mark.parametrize("waits_in_line", [False, True])
def test_a_thread_that_is_left_behind_keeps_no_slot(make: Callable[[int], Bench], waits_in_line: bool) -> None:
    bench = make(1)
    lent, go_on, leave, held = (threading.Event() for _ in range(4))
    left_behind: list[threading.Thread] = []

    def leaves_one_behind(call: Call) -> None:
        def one() -> None:
            with call.paused():
                lent.set()
                assert go_on.wait(WAIT_S)

        left_behind.append(threading.Thread(target=one))
        left_behind[0].start()
        assert leave.wait(WAIT_S)

    bench.bodies.functions = {"leaves": leaves_one_behind, "holds": lambda call: held.wait(WAIT_S)}
    first = bench.submit("leaves")
    assert lent.wait(WAIT_S)
    second = bench.submit("holds")
    wait_until(lambda: bench.executor._slots.free == 0, WAIT_S, "another has the slot")
    if waits_in_line:
        go_on.set()
        wait_until(lambda: bench.executor._slots._returning, WAIT_S, "the thread wants the slot back")
    leave.set()
    assert bench.next_reply().epoch == first
    go_on.set()
    left_behind[0].join(WAIT_S)
    held.set()
    assert bench.next_reply().epoch == second
    wait_until(lambda: bench.executor._slots.free == 1, WAIT_S, "the slot is free")
    assert bench.executor._slots._away == 0


def test_only_so_many_wait(make: Callable[[int], Bench], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lending, "MAX_AWAY", 3)
    bench, begun, go_on = make(1), SimpleQueue[int](), Future[None]()
    sync, _ = pausing(begun, go_on)
    bench.bodies.functions = {"sync": sync}
    for _ in range(4):
        bench.submit("sync")
    error = error_of(bench.next_reply())
    assert (error.code, error.retryable) == (OVERLOADED, True)
    go_on.set_result(None)
    assert [bench.next_reply().status for _ in range(3)] == [OK] * 3


def test_threads_that_were_needed_meanwhile_end(make: Callable[[int], Bench], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor_module, "_SPARE_S", 0.05)
    bench, begun, go_on = make(1), SimpleQueue[int](), Future[None]()
    sync, _ = pausing(begun, go_on)
    bench.bodies.functions = {"sync": sync}
    for _ in range(5):
        bench.submit("sync")
        begun.get(timeout=WAIT_S)
    assert bench.executor._threads == 6
    go_on.set_result(None)
    for _ in range(5):
        bench.next_reply()
    wait_until(lambda: bench.executor._threads == 1, WAIT_S, "one thread for one slot")


# --- what an attempt is told --------------------------------------------------------------------------


def test_tool_replies_reach_the_attempt_they_are_for(make: Callable[[int], Bench]) -> None:
    bench, begun = make(2), SimpleQueue[int]()

    def asks(call: Call) -> Any:
        told: Future[ToolReply] = Future()
        call.on_tool_reply = told.set_result
        begun.put(call.epoch)
        return told.result(WAIT_S).number

    bench.bodies.functions = {"sync": asks}
    epochs = [bench.submit("sync"), bench.submit("sync")]
    assert sorted(begun.get(timeout=WAIT_S) for _ in epochs) == epochs
    for epoch in (*epochs, 99):
        bench.executor.tool_reply(ToolReply(epoch=epoch, number=epoch * 10))
    replies = {reply.epoch: decode_value(reply.payload or b"") for reply in (bench.next_reply(), bench.next_reply())}
    assert replies == {1: 10, 2: 20}


def test_who_waits_is_told_of_a_stop_once() -> None:
    call, told = Call(1, 1, "test"), []
    call.on_stop(lambda: told.append("first"))
    undo = call.on_stop(lambda: told.append("taken back"))
    call.on_stop(lambda: 1 // 0)  # it is logged, and the next is told all the same
    call.on_stop(lambda: told.append("last"))
    undo()
    call.cancel()
    call.cancel()
    assert told == ["first", "last"]
    call.on_stop(lambda: told.append("late"))
    assert told == ["first", "last", "late"]


def test_without_a_coordinator_a_pause_is_nothing_and_a_message_goes_nowhere() -> None:
    call = Call(1, 1, "test")
    with call.paused():
        pass
    with pytest.raises(BridgeError) as caught:
        call.post(Pause())
    assert caught.value.code == "UNAVAILABLE"
