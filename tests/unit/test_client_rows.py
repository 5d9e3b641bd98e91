"""Mapping over rows: chunks, window, order. Futures are settled by hand: what is tested has no sockets."""

from __future__ import annotations

import random
import threading
from typing import Any

import pytest

from bridge.protocol import codec
from bridge.protocol.errors import CIRCUIT_OPEN, OVERLOADED, WORKER_LOST, BridgeError, encode_error
from bridge.protocol.messages import ERROR, NOT_RUN, ROWS, Reply
from bridge.protocol.values import decode_value, split_values
from orchestrator.client.future import Future, Parked
from orchestrator.client.patience import LEAST_WAIT_S, PATIENCE_S
from orchestrator.client.request import encode_args, encode_rows
from orchestrator.client.rows import MAX_CHUNK, MAX_CHUNK_BYTES, MAX_ROWS, Chunker, MapPlan, RowMap, cut
from orchestrator.errors import (
    CircuitOpen,
    DspoolError,
    InvalidRequest,
    Overloaded,
    RemoteError,
    Unavailable,
    WorkerLost,
)
from pools.core import admission


class Line:
    """Where futures come from: keeps what was sent, settles it when told to."""

    nesting = 128

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.sent: list[tuple[Future, bytes, int]] = []
        self.cancelled: list[Future] = []
        self.deadlines_s: list[float | None] = []

    def send(self, payload: bytes, rows: int, deadline_s: float | None, notify: Any) -> Future:
        future = Future(self, rows, None)  # type: ignore[arg-type]
        future.notify = notify
        self.sent.append((future, payload, rows))
        self.deadlines_s.append(deadline_s)
        return future

    def answer(self, place: int, run_ms: float = 0.01, run: int | None = None) -> None:
        """Settle a request; of its rows only the first `run` were run."""
        future, payload, rows = self.sent.pop(place)
        if rows == 1:
            value = decode_value(payload)
            bad = Reply(status=ERROR, payload=encode_error(BridgeError("REMOTE_ERROR", "bad")))
            future.settle(bad if value == "bad" else Reply(payload=payload, run_ms=run_ms))
            return
        outcomes = [
            (ERROR, encode_error(BridgeError("REMOTE_ERROR", "bad"))) if decode_value(one) == "bad" else (0, one)
            for one in split_values(payload, rows)
        ]
        if run is not None:
            outcomes[run:] = [(NOT_RUN, b"")] * (rows - run)
        future.settle(Reply(status=ROWS, payload=codec.pack_outcomes(outcomes), run_ms=run_ms * rows))

    def refuse(self, place: int, retry_after_s: float | None = 1.0, worker: str = "", code: str = OVERLOADED) -> None:
        """Settle a request of which nothing was run."""
        details = {} if retry_after_s is None else {"retry_after_s": retry_after_s}
        error = BridgeError(code, "not now", retryable=True, details=details)
        self.sent.pop(place)[0].settle(Reply(status=ERROR, payload=encode_error(error), worker=worker))

    def cancel(self, future: Future, force: bool) -> None:
        self.cancelled.append(future)


def encode(row: Any) -> bytes:
    return encode_args(row, 128, 1 << 26)


def row_map(line: Line, rows: Any, *, ordered: bool = True, window: int = 16, chunk: int | None = 4) -> RowMap:
    plan = MapPlan({"operation": "echo"}, rows, ordered, True, window, chunk, False, None)
    return RowMap(plan, 4096, encode=encode, send=line.send, has_room=lambda _: True)


def drain(mapped: RowMap, line: Line, choose: Any) -> list[Any]:
    found: list[Any] = []
    for outcomes in mapped.steps():
        if outcomes is None:
            line.answer(choose(len(line.sent)))
        else:
            found += outcomes
    return found


@pytest.mark.parametrize("chunk", [None, 1, 3, 64])
@pytest.mark.parametrize("count", [0, 1, 7, 100])
def test_ordered_answers_come_in_the_order_of_the_rows(chunk: int | None, count: int) -> None:
    line, seeded = Line(), random.Random(7)
    mapped = row_map(line, range(count), chunk=chunk)
    assert drain(mapped, line, seeded.randrange) == list(range(count))


def test_unordered_answers_come_as_they_finish() -> None:
    line = Line()
    mapped = row_map(line, range(8), ordered=False, chunk=2)
    found = drain(mapped, line, lambda under_way: under_way - 1)
    assert found == [6, 7, 4, 5, 2, 3, 0, 1]


def test_the_input_is_read_at_most_a_window_ahead_of_what_is_taken() -> None:
    line, read = Line(), []

    def rows() -> Any:
        for number in range(1000):
            read.append(number)
            yield number

    taken = 0
    for outcomes in row_map(line, rows(), window=16, chunk=4).steps():
        assert len(read) <= taken + 16
        if outcomes is None:
            line.answer(0)
        else:
            taken += len(outcomes)
    assert taken == 1000


def test_a_row_that_cannot_be_encoded_fails_alone() -> None:
    line = Line()
    found = drain(row_map(line, [1, {"x": object()}, 3, "bad", 5]), line, lambda _: 0)
    assert [found[0], found[2], found[4]] == [1, 3, 5]
    assert isinstance(found[1], InvalidRequest)
    assert found[1].path == "x"
    assert isinstance(found[3], RemoteError)


def test_rows_that_all_cannot_be_encoded_send_nothing() -> None:
    line = Line()
    for ordered in (True, False):
        found = drain(row_map(line, [object(), object()], ordered=ordered), line, lambda _: 0)
        assert [type(one) for one in found] == [InvalidRequest, InvalidRequest]
    assert line.sent == []


def test_a_chunk_that_is_lost_fails_each_of_its_rows() -> None:
    line = Line()
    mapped = row_map(line, range(4))
    steps = mapped.steps()
    assert next(steps) is None
    line.sent[0][0].settle(None, WorkerLost("gone", signal=9))
    outcomes = next(steps)
    assert outcomes is not None
    assert [type(one) for one in outcomes] == [WorkerLost] * 4


def test_cancelling_reaches_every_request_under_way() -> None:
    line = Line()
    mapped = row_map(line, range(100), window=16, chunk=4)
    assert next(mapped.steps()) is None
    mapped.cancel()
    assert line.cancelled == [future for future, _, _ in line.sent]
    assert len(line.cancelled) == 4


def test_large_rows_are_not_put_together() -> None:
    chunks = cut([b"x" * (MAX_CHUNK_BYTES // 2 + 1)] * 3 + [b"y"], encode)
    assert [len(chunk.payloads) for chunk in chunks] == [1, 1, 2]


def test_no_room_waits_instead_of_sending() -> None:
    line, room = Line(), [False]
    plan = MapPlan({"operation": "echo"}, range(3), True, True, 16, 1, False, None)
    mapped = RowMap(plan, 4096, encode=encode, send=line.send, has_room=lambda _: room[0])
    steps = mapped.steps()
    assert next(steps) is None
    assert line.sent == []
    room[0] = True
    assert next(steps) is None
    assert len(line.sent) == 3


@pytest.mark.parametrize(("run_ms", "size"), [(0.001, MAX_CHUNK), (1.0, 4), (50.0, 1), (0.0, MAX_CHUNK)])
def test_the_size_of_a_chunk_follows_the_time_of_a_row(run_ms: float, size: int) -> None:
    chunker = Chunker(None, 256)
    assert chunker.size == 1
    for _ in range(10):
        chunker.observe(chunker.size, run_ms * chunker.size)
    assert chunker.size == size


def test_a_chunk_grows_step_by_step_and_leaves_room_for_four() -> None:
    chunker = Chunker(None, 100)
    chunker.observe(1, 0.001)
    assert chunker.size == 4
    for _ in range(5):
        chunker.observe(chunker.size, 0.001)
    assert chunker.size == 25


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("together", [True, False], ids=["encoded together", "encoded one by one"])
def test_rows_that_were_not_run_are_sent_again(ordered: bool, together: bool) -> None:
    line, seeded = Line(), random.Random(3)
    rows = [object() if n % 11 == 5 and not together else n for n in range(60)]
    plan = MapPlan({"operation": "echo"}, rows, ordered, True, 32, 8, False, 5.0)
    mapped = RowMap(
        plan, 4096, encode=encode, send=line.send, has_room=lambda _: seeded.random() < 0.7,
        encode_rows=(lambda batch: encode_rows(batch, 128, 1 << 20)) if together else lambda _: None,
    )  # fmt: skip
    found: list[Any] = []
    for outcomes in mapped.steps():
        if outcomes is not None:
            found += outcomes
        elif line.sent:
            place = seeded.randrange(len(line.sent))
            line.answer(place, run=seeded.randint(1, line.sent[place][2]))
    good = [value for value in found if not isinstance(value, DspoolError)]
    wanted = [row for row in rows if isinstance(row, int)]
    assert len(found) == len(rows)
    assert (good if ordered else sorted(good)) == wanted
    assert len(line.deadlines_s) > 60 // 8 + 5
    assert all(deadline_s is not None and 4.0 < deadline_s <= 5.0 for deadline_s in line.deadlines_s)
    assert min(deadline_s for deadline_s in line.deadlines_s if deadline_s is not None) < 5.0


def test_an_answer_without_any_row_ends_the_chunk() -> None:
    line = Line()
    mapped = row_map(line, range(4))
    steps = mapped.steps()
    assert next(steps) is None
    line.answer(0, run=0)
    outcomes = next(steps)
    assert outcomes is not None
    assert [type(one) for one in outcomes] == [DspoolError] * 4


def test_values_raise_the_first_error_and_cancel_the_rest() -> None:
    line = Line()
    values = row_map(line, [1, 2, 3, "bad", *range(20)]).values()
    assert next(values) is None
    line.answer(0)
    step = next(values)
    assert step is not None
    with pytest.raises(RemoteError):
        list(step)
    values.close()
    assert line.cancelled == [future for future, _, _ in line.sent]
    assert line.cancelled != []


def test_a_chunk_has_no_more_rows_than_a_coordinator_takes() -> None:
    assert MAX_ROWS == admission.MAX_ROWS


# --- refused for now ------------------------------------------------------------------------------


class Clock:
    """A time that goes on when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def patient(
    line: Line, clock: Clock, rows: Any, *, ordered: bool = True, deadline_s: float | None = None, ended: Any = None
) -> RowMap:
    plan = MapPlan({"operation": "echo"}, rows, ordered, True, 16, 4, False, deadline_s)
    return RowMap(
        plan, 4096, encode=encode, send=line.send, has_room=lambda _: True, clock=clock,
        ended=ended or (lambda: False),
    )  # fmt: skip


@pytest.mark.parametrize("ordered", [True, False])
def test_refused_rows_are_sent_again_when_the_time_has_come(ordered: bool) -> None:
    line, clock, seeded, read = Line(), Clock(), random.Random(5), []

    def rows() -> Any:
        for number in range(80):
            read.append(number)
            yield number

    found: list[Any] = []
    refused = waits = 0
    mapped = patient(line, clock, rows(), ordered=ordered)
    for outcomes in mapped.steps():
        assert len(read) <= len(found) + 16 + 4
        if outcomes is not None:
            found += outcomes
        elif line.sent:
            if seeded.random() < 0.6:
                refused += 1
                line.refuse(seeded.randrange(len(line.sent)))
            else:
                line.answer(seeded.randrange(len(line.sent)))
        else:
            # Nothing is under way: all waits for one time, until then nothing is sent.
            assert mapped.until is not None
            assert 0.0 < mapped.until - clock.now <= 1.1
            waits += 1
            clock.now = mapped.until
    assert refused > waits > 3
    assert (found if ordered else sorted(found)) == list(range(80))


@pytest.mark.parametrize("ordered", [True, False])
def test_with_nothing_under_way_it_waits_less_than_it_was_told(ordered: bool) -> None:
    line, clock = Line(), Clock()
    mapped = patient(line, clock, range(16), ordered=ordered)
    steps = mapped.steps()
    assert next(steps) is None
    line.refuse(0, 4.0)
    assert next(steps) is None
    told = mapped.until
    assert told is not None
    assert told - clock.now >= 4.0
    # What was told was said of a queue with these rows in it, and those are answered.
    found = answer_all(line, steps, 2)
    assert next(steps) is None
    assert mapped.until == told
    line.answer(0)
    assert mapped.window.ready()
    found += taken(steps)
    assert mapped.until is not None
    assert mapped.until - clock.now <= LEAST_WAIT_S * 1.1
    assert not mapped.window.ready()
    # Refused again although nothing of its own is there: now it believes it.
    clock.now = mapped.until
    assert next(steps) is None
    line.refuse(0, 4.0)
    assert taken(steps) == []
    assert mapped.until - clock.now >= 4.0
    clock.now = mapped.until
    assert next(steps) is None
    line.answer(0)
    found += [row for outcomes in steps if outcomes is not None for row in outcomes]
    assert sorted(found) == list(range(16))


def answer_all(line: Line, steps: Any, requests: int) -> list[Any]:
    for _ in range(requests):
        line.answer(0)
    return taken(steps)


def taken(steps: Any) -> list[Any]:
    """Return what can be had without waiting."""
    found: list[Any] = []
    while (outcomes := next(steps)) is not None:
        found += outcomes
    return found


def test_an_open_breaker_is_waited_for_as_long_as_it_says() -> None:
    line, clock = Line(), Clock()
    mapped = patient(line, clock, range(16), ordered=False)
    steps = mapped.steps()
    assert next(steps) is None
    line.refuse(0, 4.0, code=CIRCUIT_OPEN)
    answer_all(line, steps, 3)
    assert mapped.until is not None
    assert mapped.until - clock.now >= 4.0
    clock.now = mapped.until
    assert next(steps) is None
    line.refuse(0, 4.0)
    assert taken(steps) == []
    clock.now = mapped.until
    assert next(steps) is None
    line.answer(0)
    assert taken_to_the_end(steps) == 4


def taken_to_the_end(steps: Any) -> int:
    return sum(len(outcomes) for outcomes in steps if outcomes is not None)


def test_a_breaker_is_not_waited_for_beyond_the_deadline() -> None:
    line = Line()
    steps = patient(line, Clock(), range(4), deadline_s=2.5).steps()
    assert next(steps) is None
    line.refuse(0, 10.0, code=CIRCUIT_OPEN)
    outcomes = next(steps)
    assert outcomes is not None
    assert [type(one) for one in outcomes] == [CircuitOpen] * 4


def test_rows_whose_workers_die_do_not_prolong_the_wait_for_a_breaker() -> None:
    line, clock = Line(), Clock()
    steps = (mapped := patient(line, clock, range(400))).steps()
    began, ends = clock.now, []
    while not any(isinstance(end, CircuitOpen) for end in ends):
        outcomes = next(steps)
        if outcomes is not None:
            ends += outcomes
        elif line.sent:
            line.refuse(0, worker="general-1.1", code=WORKER_LOST)  # a probe
            while line.sent:
                line.refuse(0, 10.0, code=CIRCUIT_OPEN)
        else:
            clock.now = mapped.until or clock.now
    assert PATIENCE_S <= clock.now - began <= PATIENCE_S + 20.0
    assert any(isinstance(end, WorkerLost) for end in ends)


@pytest.mark.parametrize(("told_s", "least_s"), [(2.0, 2.0), (0.001, LEAST_WAIT_S), (None, LEAST_WAIT_S)])
def test_the_wait_is_what_was_told_and_a_little_more(told_s: float | None, least_s: float) -> None:
    line, clock = Line(), Clock()
    mapped = patient(line, clock, range(4))
    steps = mapped.steps()
    assert next(steps) is None
    line.refuse(0, told_s)
    assert next(steps) is None
    assert mapped.until is not None
    assert least_s <= mapped.until - clock.now <= least_s * 1.1
    clock.now = mapped.until - 0.001
    assert next(steps) is None
    assert line.sent == []
    clock.now += 0.001
    assert next(steps) is None
    assert len(line.sent) == 1
    assert not mapped.until
    line.answer(0)
    assert next(steps) == [0, 1, 2, 3]


def test_the_first_of_those_refused_is_sent_first() -> None:
    line, clock = Line(), Clock()
    mapped = patient(line, clock, range(16))
    steps = mapped.steps()
    assert next(steps) is None
    before = [payload for _, payload, _ in line.sent]
    for _ in range(4):
        line.refuse(len(line.sent) // 2)
    assert next(steps) is None
    assert mapped.until is not None
    clock.now = mapped.until
    assert next(steps) is None
    assert [payload for _, payload, _ in line.sent] == before


def test_a_refusal_behind_the_front_wakes_who_waits_for_the_front() -> None:
    line = Line()
    mapped = patient(line, Clock(), range(16))
    steps = mapped.steps()
    assert next(steps) is None
    assert not mapped.window.ready()
    parked = Parked()
    for queue in mapped.window.waiters():
        queue.append(parked)
    line.answer(3)
    assert not mapped.window.ready()
    assert not parked._lock.acquire(timeout=0)  # asleep
    line.refuse(2)
    assert mapped.window.ready()
    assert parked._lock.acquire(timeout=0)
    assert next(steps) is None
    assert mapped.until is not None


def test_a_deadline_counts_from_the_first_time_that_a_row_is_sent() -> None:
    line, clock = Line(), Clock()
    mapped = patient(line, clock, range(4), deadline_s=2.5)
    steps = mapped.steps()
    for _ in range(2):
        assert next(steps) is None
        line.refuse(0)
        assert next(steps) is None
        assert mapped.until is not None
        clock.now = mapped.until
    assert next(steps) is None
    assert line.deadlines_s == [2.5, *(pytest.approx(2.5 - 1.05 * waits, abs=0.11) for waits in (1, 2))]
    line.refuse(0)  # what is left is less than the wait
    outcomes = next(steps)
    assert outcomes is not None
    assert [type(one) for one in outcomes] == [Overloaded] * 4


def refuse_for(line: Line, clock: Clock, mapped: RowMap, steps: Any, seconds: float) -> Any:
    """Refuse all that is sent for so long; return the first outcomes."""
    until = clock.now + seconds
    while clock.now < until:
        while line.sent:
            line.refuse(0)
        outcomes = next(steps)
        if outcomes is not None:
            return outcomes
        if mapped.until is not None:
            clock.now = mapped.until
    return None


def test_without_a_deadline_patience_ends_when_nothing_was_answered_for_so_long() -> None:
    line, clock = Line(), Clock()
    mapped = patient(line, clock, range(8))
    steps = mapped.steps()
    assert refuse_for(line, clock, mapped, steps, PATIENCE_S - 5.0) is None
    while not line.sent:
        assert next(steps) is None
        clock.now = mapped.until or clock.now
    line.answer(0)
    assert next(steps) == [0, 1, 2, 3]
    began = clock.now
    assert refuse_for(line, clock, mapped, steps, PATIENCE_S - 5.0) is None
    outcomes = refuse_for(line, clock, mapped, steps, 10.0)
    assert [type(one) for one in outcomes] == [Overloaded] * 4
    assert PATIENCE_S <= clock.now - began <= PATIENCE_S + 2.0


def test_what_a_worker_ran_is_not_sent_again() -> None:
    line = Line()
    steps = patient(line, Clock(), range(4)).steps()
    assert next(steps) is None
    line.refuse(0, worker="general-0.1")
    outcomes = next(steps)
    assert outcomes is not None
    assert [type(one) for one in outcomes] == [Overloaded] * 4


def test_the_end_of_the_connection_is_not_waited_for() -> None:
    line, ended = Line(), [False]
    mapped = patient(line, Clock(), range(4), ended=lambda: ended[0])
    steps = mapped.steps()
    assert next(steps) is None
    line.refuse(0)
    assert next(steps) is None

    def gone(*_: object) -> Any:
        raise Unavailable("gone")

    ended[0], mapped._send = True, gone
    with pytest.raises(Unavailable):
        next(steps)
