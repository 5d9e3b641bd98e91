"""Mapping over rows: chunks, window, order. Futures are settled by hand: what is tested has no sockets."""

from __future__ import annotations

import random
import threading
from typing import Any

import pytest

from bridge.protocol import codec
from bridge.protocol.errors import BridgeError, encode_error
from bridge.protocol.messages import ERROR, NOT_RUN, ROWS, Reply
from bridge.protocol.values import decode_value, split_values
from orchestrator.client.future import Future
from orchestrator.client.request import encode_args, encode_rows
from orchestrator.client.rows import MAX_CHUNK, MAX_CHUNK_BYTES, MAX_ROWS, Chunker, MapPlan, RowMap, cut
from orchestrator.errors import DspoolError, InvalidRequest, RemoteError, WorkerLost
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
