"""A real worker process, driven by the frames of its socket: its life, what waits in it, what it sends."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge.protocol import codec
from bridge.protocol.errors import (
    CANCELLED,
    DEADLINE_EXCEEDED,
    INVALID_REQUEST,
    BridgeError,
    decode_error,
    encode_error,
)
from bridge.protocol.messages import (
    BootFailed,
    Cancel,
    Heartbeat,
    Hello,
    Program,
    Ready,
    Recalled,
    Refused,
    Reply,
    Request,
    Started,
    Stop,
    Welcome,
)
from tests.support.worker_process import WorkerProcess, cancel, error_of, recall, value_of

LARGE = b"x" * 10_000


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[WorkerProcess]:
    """Two slots."""
    with WorkerProcess(tmp_path) as process:
        yield process.boot()


@pytest.fixture
def single(tmp_path: Path) -> Iterator[WorkerProcess]:
    """One slot: what comes second waits."""
    with WorkerProcess(tmp_path, slots=1) as process:
        yield process.boot()


# --- birth ------------------------------------------------------------------------------------------


def test_hello_proves_who_it_is(tmp_path: Path) -> None:
    with WorkerProcess(tmp_path) as worker:
        hello = worker.expect(Hello)
        assert (hello.role, hello.worker_id, hello.pool, hello.run_id) == ("worker", "general-0.0", "general", "run")
        assert (hello.token, hello.pid, hello.incarnation) == (b"token 7f3a", worker.process.pid, 0)
        proc = Path(f"/proc/{worker.process.pid}")
        assert b"7f3a" not in proc.joinpath("cmdline").read_bytes() + proc.joinpath("environ").read_bytes()
        assert worker.others() == []
        worker.send(Welcome(run_id="run"))
        ready = worker.expect(Ready)
        assert ready.slots == 2
        assert ready.boot_ms > 0


def test_it_beats_while_it_boots(tmp_path: Path) -> None:
    with WorkerProcess(tmp_path, lms={"boot": {"do": "wait"}}) as worker:
        worker.expect(Hello)
        worker.send(Welcome())
        beats = [worker.expect(Heartbeat) for _ in range(3)]
        assert all(beat.rss_bytes > 1_000_000 for beat in beats)
        assert worker.others() == []


@pytest.mark.parametrize(("how", "type_name"), [("fail", "ImportError"), ("exit", "SystemExit")])
def test_a_failed_boot_is_told_with_its_traceback(tmp_path: Path, how: str, type_name: str) -> None:
    with WorkerProcess(tmp_path, lms={"boot": {"do": how}}) as worker:
        worker.expect(Hello)
        worker.send(Welcome())
        error = decode_error(worker.expect(BootFailed).payload)
        assert error.details["type"] == type_name
        assert "worker_operations.py" in error.details["remote_traceback"]
        assert worker.exit_code() == 1
        assert "boot_failed" in worker.stderr()


def test_a_refused_worker_leaves(tmp_path: Path) -> None:
    with WorkerProcess(tmp_path) as worker:
        worker.expect(Hello)
        worker.send(Refused(payload=encode_error(BridgeError(INVALID_REQUEST, "who are you?"))))
        assert worker.exit_code() == 1
        assert "hello_refused: who are you?" in worker.stderr()


def test_python_path_comes_first(tmp_path: Path) -> None:
    with WorkerProcess(tmp_path, python_path=[str(tmp_path / "mine")]) as worker:
        assert worker.boot().call("path") == [str(tmp_path / "mine"), worker.process.pid]


def test_the_real_operations_boot_and_answer(tmp_path: Path) -> None:
    with WorkerProcess(tmp_path, real=True, lms={"default": {"model": "offline/knn"}}) as worker:
        worker.boot()
        assert worker.call("ping")["pid"] == worker.process.pid
        assert worker.call("echo", {"a": (1, 2)}) == {"a": (1, 2)}
        args = {"signature": "question -> answer", "inputs": {"question": "why?"}}
        assert isinstance(worker.call("dspy.Predict", args).answer, str)
        assert error_of(worker.reply_to(worker.request("dspy.Pedict"))).details["suggestions"]
        worker.send(Stop())
        assert worker.exit_code() == 0


# --- waiting attempts -------------------------------------------------------------------------------


def test_what_waits_can_be_recalled_and_what_runs_cannot(single: WorkerProcess) -> None:
    running, waiting, last = single.hold(), single.request("queued_echo", 1), single.request("queued_echo", 2)
    single.send(recall(running), recall(waiting))
    single.expect(Started, epoch=running.epoch)
    assert single.expect(Recalled, epoch=waiting.epoch).request_id == waiting.request_id
    single.expect(Heartbeat, running=1, queued=1)
    single.send(cancel(running))
    single.reply_to(running)
    single.reply_to(last)
    single.send(recall(last))
    single.expect(Started, epoch=last.epoch)
    assert single.others() == []
    assert single.slots[waiting.epoch] == 0


def test_attempts_start_in_order_of_arrival(single: WorkerProcess) -> None:
    running = single.hold()
    requests = [single.request("queued_echo", number) for number in range(20)]
    single.send(cancel(running))
    single.reply_to(running)
    assert [single.expect(Reply).epoch for _ in requests] == [request.epoch for request in requests]


def test_cancelling_what_waits(single: WorkerProcess) -> None:
    running, waiting = single.hold(), single.request("fail", "exit")
    single.send(cancel(waiting))
    error = error_of(single.reply_to(waiting))
    assert error.code == CANCELLED
    assert "before it started" in error.message
    single.send(cancel(running))
    error = error_of(single.reply_to(running))
    assert error.code == CANCELLED
    assert "while running" in error.message
    single.send(cancel(running), cancel(waiting), Cancel(request_id=1, epoch=999))
    assert single.call("queued_echo", "ok") == "ok"
    assert single.others() == []
    assert single.slots[waiting.epoch] == 0


def test_a_deadline_that_passes_in_the_queue(single: WorkerProcess) -> None:
    running, waiting = single.hold(deadline_ms=300.0), single.request("queued_echo", 1, deadline_ms=100.0)
    error = error_of(single.reply_to(running))
    assert (error.code, error.details["stage"]) == (DEADLINE_EXCEEDED, "running")
    error = error_of(single.reply_to(waiting))
    assert (error.code, error.details["stage"]) == (DEADLINE_EXCEEDED, "queued")
    assert single.slots[waiting.epoch] == 0
    assert single.slots[running.epoch] == running.epoch


@pytest.mark.parametrize("operation", ["echo", "queued_echo"])
@pytest.mark.parametrize("deadline_ms", [0.0, -5.0])
def test_a_deadline_that_is_over(worker: WorkerProcess, operation: str, deadline_ms: float) -> None:
    request = worker.request(operation, 1, deadline_ms=deadline_ms)
    assert error_of(worker.reply_to(request)).details["stage"] == "queued"
    assert worker.slots[request.epoch] == 0


def test_the_slots_tell_what_started_when_the_worker_died(single: WorkerProcess) -> None:
    running, waiting = single.request("die", 7), single.request("queued_echo", 1)
    assert single.exit_code() == 7
    assert single.slots[running.epoch] == running.epoch
    assert single.slots[waiting.epoch] == 0


def test_inline_operations_are_marked_too(worker: WorkerProcess) -> None:
    request = worker.request("echo", 1, epoch=512 * 9 + 3)
    worker.reply_to(request)
    assert worker.slots[3] == request.epoch


# --- the wire ---------------------------------------------------------------------------------------


def test_replies_that_a_full_pipe_refuses_are_sent_later(worker: WorkerProcess) -> None:
    # Some 200 frame lists of 256 KiB; 128 fit into the pipe.
    huge = LARGE * 4
    requests = [worker.request(("echo", "queued_echo")[number % 2], huge) for number in range(1200)]
    replies = {request.epoch: worker.reply_to(request) for request in requests}
    assert all(value_of(reply) == huge for reply in replies.values())
    assert worker.others() == []


@pytest.mark.parametrize("tail", [b"", codec.encode(Request(operation="echo", payload=b"\x01", epoch=77))[0]])
def test_a_frame_that_cannot_be_read_ends_the_worker(worker: WorkerProcess, tail: bytes) -> None:
    """Which attempts it carried is unknown: the coordinator settles them by the worker's death."""
    worker.send_frames([tail + b"\xc1"])
    assert worker.process.wait(10) == 1
    assert worker.stderr().count("frame_unreadable") == 1


def test_programs_come_and_go(worker: WorkerProcess) -> None:
    worker.send(Program(name="qa", program_version=2), Program(name="bad"), Program(name="other", program_version=1))
    assert worker.call("programs") == {"qa": 2, "other": 1}


# --- death ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["stop", "SIGTERM"])
def test_stop_finishes_what_runs_and_gives_the_rest_back(tmp_path: Path, how: str) -> None:
    with WorkerProcess(tmp_path, slots=1) as worker:
        running = worker.boot().hold("ignore", {"until": str(tmp_path / "go")})
        waiting = [worker.request("fail", "exit"), worker.request("queued_echo", 1)]
        worker.call("ping")
        if how == "stop":
            worker.send(Stop())
        else:
            worker.process.send_signal(signal.SIGTERM)
        for request in waiting:
            worker.expect(Recalled, epoch=request.epoch)
        late = [worker.request("echo", 1), worker.request("queued_echo", 2)]
        for request in late:
            worker.expect(Recalled, epoch=request.epoch)
        (tmp_path / "go").touch()
        assert value_of(worker.reply_to(running)) == str(tmp_path / "go")
        assert worker.exit_code() == 0
        assert worker.others() == []
        assert (tmp_path / "closed").exists()


def test_stop_sends_the_last_replies(worker: WorkerProcess) -> None:
    requests = [worker.request("echo", LARGE) for _ in range(50)]
    worker.send(Stop())
    for request in requests:
        assert value_of(worker.reply_to(request)) == LARGE
    assert worker.exit_code() == 0


def test_stop_while_booting(tmp_path: Path) -> None:
    with WorkerProcess(tmp_path, lms={"boot": {"do": "wait"}}) as worker:
        worker.expect(Hello)
        worker.send(Welcome())
        worker.expect(Heartbeat)
        worker.send(Stop())
        assert worker.exit_code() == 0


def test_interrupts_are_ignored(worker: WorkerProcess) -> None:
    worker.process.send_signal(signal.SIGINT)
    assert worker.call("queued_echo", 1) == 1


@pytest.mark.parametrize("moment", ["before hello", "booting", "idle", "running"])
def test_it_does_not_outlive_its_coordinator(tmp_path: Path, moment: str) -> None:
    boot = {"boot": {"do": "wait"}} if moment in ("before hello", "booting") else {}
    with WorkerProcess(tmp_path, lms=boot) as worker:
        if moment == "booting":
            worker.expect(Hello)
        elif moment != "before hello":
            worker.boot()
        if moment == "running":
            worker.hold("ignore", {"until": str(tmp_path / "never")})
        worker.cut_lifeline()
        assert worker.exit_code() == 9
