"""What the beats of a real worker process tell of its attempts and of its memory."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bridge.protocol.messages import Heartbeat
from bridge.protocol.values import encode_value
from tests.support.worker_process import WAIT_S, WorkerProcess, cancel


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerProcess]:
    """Two slots."""
    with WorkerProcess(tmp_path_factory.mktemp("worker"), heartbeat_interval_s=0.05) as process:
        yield process.boot()


def beat_with(worker: WorkerProcess, wanted: Callable[[Heartbeat], bool]) -> Heartbeat:
    """Return the next beat that is as wanted, in the order in which they came."""
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        beat: Heartbeat = worker.expect(Heartbeat)
        if wanted(beat):
            return beat
    raise AssertionError("no such beat")


def test_beats_tell_how_far_each_attempt_is(worker: WorkerProcess) -> None:
    first = worker.hold("hold_used")
    second = worker.hold()
    waiting = worker.request("queued_echo", 1)
    beat = beat_with(worker, lambda beat: len(beat.attempts) == 2 and beat.queued == 1)
    assert [(epoch, rows, lm_calls) for epoch, _, rows, lm_calls, _ in beat.attempts] == [
        (first.epoch, 0, 2),
        (second.epoch, 0, 0),
    ]
    (_, ran_ms, _, _, was_quiet_ms), _ = beat.attempts
    later = beat_with(worker, lambda beat: beat.attempts[0][1] > ran_ms + 100)
    _, run_ms, _, _, quiet_ms = later.attempts[0]
    # Nothing that can be seen has happened meanwhile, so both times have grown alike.
    assert quiet_ms - was_quiet_ms == pytest.approx(run_ms - ran_ms, abs=0.01)
    worker.send(cancel(first), cancel(second))
    for request in (first, second, waiting):
        worker.reply_to(request)
    assert beat_with(worker, lambda beat: not beat.attempts).running == 0


def test_beats_tell_how_many_rows_are_done(worker: WorkerProcess, tmp_path: Path) -> None:
    files = [tmp_path / "first", tmp_path / "second", tmp_path / "third"]
    request = worker.request("ignore", payload=b"".join(encode_value({"until": str(one)}) for one in files), rows=3)
    for done, file in enumerate(files):
        beat = beat_with(worker, lambda beat, done=done: [one[2] for one in beat.attempts] == [done])  # type: ignore[misc]
        assert beat.attempts[0][0] == request.epoch
        file.touch()
    worker.reply_to(request)


def test_the_memory_of_children_counts_while_they_live(worker: WorkerProcess) -> None:
    alone = beat_with(worker, lambda beat: not beat.attempts).rss_bytes
    request = worker.hold("hold_family", {"mb": 60})
    beside = beat_with(worker, lambda beat: beat.rss_bytes - alone > 60 << 20)
    assert beside.rss_bytes - alone < 120 << 20
    assert beside.running == 1
    worker.send(cancel(request))
    worker.reply_to(request)
    assert beat_with(worker, lambda beat: not beat.attempts).rss_bytes < alone + (30 << 20)


# Prints MiB: alone, with children that only sleep, with one that has written to what it got, and with a program of
# its own that has as much and forks in turn.
FAMILIES = """
import os, signal, subprocess, sys, time
from bridge.worker.memory import FamilyMemory

block = bytearray(os.urandom(1 << 20)) * 60
memory = FamilyMemory()

def mib(least):
    deadline = time.monotonic() + 10
    while (found := memory.rss_bytes() >> 20) < least and time.monotonic() < deadline:
        time.sleep(0.02)
    return found

def fork(work):
    ready, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        work()
        os.write(tell, b"x")
        signal.pause()
    os.read(ready, 1)
    return pid

def write():
    block[::4096] = b"y" * len(block[::4096])

def end(pids):
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)

found = [mib(0)]
pids = [fork(lambda: None) for _ in range(8)]
found.append(mib(found[0] + 1))
pids.append(fork(write))
found.append(mib(found[1] + 60))
end(pids)
text = "import os, signal; b = b'x' * (160 << 20); [os.fork() and signal.pause() for _ in range(3)]; print(flush=True);"
child = subprocess.Popen([sys.executable, "-c", text + "signal.pause()"], stdout=-1)
child.stdout.readline()
found.append(mib(160))
os.kill(child.pid, signal.SIGKILL)
child.wait()
found.append(mib(0))
print(*found, flush=True)
os.killpg(0, signal.SIGKILL)
"""


def test_what_children_share_counts_once() -> None:
    script = [sys.executable, "-c", FAMILIES]
    found = subprocess.run(script, stdout=-1, timeout=WAIT_S, start_new_session=True, check=False).stdout
    alone, idle, written, own, after = map(int, found.split())
    assert alone > 60
    assert alone < idle < alone + 30
    assert idle + 60 <= written < idle + 75
    assert 160 <= own < alone + 160 + 30
    assert after == pytest.approx(alone, abs=5)
