"""The command `dspool` in odd surroundings: closed or full streams, a folder that is gone, signals at any moment."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator.rundir import discover, process_ticks
from tests.support.acceptance import ROOT, Family
from tests.support.census import Census
from tests.support.waiting import wait_until

DSPOOL = f"{sys.executable} -m orchestrator.cli"
TIMEOUT_S = 60.0


class Place:
    """A folder with a configuration whose runs and data are its own."""

    def __init__(self, folder: Path, run_dir: Path) -> None:
        self.folder, self.run_dir = folder, run_dir
        pools = {"general": {"size": 1}, "optimizer": {"size": 0}, "neural": {"size": 0}}
        document = {"pools": pools, "run_dir": str(run_dir), "data_dir": str(folder / "data")}
        (folder / "dspool.yaml").write_text(json.dumps(document), encoding="utf-8")

    def shell(self, line: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run a line of shell in which `dspool` stands for the command."""
        environ = {**os.environ, "PYTHONPATH": str(ROOT), **environ}
        return subprocess.run(
            ["bash", "-c", f"set -o pipefail; dspool() {{ {DSPOOL} \"$@\"; }}\n{line}"],
            cwd=self.folder, env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TIMEOUT_S,
            check=False,
        )  # fmt: skip

    def start(self, *words: str, **environ: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "orchestrator.cli", *words], cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **environ}, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip


@pytest.fixture
def place(tmp_path: Path, run_dirs: Callable[[], Path]) -> Iterator[Place]:
    made = Place(tmp_path, run_dirs())
    yield made
    made.shell("dspool down --force")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    import shutil
    import tempfile

    run_dir = Path(tempfile.mkdtemp(prefix="r"))
    place = Place(tmp_path_factory.mktemp("running"), run_dir)
    # Nothing is open: what it opens itself must not get the numbers of the standard streams.
    up = place.shell("dspool up -d <&- >&- 2>&-")
    try:
        assert up.returncode == 0, place.shell(f"cat {run_dir}/coordinator.log")
        yield place
        down = place.shell("dspool down")
        assert (down.returncode, "0 processes left" in down.stdout) == (0, True), down
    finally:
        place.shell("dspool down --force")
        shutil.rmtree(run_dir)


# --- streams ------------------------------------------------------------------------------------


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_disturb_nothing(running: Place, closed: str) -> None:
    done = running.shell(f"dspool call echo n=5 {closed}")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout or '{"n": 5}') == {"n": 5}


DEEP = "$(printf '[%.0s' {1..60000})"
NOT_TAKEN = [
    (f"dspool call echo --args \"{DEEP}\"", 2, "--args is nested too deep"),
    (f"dspool call echo x=\"{DEEP}\"", 2, "x is nested too deep"),
    (f"printf '{{\"a\":%s' \"{DEEP}\" >deep.json; dspool call echo --args @deep.json", 2, "deep.json is nested too"),
    (f"dspool deploy deep '{{\"a\": '\"{DEEP}\"", 2, "the target is nested too deep"),
    ("dspool call echo --args - <&-", 2, "standard input is no JSON"),
    ("printf '\\377' | PYTHONIOENCODING=utf-8 dspool call echo --args -", 2, "standard input is no utf-8 text"),
    ("dspool call echo --args @/", 2, "/ cannot be read: Is a directory"),
    ("dspool call echo n=1 >/dev/full", 1, "No space left on device"),
    ("dspool call echo n=1 --json >/dev/full", 1, "No space left on device"),
    ("dspool status >/dev/full", 1, "No space left on device"),
    ("dspool config show >/dev/full", 1, "No space left on device"),
    ("dspool --help >/dev/full", 1, "No space left on device"),
    ("mkdir gone && cd gone && rmdir ../gone && dspool status", 2, "the current folder has been removed"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "code", "said"), NOT_TAKEN)
def test_what_does_not_work_is_told_in_one_line(running: Place, line: str, code: int, said: str) -> None:
    done = running.shell(line)
    assert done.returncode == code, done
    assert said in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1, done.stderr


def test_a_reader_that_has_had_enough_is_no_error_to_tell(running: Place) -> None:
    done = running.shell("dspool config show | true")
    assert (done.returncode, done.stderr) in [(0, ""), (1, "")]


# Where the terminal is said to take ASCII only, typer prints UTF-8 all the same, with a question mark for half a pair.
@pytest.mark.parametrize(("encoding", "shown"), [("utf-8", r"\ud800é"), ("ascii", "?é")])
def test_half_a_surrogate_pair_is_printed(running: Place, encoding: str, shown: str) -> None:
    line = r"""dspool call echo c='"\ud800é"' """
    told = running.shell(line, PYTHONIOENCODING=encoding)
    assert (told.returncode, shown in told.stdout) == (0, True), told
    told = running.shell(f"{line} --json", PYTHONIOENCODING=encoding)
    assert json.loads(told.stdout)["value"] == {"c": "\ud800é"}


def test_a_broken_file_is_told_by_its_line(place: Place) -> None:
    (place.folder / "dspool.yaml").write_text("log_level: info\npols: {}\n", encoding="utf-8")
    for command in ("status", "down", "call ping"):
        done = place.shell(f"dspool {command}")
        assert done.returncode == 2, done
        assert "dspool.yaml:2: pols: " in done.stderr
        assert "Traceback" not in done.stderr


# --- signals ------------------------------------------------------------------------------------


def coordinators(up: subprocess.Popen[str] | None) -> set[int]:
    """Return the coordinators that run. What `dspool up` has started itself ends at once: it detaches them."""
    found = [each for each in Census.take().processes.values() if " --ready-fd " in f" {each.command} "]
    return {each.pid for each in found if each.state != "Z" and (up is None or each.parent != up.pid)}


def read_until(up: subprocess.Popen[str], part: str) -> None:
    assert up.stdout is not None
    until, text = time.monotonic() + TIMEOUT_S, ""
    while part not in text:
        readable, _, _ = select.select([up.stdout], [], [], max(until - time.monotonic(), 0))
        data = os.read(up.stdout.fileno(), 65536) if readable else b""
        assert data, f"no {part!r} in\n{text}"
        text += data.decode()


# To the command a SIGTERM is what a SIGKILL is: it hears neither.
@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow), signal.SIGKILL]
)
@pytest.mark.parametrize("moment", ["exists", "listens"])
def test_a_detached_start_that_is_broken_off_leaves_nothing(place: Place, number: int, moment: str) -> None:
    before = coordinators(None)
    up = place.start("up", "-d")
    try:
        (pid,) = wait_until(lambda: coordinators(up) - before, 20.0, "a coordinator")
        if moment == "listens":
            wait_until(lambda: discover(place.run_dir), 20.0, "the coordinator to listen")
        family = Family.of(pid)
        up.send_signal(number)
        _, told = up.communicate(timeout=TIMEOUT_S)
    finally:
        up.kill()
        up.communicate()
    assert up.returncode == (130 if number == signal.SIGINT else -number)
    assert "Traceback" not in told
    wait_until(lambda: not family.alive() and coordinators(up) <= before, 10.0, "the coordinator to leave")
    assert discover(place.run_dir) is None
    assert not [path for path in place.run_dir.iterdir() if path.is_dir()]


_CONNECT = """
from orchestrator import connect
connect()
"""


def test_a_connect_that_is_interrupted_while_it_starts_leaves_nothing(place: Place) -> None:
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    starter = subprocess.Popen([sys.executable, "-c", _CONNECT], cwd=place.folder, env=environ, stderr=subprocess.PIPE)
    try:
        info = wait_until(lambda: discover(place.run_dir), 20.0, "the coordinator to listen")
        starter.send_signal(signal.SIGINT)
        assert b"KeyboardInterrupt" in starter.communicate(timeout=TIMEOUT_S)[1]
    finally:
        starter.kill()
        starter.communicate()
    wait_until(lambda: process_ticks(info.pid) is None, 10.0, "the coordinator to leave")


def test_an_interrupt_while_modules_load_is_no_traceback(place: Place) -> None:
    # A module that the command line imports says that it is being loaded, and takes its time.
    slow = "import os, time\nos.write(1, b'loading')\ntime.sleep(60)\n"
    (place.folder / "slow").mkdir()
    (place.folder / "slow" / "typer.py").write_text(slow, encoding="utf-8")
    up = place.start("status", PYTHONPATH=f"{place.folder / 'slow'}:{ROOT}")
    try:
        read_until(up, "loading")
        up.send_signal(signal.SIGINT)
        _, told = up.communicate(timeout=TIMEOUT_S)
    finally:
        up.kill()
        up.communicate()
    assert (up.returncode, told) == (130, "")
