"""Sessions of a real worker process, driven by the frames of its socket."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge.protocol.errors import UNAVAILABLE
from bridge.protocol.kept import read_turn
from bridge.protocol.messages import InSession, Reply, SessionEnd
from bridge.protocol.sessions import cut_tail, pack_snapshot, unpack_change
from bridge.protocol.values import decode_value, encode_value
from tests.support.worker_process import WorkerProcess, error_of

KEY = "anna\0s1"


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[WorkerProcess]:
    with WorkerProcess(tmp_path) as process:
        yield process.boot()


def call(worker: WorkerProcess, operation: str, seq: int, *, snapshot: bool = False) -> Reply:
    tail = pack_snapshot(b"", []) if snapshot else b""
    place = InSession(1, seq, snapshot, len(tail))
    worker.request(operation, payload=encode_value("hello") + tail, session=KEY, in_session=place)
    reply: Reply = worker.expect(Reply)
    return reply


@pytest.mark.parametrize("operation", ["echo", "queued_echo"])
def test_on_the_io_thread_and_on_others_a_session_goes_on_until_it_is_forgotten(
    worker: WorkerProcess, operation: str
) -> None:
    for seq in range(3):
        reply = call(worker, operation, seq, snapshot=seq == 0)
        assert reply.session is not None
        assert reply.session.seq == seq + 1
        payload, tail = cut_tail(reply.payload or b"", reply.session.tail)
        assert decode_value(payload) == "hello"
        state, turn = unpack_change(tail)
        assert state is None
        assert read_turn(turn or b"")["outputs"] == "hello"
    worker.send(SessionEnd(session=KEY, generation=1))
    reply = call(worker, operation, 3)
    assert (error_of(reply).code, reply.session) == (UNAVAILABLE, None)
    assert call(worker, operation, 0, snapshot=True).session is not None
