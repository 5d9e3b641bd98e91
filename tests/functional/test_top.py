"""`dspool top`: on a terminal, without one, and as one look."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator

import pytest

from orchestrator import Client, Orchestrator
from tests.support.acceptance import ROOT, SOON_S, pools
from tests.support.waiting import wait_until

COMMAND = [sys.executable, "-m", "orchestrator.cli", "top"]


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with Orchestrator(pools=pools({"size": 1, "slots": 2})) as orchestrator, orchestrator.client() as client:
        yield client


def environment(client: Client) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "DSPOOL_ENDPOINT": client.endpoint, "TERM": "xterm"}


class Terminal:
    """`dspool top` on a terminal of its own. `seen`: what it wrote, without colours."""

    def __init__(self, client: Client) -> None:
        self.fd, theirs = pty.openpty()
        termios.tcsetwinsize(self.fd, (40, 160))
        self.settings = termios.tcgetattr(theirs)
        self._theirs = theirs
        self.process = subprocess.Popen(
            [*COMMAND, "--every", "0.2"], stdin=theirs, stdout=theirs, stderr=theirs, env=environment(client),
            start_new_session=True,
        )  # fmt: skip
        self.seen = ""

    def read(self) -> str:
        """Take what there is; return all that was written so far."""
        while select.select([self.fd], [], [], 0.0)[0]:
            self.seen += re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", os.read(self.fd, 65536).decode("utf-8", "replace"))
        return self.seen

    def leave_by(self, key: bytes) -> int:
        os.write(self.fd, key)
        wait_until(lambda: self.read() is not None and self.process.poll() is not None, SOON_S, "its end")
        return int(self.process.returncode)

    @property
    def restored(self) -> bool:
        """Whether keys are shown and lines are edited as before."""
        return bool(termios.tcgetattr(self._theirs)[3] == self.settings[3])

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.fd)
        os.close(self._theirs)


def test_a_terminal_shows_pools_and_workers_and_follows_them(client: Client) -> None:
    with Terminal(client) as terminal:
        wait_until(lambda: "general-1.1" in terminal.read(), SOON_S, "the first look")
        wait_until(lambda: re.search(r"general +1/1 +0 +0 +0", terminal.read()), SOON_S, "an idle pool")
        future = client.submit("sleep", {"seconds": 1.5})
        wait_until(lambda: re.search(r"general +1/1 +1 +0 +1 ", terminal.read()), SOON_S, "the call")
        wait_until(lambda: "the longest calls" in terminal.read(), SOON_S, "what it runs")
        assert re.search(r"general-1\.1 +sleep +[\d.]+ m?s +0/1 +0 +[\d.]+ m?s", terminal.read())
        assert re.search(r"memory: \d+ % used", terminal.read())
        future.result(SOON_S)
        client.restart("general")
        wait_until(lambda: "general-1.2" in terminal.read(), SOON_S, "the worker's successor")
        wait_until(lambda: "general-1.1 ended after" in terminal.read(), SOON_S, "the worker's end")
        assert ": restarted" in terminal.read()
        assert terminal.leave_by(b"xq") == 0
        assert terminal.restored


def test_an_interrupt_leaves_too(client: Client) -> None:
    with Terminal(client) as terminal:
        wait_until(lambda: "q leaves" in terminal.read(), SOON_S, "the first look")
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.leave_by(b"") == 0
        assert terminal.restored


def test_without_a_terminal_each_look_is_a_line_per_pool(client: Client) -> None:
    with subprocess.Popen(
        [*COMMAND, "--every", "0.1"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
        env=environment(client),
    ) as process:  # fmt: skip
        assert process.stdout is not None
        with contextlib.ExitStack() as stack:
            stack.callback(process.kill)
            first = [process.stdout.readline() for _ in range(6)]
            assert re.fullmatch(r"up [\d.]+ m?s: general: ok, 1/1 ready, 0 busy, 0 queued, .*- per s.*\n", first[0])
            assert re.fullmatch(r"up [\d.]+ m?s: neural: off, 0/0 ready, .*\n", first[2])
            assert re.search(r"general: ok, .* [\d,]+ per s", first[3])
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=SOON_S)
            assert process.returncode == 0


def test_one_look_is_one_document(client: Client) -> None:
    done = subprocess.run(
        [*COMMAND, "--json"], capture_output=True, env=environment(client), timeout=SOON_S, check=True
    )
    look = json.loads(done.stdout)
    assert look["endpoint"] == client.endpoint
    assert look["pools"]["general"]["state"] == "ok"
    assert 0 < look["memory"]["used"] < 1
    assert [row["id"] for row in look["workers"] if row["state"] != "exited"]


def test_where_nobody_coordinates_there_is_nothing_to_see(tmp_path_factory: pytest.TempPathFactory) -> None:
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_RUNTIME_DIR": str(tmp_path_factory.mktemp("empty"))}
    environ.pop("DSPOOL_ENDPOINT", None)
    done = subprocess.run([*COMMAND, "--json"], capture_output=True, env=environ, timeout=SOON_S)
    assert done.returncode == 3, done
    assert b"no coordinator is running" in done.stdout
