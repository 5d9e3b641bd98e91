from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import threading
from multiprocessing import shared_memory
from pathlib import Path

import pytest

from tests.support.census import Census
from tests.support.waiting import wait_until


def difference(before: Census) -> str:
    return "\n".join(Census.take().difference(before))


def test_same_moment_differs_in_nothing() -> None:
    before = Census.take()
    assert Census.take().difference(before) == []


def test_child_and_zombie_are_seen() -> None:
    before = Census.take()
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        assert f"process {child.pid}, child of {os.getpid()}" in difference(before)
    finally:
        child.kill()
    wait_until(lambda: f"process {child.pid} (zombie)" in difference(before), 5, "the child to be a zombie")
    child.communicate()
    assert difference(before) == ""


def test_orphan_in_its_own_session_is_seen() -> None:
    before = Census.take()
    script = "import os, sys\nif os.fork(): os._exit(0)\nos.setsid(); print(os.getpid(), flush=True); sys.stdin.read()"
    held, holds = os.pipe()  # the orphan reads until this end is closed
    with subprocess.Popen([sys.executable, "-c", script], stdin=held, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        orphan = int(parent.stdout.readline())
    os.close(held)
    try:
        assert f"process {orphan}" in difference(before)
    finally:
        os.close(holds)
    wait_until(lambda: f"process {orphan}" not in difference(before), 5, "the orphan to go")


def test_descriptors_threads_and_sockets_are_seen() -> None:
    before = Census.take()
    path = Path(tempfile.mkdtemp(prefix="dspool-")) / "s"
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait, name="lingerer", daemon=True)
    with socket.socket(socket.AF_UNIX) as listener, open(os.devnull) as _:
        listener.bind(str(path))
        thread.start()
        seen = difference(before)
        assert "thread 'lingerer'" in seen
        assert "descriptor /dev/null" in seen
        assert f"{path}\n" in seen
        assert f"file {path.parent}" in seen
    stop.set()
    thread.join()
    path.unlink()
    path.parent.rmdir()
    assert difference(before) == ""


def test_shared_memory_is_seen() -> None:
    before = Census.take()
    block = shared_memory.SharedMemory(create=True, size=16)
    try:
        assert f"shared memory {block.name}" in difference(before)
    finally:
        block.close()
        block.unlink()
    assert difference(before) == ""


def test_what_a_known_process_starts_is_its_own_affair() -> None:
    script = "import subprocess, sys\nsys.stdin.readline()\nchild = subprocess.Popen(['sleep', '60'])\n"
    script += "print(child.pid, flush=True)\nsys.stdin.read()\nchild.kill(); child.wait()"
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        before = Census.take()
        parent.stdin.write(b"\n")
        parent.stdin.flush()
        assert int(parent.stdout.readline()) > 0
        assert difference(before) == ""
        parent.stdin.close()


def test_waiting_says_what_and_where() -> None:
    with pytest.raises(AssertionError, match=r"(?s)not within 0.05 s: the moon; last value 0.*test_waiting_says_what"):
        wait_until(lambda: 0, 0.05, "the moon")
    assert wait_until(lambda: 7, 1, "seven") == 7


def test_run_dirs_are_short_and_private(run_dirs) -> None:
    first, second = run_dirs(), run_dirs()
    assert first != second
    assert first.stat().st_mode & 0o777 == 0o700
    assert len(os.fsencode(first / ("0" * 32) / "frontend.sock")) <= 107
