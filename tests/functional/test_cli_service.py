"""`dspool resize`, `drain`, `restart`, and what `status` says of sizes, memory and long calls, on real workers."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from orchestrator import Client, Orchestrator, errors
from orchestrator.cli import service
from orchestrator.cli.app import app
from tests.support.acceptance import MARKER, SOON_S, await_full, mark, marks, pools
from tests.support.waiting import wait_until

Run = Callable[..., Result]

# A call that ends when a file is there.
HELD = """
import os, time, dspy

class Held(dspy.Module):
    def forward(self, path, release):
        with open(path, "a") as file:
            file.write("1\\n")
        until = time.monotonic() + 20.0
        while not os.path.exists(release) and time.monotonic() < until:
            time.sleep(0.01)
        return dspy.Prediction(released=os.path.exists(release))
"""


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file: while it exists the optimizer's workers cannot boot."""
    return tmp_path_factory.mktemp("gate") / "closed"


@pytest.fixture(scope="module")
def client(gate: Path) -> Iterator[Client]:
    general = {"size": 2, "slots": 1, "prefetch": 0, "heartbeat_interval_s": 0.1}
    python = gate.with_name("python")
    check = f"[ -e {gate} ] && echo 'the disk is not there' >&2 && exit 7"
    python.write_text(f'#!/bin/sh\n{check}\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    optimizer = {"size": 1, "python": str(python), "restart": {"type": "temporary"}}
    held = gate.with_name("held.py")
    held.write_text(HELD)
    with Orchestrator(pools=pools(general, optimizer)) as orchestrator, orchestrator.client() as client:
        client.deploy("marker", MARKER)
        client.deploy("held", f"{held}:Held")
        yield client


@pytest.fixture
def dspool(client: Client) -> Run:
    """Run a command in this process, against this module's coordinator."""
    return lambda *words: CliRunner().invoke(app, words, env={"DSPOOL_ENDPOINT": client.endpoint})


@pytest.fixture(autouse=True)
def _two_workers(client: Client) -> None:
    client.resize("general", 2)
    await_full(client, "general")
    wait_until(lambda: len(living(client)) == 2, SOON_S, "the end of those that leave")


def living(client: Client) -> dict[str, dict[str, Any]]:
    """Return the rows of the general pool's living workers."""
    return {row["id"]: row for row in client.workers() if row["pool"] == "general" and row["state"] != "exited"}


def begin(client: Client, evidence: Path, seconds: float) -> str:
    """Have a worker run a call; return which."""
    client.submit("marker", mark(evidence, 1, seconds))
    wait_until(lambda: marks(evidence), SOON_S, "the call's start")
    return next(name for name, row in living(client).items() if row["in_flight"])


class Held:
    """A call that runs until a command has said so much on standard error, or `release` is called."""

    def __init__(self, client: Client, folder: Path, monkeypatch: pytest.MonkeyPatch, said: str = "") -> None:
        evidence, self._release = folder / "began", folder / "release"
        self._console, self._said = service.err, said
        self._future = client.submit("held", {"path": str(evidence), "release": str(self._release)})
        wait_until(lambda: marks(evidence), SOON_S, "the call's start")
        self.worker = next(name for name, row in living(client).items() if row["in_flight"])
        monkeypatch.setattr(service, "err", lambda: self)

    def print(self, text: str, **kwargs: Any) -> None:
        self._console().print(text, **kwargs)
        if self._said and self._said in text:
            self.release()

    def release(self) -> None:
        self._release.touch()
        assert self._future.result(SOON_S).released


def test_resize_returns_when_the_pool_has_its_size(
    client: Client, dspool: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = dspool("resize", "general", "3")
    assert (told.exit_code, told.stdout) == (0, "general: 3 of 3 workers are ready\n"), told.output
    client.drain(sorted(living(client))[0])  # so that the call is with one of those that are to go
    wait_until(lambda: len(living(client)) == 2, SOON_S, "its end")
    Held(client, tmp_path, monkeypatch, said="finishes 1 row (the pool was resized to 1)")
    told = dspool("resize", "general", "1")
    assert (told.exit_code, told.stdout) == (0, "general: 1 of 1 workers are ready\n")
    assert "the pool was resized to 1" in told.stderr
    assert len(living(client)) == 1
    row = json.loads(dspool("resize", "general", "1:4", "--json").stdout)
    assert (row["size"], row["max_size"], row["replacing"]) == (1, 4, [])
    assert re.search(r"general +1/1–4 ", dspool("status").stdout)  # noqa: RUF001


def test_drain_returns_when_the_worker_has_ended(
    client: Client, dspool: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = Held(client, tmp_path, monkeypatch, said="finishes 1 row (drained)").worker
    told = dspool("drain", name)
    assert (told.exit_code, told.stdout) == (0, f"{name} has ended: drained\n")
    assert f"{name} finishes 1 row (drained)" in told.stderr
    assert list(living(client)) == [other for other in living(client) if other != name]
    told = dspool("restart", name)
    assert (told.exit_code, told.stdout) == (0, f"{name} is restarted\n")
    assert len(living(client)) == 2


def test_restart_returns_when_everybody_is_replaced(client: Client, dspool: Run, tmp_path: Path) -> None:
    before = sorted(living(client))
    begin(client, tmp_path / "marks", 60.0)
    told = dspool("restart", "general", "--grace-s", "0.2", "--json")
    assert told.exit_code == 0, told.output
    document = json.loads(told.stdout)
    assert sorted(document["replacing"]) == before
    assert sorted(document["replaced"]) == before
    assert sorted(document["replaced"].values()) == sorted(living(client))
    assert not set(before) & living(client).keys()


def test_what_is_not_waited_for_is_told(
    client: Client, dspool: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(client, tmp_path, monkeypatch)
    name = held.worker
    told = dspool("restart", name, "--no-wait")
    assert (told.exit_code, told.stdout) == (0, f"to be replaced: {name}\n")
    assert name in living(client)
    held.release()
    wait_until(lambda: name not in living(client), SOON_S, "its end")
    [other, *_] = sorted(living(client))
    row = json.loads(dspool("drain", other, "--no-wait", "--json").stdout)
    assert (row["id"], row["leaving"]) == (other, "drained")


def test_a_spare_that_cannot_boot_fails_the_restart(client: Client, dspool: Run, gate: Path) -> None:
    gate.touch()
    told = dspool("restart", "optimizer")
    gate.unlink()
    assert told.exit_code == 1, told.output
    assert "not replaced: optimizer-1.1 (optimizer-1.2: exit code 7; dspool logs optimizer-1.2)" in told.stderr
    assert "the disk is not there" in dspool("logs", "optimizer-1.2").stdout
    assert client.ping("optimizer")["worker"] == "optimizer-1.1"


class Late:
    """A client whose looks at the pools, but the first, come when nobody is being replaced any more."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._looks = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def pools(self) -> list[dict[str, Any]]:
        self._looks += 1
        if self._looks == 1:
            return self._client.pools()
        wait_until(lambda: not any(row["replacing"] for row in self._client.pools()), SOON_S, "the replacement")
        return self._client.pools()


def test_a_restart_that_ends_between_two_looks_has_not_failed(client: Client) -> None:
    [name, *_] = sorted(living(client))
    told = client.restart(name)
    late: Any = Late(client)
    followers = service._follow_restart(late, name, told["replacing"])
    assert followers[name] in living(client)


def await_text(look: Callable[[], str]) -> str:
    """Return what the waiting ends with."""
    with pytest.raises(errors.Unavailable) as caught:
        wait_until(lambda: not look(), SOON_S, "what is waited for")
    return str(caught.value)


def test_a_place_that_stays_empty_ends_the_waiting(client: Client, tmp_path: Path) -> None:
    name = begin(client, tmp_path / "marks", 60.0)
    client.drain(name)
    drained = rf"out of service: {name.rpartition('.')[0]} \({name} is drained\); dspool restart general"
    assert re.match(drained, await_text(lambda: service._not_filled(client, "general")))
    os.kill(living(client)[name]["pid"], signal.SIGKILL)
    [other] = [each for each in living(client) if each != name]
    client.drain(other)
    wait_until(lambda: not living(client), SOON_S, "the end of both")
    assert f"({other} ended: drained)" in await_text(lambda: service._not_filled(client, "general", other))
    client.resize("general", 0)
    assert service._not_filled(client, "general") == ""
    assert "pool general is off" in await_text(lambda: service._not_filled(client, "general", "general"))


def test_a_worker_that_is_not_started_again_ends_the_waiting(client: Client) -> None:
    [row] = [row for row in client.workers() if row["pool"] == "optimizer" and row["state"] != "exited"]
    os.kill(row["pid"], signal.SIGKILL)
    text = await_text(lambda: service._not_filled(client, "optimizer", "optimizer") or "it still counts as ready")
    assert f"optimizer-1 ({row['id']} ended: " in text


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("resize", "general", "many"), "'many' is no size: write N, or MIN:MAX"),
        (("resize", "general", "0:4"), "'0:4' is no size: MIN must be 1 or more, and MAX not below it"),
        (("resize", "genral", "1"), "did you mean 'general'"),
        (("drain", "general-1.999"), "unknown worker 'general-1.999'"),
        (("restart", "general-9.1"), "unknown worker or pool 'general-9.1'"),
        (("restart", "neural"), "pool neural is off (size 0): resize it"),
    ],
)
def test_what_makes_no_sense_is_wrong_usage(dspool: Run, words: tuple[str, ...], part: str) -> None:
    told = dspool(*words)
    assert (told.exit_code, part in told.stderr) == (2, True), told.output
    document = json.loads(dspool(*words, "--json").stdout)
    assert part in document["error"]["message"]


def test_status_shows_what_runs_for_long_and_memory(client: Client, dspool: Run, tmp_path: Path) -> None:
    assert "running for more than" not in dspool("status").stdout
    name = begin(client, tmp_path / "marks", 60.0)
    wait_until(lambda: living(client)[name]["running"][0:1], SOON_S, "a heartbeat that tells of it")
    wait_until(lambda: living(client)[name]["running"][0]["running_s"] > 1.0, SOON_S, "a long call")
    told = dspool("status").stdout
    assert re.search(rf"{name} +marker +[\d.]+ s +0/1 +0 +[\d.]+ m?s", told), told
    assert re.search(r"^memory: \d+ % used$", told, re.MULTILINE)
    client.restart(name, grace_s=0.0)
