"""Sessions in a worker: what attempts find and leave, whatever they run on, and what the coordinator is told of it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from queue import SimpleQueue
from typing import Any

import msgspec
import pytest

from bridge.batched import BatchLimits
from bridge.protocol.errors import (
    CANCELLED,
    DEADLINE_EXCEEDED,
    INVALID_REQUEST,
    REMOTE_ERROR,
    TOO_LARGE,
    UNAVAILABLE,
    BridgeError,
    decode_error,
    not_found,
)
from bridge.protocol.kept import read_state, read_turn
from bridge.protocol.large import LARGE_BYTES
from bridge.protocol.messages import OK, InSession, Message, Reply, Request
from bridge.protocol.sessions import cut_tail, pack_snapshot, unpack_change
from bridge.protocol.values import Prediction, decode_value, encode_value
from bridge.sessions import Session, current_session
from bridge.shared_memory import Lendings, behind
from bridge.worker.attempt import Runner
from bridge.worker.call import Call
from bridge.worker.executor import Executor
from bridge.worker.operations import Asynchronous
from bridge.worker.program_loop import on_thread
from bridge.worker.sessions import delete_state, set_state
from bridge.worker.slots import PAGE_BYTES, StartedSlots
from tests.support.operations import SPEC
from tests.support.waiting import wait_until

WAIT_S = 10.0
KEY = "anna\0s1"
Act = Callable[[Session], Any]


def mine() -> Session:
    session = current_session()
    assert session is not None
    return session


class Acting:
    """Operations that do with the session what the test says: on a thread, in turns, on the event loop."""

    inline: frozenset[str] = frozenset()

    def __init__(self) -> None:
        self.act: Act = lambda session: None
        self.wait = False
        run, run_async = self._run, self._run_async
        self.table: dict[str, Any] = {
            "threaded": run,
            "in turns": Asynchronous(run, run_async, lambda args: True, lambda args, call: True),
            "awaited": Asynchronous(run, run_async, lambda args: True),
            "off the loop": Asynchronous(run, self._run_off, lambda args: True),
            "session.set": set_state,
            "session.delete": delete_state,
        }

    def _run(self, args: Any, call: Call) -> Any:
        return self.act(mine())

    async def _run_async(self, args: Any, call: Call) -> Any:
        return self.act(mine())

    async def _run_off(self, args: Any, call: Call) -> Any:
        return await on_thread(lambda: self.act(mine()))

    def find(self, name: str) -> Any:
        return self.table.get(name)

    def unknown(self, name: str) -> BridgeError:
        return not_found("operation", name, self.table)

    def batched(self, name: str) -> Any:
        return Doubling() if name == "batched" else None


class Doubling:
    limits = BatchLimits(8, 0.0)

    def items(self, args: Any) -> list[Any]:
        return [args]

    def run(self, items: list[Any], call: Call) -> list[Any]:
        assert current_session() is None
        return [item * 2 for item in items]

    def joined(self, parts: list[Any]) -> Any:
        return parts[0][0]


class Worker:
    """An executor and who sends it attempts: it keeps of the session what the coordinator keeps."""

    def __init__(self, **changes: Any) -> None:
        self.operations = Acting()
        self.sent: SimpleQueue[Message] = SimpleQueue()
        fd = os.memfd_create("slots")
        os.ftruncate(fd, PAGE_BYTES)
        spec = msgspec.structs.replace(SPEC, **changes)
        self.runner = Runner(self.operations, spec, StartedSlots(fd))  # type: ignore[arg-type]
        os.close(fd)
        self.executor = Executor(2, self.sent.put)
        self.executor.start(self.runner)
        self.epoch = self.seq = 0
        self.snapshot = True
        self.state = b""
        self.turns: list[bytes] = []

    def request(
        self, operation: str, args: Any = None, *, generation: int = 1, payload: bytes | None = None
    ) -> Request:
        self.epoch += 1
        tail = pack_snapshot(self.state, self.turns) if self.snapshot else b""
        own = encode_value(args) if payload is None else payload
        return Request(
            operation=operation, epoch=self.epoch, request_id=self.epoch, session=KEY, payload=own + tail,
            in_session=InSession(generation, self.seq, self.snapshot, len(tail)),
        )  # fmt: skip

    def send(self, request: Request) -> Reply:
        """Run an attempt; return its reply without what the coordinator has taken."""
        if request.operation.startswith("session."):
            return self.take(self.runner.run_in_session(request))
        self.executor.submit(request, time.monotonic())
        return self.reply()

    def reply(self) -> Reply:
        message = self.sent.get(timeout=WAIT_S)
        assert isinstance(message, Reply)
        self.executor.settled(message)
        return self.take(message)

    def take(self, reply: Reply) -> Reply:
        if reply.session is None:
            return reply
        payload, tail = cut_tail(reply.payload or b"", reply.session.tail)
        state, turn = unpack_change(tail) if tail else (None, None)
        assert reply.session.seq == self.seq + (1 if tail else 0)
        self.seq, self.snapshot = reply.session.seq, False
        self.state = self.state if state is None else state
        self.turns += [] if turn is None else [turn]
        return msgspec.structs.replace(reply, payload=payload)

    def do(self, act: Act, operation: str = "threaded", args: Any = None) -> Any:
        """Run a program; return what it answers."""
        self.operations.act = act
        reply = self.send(self.request(operation, args))
        if reply.status != OK:
            raise decode_error(reply.payload or b"")
        return decode_value(reply.payload or b"")

    def refused(self, act: Act, operation: str = "threaded", args: Any = None) -> BridgeError:
        with pytest.raises(BridgeError) as caught:
            self.do(act, operation, args)
        return caught.value

    @property
    def kept(self) -> dict[str, Any]:
        return read_state(self.state)

    @property
    def history(self) -> list[dict[str, Any]]:
        return [read_turn(turn) for turn in self.turns]

    def close(self) -> None:
        self.executor.close()


@pytest.fixture
def make() -> Iterator[Callable[..., Worker]]:
    made: list[Worker] = []

    def build(**changes: Any) -> Worker:
        made.append(Worker(**changes))
        return made[-1]

    yield build
    for worker in made:
        worker.close()


@pytest.fixture
def worker(make: Callable[..., Worker]) -> Worker:
    return make()


def put(values: dict[str, Any], session: Session) -> None:
    session.state.update(values)


# --- state --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", ["threaded", "in turns", "awaited", "off the loop"])
def test_what_a_program_remembers_is_there_at_the_next_call(worker: Worker, operation: str) -> None:
    def count(session: Session) -> int:
        session.state["count"] = session.state.get("count", 0) + 1
        return int(session.state["count"])

    assert [worker.do(count, operation) for _ in range(3)] == [1, 2, 3]
    assert worker.kept == {"count": 3}
    assert worker.seq == 3
    assert worker.do(lambda session: session.id, operation) == "s1"


def test_a_change_deep_inside_is_a_change_and_a_look_is_none(worker: Worker) -> None:
    worker.do(partial(put, {"seen": [{"n": 1}]}))
    worker.do(lambda session: session.state["seen"][0].update(n=2))
    assert worker.kept == {"seen": [{"n": 2}]}
    before = worker.state
    request = worker.request("threaded")
    worker.operations.act = lambda session: dict(session.state)
    worker.executor.submit(request, time.monotonic())
    reply = worker.sent.get(timeout=WAIT_S)
    assert isinstance(reply, Reply)
    assert reply.session is not None
    state, turn = unpack_change(cut_tail(reply.payload or b"", reply.session.tail)[1])
    assert state is None
    assert turn is not None
    assert worker.state == before


def test_a_state_may_become_empty(worker: Worker) -> None:
    worker.do(partial(put, {"a": 1}))
    worker.do(lambda session: session.state.clear())
    assert worker.state == b""
    assert worker.do(lambda session: session.state) == {}


def test_a_call_that_fails_has_changed_nothing(worker: Worker) -> None:
    worker.do(partial(put, {"list": [1]}))

    def fail(session: Session) -> None:
        session.state["list"].append(2)
        session.state["more"] = True
        raise ValueError("no")

    for operation in ("threaded", "in turns", "awaited", "off the loop"):
        assert worker.refused(fail, operation).code == REMOTE_ERROR
    assert worker.kept == {"list": [1]}
    assert worker.do(lambda session: session.state) == {"list": [1]}
    assert [(turn["ok"], turn["error"]) for turn in worker.history[1:]] == [(False, REMOTE_ERROR)] * 4 + [(True, None)]


@pytest.mark.parametrize(
    ("values", "code", "path"),
    [
        ({"a": {"b": object()}}, INVALID_REQUEST, "state.a.b"),
        ({"a b": object()}, INVALID_REQUEST, "state['a b']"),
        ({3: 4}, INVALID_REQUEST, "state"),
        ({"a": "x" * 10_000}, TOO_LARGE, None),
    ],
)
def test_a_state_that_cannot_be_kept_fails_the_call(
    make: Callable[..., Worker], values: dict[Any, Any], code: str, path: str | None
) -> None:
    worker = make(session_bytes=10_000)
    worker.do(partial(put, {"fine": 1}))
    error = worker.refused(partial(put, values))
    assert (error.code, error.details.get("path")) == (code, path)
    assert worker.kept == {"fine": 1}
    assert worker.history[-1]["error"] == code
    assert worker.do(lambda session: session.state) == {"fine": 1}


def test_a_state_that_contains_itself_fails_the_call(worker: Worker) -> None:
    def knot(session: Session) -> None:
        session.state["self"] = session.state

    assert worker.refused(knot).code == INVALID_REQUEST
    assert worker.kept == {}


def test_values_are_set_and_deleted_without_a_turn(worker: Worker) -> None:
    assert worker.send(worker.request("session.set", {"values": {"a": 1, "b": [2]}})).status == OK
    gone = worker.send(worker.request("session.delete", {"keys": ["a", "x"]}))
    assert decode_value(gone.payload or b"") == ["a"]
    assert worker.kept == {"b": [2]}
    assert worker.turns == []
    worker.send(worker.request("session.delete", {"keys": None}))
    assert worker.kept == {}


def test_a_bad_set_changes_nothing_and_says_no_turn(worker: Worker) -> None:
    worker.send(worker.request("session.set", {"values": {"a": 1}}))
    seq = worker.seq
    wrong: list[Any] = [{"values": [1]}, {"values": {1: 2}}, {"value": {}}, None]
    for args in wrong:
        reply = worker.send(worker.request("session.set", args))
        assert decode_error(reply.payload or b"").code == INVALID_REQUEST
        assert reply.session is not None
    assert (worker.seq, worker.kept, worker.turns) == (seq, {"a": 1}, [])


def test_what_works_on_a_session_needs_one() -> None:
    with pytest.raises(BridgeError) as caught:
        set_state({"values": {}}, Call(1, 1, "session.set"))
    assert caught.value.details["path"] == "session"
    assert current_session() is None


# --- turns --------------------------------------------------------------------------------------------


def test_a_turn_says_what_was_said(worker: Worker) -> None:
    started = time.time()
    worker.operations.table["qa@7"] = lambda args, call: Prediction({"answer": args["q"].upper()})
    worker.send(worker.request("qa@7", {"q": "a", "when": (1, 2)}))
    worker.refused(lambda session: 1 / 0, args={"q": "b"})
    first, second = worker.history
    assert first == {
        "operation": "qa", "inputs": {"q": "a", "when": (1, 2)}, "outputs": Prediction({"answer": "A"}), "ok": True,
        "error": None, "at": first["at"], "run_ms": first["run_ms"], "worker": "general-1.1",
    }  # fmt: skip
    assert started <= first["at"] <= second["at"] <= time.time()
    assert 0 <= first["run_ms"] < 10_000
    assert (second["ok"], second["error"], second["inputs"], second["outputs"]) == (
        False,
        REMOTE_ERROR,
        {"q": "b"},
        None,
    )


def test_a_program_reads_the_turns_before_its_own(worker: Worker) -> None:
    def said(session: Session) -> list[Any]:
        return [turn["inputs"] for turn in session.history]

    assert [worker.do(said, args=number) for number in range(3)] == [[], [0], [0, 1]]


def test_the_oldest_turns_go_first(make: Callable[..., Worker]) -> None:
    worker = make(session_turns=3, session_bytes=4_000)

    def said(session: Session) -> list[Any]:
        return [turn["inputs"] for turn in session.history]

    for number in range(5):
        worker.do(said, args=number)
    assert worker.do(said, args=5) == [2, 3, 4]
    worker.do(partial(put, {"large": "x" * 3_800}), args=6)
    assert worker.do(said, args=7) == [6]


def test_what_is_too_large_for_a_turn_is_left_out_and_named(make: Callable[..., Worker]) -> None:
    worker = make(session_bytes=8_000)
    worker.do(lambda session: "y" * 2_000, args="x")
    worker.do(lambda session: "y", args="x" * 2_000)
    first, second = worker.history
    assert (first["inputs"], first["outputs"], first["omitted"]) == ("x", None, ["outputs"])
    assert (second["inputs"], second["outputs"], second["omitted"]) == (None, "y", ["inputs"])


def test_arguments_that_cannot_be_read_leave_a_turn_that_can(worker: Worker) -> None:
    for payload in (b"\x81", b"\xc1garbage", b"", b"\xc7\x01\x55x", encode_value(1) * 2):
        reply = worker.send(worker.request("threaded", payload=payload))
        assert decode_error(reply.payload or b"").code == INVALID_REQUEST
    assert [(turn["inputs"], turn["omitted"], turn["error"]) for turn in worker.history] == [
        (None, ["inputs"], INVALID_REQUEST)
    ] * 5


def test_arrays_are_kept_in_turns(make: Callable[..., Worker]) -> None:
    numpy = pytest.importorskip("numpy")
    worker = make(session_bytes=1 << 22)
    from bridge.protocol.values import encode_parts

    payload = b"".join(encode_parts({"array": numpy.arange(20_000.0)}))
    assert payload[:1] == b"\xc1"
    worker.operations.act = lambda session: None
    assert worker.send(worker.request("threaded", payload=payload)).status == OK
    assert numpy.array_equal(worker.history[0]["inputs"]["array"], numpy.arange(20_000.0))


def test_a_batch_serves_no_session_and_leaves_a_turn_in_each(worker: Worker) -> None:
    reply = worker.send(worker.request("batched", 21))
    assert decode_value(reply.payload or b"") == 42
    assert [(turn["operation"], turn["inputs"], turn["outputs"]) for turn in worker.history] == [("batched", 21, 42)]
    worker.snapshot = False
    worker.seq += 1  # which this worker has never had
    reply = worker.send(worker.request("batched", 21))
    assert decode_error(reply.payload or b"").code == UNAVAILABLE


# --- where it lives -----------------------------------------------------------------------------------


def test_another_worker_goes_on_from_the_snapshot(make: Callable[..., Worker]) -> None:
    first, second = make(), make(worker_id="general-2.1")
    first.do(partial(put, {"a": 1}), args="x")
    second.seq, second.state, second.turns = first.seq, first.state, first.turns

    def seen(session: Session) -> list[Any]:
        return [session.state, [turn["inputs"] for turn in session.history], len(session.local)]

    assert second.do(seen) == [{"a": 1}, ["x"], 0]
    assert second.history[-1]["worker"] == "general-2.1"


def test_a_worker_that_lacks_the_session_says_so(worker: Worker) -> None:
    worker.snapshot = False
    reply = worker.send(worker.request("threaded"))
    error = decode_error(reply.payload or b"")
    assert (error.code, error.retryable, reply.session) == (UNAVAILABLE, True, None)
    worker.snapshot = True
    worker.do(lambda session: None)
    worker.seq += 1
    assert worker.refused(lambda session: None).code == UNAVAILABLE


def test_a_newer_snapshot_takes_the_place_of_what_was_here(worker: Worker) -> None:
    worker.do(partial(put, {"a": 1}))
    worker.do(lambda session: session.local.update(cache=1))
    assert worker.do(lambda session: len(session.local)) == 1
    worker.snapshot = True  # of what this worker has: its own copy stays
    assert worker.do(lambda session: len(session.local)) == 1
    worker.snapshot, worker.seq, worker.state = True, 9, encode_value({"a": 2})
    assert worker.do(lambda session: [session.state, len(session.local)]) == [{"a": 2}, 0]


def test_a_session_that_ends_is_forgotten_and_generations_do_not_meet(worker: Worker) -> None:
    worker.do(partial(put, {"a": 1}))
    assert len(worker.runner.sessions) == 1
    worker.runner.sessions.forget(KEY, 2)
    assert len(worker.runner.sessions) == 1
    other = worker.request("threaded", generation=2)
    reply = worker.send(other)
    assert decode_error(reply.payload or b"").code == UNAVAILABLE
    worker.runner.sessions.forget(KEY, 1)
    assert len(worker.runner.sessions) == 0
    assert worker.refused(lambda session: None).code == UNAVAILABLE


def test_local_objects_stay_with_the_worker(worker: Worker) -> None:
    worker.do(lambda session: session.local.setdefault("object", object()) and None)
    assert worker.do(lambda session: type(session.local["object"]).__name__) == "object"
    worker.runner.sessions.forget(KEY, 1)
    worker.snapshot = True
    assert worker.do(lambda session: len(session.local)) == 0


# --- ends ---------------------------------------------------------------------------------------------


def test_what_is_cancelled_before_it_begins_leaves_the_session_as_it_is(worker: Worker) -> None:
    release = SimpleQueue[None]()
    worker.do(partial(put, {"a": 1}))
    # Two of other sessions take both slots.
    worker.operations.table["hold"] = lambda args, call: release.get(timeout=WAIT_S)
    for epoch in (1001, 1002):
        held = Request(operation="hold", epoch=epoch, request_id=epoch, payload=encode_value(None))
        worker.executor.submit(held, time.monotonic())
    wait_until(lambda: worker.executor.queued == 0, WAIT_S, "both slots are taken")
    waiting = worker.request("threaded")
    worker.executor.submit(waiting, time.monotonic())
    refused = worker.executor.cancel(waiting.epoch)
    assert refused is not None
    assert decode_error(refused.payload or b"").code == CANCELLED
    assert refused.session is not None
    assert (refused.session.seq, refused.session.tail) == (worker.seq, 0)
    release.put(None)
    release.put(None)
    for _ in range(2):
        assert worker.reply().session is None
    assert worker.do(lambda session: session.state) == {"a": 1}


def test_what_begins_too_late_leaves_a_turn(worker: Worker) -> None:
    late = msgspec.structs.replace(worker.request("threaded"), deadline_ms=0.0)
    reply = worker.send(late)
    assert decode_error(reply.payload or b"").code == DEADLINE_EXCEEDED
    assert worker.history[0]["error"] == DEADLINE_EXCEEDED


def test_a_result_that_leaves_no_room_for_the_change_is_too_large(make: Callable[..., Worker]) -> None:
    worker = make(message_bytes=40_000)

    def much(session: Session) -> bytes:
        session.state["a"] = "x" * 20_000
        return b"y" * 30_000

    assert worker.refused(much).code == TOO_LARGE
    assert worker.kept == {}
    assert worker.history[0]["error"] == TOO_LARGE
    assert worker.do(lambda session: session.state) == {}


def test_an_attempt_whose_tail_is_none_is_refused(worker: Worker) -> None:
    good = worker.request("threaded")
    for tail in (len(good.payload or b"") + 1, 3):
        place = InSession(1, 0, True, tail)
        reply = worker.send(msgspec.structs.replace(good, in_session=place, epoch=worker.epoch + 100 + tail))
        assert decode_error(reply.payload or b"").code == INVALID_REQUEST
        assert reply.session is None


# --- shared memory ------------------------------------------------------------------------------------


def test_what_is_of_the_session_stays_out_of_the_segment(tmp_path: Any) -> None:
    worker = Worker()
    folder = tmp_path / "0"
    folder.mkdir()
    large = encode_value(b"x" * 2 * LARGE_BYTES)
    (folder / "7").write_bytes(large + bytes(behind(len(large)) - len(large)) + bytes(4 * LARGE_BYTES))
    lendings = Lendings(str(tmp_path), SPEC.message_bytes)
    request = worker.request("threaded", payload=b"")
    tail = request.payload or b""
    sent = msgspec.structs.replace(request, payload=b"a sample" + tail, segment="7", shared_bytes=len(large))
    taken = lendings.take_in(sent)
    assert taken.payload == large + tail
    there = msgspec.structs.replace(sent, payload=b"a sample", in_session=InSession(1, 0))
    assert lendings.take_in(there).payload == large

    def much(session: Session) -> bytes:
        put({"a": 1}, session)
        return b"y" * LARGE_BYTES

    worker.operations.act = much
    worker.executor.submit(taken, time.monotonic())
    reply = worker.sent.get(timeout=WAIT_S)
    worker.close()
    assert isinstance(reply, Reply)
    assert reply.session is not None
    given = lendings.give_out(reply)
    assert isinstance(given, Reply)
    assert given.shared_bytes > LARGE_BYTES
    state, _ = unpack_change(given.payload or b"")
    assert state == encode_value({"a": 1})
    assert len(given.payload or b"") == reply.session.tail
