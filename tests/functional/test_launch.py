"""Workers are started and watched: real processes, real signals."""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pools.core.events import Exited, Signalled
from pools.launch.command import PACKAGES_ROOT, ChildFds, worker_command
from pools.launch.launcher import LaunchFailed, LaunchSpec, NannyLost, ZygoteSpec
from tests.support.launching import LAUNCHERS, SLEEPER, WAIT_S, Stage, a_stage, nanny_pid
from tests.support.waiting import wait_until


@pytest.fixture(params=LAUNCHERS)
def stage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stage]:
    with a_stage(tmp_path, request.param) as stage:
        yield stage


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("sys.exit(0)", Exited(0)),
        ("sys.exit(7)", Exited(7)),
        ("raise ValueError", Exited(1)),
        ("os.kill(os.getpid(), signal.SIGKILL)", Signalled(9)),
        ("os.kill(os.getpid(), signal.SIGSEGV)", Signalled(11)),
        ("os.kill(os.getpid(), signal.SIGTERM); time.sleep(600)", Signalled(15)),
        ("os.kill(os.getpid(), signal.SIGHUP); time.sleep(600)", Signalled(1)),
    ],
)
def test_how_it_ended(stage: Stage, script: str, reason: object) -> None:
    stage.launch("w", script)
    event = stage.reaped("w")
    assert event.reason == reason
    assert event.peak_rss_bytes > 1_000_000
    assert stage.of("w") == ["Launched", "Died", "Reaped"]


def test_what_a_worker_is_born_with(stage: Stage) -> None:
    stage.launch(
        "w",
        """
        os.write(4, b"slot")
        print(os.read(3, 100).decode(), sys.stdin.read() == "", os.getpgid(0) == os.getpid())
        ours = sorted(int(name) for name in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{name}"))
        print(ours, select.select([5], [], [], 0)[0])
        print([number for number in (2, 15, 1) if signal.getsignal(number) == signal.SIG_IGN])
        print(signal.pthread_sigmask(signal.SIG_BLOCK, []), os.getcwd())
        """,
    )
    stage.reaped("w")
    assert stage.launcher.log_tail("w") == [
        "the spec True True",
        "[0, 1, 2, 3, 4, 5] []",
        "[]",
        f"set() {os.getcwd()}",
    ]
    assert os.pread(stage.slots_fd, 4, 0) == b"slot"


def test_the_environment_is_the_one_asked_for(stage: Stage) -> None:
    env = {"A": "ä", "B": "\udcff", "BIG": "x" * 100_000, "Q": "y" * 100_000, "R": "z" * 100_000}
    stage.scripts["w"] = "print({name: len(value) for name, value in os.environ.items() if name != 'LC_CTYPE'})"
    spec = LaunchSpec("w", sys.executable, b"", stage.slots_fd, {**env, "PYTHONUTF8": "1"}, ZygoteSpec("pool"))
    stage.launcher.launch(spec)
    assert stage.reaped("w").reason == Exited(0), stage.launcher.log_tail("w")
    lengths = {name: len(value) for name, value in env.items()}
    assert stage.launcher.log_tail("w") == [str({**lengths, "PYTHONUTF8": 1})]


@pytest.mark.parametrize("python", ["/no/such/python", "no-such-python", "/etc/hostname", "/"])
def test_missing_interpreter(stage: Stage, python: str) -> None:
    stage.launch("w", "", python)
    event = stage.wait_for(lambda event: isinstance(event, LaunchFailed))
    assert isinstance(event, LaunchFailed)
    assert "Error" in event.error
    assert stage.of("w") == ["LaunchFailed"]
    stage.launch("w", "sys.exit(3)")
    assert stage.reaped("w").reason == Exited(3)


def test_kill_signals_the_worker(stage: Stage) -> None:
    stage.launch("w", "signal.signal(15, lambda *_: sys.exit(5)); " + SLEEPER)
    stage.pid("w")
    stage.launched("w")
    stage.launcher.kill("w", signal.SIGTERM)
    assert stage.reaped("w").reason == Exited(5)
    stage.launcher.kill("w")
    stage.launcher.kill("never heard of")


def test_kill_before_it_exists_is_not_lost(stage: Stage) -> None:
    stage.launch("w", SLEEPER)
    stage.launcher.kill("w")
    assert stage.reaped("w").reason == Signalled(9)


def test_a_living_worker_cannot_be_launched_again(stage: Stage) -> None:
    stage.launch("w", SLEEPER)
    with pytest.raises(ValueError, match="w is alive"):
        stage.launch("w", SLEEPER)


def test_eight_workers(stage: Stage) -> None:
    names = [f"w{number}" for number in range(8)]
    for number, name in enumerate(names):
        stage.launch(name, f"print(me); sys.exit({number})")
    assert [stage.reaped(name).reason for name in names] == [Exited(number) for number in range(8)]
    assert [stage.launcher.log_tail(name) for name in names] == [[name] for name in names]


def test_output_is_kept_after_death_and_dropped_when_told(stage: Stage) -> None:
    stage.launch(
        "w", "for n in range(500): print('out', n)\nprint('\\x1b[1mlast', file=sys.stderr)\nos.write(1, b'half')"
    )
    stage.reaped("w")
    tail = stage.launcher.log_tail("w")
    assert len(tail) == 200
    assert {"out 499", "last", "half"} <= set(tail)
    stage.launcher.forget("w")
    assert stage.launcher.log_tail("w") == []


def test_output_of_a_living_worker_is_not_forgotten(stage: Stage) -> None:
    stage.launch("w", "print('hello', flush=True); note('said'); time.sleep(600)")
    stage.pid("said")
    stage.launched("w")
    stage.launcher.forget("w")
    stage.wait_until(lambda: stage.launcher.log_tail("w") == ["hello"], WAIT_S, "its output")


def test_a_flood_blocks_nobody_and_keeps_little(stage: Stage) -> None:
    stage.launch("quiet", "stay()")
    stage.launch("w", "block = b'0123456789abcde\\n' * 4096\nfor _ in range(800): os.write(1, block)\nsys.exit(4)")
    stage.launched("w")
    before = rss_bytes()
    assert stage.reaped("w").reason == Exited(4)
    assert rss_bytes() - before < 16 << 20
    tail = stage.launcher.log_tail("w")
    assert len(tail) == 200
    assert "bytes of output discarded" in tail[-1]
    assert sum(map(len, tail)) < 10_000


def rss_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_fifty_launches_leak_no_descriptor(stage: Stage) -> None:
    stage.launch("first", "pass")
    stage.reaped("first")
    mine, nannys = (Path(f"/proc/{pid}/fd") for pid in ("self", nanny_pid()))
    before = len(list(mine.iterdir())), len(list(nannys.iterdir()))
    for number in range(50):
        stage.launch(f"w{number}", "pass", "/bin/true" if number % 5 else "/no/such/python")
    for number in range(50):
        stage.ended(f"w{number}")
    # The nanny closes what it gave the last one a moment after it has said how that ended.
    wait_until(lambda: (len(list(mine.iterdir())), len(list(nannys.iterdir()))) == before, 5.0, f"{before} again")


def cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_an_idle_nanny_wakes_twice_a_second(stage: Stage) -> None:
    stage.launch("w", SLEEPER)
    stage.pid("w")
    stage.launched("w")
    pid = nanny_pid()
    before = cpu_ticks(pid)
    assert not select.select([stage.launcher], [], [], 1.5)[0]
    assert cpu_ticks(pid) - before <= 2  # of 150


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_nanny_ignores_polite_signals(stage: Stage, number: int) -> None:
    stage.launch("w", SLEEPER)
    stage.pid("w")  # it obeys, so it has installed its handlers
    os.kill(nanny_pid(), number)
    stage.launch("next", "sys.exit(0)")
    assert stage.reaped("next").reason == Exited(0)
    assert NannyLost() not in stage.events


def test_the_workers_command_finds_the_packages_and_names_the_worker(tmp_path: Path) -> None:
    (tmp_path / "bridge" / "worker").mkdir(parents=True)
    (tmp_path / "bridge" / "__init__.py").touch()
    (tmp_path / "bridge" / "worker" / "__init__.py").touch()
    (tmp_path / "bridge" / "worker" / "__main__.py").write_text("import sys; print(__name__, sys.argv[1:])")
    spec = LaunchSpec("general-0.1", sys.executable, b"", 0, {})
    words = worker_command("run", tmp_path)(spec, ChildFds())
    wanted = ["--spec-fd", "3", "--slots-fd", "4", "--lifeline-fd", "5", "general-0.1", "run"]
    done = subprocess.run(words, cwd=PACKAGES_ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == f"__main__ {wanted}\n"
    assert "PYTHONPATH" not in os.environ
    elsewhere = tmp_path / "elsewhere" / "bridge"
    elsewhere.mkdir(parents=True)
    (elsewhere / "__init__.py").touch()
    env = {**os.environ, "PYTHONPATH": str(elsewhere.parent)}
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=True)
    assert done.stdout == f"__main__ {wanted}\n"


@pytest.mark.parametrize("spare", range(6))
def test_out_of_descriptors_is_a_failed_launch(stage: Stage, spare: int) -> None:
    stage.launch("first", "stay()")
    stage.launched("first")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + spare + 1, limits[1]))
    taken = []
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(0))
        for _ in range(spare):
            os.close(taken.pop())
        stage.launch("w", "pass")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for fd in taken:
            os.close(fd)
    stage.ended("w")
    assert stage.of("w") == ["LaunchFailed"]
    stage.launcher.kill("first")
    assert stage.reaped("first").reason == Signalled(9)
