"""Whoever dies, nothing that a worker started outlives its reason to be."""

from __future__ import annotations

import contextlib
import os
import random
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from pools.core.events import Exited, Signalled
from pools.launch.command import PACKAGES_ROOT
from pools.launch.launcher import LaunchFailed, NannyLost
from pools.launch.nanny import children
from tests.support.launching import (
    BREEDER,
    LAUNCHERS,
    PRELUDE,
    SLEEPER,
    WAIT_S,
    Stage,
    a_stage,
    alive,
    nanny_pid,
    noted,
)
from tests.support.waiting import wait_until


@pytest.fixture(params=LAUNCHERS)
def stage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stage]:
    with a_stage(tmp_path, request.param) as stage:
        yield stage


def test_a_descendant_that_holds_the_pipes_delays_nothing(stage: Stage) -> None:
    stage.launch(
        "w", "os.write(1, b'bye\\n')\nif os.fork() == 0: os.setsid(); note('heir'); time.sleep(600)\n" + SLEEPER
    )
    heir = stage.pid("heir")
    stage.pid("w")
    stage.launched("w")
    stage.launcher.kill("w")
    stage.reaped("w")
    assert stage.launcher.log_tail("w") == ["bye"]
    wait_until(lambda: not alive(heir), 2.0, "the heir's death")


@pytest.mark.parametrize("stopped", [False, True])
def test_what_a_worker_started_dies_with_it(stage: Stage, stopped: bool) -> None:
    stage.launch("w", "if os.fork() == 0: note('group'); time.sleep(600)\n" + BREEDER)
    pids = [stage.pid(name) for name in ("w", "w-session", "group")]
    stage.launched("w")
    for pid in pids if stopped else ():
        os.kill(pid, signal.SIGSTOP)
    stage.launcher.kill("w")
    stage.reaped("w")
    wait_until(lambda: not any(map(alive, pids)), 2.0, "the death of what the worker started")


def test_a_daemon_dies_when_adopted_and_its_worker_lives(stage: Stage) -> None:
    stage.launch(
        "w",
        """
        if (child := os.fork()) == 0:
            os.setsid()
            if os.fork() == 0:
                note('daemon'); time.sleep(600)
            os._exit(0)
        os.waitpid(child, 0)
        """
        + SLEEPER,
    )
    worker, daemon = stage.pid("w"), stage.pid("daemon")
    wait_until(lambda: not alive(daemon), 2.0, "the daemon's death")
    assert alive(worker)


@contextlib.contextmanager
def bystander(*, new_session: bool = False) -> Iterator[subprocess.Popen[bytes]]:
    """A child of this process that is no launcher's business: it must survive the block."""
    process = subprocess.Popen(["sleep", "600"], start_new_session=new_session)
    try:
        yield process
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()


def test_nanny_lost(stage: Stage) -> None:
    names = ["w0", "w1", "w2"]
    for name in names:
        stage.launch(name, BREEDER)
    pids = [stage.pid(name + end) for name in names for end in ("", "-session")]
    for name in names:
        stage.launched(name)
    os.kill(pids[-1], signal.SIGSTOP)
    lost = nanny_pid()
    with bystander():
        os.kill(lost, signal.SIGKILL)
        stage.launch("late", SLEEPER)
        for name in names:
            assert stage.reaped(name).reason == Signalled(9)
            assert stage.of(name) == ["Launched", "Died", "Reaped"]
        stage.wait_for(lambda event: isinstance(event, LaunchFailed) and event.worker_id == "late")
        assert stage.events.count(NannyLost()) == 1
        stage.wait_until(lambda: not any(map(alive, pids)), 2.0, "the death of all that it had")
        stage.launch("next", "sys.exit(6)")
        assert stage.reaped("next").reason == Exited(6)
        assert nanny_pid() != lost


def test_children_that_are_no_launchers_business_are_spared(stage: Stage) -> None:
    with bystander(new_session=True):
        stage.launch("w", SLEEPER)
        stage.pid("w")
        with bystander():
            os.kill(nanny_pid(), signal.SIGKILL)
            stage.reaped("w")
            stage.launcher.close()


def test_a_nanny_may_die_at_any_moment(stage: Stage) -> None:
    rng, before = random.Random(11), set(children()) - {nanny_pid()}
    nanny = 0
    for turn in range(10):
        names = [f"w{turn}.{number}" for number in range(3)]
        for name in names:
            stage.launch(name, BREEDER)
        nanny = nanny_pid(dead=nanny)
        for _ in range(rng.randrange(6)):
            select.select([stage.launcher], [], [], 0.02)
            stage.events += stage.launcher.poll()
        waiting = [name for name in names if not stage.of(name)]
        os.kill(nanny, signal.SIGKILL)
        for name in waiting:  # for a zygote, perhaps: then the next nanny has it started
            stage.wait_until(partial(stage.of, name), WAIT_S, f"the start of {name}, or its failure")
            stage.launcher.kill(name)
        for name in names:
            stage.ended(name)
            assert stage.of(name) in (["LaunchFailed"], ["Launched", "Died", "Reaped"])
    if stage.launcher._nanny:  # hired for those that waited
        os.kill(stage.launcher._nanny.pid, signal.SIGKILL)
    stage.wait_until(lambda: set(children()) == before, 2.0, "the death of all that they had")


@pytest.mark.parametrize("stop_nanny", [False, True])
def test_close_leaves_nothing(stage: Stage, stop_nanny: bool) -> None:
    before = set(children()) - {nanny_pid()}
    names = ["w0", "w1"]
    for name in names:
        stage.launch(name, BREEDER)
    pids = [stage.pid(name + end) for name in names for end in ("", "-session")]
    if stop_nanny:
        for name in names:
            stage.launched(name)
        os.kill(nanny_pid(), signal.SIGSTOP)
    started_s = time.monotonic()
    stage.launcher.close()
    assert time.monotonic() - started_s < 5.0
    assert not any(map(alive, pids))
    assert set(children()) == before
    stage.launcher.close()
    assert stage.launcher.poll() == []


LAUNCHER_SCRIPT = f"""
import os, select, sys
sys.path.insert(0, {str(PACKAGES_ROOT)!r})
from pools.launch.launcher import LaunchSpec, ZygoteSpec
from tests.support.launching import open_launcher
def command(spec, fds):
    return [spec.python, "-S", "-c", sys.argv[2] + f"\\nme = {{spec.worker_id!r}}\\n" + sys.argv[3], sys.argv[1]]
launcher = open_launcher(sys.argv[4], command)
slots_fd = os.memfd_create("slots")
for number in range(4):
    launcher.launch(LaunchSpec(f"w{{number}}", sys.executable, b"", slots_fd, dict(os.environ), ZygoteSpec("pool")))
while True:
    select.select([launcher], [], [])
    launcher.poll()
"""


@pytest.mark.parametrize("kind", LAUNCHERS)
@pytest.mark.parametrize("stopped", ["", "workers", "all"])
def test_no_descendant_survives_the_launchers_process(tmp_path: Path, stopped: str, kind: str) -> None:
    words = [sys.executable, "-c", LAUNCHER_SCRIPT, str(tmp_path), PRELUDE, BREEDER, kind]
    launcher = subprocess.Popen(words, stdin=subprocess.DEVNULL)
    workers = [noted(tmp_path, f"w{number}") for number in range(4)]
    sessions = [noted(tmp_path, f"w{number}-session") for number in range(4)]
    nanny = int(Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text())
    for pid in {"": [], "workers": workers, "all": workers + sessions}[stopped]:
        os.kill(pid, signal.SIGSTOP)
    launcher.kill()
    launcher.wait()
    wait_until(lambda: not any(map(alive, [nanny, *workers, *sessions])), 2.0, "the death of every descendant")
