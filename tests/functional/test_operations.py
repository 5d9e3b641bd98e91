"""The built-in operations and the faults of a worker, and embed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from bridge.worker.call import Call, CallStopped
from bridge.worker.operations import Operations
from tests.support.operations import built, refused, run
from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def ops() -> Iterator[Operations]:
    with built() as operations:
        yield operations


def test_ping_echo_and_what_runs_inline(ops: Operations) -> None:
    assert run(ops, "ping", {}) == {"pong": True, "worker": "general-1.1", "pid": os.getpid()}
    assert run(ops, "echo", {"x": [1, (2, None)]}) == {"x": [1, (2, None)]}
    assert ops.inline == {"ping", "echo", "session.set", "session.delete"}


def test_sleep_sleeps(ops: Operations) -> None:
    began = time.monotonic()
    assert run(ops, "sleep", {"seconds": 0.05}) == {"seconds": 0.05}
    assert time.monotonic() - began >= 0.05


def test_sleep_ends_when_cancelled(ops: Operations) -> None:
    call = Call(1, 1, "sleep")
    timer = threading.Timer(0.05, call.cancel)
    timer.start()
    with pytest.raises(CallStopped) as caught:
        run(ops, "sleep", {"seconds": 1e30}, call=call)
    timer.join()
    assert caught.value.error.code == "CANCELLED"


def test_sleep_ends_at_its_deadline(ops: Operations) -> None:
    with pytest.raises(CallStopped) as caught:
        run(ops, "sleep", {"seconds": 60}, deadline=time.monotonic() + 0.05)
    assert caught.value.error.code == "DEADLINE_EXCEEDED"


@pytest.mark.parametrize("seconds", [-1, "1", None, float("nan"), True])
def test_sleep_refuses_what_is_no_time(ops: Operations, seconds: Any) -> None:
    error = refused(ops, "sleep", {"seconds": seconds})
    assert (error.code, error.details["path"]) == ("INVALID_REQUEST", "seconds")


def test_arguments_unknown_missing_or_no_mapping(ops: Operations) -> None:
    assert "did you mean seconds" in refused(ops, "sleep", {"secnds": 1}).message
    assert "sleep needs seconds" in refused(ops, "sleep", {}).message
    assert "takes a mapping" in refused(ops, "sleep", [1]).message
    assert "ping takes no pool" in refused(ops, "ping", {"pool": "general"}).message


@pytest.mark.parametrize(
    ("name", "suggestion"), [("ecko", "echo"), ("dspy.Predct", "dspy.Predict"), ("optimise", "optimize")]
)
def test_unknown_operations_get_a_suggestion(ops: Operations, name: str, suggestion: str) -> None:
    error = ops.unknown(name)
    assert error.code == "NOT_FOUND"
    assert suggestion in error.details["suggestions"]


def test_an_unknown_dspy_module_is_told_which_exist(ops: Operations) -> None:
    assert ops.find("dspy.Flex") is None
    assert "dspy.ChainOfThought" in ops.unknown("dspy.Flex").message


# --- faults -------------------------------------------------------------------------------------------


def test_faults_must_be_enabled(ops: Operations) -> None:
    error = refused(ops, "fault.exit", {})
    assert error.code == "INVALID_REQUEST"
    assert "faults: true" in error.message


def fault(name: str, args: dict[str, Any], before: str = "", after: str = "") -> subprocess.CompletedProcess[bytes]:
    code = (
        "from bridge.worker import faults; from bridge.worker.call import Call\n"
        f"{before}\nresult = faults.operations(enabled=True)[{name!r}]({args!r}, Call(1, 1, {name!r}))\n{after}"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=30, cwd=ROOT)


@pytest.mark.parametrize(
    ("name", "args", "status"),
    [
        ("fault.exit", {"code": 7}, 7),
        ("fault.kill", {}, -signal.SIGKILL),
        ("fault.segv", {}, -signal.SIGSEGV),
        ("fault.hang", {"seconds": 0.01}, 0),
    ],
)
def test_faults_end_the_process_as_they_say(name: str, args: dict[str, Any], status: int) -> None:
    assert fault(name, args).returncode == status


def test_fault_raise() -> None:
    done = fault("fault.raise", {"message": "as asked"})
    assert b"RuntimeError: as asked" in done.stderr


def test_fault_hold_gil_stops_every_thread() -> None:
    before = (
        "import threading, time\nticks = []\n"
        "def tick():\n    while not done.wait(0.005): ticks.append(time.monotonic())\n"
        "done = threading.Event(); thread = threading.Thread(target=tick); thread.start()\n"
        "while not ticks: time.sleep(0.001)"
    )
    after = "done.set(); thread.join(); print(max(b - a for a, b in zip(ticks, ticks[1:] + [time.monotonic()])))"
    assert float(fault("fault.hold_gil", {"seconds": 0.3}, before, after).stdout) >= 0.29


def test_fault_leak_is_resident() -> None:
    before = "import psutil\nrss = psutil.Process().memory_info().rss"
    after = "print(psutil.Process().memory_info().rss - rss, result)"
    assert int(fault("fault.leak", {"mb": 20}, before, after).stdout.split()[0]) >= 20 << 20


def test_fault_stdout_flood() -> None:
    assert len(fault("fault.stdout_flood", {"mb": 2}).stdout) == 2 << 20


def test_fault_spawn_daemon_leaves_a_process_of_another_session() -> None:
    pid = int(fault("fault.spawn_daemon", {"seconds": 60}, after="print(result['pid'])").stdout)
    daemon = psutil.Process(pid)
    assert os.getsid(pid) not in (os.getsid(0), pid)
    daemon.kill()
    wait_until(lambda: not psutil.pid_exists(pid) or daemon.status() == psutil.STATUS_ZOMBIE, 5, "the daemon is gone")


# --- embed --------------------------------------------------------------------------------------------


def test_embed_gives_unit_vectors_that_tell_texts_apart(ops: Operations) -> None:
    vectors = run(ops, "embed", {"texts": ["refund my invoice", "please refund the invoice", "a printer is on fire"]})
    assert (vectors.shape, vectors.dtype) == ((3, 256), np.float32)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert vectors[0] @ vectors[1] > 0.4 > vectors[0] @ vectors[2]


def test_embed_of_nothing_and_of_odd_texts(ops: Operations) -> None:
    assert run(ops, "embed", {"texts": []}).shape == (0, 256)
    vectors = run(ops, "embed", {"texts": ["", "…", "\ud800", "日本語", "x" * 500_000]})
    assert np.isfinite(vectors).all()
    assert not vectors[0].any()
    assert vectors[3].any()


def test_embed_does_not_depend_on_the_batch_nor_the_process(ops: Operations) -> None:
    texts = [f"text number {number} of {'many ' * (number % 7)}" for number in range(600)]
    whole = run(ops, "embed", {"texts": texts})
    assert np.array_equal(run(ops, "embed", {"texts": texts[300:301]})[0], whole[300])
    code = (
        "import sys; from bridge.worker.embedding.hashing import HashEmbedder\n"
        "sys.stdout.buffer.write(HashEmbedder().embed(['text number 300 of ' + 'many ' * 6]).tobytes())"
    )
    env = {**os.environ, "PYTHONHASHSEED": "7"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=30, cwd=ROOT, env=env)
    assert np.array_equal(np.frombuffer(done.stdout, np.float32), whole[300])


@pytest.mark.parametrize(("texts", "path"), [("x", "texts"), (["a", 5], "texts[1]"), (None, "texts")])
def test_embed_refuses_what_is_no_list_of_texts(ops: Operations, texts: Any, path: str) -> None:
    assert refused(ops, "embed", {"texts": texts}).details["path"] == path
